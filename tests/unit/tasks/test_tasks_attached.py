"""Adapters that stay on a base: it is what it was with them attached, also after a part was sent
away, and everything that knows a base by its weights sees it.
"""

import json
from dataclasses import replace

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.kinds import LowRank
from konomi.config.sections import TextConfig
from konomi.errors import ModelError, RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.formats.trained_for import AttachedFile, attached_metadata, declared_attached
from konomi.generation.adapter_request import AdapterRequest
from konomi.models.random_base import random_base
from konomi.models.save import save_folder
from konomi.tasks.attached import (
    in_order,
    keep_attached,
    training_note,
    without_what_it_was_trained_with,
)


def rank_one(base, key, seed):
    g = torch.Generator().manual_seed(seed)
    out, *into = base.module(key).weight.shape
    down = torch.randn(1, *into, generator=g)
    up = torch.randn(out, 1, *[1 for _ in into[1:]], generator=g)
    return LowRank(down, up, 1.0, magnitude=None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A LoRA with DoRA lengths in denoiser and text encoder, a negative branch, a word and a
    hypernetwork.
    """
    folder, base = tmp_path_factory.mktemp("adapters"), random_base("sd1")
    q, k = sorted(base.select_layers("attention"))[:2]
    text = next(iter(base.select_layers("text")))
    updates = {key: rank_one(base, key, seed) for seed, key in enumerate((q, k, text))}
    lengths = base.module(q).weight.detach().norm(dim=0, keepdim=True) * 1.1
    updates[q] = replace(updates[q], magnitude=lengths)
    negative = Adapter({q: rank_one(base, q, 7)}, family="sd1")
    halves = {word: {"text_encoder": torch.ones(1, 32)} for word in ("branches", "branches-neg")}
    words = {"ohwx": {"text_encoder": torch.ones(1, 32)}}
    adapters = {
        "style": Adapter(updates, family="sd1"),
        "branches": Adapter({k: updates[k]}, halves, family="sd1", negative=negative),
        "ohwx": Adapter(embeddings=words, name="ohwx", family="sd1"),
    }
    paths = {name: folder / f"{name}.safetensors" for name in adapters}
    for name, adapter in adapters.items():
        write_adapter(adapter, paths[name], dtype=torch.float32)
    return paths


def drawn_text(base, caption="an ohwx dog"):
    with torch.no_grad():
        return base.encode_captions([caption], TextConfig()).states


def weights(base):
    parts = {"denoiser": base.denoiser, **base.text_encoders}
    return {f"{part}.{n}": p for part, m in parts.items() for n, p in m.named_parameters()}


def test_the_base_is_what_it_is_with_them_attached(files):
    kept, plain = random_base("sd1"), random_base("sd1")
    attached = keep_attached(
        kept, [f"{files['style']}:0.5", f"{files['branches']}", f"{files['ohwx']}:unet=0:text=2"]
    )
    assert [file.flag for file in attached.files] == [
        "style.safetensors:0.5", "branches.safetensors", "ohwx.safetensors:unet=0:text=2",
    ]  # fmt: skip
    pairs = [
        (read_adapter(files[name]), Strengths(w, w))
        for name, w in (("style", 0.5), ("branches", 1.0))
    ]
    word = (read_adapter(files["ohwx"]), Strengths(0.0, 2.0))
    before, text = {n: p.detach().clone() for n, p in weights(plain).items()}, drawn_text(plain)
    with attach(plain, [*pairs, word]):
        there, wanted = weights(kept), weights(plain)
        assert all(p.equal(there[n]) for n, p in wanted.items())
        assert drawn_text(plain).equal(drawn_text(kept)) and not drawn_text(kept).equal(text)
        negatives = [n for n, p in there.items() if p in kept.negative_weights]
        assert negatives == [n for n, p in wanted.items() if p in plain.negative_weights] != []
        assert all(
            kept.negative_weights[there[n]].equal(plain.negative_weights[wanted[n]])
            for n in negatives
        )
    assert any(not p.equal(before[n]) for n, p in there.items())
    # Sent away and loaded again.
    states = drawn_text(kept)
    kept.unload("text_encoder")
    assert drawn_text(kept).equal(states)
    kept.unload("denoiser")
    assert len(kept.negative_weights) < len(negatives)  # Of the text encoder.
    assert kept.denoiser and len(kept.negative_weights) == len(negatives)
    # Whoever knows it by its weights sees another base, in the parts that changed.
    for part, same in (("denoiser", False), ("text", False), ("vae", True)):
        assert (kept.fingerprint(part) == plain.fingerprint(part)) is same
    notes = training_note(attached, whole_model=True)
    assert "part of the model that is saved" in notes[0]
    assert [note.partition(" ")[0] for note in notes[1:]] == [
        "branches.safetensors", "ohwx.safetensors",
    ]  # fmt: skip
    assert "belongs on a base that has it too" in training_note(attached, whole_model=False)[0]


def test_a_saved_model_has_them_in_full_precision(files, tmp_path):
    kept, plain = random_base("sd1"), random_base("sd1")
    keep_attached(kept, [str(files["style"])])
    kept.place("cpu", torch.bfloat16)
    assert kept.denoiser
    save_folder(kept, tmp_path / "model", dtype=torch.float32)
    from konomi.models.load import load_base

    saved = load_base(tmp_path / "model")
    with attach(plain, [(read_adapter(files["style"]), Strengths())]):
        found = weights(saved)
        assert all(p.equal(found[n]) for n, p in weights(plain).items())


def test_what_does_not_fit_is_refused_before_anything_is_loaded(files):
    base = random_base("sdxl")
    with pytest.raises(ModelError, match=r"adapters: style.safetensors: .*"):
        keep_attached(base, [str(files["style"])])
    with pytest.raises(RecipeError, match="both have the word 'ohwx'"):
        keep_attached(random_base("sd1"), [str(files["ohwx"])] * 2)
    with pytest.raises(RecipeError, match=r"none\.pt:0\.5: there is no file"):
        keep_attached(random_base("sd1"), ["none.pt:0.5"])
    assert base.loaded_parts() == ()
    attached = keep_attached(random_base("sd1"), [f"{files['style']}:0"])
    assert any("at weight 0 changes nothing" in note for note in attached.notes)


def test_a_file_says_what_it_was_trained_with(files, tmp_path):
    style = keep_attached(random_base("sd1"), [f"{files['style']}:0.5"]).files
    top = tmp_path / "top.safetensors"
    metadata = attached_metadata(style)
    assert str(tmp_path) not in json.dumps(metadata) and declared_attached(metadata) == style
    plain = replace(read_adapter(files["branches"]), negative=None, embeddings={})
    write_adapter(replace(plain, metadata=metadata), top)
    requests = [AdapterRequest(top), AdapterRequest(files["style"], 0.5, 0.5)]
    adapters = {one.path: read_adapter(one.path) for one in requests}
    (alone,) = without_what_it_was_trained_with(requests[:1], adapters, ())
    assert "trained with style.safetensors attached, which is not here" in alone
    assert "--add style.safetensors:0.5" in alone
    assert without_what_it_was_trained_with(requests, adapters, ()) == []
    assert without_what_it_was_trained_with(requests[:1], adapters, style) == []
    louder = [requests[0], AdapterRequest(files["style"])]
    (other,) = without_what_it_was_trained_with(louder, adapters, ())
    assert "trained with style.safetensors:0.5 attached; here it is style.safetensors." in other
    # It is put on last, whatever the order on the command line.
    assert in_order(requests, adapters) == [requests[1:], requests[:1]]
    assert in_order(requests[1:], adapters) == [requests[1:]]


@pytest.mark.parametrize(
    "told",
    ["", "no JSON", "{}", "[1, {}]", '[{"name": 1, "sha256": "a", "denoiser": 1, "text": 1}]',
     '[{"name": "a", "sha256": "b", "denoiser": NaN, "text": 1}]', "[" * 5000],
)  # fmt: skip
def test_what_a_stranger_writes_there_is_nothing(told):
    assert declared_attached({"konomi.trained_with": told}) == ()
    assert AttachedFile("a", "b", 1.0, 0.5).flag == "a:unet=1:text=0.5"
