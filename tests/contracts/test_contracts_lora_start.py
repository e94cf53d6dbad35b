"""Going on from a file: what it changes, its ranks and its layers stay, or what is lost is said."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.delta import delta
from konomi.config.blocks import LoraBlocks
from konomi.errors import ModelError, RecipeError
from konomi.formats.adapter_file import write_adapter
from konomi.methods.dreamartist import DreamArtistConfig
from konomi.methods.lora import LoraConfig
from konomi.methods.pivotal import PivotalConfig


def built(kit, config, **options):
    base = kit.base("sd1", **options)
    return base, kit.method(base, kit.recipe(config))


def noise_pred(base, kit):
    examples = kit.examples(seed=9)
    with torch.no_grad():
        conditioning = base.with_sizes(
            base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
        )
        return base.predict(examples.latents.mean, torch.tensor([500, 20]), conditioning)


@pytest.fixture
def trained(kit, tmp_path):
    """A file with attention, convolutions and text encoder in different ranks and scales, and a
    word.
    """

    def write(dora=False, words=True):
        config = LoraConfig(
            rank=3,
            alpha=1.0,
            targets=("cross_attention",),
            conv_rank=2,
            text_rank=5,
            text_alpha=2.0,
            dora=dora,
        )
        _, method = built(kit, config)
        method.plan()
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in method.layers.parameters.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=g))
        adapter = method.export()
        if words:
            adapter = replace(adapter, embeddings={"ohwx": {"text_encoder": torch.ones(1, 32)}})
        path = tmp_path / "old.safetensors"
        write_adapter(adapter, path, dtype=torch.float32)
        return path, adapter

    return write


@pytest.mark.parametrize("options", [{}, {"scaling": "sqrt_rank"}, {"dora": True}], ids=str)
def test_layers_ranks_and_answers_are_the_files(kit, trained, options):
    path, old = trained(dora=options.get("dora", False))
    base, method = built(kit, LoraConfig(start=str(path), **options))
    assert kit.needs(base, method.recipe).trains_text
    (phase,) = method.plan()
    new = method.export()
    assert {key: update.down.shape for key, update in new.layers.items()} == {
        key: update.down.shape for key, update in old.layers.items()
    }
    assert {group.name for group in phase.groups} == {
        "denoiser.a",
        "denoiser.b",
        "text.a",
        "text.b",
    }
    live = noise_pred(base, kit)
    fresh = kit.base("sd1")
    with attach(fresh, [(Adapter(layers=old.layers, family="sd1"), Strengths())]):
        torch.testing.assert_close(live, noise_pred(fresh, kit), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(live, noise_pred(fresh, kit), atol=1e-3)


def test_it_is_said_what_a_file_brings_and_what_is_not_used_of_it(kit, trained):
    path, _ = trained()
    needs = kit.needs(kit.base("sd1"), kit.recipe(LoraConfig(start=str(path))))
    first, second = needs.notes
    assert "ranks 2 to 5, the text encoder too" in first
    assert "ohwx" in second
    assert "optimizer.text_learning_rate" not in needs.unused


def test_layers_that_the_recipe_names_are_trained_beside_the_files(kit, trained):
    path, old = trained()
    _, method = built(kit, LoraConfig(start=str(path), targets=("feed_forward",), rank=3))
    method.plan()
    added = {
        key: layer.spec for key, layer in method.layers.layers.items() if key not in old.layers
    }
    assert added
    assert all(".ff." in key and spec.rank == 3 for key, spec in added.items())


def best(change, rank):
    """The nearest matrix of a rank, in float64 (Eckart-Young), and the relative error."""
    flat = change.flatten(1).double().numpy()
    u, values, v = np.linalg.svd(flat, full_matrices=False)
    nearest = (u[:, :rank] * values[:rank]) @ v[:rank]
    return nearest, np.square(values[rank:]).sum(), np.square(values).sum()


def test_other_ranks_are_cut_by_svd_or_widened_and_said(kit, trained):
    path, old = trained(words=False)
    blocks = LoraBlocks(ranks={"IN*": 2})
    base, method = built(kit, LoraConfig(start=str(path), rank=1, conv_rank=4, blocks=blocks))
    method.plan()
    new, lost, whole = method.export().layers, 0.0, 0.0
    for key, update in new.items():
        conv, text = ".resnets." in key or "samplers" in key, not key.startswith("denoiser.")
        inner = base.layer_block(key).startswith("IN") and not conv and not text
        rank = 4 if conv else 5 if text else 2 if inner else 1
        assert update.rank == rank, key
        change, expected = update.difference().flatten(1).numpy(), old.layers[key].difference()
        wanted, missed, all_of_it = best(expected, rank)
        np.testing.assert_allclose(change, wanted, atol=1e-6)
        if rank < old.layers[key].rank:
            lost, whole = lost + missed, whole + all_of_it
    assert new.keys() >= old.layers.keys()
    notes = kit.needs(kit.base("sd1", lazy=True), method.recipe).notes
    (cut,) = [note for note in notes if "are truncated to the rank of the recipe" in note]
    assert f"loses {(lost / whole) ** 0.5:.2g} of what they change" in cut
    assert any("get the higher rank of the recipe" in note for note in notes)
    # New directions begin at nothing, and learn.
    key = next(key for key in new if ".resnets." in key)
    assert new[key].up.flatten(1)[:, 2:].abs().max() == 0 != new[key].down[2:].abs().min()


def test_layers_that_are_not_to_be_trained_are_left_out(kit, trained):
    path, old = trained(words=False)
    base, method = built(kit, LoraConfig(start=str(path), targets=("transformer", "!IN*", "!TE*")))
    method.plan()
    blocks = {base.layer_block(key) for key in method.export().layers}
    assert blocks and not any(block.startswith(("IN", "TE")) for block in blocks)
    left = [key for key in old.layers if base.layer_block(key).startswith(("IN", "TE"))]
    notes = kit.needs(base, method.recipe).notes
    assert any(f"{len(left)} layers of {path} are not to be trained" in note for note in notes)


def test_other_kinds_are_converted_and_their_error_is_said(kit, tmp_path):
    base = kit.base("sd1", small=True)
    key, conv = (
        next(iter(base.select_layers("cross_attention"))),
        "denoiser.mid_block.resnets.0.conv1",
    )
    g = torch.Generator().manual_seed(0)
    files = {}
    for name in ("loha", "lokr", "ia3", "full"):
        recipe = kit.recipe(LoraConfig(algorithm=name, rank=2, targets=(key, conv)))
        method = kit.method(kit.base("sd1", small=True), recipe)
        method.plan()
        with torch.no_grad():
            for parameter in method.layers.parameters.values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=g))
        files[name] = method.export(), tmp_path / f"{name}.safetensors"
        write_adapter(files[name][0], files[name][1], dtype=torch.float32)
    for name, (old, path) in files.items():
        fresh = kit.base("sd1", small=True)
        config = LoraConfig(rank=3, start=str(path))
        method = kit.method(fresh, kit.recipe(config))
        method.plan()
        new, lost, whole = method.export().layers, 0.0, 0.0
        assert new.keys() == old.layers.keys() == {key, conv}
        for one, update in new.items():
            expected = delta(old.layers[one], base.module(one).weight.detach())
            wanted, missed, all_of_it = best(expected, 3)
            lost, whole = lost + missed, whole + all_of_it
            found = update.difference().flatten(1).numpy()
            np.testing.assert_allclose(found, wanted, atol=2e-5)
        notes = " ".join(kit.needs(fresh, method.recipe).notes)
        said = float(re.search(r"which loses (\S+) of what they change", notes)[1])
        assert said == pytest.approx((lost / whole) ** 0.5, rel=0.06), name
        # Its own algorithm goes on as it is; `full` takes every kind without loss.
        for algorithm in {name, "full"}:
            recipe = kit.recipe(LoraConfig(algorithm=algorithm, rank=2, start=str(path)))
            method = kit.method(kit.base("sd1", small=True), recipe)
            method.plan()
            for one, update in method.export().layers.items():
                weight = base.module(one).weight.detach()
                expected = delta(old.layers[one], weight)
                torch.testing.assert_close(delta(update, weight), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(RecipeError, match=r"is of the kind loha .*own algorithm, or with lora"):
        kit.method(base, kit.recipe(LoraConfig(algorithm="lokr", start=str(files["loha"][1]))))


def test_dora_is_the_files(kit, trained):
    path, _ = trained()
    with pytest.raises(RecipeError, match=r"is no DoRA .*Switch it off"):
        built(kit, LoraConfig(start=str(path), dora=True))
    path, _ = trained(dora=True)
    _, method = built(kit, LoraConfig(start=str(path)))
    method.plan()
    assert all(layer.magnitude is not None for layer in method.layers.layers.values())


def test_a_file_of_another_kind_or_family_is_refused(kit, trained, tmp_path):
    word = tmp_path / "word.safetensors"
    write_adapter(
        Adapter(embeddings={"sks": {"text_encoder": torch.ones(2, 768)}}, family="sd1"), word
    )
    with pytest.raises(RecipeError, match="only learned words, no LoRA"):
        built(kit, LoraConfig(start=str(word)))
    path, _ = trained()
    base = kit.base("sdxl", lazy=True)
    # When the method is made: `check` says it too, and no image was encoded for nothing.
    with pytest.raises(
        ModelError, match=r"method\.start: .*old\.safetensors: .* is for sd1, this base is sdxl"
    ):
        kit.method(base, kit.recipe(LoraConfig(start=str(path))))
    with pytest.raises(ModelError, match=r"method\.lora\.start: .* is for sd1, this base is sdxl"):
        kit.method(base, kit.recipe(PivotalConfig(lora=LoraConfig(start=str(path)))))
    assert base.loaded_parts() == ()


@pytest.mark.parametrize("what", ["wider", "deeper"])
def test_a_file_of_another_size_of_the_family_is_refused(kit, trained, tmp_path, what):
    _, old = trained(words=False)
    key, update = next((k, u) for k, u in old.layers.items() if k.endswith(".attn2.to_q"))
    if what == "wider":
        layers = {**old.layers, key: replace(update, down=torch.ones(3, 640))}
    else:
        layers = {**old.layers, key.replace("_blocks.0.", "_blocks.7."): update}
    write_adapter(replace(old, layers=layers), tmp_path / "other.safetensors")
    base = kit.base("sd1", lazy=True)
    with pytest.raises(ModelError, match=r"method\.start: .*(does not fit|has no layer)"):
        kit.method(base, kit.recipe(LoraConfig(start=str(tmp_path / "other.safetensors"))))
    assert base.loaded_parts() == ()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"modelspec.prediction_type": "v"}, "predicts v"),
        ({"ss_zero_terminal_snr": "True"}, "zero terminal SNR"),
        ({"modelspec.prediction_type": "epsilon", "ss_zero_terminal_snr": "False"}, ""),
    ],
)
def test_a_start_for_another_noise_process_is_said(kit, trained, tmp_path, metadata, said):
    _, old = trained(words=False)
    write_adapter(replace(old, metadata=metadata), tmp_path / "v.safetensors")
    needs = kit.needs(
        kit.base("sd1"), kit.recipe(LoraConfig(start=str(tmp_path / "v.safetensors")))
    )
    notes = [note for note in needs.notes if "says that it was trained" in note]
    assert [said in note for note in notes] == ([True] if said else [])


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(targets=("attention", "projection")),
        DreamArtistConfig(lora_rank=2, targets=("projection",)),
    ],
)
def test_a_word_that_names_no_layer_is_an_error(kit, config, monkeypatch):
    base = kit.base("sd1")
    select_layers = type(base).select_layers
    monkeypatch.setattr(
        type(base),
        "select_layers",
        lambda self, word: {} if word == "projection" else select_layers(self, word),
    )
    with pytest.raises(RecipeError, match="no layers that 'projection' selects"):
        kit.method(base, kit.recipe(config))
    with pytest.raises(ModelError, match="no layers called 'atention'"):
        kit.method(base, kit.recipe(replace(config, targets=("atention",))))
