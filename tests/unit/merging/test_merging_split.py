"""`split`: the blocks of an adapter at weights of their own."""

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import delta, delta_at
from konomi.adapters.kinds import LowRank
from konomi.adapters.kinds.butterfly import Butterfly
from konomi.errors import KonomiError, RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.generation.block_weights import parse_block_weights
from konomi.models.load import load_base
from konomi.tasks import bake, merge_adapters, split


@pytest.fixture(scope="module")
def base(models):
    return load_base(models("sd1"))


@pytest.fixture
def lora(base, tmp_path):
    """On every layer of attention, in a file."""
    generator, layers = torch.Generator().manual_seed(0), {}
    for selector in ("cross_attention", "text"):
        for key, module in base.select_layers(selector).items():
            out, width = module.weight.shape
            down = torch.randn(2, width, generator=generator)
            layers[key] = LowRank(down, torch.randn(out, 2, generator=generator), 2.0)
    path = tmp_path / "lora.safetensors"
    write_adapter(Adapter(layers, family="sd1", name="lora"), path)
    return path


def change(base, layers, key):
    weight = base.module(key).weight.double()
    return delta(layers[key], weight) if key in layers else torch.zeros_like(weight)


def test_the_parts_are_the_whole(base, lora, models, tmp_path):
    done = split(
        lora,
        tmp_path / "a",
        blocks="IN00-IN04:0,out*:0.25,BASE:-1",
        rest=tmp_path / "b",
        to="diffusers",
        base=str(models("sd1")),
    )
    whole, *parts = (read_adapter(path).layers for path in (lora, done.path, done.rest))
    expected = {"IN": 0.0, "M0": 1.0, "OU": 0.25, "BA": -1.0}
    for key, update in whole.items():
        block = base.block_of(key) if key.startswith("denoiser.") else "BASE"
        weight = 1.0 if block in ("IN05", "IN07", "IN08") else expected[block[:2]]
        origin = base.module(key).weight.double()
        first, second = (change(base, layers, key) for layers in parts)
        torch.testing.assert_close(first, weight * delta(update, origin))
        torch.testing.assert_close(first + second, delta(update, origin))
        assert done.weights[block] == weight
    assert 0 < done.num_layers < len(whole) and 0 < done.num_rest < len(whole)
    assert done.notes == ()


def test_a_list_and_a_preset_are_as_in_a_prompt(base, lora, tmp_path):
    numbers = ",".join(f"{n / 16:g}" for n in range(17))
    done = split(lora, tmp_path / "a.safetensors", blocks=numbers)
    named = parse_block_weights(numbers, "x")
    assert done.weights == {block: named[block] for block in done.weights}
    preset = split(lora, tmp_path / "b.safetensors", blocks="OUTALL")
    assert {b for b, w in preset.weights.items() if w} == {
        b for b in preset.weights if b.startswith(("OUT", "BASE"))
    }


def test_what_is_wrong_is_said(lora, models, tmp_path):
    out = tmp_path / "a.safetensors"
    for blocks, said in (
        ("IN99:1", "no block 'IN99'"),
        ("IN01:x", "write BLOCK:WEIGHT"),
        ("1,2,3", "lists of 12, 17"),
        ("NONE", "nothing is left in it"),
    ):
        with pytest.raises(KonomiError, match=said):
            split(lora, out, blocks=blocks)
    with pytest.raises(RecipeError, match="are the same file"):
        split(lora, out, blocks="ALL", rest=out)
    done = split(lora, out, blocks="IN00:0,M00:0")
    assert done.notes == ("--blocks: the adapter has no layers in IN00.",)
    with pytest.raises(RecipeError, match="exists already"):
        split(lora, out, blocks="ALL")


def test_a_rotation_at_a_weight_is_a_smaller_rotation(base, models, tmp_path):
    """Half of a BOFT is not half of its change: baked, merged and split."""
    key = next(iter(base.select_layers("cross_attention")))
    weight = base.module(key).weight.detach()
    blocks = torch.randn(2, 8, len(weight) // 8, len(weight) // 8)
    file = tmp_path / "boft.safetensors"
    write_adapter(Adapter({key: Butterfly(blocks)}, family="sd1"), file)
    (update,) = read_adapter(file).layers.values()
    expected = delta_at(update, weight, 0.5)
    assert float((expected - 0.5 * delta(update, weight)).norm() / expected.norm()) > 0.1
    baked = bake(models("sd1"), [f"{file}:0.5"], tmp_path / "baked.safetensors")
    torch.testing.assert_close(load_base(baked.path).module(key).weight, weight + expected)
    source = str(models("sd1"))
    merge_adapters([f"{file}:0.5"], tmp_path / "merged.safetensors", base=source)
    block = base.block_of(key)
    split(file, tmp_path / "part.safetensors", blocks=f"{block}:0.5", base=source)
    for name in ("merged", "part"):
        (found,) = read_adapter(tmp_path / f"{name}.safetensors").layers.values()
        torch.testing.assert_close(delta(found, weight), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match="--base BASE"):
        split(file, tmp_path / "none.safetensors", blocks=f"{block}:0.5")
