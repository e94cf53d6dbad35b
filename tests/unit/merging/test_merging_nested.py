"""Fewer ranks of a DyLoRA are its first ones, as they are."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from konomi.formats.adapter_file import read_adapter
from konomi.merging.nested import is_nested
from konomi.tasks.merging_adapters import resize

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def test_resize_cuts_a_dylora_and_takes_singular_values_of_others(tmp_path):
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((6, 768), (10, 6)))
    tensors = {
        f"{NAME}.lora_down.weight": down,
        f"{NAME}.lora_up.weight": up,
        f"{NAME}.alpha": torch.tensor(3.0),
    }
    said = []
    for module in ("networks.dylora", "networks.lora"):
        save_file(tensors, tmp_path / "in.safetensors", {"ss_network_module": module})
        out = tmp_path / f"{module}.safetensors"
        done = resize(str(tmp_path / "in.safetensors"), out, rank=2, tell=said.append)
        kept = load_file(out)
        assert len(read_adapter(out).layers) == 1
        change = kept[f"{NAME}.lora_up.weight"] @ kept[f"{NAME}.lora_down.weight"]
        change = change * float(kept[f"{NAME}.alpha"]) / 2
        whole = 0.5 * (up @ down)
        assert done.error == pytest.approx(float((whole - change).norm() / whole.norm()), rel=1e-4)
        cut = 0.5 * (up[:, :2] @ down[:2])
        assert torch.allclose(change, cut, atol=1e-5) == (module == "networks.dylora")
        assert is_nested(read_adapter(out).metadata) == (module == "networks.dylora")
    assert len([line for line in said if "DyLoRA" in line]) == 1
    assert is_nested({"ss_network_args": '{"algo": "dylora"}'})
    assert not is_nested({"ss_network_args": "broken"})
