"""Bake, extract, merge adapters, resize, slim: against what attaching does, and linear algebra."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.delta import delta
from konomi.adapters.kinds import Difference, Hadamard, LowRank
from konomi.adapters.spectrum import error_of, spectrum, truncated
from konomi.errors import KonomiError, ModelError, RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.merging.low_rank import shared_out
from konomi.models.load import load_base
from konomi.models.save import save_single_file
from konomi.storage.tensor_file import read_header
from konomi.tasks import bake, extract, merge_adapters, resize, slim

SELECTORS = ("transformer", "conv", "text")


def lora(base, seed=0, rank=2, *, selectors=SELECTORS, size=0.1):
    """A LoRA on all layers of a base, as an adapter."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for selector in selectors:
        for key, module in base.select_layers(selector).items():
            out, width, *kernel = module.weight.shape
            down = torch.randn(rank, width, *kernel, generator=generator)
            up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * size
            layers[key] = LowRank(down, up, alpha=rank / 2)
    return Adapter(
        layers=layers,
        metadata={"modelspec.trigger_phrase": f"word{seed}"},
        family=base.family,
        name=f"lora{seed}",
    )


@pytest.fixture(scope="module")
def adapters(models, tmp_path_factory):
    """Family, seed -> file of a LoRA for its models."""
    root = tmp_path_factory.mktemp("adapters")

    def path(family, seed=0, rank=2):
        target = root / f"{family}-{seed}-{rank}.safetensors"
        if not target.exists():
            base = load_base(models(family))
            write_adapter(lora(base, seed, rank), target)
        return target

    return path


def state(base):
    for part in base.parts:
        base.module(f"{part}.{next(iter(dict(base.state(part)))).rpartition('.')[0]}")
    return {f"{p}.{n}": t.clone() for p in base.parts for n, t in base.state(p).items()}


@pytest.mark.parametrize(
    "family",
    [
        "sd1",
        pytest.param("sd2", marks=pytest.mark.slow),
        pytest.param("sdxl", marks=pytest.mark.slow),
    ],
)
def test_baked_is_what_attached_is(models, tmp_path, family):
    source = models(family)
    base = load_base(source)
    pair = [lora(base, 1), lora(base, 2)]
    files = [tmp_path / f"{n}{'' if family == 'sdxl' else '.safetensors'}" for n in "ab"]
    for adapter, file in zip(pair, files, strict=True):
        write_adapter(adapter, file, "diffusers" if family == "sdxl" else None)
    done = bake(
        source, [f"{files[0]}:0.7", f"{files[1]}:unet=-0.5:text=0.25"], tmp_path / "o.safetensors"
    )
    baked = state(load_base(done.path))
    read = [read_adapter(file) for file in files]
    with attach(base, [(read[0], Strengths(0.7, 0.7)), (read[1], Strengths(-0.5, 0.25))]):
        attached = state(base)
    assert baked.keys() == attached.keys()
    different = [name for name in baked if not torch.equal(baked[name], attached[name])]
    assert different == []
    assert set(done.layers) == set(read[0].layers)
    original = state(load_base(source))
    changed = {name for name in baked if not torch.equal(baked[name], original[name])}
    assert changed == {f"{key}.weight" for key in read[0].layers}


def test_baking_says_what_it_cannot_hold(models, tmp_path):
    base = load_base(models("sd1"))
    adapter = lora(base, 1)
    words = {"sks": {"text_encoder": torch.randn(1, 32)}}
    write_adapter(Adapter(adapter.layers, words, family="sd1"), tmp_path / "w.safetensors")
    done = bake(models("sd1"), [str(tmp_path / "w.safetensors")], tmp_path / "o.safetensors")
    assert any("its word 'sks' stays out" in note for note in done.notes)
    other = lora(load_base(models("sdxl")), 1, selectors=("cross_attention",))
    write_adapter(other, tmp_path / "xl.safetensors")
    with pytest.raises(KonomiError) as caught:
        bake(models("sd1"), [str(tmp_path / "xl.safetensors")], tmp_path / "p.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "p.safetensors").exists()


def test_an_exactly_low_rank_difference_is_extracted_exactly(models, tmp_path):
    base = load_base(models("sd1"))
    adapter = lora(base, 1, rank=3)
    with attach(base, [(adapter, Strengths())]):
        save_single_file(base, tmp_path / "tuned.safetensors", dtype=torch.float32)
    done = extract(
        tmp_path / "tuned.safetensors", models("sd1"), tmp_path / "x.safetensors", rank=3
    )
    found = read_adapter(done.path)
    assert found.layers.keys() == adapter.layers.keys() and done.left == ()
    for key, update in adapter.layers.items():
        weight = base.module(key).weight
        expected, ours = delta(update, weight), delta(found.layers[key], weight)
        assert float((ours - expected).norm() / expected.norm()) < 1e-5
    assert done.error < 1e-5 and max(layer.error for layer in done.layers) < 1e-5
    assert {layer.rank for layer in done.layers} <= {1, 2, 3}


def test_extraction_is_the_best_of_its_rank(models, tmp_path):
    """Two independent models: Eckart-Young, by numpy's singular values."""
    one, other = load_base(models("sd1", 1)), load_base(models("sd1", 0))
    done = extract(
        models("sd1", 1), models("sd1", 0), tmp_path / "x.safetensors", rank=4, layers=["conv"]
    )
    for layer in done.layers[:6]:
        change = one.module(layer.key).weight - other.module(layer.key).weight
        values = torch.linalg.svdvals(change.detach().flatten(1).double())
        expected = (values[4:].square().sum() / values.square().sum()).sqrt()
        assert layer.error == pytest.approx(float(expected), abs=1e-5) and layer.rank == 4
    assert any("more tensors of denoiser, text_encoder differ" in note for note in done.notes)
    energy = extract(
        models("sd1", 1), models("sd1", 0), tmp_path / "e.safetensors", energy=0.9, layers=["conv"]
    )
    assert all(layer.error <= 0.1**0.5 + 1e-6 for layer in energy.layers)
    small = extract(models("sd1", 1), models("sd1", 0), tmp_path / "s.safetensors", max_mib=0.25)
    assert 0.15 * 2**20 < small.path.stat().st_size <= 0.25 * 2**20


def test_what_cannot_be_extracted_is_said(models, tmp_path):
    out = tmp_path / "o.safetensors"
    with pytest.raises(ModelError, match="does not differ from"):
        extract(models("sd1"), models("sd1"), out, rank=4)
    with pytest.raises(ModelError, match=r"is Stable Diffusion 1, and .* is Stable Diffusion XL"):
        extract(models("sd1"), models("sdxl"), out, rank=4)
    with pytest.raises(RecipeError, match="say how large"):
        extract(models("sd1", 1), models("sd1"), out)
    with pytest.raises(RecipeError, match="--rank and --energy exclude"):
        extract(models("sd1", 1), models("sd1"), out, rank=2, energy=0.5)
    with pytest.raises(ModelError, match="no layers called 'magic'"):
        extract(models("sd1", 1), models("sd1"), out, rank=2, layers=["magic"])


def test_half_precision_of_one_file_is_no_training(models, tmp_path):
    base = load_base(models("sd1"))
    (key, update), *_ = lora(base, 1).layers.items()
    with attach(base, [(Adapter(layers={key: update}), Strengths())]):
        save_single_file(base, tmp_path / "half.safetensors", dtype=torch.float16)
    done = extract(tmp_path / "half.safetensors", models("sd1"), tmp_path / "x.safetensors", rank=2)
    assert [layer.key for layer in done.layers] == [key] and done.left == ()


def test_adapters_add_up_exactly(models, adapters, tmp_path):
    a, b = adapters("sd1", 1, 2), adapters("sd1", 2, 3)
    done = merge_adapters([f"{a}:0.8", f"{b}:unet=-0.5:text=0.25"], tmp_path / "ab.safetensors")
    one, other, merged = read_adapter(a), read_adapter(b), read_adapter(done.path)
    base = load_base(models("sd1"))
    for key in list(one.layers)[::9]:
        weight = base.module(key).weight.double()
        second = -0.5 if key.startswith("denoiser") else 0.25
        expected = 0.8 * delta(one.layers[key], weight) + second * delta(other.layers[key], weight)
        ours = delta(merged.layers[key], weight)
        assert merged.layers[key].rank == 5
        assert float((ours - expected).norm() / expected.norm()) < 1e-6
    assert merged.metadata["modelspec.trigger_phrase"] == "word1, word2"
    sources = json.loads(merged.metadata["konomi.merged_from"])
    assert [source["unet"] for source in sources] == [0.8, -0.5]
    assert merged.metadata["ss_network_dim"] == "5" and done.error == 0


def test_ranks_are_reduced_by_the_largest_values(models, adapters, tmp_path):
    a = adapters("sd1", 2, 3)
    whole = resize(str(a), tmp_path / "same.safetensors", rank=8)
    assert whole.error < 1e-6
    done = resize(str(a), tmp_path / "less.safetensors", rank=1)
    one, less = read_adapter(a), read_adapter(done.path)
    for layer in done.reduced[::11]:
        change = one.layers[layer.key].difference().flatten(1).double()
        values = torch.linalg.svdvals(change)
        expected = float((values[1:].square().sum() / values.square().sum()).sqrt())
        assert layer.error == pytest.approx(expected, abs=1e-6)
        written = less.layers[layer.key].difference().flatten(1).double()
        missed = float((written - change).norm() / change.norm())
        assert missed == pytest.approx(expected, abs=1e-5)
    small = resize(str(a), tmp_path / "small.safetensors", max_mib=0.1)
    assert small.path.stat().st_size <= 0.1 * 2**20
    with pytest.raises(RecipeError, match="say how large"):
        resize(str(a), tmp_path / "o.safetensors")


def test_different_kinds_are_added_by_their_change(models, tmp_path):
    base = load_base(models("sd1"))
    (key, update), *_ = lora(base, 1).layers.items()
    out, width = base.module(key).weight.shape[:2]
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(*s, generator=generator) for s in ((out, 2), (2, width)) * 2]
    weight = base.module(key).weight
    hada = Hadamard(*factors, alpha=2.0)
    write_adapter(Adapter({key: hada}, family="sd1"), tmp_path / "loha.safetensors")
    write_adapter(Adapter({key: update}, family="sd1"), tmp_path / "lora.safetensors")
    files = [str(tmp_path / "lora.safetensors"), f"{tmp_path / 'loha.safetensors'}:0.5"]
    with pytest.raises(RecipeError, match=r"loha: .* Name the base: --base BASE"):
        merge_adapters(files, tmp_path / "both.safetensors")
    done = merge_adapters(files, tmp_path / "both.safetensors", base=str(models("sd1")))
    found = read_adapter(done.path).layers[key]
    expected = delta(update, weight) + 0.5 * delta(hada, weight)
    assert isinstance(found, Difference)
    torch.testing.assert_close(delta(found, weight), expected, rtol=1e-5, atol=1e-5)
    fewer = merge_adapters(files, tmp_path / "fewer.safetensors", rank=6, base=str(models("sd1")))
    assert fewer.error < 1e-5
    again = read_adapter(fewer.path).layers[key]
    torch.testing.assert_close(delta(again, weight), expected, rtol=1e-4, atol=1e-4)


def test_lengths_need_the_base(models, tmp_path):
    base = load_base(models("sd1"))
    adapter = lora(base, 1, selectors=("cross_attention",))
    key, update = next(iter(adapter.layers.items()))
    weight = base.module(key).weight.detach()
    dora = LowRank(update.down, update.up, update.alpha, magnitude=weight.norm(dim=0, keepdim=True))
    file = tmp_path / "dora.safetensors"
    write_adapter(Adapter({key: dora}, family="sd1"), file)
    with pytest.raises(RecipeError, match="--base BASE"):
        merge_adapters([f"{file}:0.5"], tmp_path / "o.safetensors")
    done = merge_adapters([f"{file}:0.5"], tmp_path / "o.safetensors", base=str(models("sd1")))
    found = read_adapter(done.path).layers[key]
    torch.testing.assert_close(
        delta(found, weight), 0.5 * delta(dora, weight), rtol=1e-5, atol=1e-5
    )


def test_large_matrices_are_cut_as_exactly_as_small_ones():
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(300, 400, generator=generator)
    change = change @ torch.diag(0.97 ** torch.arange(400.0))
    values = torch.linalg.svdvals(change.double())
    best = float((values[20:].square().sum() / values.square().sum()).sqrt())
    for found in (spectrum(change, 20), spectrum(change), spectrum(change.T.contiguous())):
        side = change if found.u_OR.shape[0] == 300 else change.T.contiguous()
        update = truncated(found, 20, side.shape, torch.float32)
        assert error_of(side, update) == pytest.approx(best, rel=1e-4)
    exact = torch.randn(300, 5, generator=generator) @ torch.randn(5, 400, generator=generator)
    assert error_of(exact, truncated(spectrum(exact, 5), 5, exact.shape, torch.float32)) < 1e-5


def test_a_size_is_shared_out_by_what_is_gained():
    spectra = [(torch.tensor([10.0, 1.0]), 100), (torch.tensor([5.0, 4.0]), 50)]
    assert shared_out(spectra, 200 * 4, 4) == [1, 2]
    assert shared_out(spectra, 99 * 4, 4) == [0, 1]
    assert shared_out(spectra, 0, 4) == [0, 0]


def test_slim_leaves_the_model(models, tmp_path):
    source = models("sd1")
    content = load_file(source)
    content["model_ema.decay"] = torch.zeros(())
    content["optimizer.x"] = torch.zeros(3)
    save_file(content, tmp_path / "fat.safetensors", read_header(source).metadata)
    done = slim(tmp_path / "fat.safetensors", tmp_path / "thin.safetensors", precision="fp16")
    thin = load_file(done.path)
    assert thin.keys() == load_file(source).keys()
    assert all(torch.equal(thin[name], content[name].half()) for name in thin)
    assert any("2 tensors beside the model are left out" in note for note in done.notes)
    assert load_base(done.path).family == "sd1"


def test_slim_mends_positions_and_takes_averages_and_text_encoders(models, tmp_path):
    source, other = models("sd1"), load_file(models("sd1", 1))
    content = load_file(source)
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    content[positions] = torch.arange(77.0)[None].half()
    content[positions][0, 40:42] += 0.5
    unet, text = "model.diffusion_model.", "cond_stage_model."
    for name in [name for name in content if name.startswith(unet)]:
        content["model_ema." + name.removeprefix("model.").replace(".", "")] = other[name]
    save_file(content, tmp_path / "fat.safetensors", read_header(source).metadata)
    done = slim(
        tmp_path / "fat.safetensors",
        tmp_path / "thin.safetensors",
        use_ema=True,
    )
    thin = load_file(done.path)
    assert torch.equal(thin[positions], torch.arange(77)[None])
    assert any("is wrong at positions 40, 41, and mended" in note for note in done.notes)
    assert all(torch.equal(thin[name], other[name]) for name in thin if name.startswith(unet))
    swapped = slim(source, tmp_path / "swapped.safetensors", text_encoder=models("sd1", 1))
    for name, tensor in load_file(swapped.path).items():
        assert torch.equal(tensor, (other if name.startswith(text) else content)[name])
    with pytest.raises(ModelError, match="holds no running averages"):
        slim(source, tmp_path / "o.safetensors", use_ema=True)
    with pytest.raises(ModelError, match="Text encoders can be taken from a model of the same"):
        slim(source, tmp_path / "o.safetensors", text_encoder=models("sdxl"))


def test_eight_bits_are_for_matrices(models, tmp_path):
    source = models("sd1")
    done = slim(source, tmp_path / "small.safetensors", precision="fp8")
    own, small = load_file(source), load_file(done.path)
    for name, tensor in small.items():
        matrix = tensor.ndim > 1 and not name.startswith("first_stage_model.")
        assert tensor.dtype == (torch.float8_e4m3fn if matrix else torch.float16), name
        # Four bits of mantissa, and 2^-10 below the normal numbers.
        apart = (tensor.float() - own[name]).abs() - own[name].abs() / 16
        assert float(apart.max()) <= 2**-10 + 1e-3 * (not matrix)
    assert any(note.startswith("fp8: ComfyUI") for note in done.notes)
    base = load_base(done.path)
    key = next(iter(base.select_layers("cross_attention")))
    expected = load_base(source).module(key).weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(base.module(key).weight.float(), expected)
