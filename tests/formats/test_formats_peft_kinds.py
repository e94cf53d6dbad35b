"""PEFT's OFT and BOFT folders: read as PEFT computes them, written so that PEFT loads them."""

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import delta
from konomi.adapters.kinds import Butterfly, Hadamard, Orthogonal
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.tasks import files
from konomi.tasks.files import convert

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ("to_k", "to_out.0")
PATH = "mid_block.attentions.0.transformer_blocks.0.attn2."
CONFIGS = {
    "oft": lambda: peft.OFTConfig(
        target_modules=["to_k", "to_out.0"], oft_block_size=8, init_weights=False
    ),
    "oft_exact": lambda: peft.OFTConfig(
        target_modules=["to_k", "to_out.0"],
        oft_block_size=8,
        use_cayley_neumann=False,
        init_weights=False,
    ),
    "boft": lambda: peft.BOFTConfig(
        target_modules=["to_k", "to_out.0"], boft_block_size=4, init_weights=False
    ),
    "loha": lambda: peft.LoHaConfig(
        target_modules=["to_k", "to_out.0"], r=3, alpha=5, init_weights=False
    ),
}


def unet() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        attention = nn.ModuleDict(
            {"to_k": nn.Linear(24, 16), "to_out": nn.ModuleList([nn.Linear(16, 12)])}
        )
    block = nn.ModuleDict({"attn2": attention})
    blocks = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})
    return nn.ModuleDict(
        {"mid_block": nn.ModuleDict({"attentions": nn.ModuleList([blocks])})}
    ).requires_grad_(False)


class Base:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def module(self, key: str) -> nn.Module:
        return self.model.get_submodule(key.removeprefix("denoiser."))


@pytest.mark.parametrize("name", CONFIGS)
def test_both_ways(name, tmp_path, monkeypatch):
    plain = unet()
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(3)
        model = peft.get_peft_model(copy.deepcopy(plain), CONFIGS[name]())
    model.save_pretrained(tmp_path / "theirs")
    adapter = read_adapter(tmp_path / "theirs")
    kind = {"boft": Butterfly, "loha": Hadamard}.get(name, Orthogonal)
    assert {*adapter.layers} == {f"denoiser.{PATH}{n}" for n in NAMES}
    assert all(type(update) is kind for update in adapter.layers.values())
    report = inspect_file(tmp_path / "theirs")
    assert not report.unknown and report.layer_kinds == {name.split("_")[0]: 2}
    changed = model.merge_and_unload()
    for layer in NAMES:
        before = plain.get_submodule(f"{PATH}{layer}").weight
        wanted = changed.get_submodule(f"{PATH}{layer}").weight - before
        got = delta(adapter.layers[f"denoiser.{PATH}{layer}"], before)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    write_adapter(adapter, tmp_path / "ours", "peft")
    ours = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "ours")
    for layer in NAMES:
        wanted = changed.get_submodule(f"{PATH}{layer}").weight
        got = ours.base_model.model.get_submodule(f"{PATH}{layer}")
        got.merge()
        torch.testing.assert_close(got.base_layer.weight, wanted, rtol=1e-5, atol=1e-5)
    if name == "loha":
        write_adapter(adapter, tmp_path / "x.safetensors", "kohya")
        odd = dict(adapter.layers)
        odd[next(iter(odd))] = replace(next(iter(odd.values())), alpha=1.0)
        with pytest.raises(FileFormatError, match="another rank or alpha"):
            write_adapter(replace(adapter, layers=odd), tmp_path / "odd", "peft")
        return
    with pytest.raises(FileFormatError, match=r"rotates its inputs .* --base BASE"):
        write_adapter(adapter, tmp_path / "x.safetensors", "kohya")
    if name == "oft":
        monkeypatch.setattr(files, "load_base", lambda base, needs_vae: Base(plain))
        convert(tmp_path / "theirs", tmp_path / "plain.safetensors", to="kohya", base="it")
        for key, update in read_adapter(tmp_path / "plain.safetensors").layers.items():
            weight = plain.get_submodule(key.removeprefix("denoiser.")).weight
            exact = delta(adapter.layers[key], weight)
            assert update.about.name == "diff"
            torch.testing.assert_close(delta(update, weight), exact, rtol=1e-6, atol=1e-6)
        config = tmp_path / "theirs" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"coft": True}))
        with pytest.raises(FileFormatError, match="coft is True"):
            read_adapter(tmp_path / "theirs")


def test_what_peft_does_not_hold_is_named(tmp_path):
    key = f"denoiser.{PATH}to_k"
    for update, match in (
        (Orthogonal(torch.zeros(4, 4, 4)), "rotates outputs"),
        (Orthogonal(torch.zeros(3, 8, 8), constraint=0.1, side="input"), "has a bound"),
        (Butterfly(torch.zeros(1, 6, 4, 4)), "rotates outputs"),
        (Butterfly(torch.zeros(1, 6, 4, 4), side="input"), "always has"),
    ):
        with pytest.raises(FileFormatError, match=match):
            write_adapter(Adapter({key: update}, family="sd1"), tmp_path / "x", "peft")
    both = {
        key: Orthogonal(torch.zeros(3, 8, 8), side="input"),
        f"denoiser.{PATH}to_q": Orthogonal(torch.zeros(6, 4, 4), side="input"),
    }
    with pytest.raises(FileFormatError, match="blocks of 4, which PEFT would not choose beside 8"):
        write_adapter(Adapter(both, family="sd1"), tmp_path / "x", "peft")
