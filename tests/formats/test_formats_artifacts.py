"""Files that other people made, read and compared with a computation of their own."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from konomi.adapters.delta import delta
from konomi.adapters.kinds import LayerUpdate, LowRank
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.cloneofsimo import text_paths, unet_paths

ARTIFACTS = Path(__file__).parents[3] / "shared" / "artifacts"


def artifact(name: str) -> Path:
    path = ARTIFACTS / name
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


def assert_change(update: LayerUpdate, up: torch.Tensor, down: torch.Tensor) -> None:
    """The update is up @ down at scale 1: in float64, on every 16th row, which keeps 200 million
    numbers affordable.
    """
    change = delta(update, torch.zeros(up.shape[0], down.shape[1]))
    assert torch.allclose(
        change[::16].double(), up[::16].double() @ down.double(), rtol=1e-5, atol=1e-6
    )


@cache
def sd1_modules() -> tuple[dict[str, torch.Size], list[str], list[str]]:
    """Shapes of SD1's matrices, and the order in which the first LoRA program met them, read off
    the classes.
    """
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention import GEGLU, Attention

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    shapes = {
        name: module.weight.shape
        for name, module in unet.named_modules()
        if hasattr(module, "weight")
    }
    modules = [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, Attention | GEGLU)
    ]
    # A block of that time held attn1, ff, attn2 in this order; today's holds attn2 before ff.
    order = []
    for block in dict.fromkeys(name.partition(".transformer_blocks.")[0] for name, _ in modules):
        inside = [name for name, _ in modules if name.startswith(f"{block}.")]
        inside.sort(key=lambda name: ("attn1" not in name, "attn2" in name))
        for name in inside:
            if ".ff." in name:
                order.append(f"{name}.proj")
            else:
                order += [
                    f"{name}.{projection}" for projection in ("to_q", "to_k", "to_v", "to_out.0")
                ]
    return shapes, order, [name for name in order if ".ff." not in name]


def test_the_order_of_unnamed_layers_is_that_of_the_modules() -> None:
    _, with_geglu, without = sd1_modules()
    assert unet_paths(with_geglu=True) == with_geglu and len(with_geglu) == 144
    assert unet_paths(with_geglu=False) == without and len(without) == 128
    assert text_paths(48)[:4] == [
        f"text_model.encoder.layers.0.self_attn.{x}_proj" for x in ("k", "v", "q", "out")
    ]


@pytest.mark.parametrize("name", ["analog_svd_rank4.safetensors", "lora_disney.safetensors"])
def test_cloneofsimo_safetensors(name: str) -> None:
    path = artifact(name)
    raw = load_file(path)
    adapter = read_adapter(path)
    shapes, order, _ = sd1_modules()
    assert adapter.family == "sd1" and len(adapter.layers) == 192
    for component, part, paths in (
        ("unet", "denoiser", order),
        ("text_encoder", "text_encoder", text_paths(48)),
    ):
        for index, module in enumerate(paths):
            up, down = raw[f"{component}:{index}:up"], raw[f"{component}:{index}:down"]
            shape = shapes[module] if part == "denoiser" else torch.Size((768, 768))
            assert (up.shape[0], down.shape[1]) == shape
            assert_change(adapter.layers[f"{part}.{module}"], up, down)


def test_tokens_in_a_lora() -> None:
    path = artifact("lora_disney.safetensors")
    adapter = read_adapter(path)
    raw = load_file(path)
    assert set(adapter.embeddings) == {"<s1>", "<s2>"}
    assert torch.equal(adapter.embeddings["<s1>"]["text_encoder"], raw["<s1>"][None])
    assert inspect_file(path).tokens["<s2>"] == {"text_encoder": [1, 768]}


def test_cloneofsimo_pickled_text_encoder() -> None:
    path = artifact("lora_kiriko2.text_encoder.pt")
    raw = torch.load(path, map_location="cpu", weights_only=True)
    adapter = read_adapter(path)
    assert adapter.family == "sd1" and len(adapter.layers) == 48
    for index, module in enumerate(text_paths(48)):
        assert_change(
            adapter.layers[f"text_encoder.{module}"],
            raw[2 * index].detach(),
            raw[2 * index + 1].detach(),
        )


def test_companions_of_a_pickled_lora(tmp_path: Path) -> None:
    text, tokens = artifact("lora_kiriko2.text_encoder.pt"), artifact("lora_kiriko2.ti.pt")
    shapes, _, order = sd1_modules()
    rows = []
    for module in order:
        rows += [torch.randn(shapes[module][0], 2), torch.randn(2, shapes[module][1])]
    torch.save(rows, tmp_path / "k.pt")
    (tmp_path / "k.text_encoder.pt").write_bytes(text.read_bytes())
    (tmp_path / "k.ti.pt").write_bytes(tokens.read_bytes())
    adapter = read_adapter(tmp_path / "k.pt")
    assert len(adapter.layers) == 128 + 48 and set(adapter.embeddings) == {"<krk>"}
    last = adapter.layers["denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"]
    assert isinstance(last, LowRank) and torch.equal(last.up, rows[-2])


def test_the_oldest_diffusers_generation() -> None:
    path = artifact("catundchat_pytorch_lora_weights.safetensors")
    raw = load_file(path)
    adapter = read_adapter(path)
    assert adapter.family == "sd1" and len(adapter.layers) == len(raw) // 2 == 128
    for name in raw:
        if not name.endswith("down.weight"):
            continue
        module = re.sub(r"\.processor\.(to_\w+)_lora\.down\.weight", r".\1", name)
        module = re.sub(r"to_out$", "to_out.0", module)
        assert_change(
            adapter.layers[f"denoiser.{module}"],
            raw[name.replace("down.weight", "up.weight")],
            raw[name],
        )


def test_what_inspect_says_of_each() -> None:
    artifact("README.md")
    seen = {
        path.name: inspect_file(path)
        for path in sorted(ARTIFACTS.iterdir())
        if path.suffix != ".md"
    }
    assert {name: (report.kind, report.format, report.family) for name, report in seen.items()} == {
        "aivazovsky.pt": ("aesthetic embedding", "tensor", "sd1"),
        "analog_svd_rank4.safetensors": ("lora", "cloneofsimo", "sd1"),
        "catundchat_pytorch_lora_weights.safetensors": ("lora", "diffusers", "sd1"),
        "fantasy.pt": ("aesthetic embedding", "tensor", "sd1"),
        "fastai_learned_embeds.bin": ("embedding", "diffusers", "sd1"),
        "lora_disney.safetensors": ("lora", "cloneofsimo", "sd1"),
        "lora_kiriko2.text_encoder.pt": ("lora", "cloneofsimo", "sd1"),
        "lora_kiriko2.ti.pt": ("embedding", "diffusers", "sd1"),
        "sac_8plus.pt": ("aesthetic embedding", "tensor", "sd1"),
    }
    assert seen["fastai_learned_embeds.bin"].tokens == {"<birb-style>": {"text_encoder": [1, 768]}}
    assert seen["analog_svd_rank4.safetensors"].ranks == {"4": 192}
    assert all(
        report.health.checked and not report.health.nonfinite and not report.unknown
        for report in seen.values()
    )


@pytest.mark.parametrize(
    "name", ["lora_disney.safetensors", "catundchat_pytorch_lora_weights.safetensors"]
)
def test_real_files_become_kohya_files_with_the_same_effect(tmp_path: Path, name: str) -> None:
    adapter = read_adapter(artifact(name))
    write_adapter(adapter, tmp_path / "k.safetensors")
    back = read_adapter(tmp_path / "k.safetensors")
    assert back.layers.keys() == adapter.layers.keys() and back.family == "sd1"
    assert back.embeddings.keys() == adapter.embeddings.keys()
    for key, update in adapter.layers.items():
        other = back.layers[key]
        assert isinstance(update, LowRank) and isinstance(other, LowRank)
        assert torch.equal(update.up, other.up) and torch.equal(update.down, other.down)
        assert update.alpha == other.alpha
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_v2"] == "False" and metadata["ss_base_model_version"] == "sd_v1"
