"""`merge models`: which tensors go together, what is refused, what is said, and that a file
appears whole or not at all.
"""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from konomi.errors import FileFormatError, KonomiError, ModelError, RecipeError, RunError
from konomi.models.load import load_base
from konomi.storage.atomic import temporary_beside
from konomi.storage.hashing import sha256_file
from konomi.storage.tensor_file import read_header
from konomi.tasks import merge_models

UNET, TEXT, VAE = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."


def metadata(path):
    return read_header(path).metadata


@pytest.mark.parametrize("family", ["sd1", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_each_tensor_is_merged_and_the_vae_stays(models, tmp_path, family):
    a, b = models(family, 0), models(family, 1)
    done = merge_models([a, b], tmp_path / "out.safetensors", alpha=0.3)
    one, other, merged = load_file(a), load_file(b), load_file(done.path)
    assert merged.keys() == one.keys()
    for name, tensor in merged.items():
        if name.startswith(VAE):
            assert torch.equal(tensor, one[name])
        else:
            expected = 0.7 * one[name].double() + 0.3 * other[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
    assert done.num_merged == sum(not name.startswith(VAE) for name in one)
    load_base(done.path)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("sd1", marks=pytest.mark.slow),
        "sd2",
        pytest.param("sdxl", marks=pytest.mark.slow),
    ],
)
def test_a_folder_is_the_same_model_as_a_single_file(models, tmp_path, family):
    a, file, folder = models(family, 0), models(family, 1), models(family, 1, folder=True)
    results = [
        load_file(merge_models([a, b], tmp_path / name, merge_vae=True).path)
        for b, name in ((file, "file.safetensors"), (folder, "folder.safetensors"))
    ]
    assert results[0].keys() == results[1].keys()
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name]), name


@pytest.mark.parametrize("family", [pytest.param("sd1", marks=pytest.mark.slow), "sd2"])
def test_a_folder_first_gives_a_file_that_is_read_as_that_model(models, tmp_path, family):
    folder, file = models(family, 1, folder=True), models(family, 1)
    done = merge_models([folder, file], tmp_path / "out.safetensors")
    expected, merged = load_file(file), load_file(done.path)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert metadata(done.path)["konomi.configs"] == metadata(file)["konomi.configs"]
    assert load_base(done.path).family == family


def test_a_pickled_checkpoint_is_read_too(models, tmp_path):
    # A pickle has no place for what shapes do not tell of a small model.
    plain = {
        "unet": {"norm_num_groups": 32, "block_out_channels": [32, 32, 32]},
        "vae": {"norm_num_groups": 32, "block_out_channels": [32, 32, 32, 32]},
    }
    a, b = (models("sd1", seed, configs=plain) for seed in (0, 1))
    torch.save({"state_dict": load_file(b), "global_step": 1}, tmp_path / "b.ckpt")
    merge_models([a, b], tmp_path / "one.safetensors")
    merge_models([a, tmp_path / "b.ckpt"], tmp_path / "two.safetensors")
    one, two = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_large_tensors_are_merged_in_pieces(models, tmp_path, monkeypatch):
    monkeypatch.setattr("konomi.merging.stream._PIECE", 3000)
    a, b, c = (models("sd1", seed) for seed in range(3))
    small = merge_models([a, b, c], tmp_path / "small.safetensors", how="add_difference")
    monkeypatch.undo()
    whole = merge_models([a, b, c], tmp_path / "whole.safetensors", how="add_difference")
    assert sha256_file(small.path)[:8] and load_file(small.path).keys()
    one, other = load_file(small.path), load_file(whole.path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_number_formats(models, tmp_path):
    a, b = models("sd1", 0, dtype=torch.float16), models("sd1", 1)
    kept = load_file(merge_models([a, b], tmp_path / "kept.safetensors").path)
    asked = merge_models([a, b], tmp_path / "asked.safetensors", precision="bf16")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}
    assert {tensor.dtype for tensor in load_file(asked.path).values()} == {torch.bfloat16}
    name = f"{UNET}input_blocks.0.0.weight"
    expected = (load_file(a)[name].float() + load_file(b)[name]) / 2
    assert torch.equal(kept[name], expected.half())


def test_blocks_base_alpha_and_rules(models, tmp_path):
    a, b = models("sd1", 0), models("sd1", 1)
    done = merge_models(
        [a, b],
        tmp_path / "out.safetensors",
        alpha=1.0,
        blocks="IN01:0,M00:0.25,in05:0.5",
        base_alpha=0.75,
        rules=["*attn2*:0", "*attn2.to_k*:0.125", "*nothing*:1"],
    )
    one, other, merged = load_file(a), load_file(b), load_file(done.path)

    def share(name):
        apart = other[name] - one[name]
        return round(float(((merged[name] - one[name]) / apart)[apart != 0].median()), 4)

    assert share(f"{UNET}input_blocks.1.0.in_layers.2.weight") == 0
    assert share(f"{UNET}middle_block.0.in_layers.2.weight") == 0.25
    assert share(f"{UNET}input_blocks.5.0.in_layers.2.weight") == 0.5
    assert share(f"{UNET}output_blocks.3.0.in_layers.2.weight") == 1
    assert share(f"{UNET}time_embed.0.weight") == 1
    assert share(f"{TEXT}transformer.text_model.encoder.layers.0.mlp.fc1.weight") == 0.75
    block = f"{UNET}output_blocks.3.1.transformer_blocks.0.attn2"
    assert (share(f"{block}.to_q.weight"), share(f"{block}.to_k.weight")) == (0, 0.125)
    assert done.notes == ("--rule *nothing*: no tensor has such a name.",)


def test_an_inpainting_model_takes_a_difference(models, tmp_path):
    a = models("sd1", 3, inpainting=True)
    b, c = models("sd1", 1), models("sd1", 2)
    done = merge_models([a, b, c], tmp_path / "out.safetensors", how="add_difference")
    name = f"{UNET}input_blocks.0.0.weight"
    one, two, three = (load_file(path)[name] for path in (a, b, c))
    merged = load_file(done.path)[name]
    assert torch.equal(merged[:, 4:], one[:, 4:])
    torch.testing.assert_close(merged[:, :4], one[:, :4] + two - three)
    assert load_base(done.path).inpainting
    with pytest.raises(ModelError, match="add_difference alone"):
        merge_models([a, b], tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="Give it as the first one"):
        merge_models([b, a, c], tmp_path / "other.safetensors", how="add_difference")


def test_other_predictions_are_refused_unless_told(models, tmp_path):
    v, epsilon = models("sd2", 0), models("sd2", 1, prediction="epsilon")
    out = tmp_path / "out.safetensors"
    with pytest.raises(ModelError, match=r"predicts epsilon.*--prediction v_prediction"):
        merge_models([v, epsilon], out)
    merge_models([v, epsilon], out, prediction="epsilon")
    assert load_base(out).process.prediction == "epsilon"
    assert "v_pred" not in read_header(out).tensors
    back = tmp_path / "back.safetensors"
    merge_models([epsilon, v], back, prediction="v_prediction")
    assert load_base(back).process.prediction == "v"
    assert "v_pred" in read_header(back).tensors


def test_missing_and_extra_tensors_are_said(models, tmp_path):
    a, content = models("sd1", 0), load_file(models("sd1", 1))
    gone = f"{UNET}middle_block.0.in_layers.0.bias"
    content["model_ema.decay"] = torch.zeros(())
    content[f"{UNET}strange.weight"] = torch.zeros(3)
    content.pop(f"{TEXT}transformer.text_model.final_layer_norm.bias")
    save_file(content, tmp_path / "b.safetensors", metadata(models("sd1", 1)))
    told = []
    done = merge_models(
        [a, tmp_path / "b.safetensors"], tmp_path / "o.safetensors", tell=told.append
    )
    assert done.notes == tuple(told)
    said = "\n".join(told)
    assert "1 tensors are not in all models and stay" in said and "final_layer_norm.bias" in said
    assert "1 tensors are not in" in said and "strange.weight" in said
    assert gone in load_file(done.path)
    other = merge_models([tmp_path / "b.safetensors", a], tmp_path / "p.safetensors")
    assert any("model_ema.decay" in note for note in other.notes)
    assert "model_ema.decay" not in load_file(other.path)


def test_what_is_not_a_number_is_named(models, tmp_path):
    a, content = models("sd1", 0), load_file(models("sd1", 1))
    name = f"{UNET}middle_block.0.in_layers.2.weight"
    content[name].view(-1)[7] = float("nan")
    broken = tmp_path / "broken.safetensors"
    save_file(content, broken, metadata(a))
    out = tmp_path / "out.safetensors"
    for how in ("weighted_sum", "slerp"):
        with pytest.raises(FileFormatError, match=r"broken\.safetensors: model.* holds NaN"):
            merge_models([a, broken], out, how=how)
    with pytest.raises(FileFormatError, match="beyond float16's range"):
        merge_models(
            [a, models("sd1", 1), models("sd1", 2)],
            out,
            how="add_difference",
            alpha=1e9,
            precision="fp16",
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.safetensors"]


def test_other_files_are_named_for_what_they_are(models, tmp_path):
    a, out = models("sd1", 0), tmp_path / "out.safetensors"
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(1)}, lora)
    with pytest.raises(ModelError, match="looks like a LoRA, not a base model"):
        merge_models([a, lora], out)
    with pytest.raises(ModelError, match=r"is Stable Diffusion XL.*Only models of one family"):
        merge_models([a, models("sdxl", 0)], out)
    with pytest.raises(RecipeError, match="A B BASE; 2 models are given"):
        merge_models([a, a], out, how="add_difference")
    with pytest.raises(RecipeError, match="--how is 'magic'; choose one of weighted_sum"):
        merge_models([a, a], out, how="magic")
    with pytest.raises(RecipeError, match=r"Name it out\.safetensors"):
        merge_models([a, a], tmp_path / "out")
    with pytest.raises(RecipeError, match="exists already"):
        merge_models([a, a], a)
    assert not out.exists()


def test_a_full_disk_leaves_nothing(models, tmp_path, monkeypatch):
    def full(descriptor, block, start):
        raise OSError(28, "No space left on device")

    a, b = models("sd1", 0), models("sd1", 1)
    monkeypatch.setattr("konomi.storage.tensor_stream._write_at", full)
    with pytest.raises(RunError, match="the disk is full"):
        merge_models([a, b], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_merge_left_is_removed(models, tmp_path):
    left = temporary_beside(tmp_path / "out.safetensors")
    # A process number beyond what systems give.
    dead = left.with_name(left.name.replace(f"-{os.getpid()}-", "-999999999-"))
    dead.write_bytes(b"half a model")
    done = merge_models([models("sd1", 0), models("sd1", 1)], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [done.path]


def test_a_result_that_appears_meanwhile_stays(models, tmp_path):
    out = tmp_path / "out.safetensors"

    def progress(done, total):
        if not out.exists():
            out.write_bytes(b"another's")

    with pytest.raises(RunError, match="has been written by another program meanwhile"):
        merge_models([models("sd1", 0), models("sd1", 1)], out, progress=progress)
    assert out.read_bytes() == b"another's" and list(tmp_path.iterdir()) == [out]


def test_the_vae_comes_from_where_it_is_asked_for(models, tmp_path):
    a, b, other = models("sd1", 0), models("sd1", 1), models("sd1", 2)
    file = merge_models([a, b], tmp_path / "file.safetensors", vae=other)
    folder = models("sd1", 2, folder=True) / "vae"
    part = merge_models([a, b], tmp_path / "folder.safetensors", vae=folder)
    wanted = {name: t for name, t in load_file(other).items() if name.startswith(VAE)}
    for done in (file, part):
        merged = load_file(done.path)
        found = {name: t for name, t in merged.items() if name.startswith(VAE)}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_file_says_where_it_comes_from(models, tmp_path):
    a, b = models("sd1", 0), models("sd1", 1)
    first = merge_models([a, b], tmp_path / "first.safetensors", alpha=0.25)
    recipe = json.loads(metadata(first.path)["sd_merge_recipe"])
    known = json.loads(metadata(first.path)["sd_merge_models"])
    hashes = [sha256_file(a), sha256_file(b)]
    assert recipe["type"] == "webui" and recipe["interp_method"] == "Weighted sum"
    assert [recipe["primary_model_hash"], recipe["secondary_model_hash"]] == hashes
    assert recipe["multiplier"] == 0.25 and recipe["custom_name"] == "first"
    assert list(known) == hashes and known[hashes[0]]["name"] == a.name
    assert list(first.hashes) == hashes
    second = merge_models([first.path, b], tmp_path / "second.safetensors")
    known = json.loads(metadata(second.path)["sd_merge_models"])
    assert set(hashes) < set(known)
    assert known[sha256_file(first.path)]["sd_merge_recipe"] == recipe


def test_settings_without_effect_are_said(models, tmp_path):
    a, b = models("sd1", 0), models("sd1", 1)
    done = merge_models(
        [a, b], tmp_path / "o.safetensors", how="n_average", alpha=0.3, seed=4, blocks="GRAD_V"
    )
    assert "--alpha, --seed: without effect with --how n_average." in done.notes
    assert "--blocks: without effect with --how n_average." in done.notes


def test_every_error_is_one_line(models, tmp_path):
    a, out = models("sd1", 0), tmp_path / "out.safetensors"
    for told in (
        {"blocks": "IN99:1"},
        {"blocks": "1,2,3"},
        {"blocks": "nonsense"},
        {"rules": ["*"]},
        {"precision": "int3"},
        {"alpha": float("nan")},
        {"how": "ties", "density": 0.0},
        {"how": "top_k", "alpha": 2.0},
        {"vae": a, "merge_vae": True},
    ):
        with pytest.raises(KonomiError) as caught:
            merge_models([a, a], out, **told)
        assert "\n" not in str(caught.value) and "--" in str(caught.value)
