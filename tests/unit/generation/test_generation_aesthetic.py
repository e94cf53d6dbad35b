"""Aesthetic Gradients against a loop written by hand in float64 on transformers' CLIP."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.kinds import Difference
from konomi.config.aesthetic import AestheticConfig
from konomi.config.sections import TextConfig
from konomi.errors import FileFormatError, ModelError, RecipeError
from konomi.formats.aesthetic import AestheticEmbedding, write_aesthetic
from konomi.generation.aesthetic import slerp
from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.models.random_base import random_base
from konomi.tasks.aesthetic_wish import read_wish
from twins import transformers_text

PROJECTED = 24
LONG = "a red cat on a green sofa " * 14
RATE, STEPS = 1e-2, 3


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Layers -> folder of a CLIP whose text encoder has so many, random; of its vision nothing is
    read."""
    folders = {}
    for layers in (3, 4):
        folder = folders[layers] = tmp_path_factory.mktemp(f"clip-{layers}")
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
                "num_attention_heads": 2, "projection_dim": PROJECTED}  # fmt: skip
        (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text}))
        g = torch.Generator().manual_seed(layers)
        tensors = {"text_projection.weight": torch.randn(PROJECTED, 32, generator=g)}
        shapes = {
            "mlp.fc1": (64, 32),
            "mlp.fc2": (32, 64),
            "layer_norm1": (32,),
            "layer_norm2": (32,),
        }
        shapes |= {f"self_attn.{name}_proj": (32, 32) for name in ("q", "k", "v", "out")}
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=g) / 6 + ("norm" in name)
            tensors[f"text_model.encoder.layers.{layers - 1}.{name}.weight"] = weight
            tensors[f"text_model.encoder.layers.{layers - 1}.{name}.bias"] = torch.zeros(shape[0])
        save_file(tensors, folder / "model.safetensors")
    return folders


@pytest.fixture(scope="module")
def bases():
    made = {family: random_base(family) for family in ("sd1", "sd2", "sdxl")}
    for base in made.values():
        assert all(base.text_encoders.values())
    return made


def embedding(tmp_path, width=PROJECTED, seed=0, name="liked.pt"):
    path = tmp_path / name
    g = torch.Generator().manual_seed(seed)
    write_aesthetic(AestheticEmbedding(torch.randn(width, generator=g)), path)
    return str(path)


def gradients(base, **settings):
    return read_wish(AestheticConfig(**{"steps": STEPS, "rate": RATE} | settings)).on(base)


def states_of(base, part):
    return {name: w.clone() for name, w in base.text_encoders[part].state_dict().items()}


def last_layer(folder, layers):
    """The layer that a base lacks, as transformers' own."""
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    settings = json.loads((folder / "config.json").read_text())["text_config"]
    layer = CLIPEncoderLayer(CLIPTextConfig(**settings, attn_implementation="eager"))
    begin = f"text_model.encoder.layers.{layers - 1}."
    tensors = load_file(folder / "model.safetensors")
    layer.load_state_dict({k[len(begin) :]: w for k, w in tensors.items() if k.startswith(begin)})
    return layer.double().requires_grad_(False)


def tuned_by_hand(base, part, prompt, direction_P, projection_PD, *, tail=None, away=False):
    """transformers' text encoder with the base's weights after STEPS of torch's Adam, float64."""
    encoder = next(one for one in base.loaded_encoders() if one.part == part)
    spec = base.spec.part(part)
    twin = transformers_text(encoder.module, base.source.configs[spec.folder])
    twin = copy.deepcopy(twin).double().requires_grad_(False)
    ids = encoder.tokenizer.ids(prompt)
    pad, start, end = (getattr(encoder.tokenizer, f"{k}_token_id") for k in ("pad", "bos", "eos"))
    chunks = [ids[i : i + 75] for i in range(0, len(ids), 75)]
    rows = torch.tensor([[start, *c, end, *[pad] * (75 - len(c))] for c in chunks])
    body = getattr(twin, "text_model", twin)
    body.requires_grad_(True)
    adam = torch.optim.Adam(body.parameters(), lr=RATE)
    for _ in range(STEPS):
        hidden = twin(rows, output_hidden_states=True).hidden_states[-1]
        if tail is not None:
            causal = torch.full((77, 77), float("-inf"), dtype=torch.float64).triu(1)
            answer = tail(hidden, causal[None, None])
            hidden = answer[0] if isinstance(answer, tuple) else answer
        normed = body.final_layer_norm(hidden)
        pooled = torch.stack([normed[i, len(c) + 1] for i, c in enumerate(chunks)])
        features = functional.normalize(pooled @ projection_PD.double().T, dim=1)
        loss = (features @ direction_P.double()).mean() * (1 if away else -1)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        return rows, body, twin(rows, output_hidden_states=True).hidden_states


@pytest.mark.parametrize(
    ("family", "part", "layers", "prompt", "skip"),
    [
        ("sd1", "text_encoder", 3, "a red cat", 1),
        pytest.param("sd1", "text_encoder", 3, LONG, 2, marks=pytest.mark.slow),
        ("sd2", "text_encoder", 4, "a red cat", 1),
        pytest.param("sdxl", "text_encoder", 3, "a red cat", 2, marks=pytest.mark.slow),
        ("sdxl", "text_encoder_2", 0, "a red cat", 2),
    ],
)
def test_tuned_states_are_those_of_a_loop_by_hand(
    bases, clips, tmp_path, family, part, layers, prompt, skip
):
    base = bases[family]
    whole = part == "text_encoder_2"
    width = 32 if whole else PROJECTED
    before = {name: states_of(base, name) for name in base.text_encoders}
    addresses = [p.data_ptr() for p in base.text_encoders[part].parameters()]
    aesthetic = gradients(
        base, files=(embedding(tmp_path, width),), clip="" if whole else str(clips[layers])
    )
    ((tower, direction_P),) = aesthetic.goals
    assert (tower.encoder.part, tower.is_whole) == (part, whole)
    text = base.uncut([prompt], TextConfig(clip_skip=skip, emphasis=True))
    plain = base.encode_captions([prompt], text)
    with torch.no_grad():
        tuned = aesthetic.encode(base, prompt, text)
    # Afterwards nothing has changed, not even where the weights lie.
    for name, weights in before.items():
        for key, weight in base.text_encoders[name].state_dict().items():
            assert torch.equal(weight, weights[key])
    assert addresses == [p.data_ptr() for p in base.text_encoders[part].parameters()]
    assert all(p.grad is None for p in base.text_encoders[part].parameters())
    assert torch.equal(base.encode_captions([prompt], text).states, plain.states)

    tail = last_layer(clips[layers], layers) if family == "sd2" else None
    _, body, hidden = tuned_by_hand(base, part, prompt, direction_P, tower.projection_PD, tail=tail)
    states = hidden[-skip]
    if tower.encoder.final_norm:
        states = body.final_layer_norm(states)
    states = states.detach().flatten(0, 1)[None]
    start = 32 if whole else 0
    ours = tuned.states[..., start : start + 32]
    moved = (ours - plain.states[..., start : start + 32]).norm()
    assert moved > 0.05 * ours.norm()
    assert (ours - states).norm() < 2e-3 * moved
    if family == "sdxl":  # The other text encoder is as it was.
        other = slice(0, 32) if whole else slice(32, 64)
        assert torch.equal(tuned.states[..., other], plain.states[..., other])
        assert torch.equal(tuned.pooled, plain.pooled) is not whole


def test_weights_text_slerp_emphasis_and_the_negative_prompt(bases, clips, tmp_path):
    base, clip = bases["sd1"], str(clips[3])
    one, two = embedding(tmp_path), embedding(tmp_path, seed=1, name="two.safetensors")
    text = TextConfig(emphasis=True)

    def states(*files, prompt="a cat", away=False, **settings):
        aesthetic = gradients(base, files=files, clip=clip, **settings)
        with torch.no_grad():
            aesthetic = aesthetic.turned(base, text)
            return aesthetic.encode(base, prompt, text, away=away).states

    def goal(*files, **settings):
        aesthetic = gradients(base, files=files, clip=clip, **settings).turned(base, text)
        return aesthetic.goals[0][1]

    plain, full = base.encode_captions(["a cat"], text).states, states(one)
    torch.testing.assert_close(states(f"{one}:0.25"), plain + 0.25 * (full - plain))
    torch.testing.assert_close(states(f"{one}:0.25", slerp=True), slerp(plain, full, 0.25))
    assert torch.equal(states(f"{one}:-1"), states(one, away=True))
    unit = [functional.normalize(torch.load(one)[0], dim=0), goal(two)]
    mixed = functional.normalize(0.75 * unit[0] - 0.25 * unit[1], dim=0)
    torch.testing.assert_close(goal(f"{one}:0.75", f"{two}:-0.25"), mixed)
    tower = gradients(base, files=(one,), clip=clip).goals[0][0]
    with torch.no_grad():
        words = tower.features("blue", text)[0][0]
    for share in (0.3, -0.3):
        turned = goal(one, text="blue", text_share=share)
        angles = [torch.acos(v @ (words if share > 0 else -words)) for v in (unit[0], turned)]
        torch.testing.assert_close(angles[1], 0.7 * angles[0], rtol=1e-4, atol=1e-4)
        assert turned.norm() == pytest.approx(1, abs=1e-5)
    # Emphasis weighs states after tuning, which reads the words alone.
    weighted = states(one, prompt="a (cat:1.5)")
    ratio = weighted / full
    torch.testing.assert_close(ratio[0, 2], 1.5 * ratio[0, 1])
    torch.testing.assert_close(ratio[0, 1].std(), torch.tensor(0.0), atol=1e-4, rtol=0)


def test_a_batch_of_seeds_pays_once_and_starts_from_the_weights_that_are_loaded(
    bases, clips, tmp_path, monkeypatch
):
    import konomi.generation.aesthetic as module

    base = bases["sd1"]
    calls = []
    adam = module.adam

    def counted(loss, parameters, **options):
        calls.append([p.detach().clone() for p in parameters])
        adam(loss, parameters, **options)

    monkeypatch.setattr(module, "adam", counted)
    file, clip = embedding(tmp_path), str(clips[3])
    request = Request(prompt="a cat", width=32, height=32, steps=2, guidance=3, negative="grey")
    requests = [request, Request.of(request, prompt="a cat", seed=1, width=32, height=32)]
    drawn = {}
    for negative in (False, True):
        aesthetic = gradients(base, files=(file,), clip=clip, negative=negative)
        drawn[negative] = [one.image for one in generate(base, requests, aesthetic=aesthetic)]
        assert len(calls) == (2 if negative else 1)
        calls.clear()
    assert drawn[False][0].tobytes() != drawn[True][0].tobytes()
    key = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    change = Difference(weight=torch.full((64, 32), 0.1))
    with attach(base, [(Adapter(layers={key: change}, family="sd1"), Strengths())]):
        loaded = [p.detach().clone() for p in base.text_encoders["text_encoder"].parameters()]
        aesthetic = gradients(base, files=(file,), clip=clip)
        list(generate(base, requests[:1], aesthetic=aesthetic))
        assert all(torch.equal(a, b) for a, b in zip(calls[0], loaded, strict=True))
    assert isinstance(base.text_encoders["text_encoder"], nn.Module)


def test_what_cannot_be_tuned_is_refused_in_one_line(bases, clips, tmp_path):
    file = embedding(tmp_path, 40)
    with pytest.raises(ModelError, match=r"features are 24 wide, and the embedding is 40 wide"):
        gradients(bases["sd1"], files=(file,), clip=str(clips[3]))
    with pytest.raises(ModelError, match=r"features are 24 and 32 wide"):
        gradients(bases["sdxl"], files=(file,), clip=str(clips[3]))
    with pytest.raises(ModelError, match=r"no folder of a CLIP model"):
        gradients(bases["sd1"], files=(file,), clip="nowhere")
    with pytest.raises(RecipeError, match=r"--aesthetic no.pt: there is no no.pt"):
        read_wish(AestheticConfig(files=("no.pt",)))
    with pytest.raises(RecipeError, match=r"cancel out"):
        read_wish(AestheticConfig(files=(file, f"{file}:-1")))
    with pytest.raises(RecipeError, match=r"steps is -1"):
        read_wish(AestheticConfig(files=(file,), steps=-1))
    for content, why in (
        (torch.zeros(1, 768), "is zero"),
        (torch.full((768,), float("nan")), "NaN"),
        (torch.ones(3, 768), "no aesthetic embedding"),
        ({"a": torch.ones(768)}, "no aesthetic embedding"),
        (torch.ones(768, dtype=torch.int64), "int64"),
    ):
        torch.save(content, tmp_path / "bad.pt")
        with pytest.raises(FileFormatError, match=why):
            read_wish(AestheticConfig(files=(str(tmp_path / "bad.pt"),)))
