"""DoRA in files: what A1111, ComfyUI, LyCORIS, PEFT and diffusers compute from them is what was
trained.

The formulas of the web UIs are written down here from what they are documented to compute; LyCORIS
and PEFT judge themselves.
"""

import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import delta
from konomi.adapters.kinds import LowRank
from konomi.adapters.kinds.low_rank import LoraSpec
from konomi.adapters.layers import TrainedLayers, inject
from konomi.errors import FileFormatError, RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.methods.lora import LoraConfig, dora_axis
from konomi.tasks.files import convert

BLOCK = "denoiser.mid_block.attentions.0.transformer_blocks.0"
SQUARE, WIDE, CONV = (
    f"{BLOCK}.attn1.to_q",
    f"{BLOCK}.attn2.to_k",
    "denoiser.mid_block.resnets.0.conv1",
)


class Net(nn.Module):
    """A square and an oblong linear layer, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.modules_by_key = nn.ModuleList(
            [nn.Linear(8, 8), nn.Linear(768, 8), nn.Conv2d(8, 6, 3, padding=1)]
        )
        self.keys = dict(zip((SQUARE, WIDE, CONV), range(3), strict=True))
        self.negative_weights: dict[nn.Parameter, Tensor] = {}

    def module(self, key: str) -> nn.Module:
        return self.modules_by_key[self.keys[key]]

    def layers(self) -> dict[str, nn.Module]:
        return {key: self.module(key) for key in self.keys}

    def weights(self) -> dict[str, Tensor]:
        return {key: self.module(key).weight.detach().clone() for key in self.keys}  # type: ignore[union-attr]


def trained(axis: str) -> tuple[Net, TrainedLayers]:
    """A net whose update has moved away from its start, by an alpha that is not the rank."""
    net = Net()
    spec = LoraSpec(rank=2, alpha=1.0, dora=True, dora_axis=axis)  # type: ignore[arg-type]
    layers = inject(net.layers(), lambda key: spec, seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in layers.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net, layers


def forward(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Conv2d):
        x = torch.randn(2, module.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    else:
        x = torch.randn(5, module.in_features, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    out: Tensor = module(x)
    return out.detach()


def kohya_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """Canonical key -> the file's own tensors."""
    tensors = load_file(path)
    names = {
        key: "lora_unet_" + key.removeprefix("denoiser.").replace(".", "_")
        for key in (SQUARE, WIDE, CONV)
    }
    return {key: {n.split(".", 1)[1]: t for n,
    t in tensors.items() if n.startswith(f"{name}.")} for key, name in
            names.items()}  # fmt: skip


def product(parts: dict[str, Tensor], weight: Tensor) -> Tensor:
    return (parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)).reshape(
        weight.shape
    )


def a1111(
    weight: Tensor, parts: dict[str, Tensor], strength: float, *, scale_after: bool = False
) -> Tensor:
    """Lengths over all axes but the inputs, whatever the scale's shape; before version 1.10 alpha
    counts afterwards.
    """
    scale = float(parts["alpha"]) / parts["lora_down.weight"].shape[0]
    merged = weight + product(parts, weight) * (1.0 if scale_after else scale)
    lengths = merged.transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1, keepdim=True)
    lengths = lengths.reshape(weight.shape[1], *[1] * (weight.dim() - 1)).transpose(0, 1)
    change = merged * (parts["dora_scale"] / lengths) - weight
    return weight + change * strength * (scale if scale_after else 1.0)


def comfyui(weight: Tensor, parts: dict[str, Tensor], strength: float) -> Tensor:
    """The axis by the scale's shape: per output where its first side is the weight's."""
    merged = weight + product(parts, weight) * (
        float(parts["alpha"]) / parts["lora_down.weight"].shape[0]
    )
    scale, tiny = parts["dora_scale"], torch.finfo(weight.dtype).eps
    if scale.shape[0] == merged.shape[0]:
        lengths = (
            merged.reshape(len(merged), -1)
            .norm(dim=1, keepdim=True)
            .reshape(-1, *[1] * (merged.dim() - 1))
        )
    else:
        lengths = merged.transpose(0, 1).reshape(merged.shape[1], -1).norm(dim=1, keepdim=True)
        lengths = lengths.reshape(merged.shape[1], *[1] * (merged.dim() - 1)).transpose(0, 1)
    return weight + strength * (merged * (scale / (lengths + tiny)) - weight)


def lycoris(weight: Tensor, parts: dict[str, Tensor]) -> Tensor:
    """LyCORIS' own layer, of the axis that the file has."""
    pytest.importorskip("lycoris")
    from lycoris.modules.locon import LoConModule

    if weight.dim() == 4:
        base: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=1)
    else:
        base = nn.Linear(weight.shape[1], weight.shape[0])
    base.weight.data.copy_(weight)
    per_output = parts["dora_scale"].shape[0] != 1
    rank = parts["lora_down.weight"].shape[0]
    module = LoConModule(
        "x", base, 1.0, rank, float(parts["alpha"]), weight_decompose=True, wd_on_out=per_output
    )
    with torch.no_grad():
        module.lora_up.weight.copy_(parts["lora_up.weight"])
        module.lora_down.weight.copy_(parts["lora_down.weight"])
        module.dora_scale.copy_(parts["dora_scale"])
    merged: Tensor = module.get_merged_weight()[0]
    return merged.detach()


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("key", [SQUARE, WIDE, CONV], ids=["square", "wide", "conv"])
def test_a_kohya_file_means_the_same_to_every_web_ui(
    tmp_path: Path, key: str, strength: float
) -> None:
    net, layers = trained("input")
    live = forward(net.module(key))
    write_adapter(
        Adapter(layers=layers.export().layers, family="sd1"), tmp_path / "x.safetensors", "kohya"
    )
    layers.detach()
    weight, parts = net.weights()[key], kohya_parts(tmp_path / "x.safetensors")[key]
    read = read_adapter(tmp_path / "x.safetensors").layers[key]
    wanted = weight + strength * delta(read, weight)
    judges = [
        a1111(weight, parts, strength),
        a1111(weight, parts, strength, scale_after=True),
        comfyui(weight, parts, strength),
    ]
    # At other strengths LyCORIS scales lengths alone, and keeps the whole change of direction.
    judges += [lycoris(weight, parts)] if strength == 1.0 else []
    for theirs in judges:
        torch.testing.assert_close(theirs, wanted, rtol=1e-5, atol=2e-6)
    assert (wanted - weight).abs().max() > 0.01
    if strength == 1.0:
        net.module(key).weight.data.copy_(a1111(weight, parts, strength))
        torch.testing.assert_close(forward(net.module(key)), live, rtol=1e-4, atol=1e-5)


def test_magnitudes_per_output_are_refused_for_kohya_because_the_web_uis_disagree(
    tmp_path: Path,
) -> None:
    net, layers = trained("output")
    adapter = Adapter(layers=layers.export().layers, family="sd1")
    layers.detach()
    weight, update = net.weights()[SQUARE], layers.export().layers[SQUARE]
    parts = {
        "lora_up.weight": update.up,
        "lora_down.weight": update.down,
        "alpha": torch.tensor(update.alpha),
    }
    parts["dora_scale"] = update.magnitude  # type: ignore[assignment]
    wanted = weight + delta(update, weight)
    torch.testing.assert_close(comfyui(weight, parts, 1.0), wanted, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(lycoris(weight, parts), wanted, rtol=1e-5, atol=2e-6)
    assert (a1111(weight, parts, 1.0) - wanted).abs().max() > 0.05
    for target in ("kohya", "webui", None):
        with pytest.raises(
            FileFormatError, match=r"per output, which A1111 would take for magnitudes per input"
        ):
            write_adapter(adapter, tmp_path / "x.safetensors", target)  # type: ignore[arg-type]
    assert not (tmp_path / "x.safetensors").exists()


def test_what_others_wrote_per_output_becomes_plain_differences_with_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, layers = trained("output")
    layers.detach()
    tensors = {}
    for key, update in layers.export().layers.items():
        name = "lora_unet_" + key.removeprefix("denoiser.").replace(".", "_")
        tensors |= {f"{name}.lora_down.weight": update.down, f"{name}.lora_up.weight": update.up}
        tensors |= {
            f"{name}.alpha": torch.tensor(update.alpha),
            f"{name}.dora_scale": update.magnitude,
        }
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        tmp_path / "lycoris.safetensors",
    )
    monkeypatch.setattr("konomi.tasks.files.load_base", lambda base, **_: net)
    with pytest.raises(FileFormatError, match="--base BASE"):
        convert(tmp_path / "lycoris.safetensors", tmp_path / "x.safetensors")
    convert(tmp_path / "lycoris.safetensors", tmp_path / "x.safetensors", to="webui", base="it")
    for key, parts in kohya_parts(tmp_path / "x.safetensors").items():
        assert set(parts) == {"diff"}
        wanted = delta(layers.export().layers[key], net.weights()[key])
        torch.testing.assert_close(parts["diff"], wanted, rtol=1e-6, atol=1e-7)


def test_peft_computes_what_was_trained_per_output(tmp_path: Path) -> None:
    net, layers = trained("output")
    live = {key: forward(module) for key, module in net.layers().items()}
    write_adapter(Adapter(layers=layers.export().layers, family="sd1"), tmp_path / "p", "peft")
    layers.detach()
    tree = nn.Module()
    for key, module in net.layers().items():
        parent = tree
        *path, last = key.removeprefix("denoiser.").split(".")
        for name in path:
            if not hasattr(parent, name):
                parent.add_module(name, nn.Module())
            parent = parent.get_submodule(name)
        parent.add_module(last, module)
    theirs = PeftModel.from_pretrained(tree, tmp_path / "p").merge_and_unload()
    for key, wanted in live.items():
        module = theirs.get_submodule(key.removeprefix("denoiser."))
        torch.testing.assert_close(forward(module), wanted, rtol=1e-4, atol=1e-5)


def test_pefts_own_dora_is_read_as_peft_computes_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tree = nn.ModuleDict({"to_q": nn.Linear(8, 8)})
    weight = tree["to_q"].weight.detach().clone()
    theirs = get_peft_model(
        tree, PeftLoraConfig(r=2, lora_alpha=1, use_dora=True, target_modules=["to_q"])
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path / "p")
    ours = read_adapter_of_any_name(tmp_path / "p")
    merged = theirs.merge_and_unload()["to_q"].weight.detach()
    torch.testing.assert_close(weight + delta(ours, weight), merged, rtol=1e-5, atol=1e-6)


def read_adapter_of_any_name(folder: Path) -> LowRank:
    (update,) = read_adapter(folder).layers.values()
    assert isinstance(update, LowRank)
    return update


@pytest.mark.parametrize(
    ("file_format", "asked", "axis"),
    [
        ("auto", "auto", "input"), ("kohya", "auto", "input"), ("webui", "input", "input"),
        ("diffusers", "auto", "output"), ("peft", "output", "output"),
    ],
)  # fmt: skip
def test_the_axis_follows_the_readers_of_the_file(file_format: str, asked: str, axis: str) -> None:
    assert dora_axis(LoraConfig(dora=True, dora_axis=asked), file_format) == axis  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file_format", "asked"), [("kohya", "output"), ("auto", "output"), ("peft", "input")]
)
def test_an_axis_that_a_reader_would_misread_is_refused_before_training(
    file_format: str, asked: str
) -> None:
    with pytest.raises(
        RecipeError,
        match=rf"method.dora_axis is {asked}, but .* save.format {file_format} would mean",
    ):
        dora_axis(LoraConfig(dora=True, dora_axis=asked), file_format)  # type: ignore[arg-type]


def test_bfloat16_keeps_gains_per_input_that_are_close_to_one() -> None:
    net = Net()
    layers = inject(
        {SQUARE: net.module(SQUARE)},
        lambda key: LoraSpec(2, 2.0, dora=True, dora_axis="input"),
        seed=0,
    )
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = net.module(SQUARE)(x).float() - net.module(SQUARE).bias  # type: ignore[union-attr]
        layers.parameters[f"{SQUARE}.magnitude"].mul_(1.001)
        raised = net.module(SQUARE)(x).float() - net.module(SQUARE).bias  # type: ignore[union-attr]
    share = float((raised * plain).sum() / plain.square().sum())
    assert math.isclose(share, 1.001, abs_tol=3e-4)
