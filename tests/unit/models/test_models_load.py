"""Every way in, and everything that is no base model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from konomi.errors import FileFormatError, KonomiError, ModelError
from konomi.families import FAMILIES, published_config
from konomi.formats.ldm_keys import ema_name_to_dotted
from konomi.models.hub import is_hub_id, wanted_files
from konomi.models.infer import infer_text, infer_unet, infer_vae
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.models.tensor_files import open_tensor_file
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors

REFERENCE = Path(__file__).parents[4] / "shared" / "reference"


def same(first: LatentDiffusion, second: LatentDiffusion) -> bool:
    pairs = ((first.state(part), second.state(part)) for part in first.parts)
    return all(
        left.keys() == right.keys()
        and all(torch.equal(tensor, right[name]) for name, tensor in left.items())
        for left, right in pairs
    )


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd1") / "model.safetensors"
    save_single_file(random_base("sd1"), path, dtype=torch.float32)
    return path


@pytest.fixture(scope="module")
def sd1_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sd1") / "model"
    save_folder(random_base("sd1"), path, dtype=torch.float32)
    return path


@pytest.mark.parametrize("inpainting", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "family", ["sd1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd2", "sdxl"))]
)
def test_folder_to_file_to_folder_is_bit_exact(
    family: str, inpainting: bool, tmp_path: Path
) -> None:
    base = random_base(family, inpainting=inpainting)
    save_folder(base, tmp_path / "first", dtype=torch.float32)
    save_single_file(
        load_base(tmp_path / "first"), tmp_path / "file.safetensors", dtype=torch.float32
    )
    save_folder(load_base(tmp_path / "file.safetensors"), tmp_path / "second", dtype=torch.float32)
    for path in (tmp_path / "first", tmp_path / "file.safetensors", tmp_path / "second"):
        found = load_base(path)
        assert (found.family, found.inpainting) == (family, inpainting)
        assert found.process.prediction == base.process.prediction
        assert found.resolution == base.resolution
        assert found.latent_scale == base.latent_scale
        assert same(base, found)
    weights = sorted((tmp_path / "first").glob("*/*.safetensors"))
    assert weights
    for file in weights:
        assert (
            file.read_bytes()
            == (tmp_path / "second" / file.relative_to(tmp_path / "first")).read_bytes()
        )


def test_v_and_epsilon_survive_both_layouts(tmp_path: Path) -> None:
    for prediction in ("epsilon", "v"):
        base = random_base("sd2", prediction=prediction)  # type: ignore[arg-type]
        save_single_file(base, tmp_path / f"{prediction}.safetensors", dtype=torch.float32)
        save_folder(base, tmp_path / prediction, dtype=torch.float32)
        assert load_base(tmp_path / f"{prediction}.safetensors").process.prediction == prediction
        assert load_base(tmp_path / prediction).process.prediction == prediction


def test_sd2_without_metadata_goes_by_yaml_then_by_default(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_single_file(random_base("sd2"), path, dtype=torch.float32)
    tensors, header = read_tensors(path), read_header(path)
    told = json.loads(header.metadata["konomi.configs"])
    told.pop("scheduler", None)
    del tensors["v_pred"]
    write_tensors(path, tensors, {"konomi.configs": json.dumps(told)})
    assert load_base(path).process.prediction == "v"
    assert load_base(path, prediction="epsilon").process.prediction == "epsilon"
    yaml = "model:\n  target: os.system\n  params:\n    !!python/object/apply:os.system ['exit']\n"
    path.with_suffix(".yaml").write_text(yaml)
    assert load_base(path).process.prediction == "epsilon"
    path.with_suffix(".yaml").write_text(yaml + '    parameterization: "v"\n')
    assert load_base(path).process.prediction == "v"


@pytest.mark.parametrize("legacy", [False, True])
def test_ckpt_of_both_kinds(sd1: Path, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "model.ckpt"
    content = {"state_dict": read_tensors(sd1), "epoch": 3, "global_step": 470000}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    file = open_tensor_file(path)
    assert file.shapes == {name: info.shape for name, info in read_header(sd1).tensors.items()}
    assert file.global_step == 470000
    # A pickle has no metadata to say the heads and groups of this unusual architecture.
    with pytest.raises(ModelError, match="groups do not divide"):
        load_base(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_ckpt_of_published_norms(tmp_path: Path, legacy: bool) -> None:
    """With 32 groups and heads by the family's rule nothing needs to be said, so a pickle is
    enough.
    """
    unet = {"norm_num_groups": 32, "block_out_channels": [32, 64, 64], "attention_head_dim": 8}
    vae = {"norm_num_groups": 32, "block_out_channels": [32] * 4}
    text = {"hidden_size": 64, "num_attention_heads": 1}
    configs = {"unet": {**unet, "cross_attention_dim": 64}, "vae": vae, "text_encoder": text}
    base = random_base("sd1", configs=configs)
    save_single_file(base, tmp_path / "a.safetensors", dtype=torch.float32)
    content = {"state_dict": read_tensors(tmp_path / "a.safetensors"), "global_step": 1}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    found = load_base(tmp_path / "a.ckpt")
    assert found.resolution == 512
    assert same(found, base)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(sd1: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "half.safetensors"
    save_single_file(load_base(sd1), path, dtype=dtype)
    found = load_base(path)
    original = random_base("sd1").state("denoiser")
    for name, tensor in found.state("denoiser").items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, original[name].to(dtype).float())


def test_file_with_running_averages_only(sd1: Path, tmp_path: Path) -> None:
    tensors = read_tensors(sd1)
    averaged: dict[str, Tensor] = {
        "model_ema.decay": torch.tensor(0.999),
        "model_ema.num_updates": torch.tensor(5),
    }
    for name, tensor in tensors.items():
        if name.startswith("model."):
            averaged["model_ema." + name.removeprefix("model.").replace(".", "")] = tensor
        else:
            averaged[name] = tensor
    path = tmp_path / "ema.safetensors"
    write_tensors(path, averaged, read_header(sd1).metadata)
    assert same(load_base(path), random_base("sd1"))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_published_name_is_found_from_its_running_average(family: str) -> None:
    path = REFERENCE / f"stable_diffusion_{family}.json"
    if not path.is_file():
        pytest.skip("the measured key maps (../shared/reference) are not here")
    prefix = "model.diffusion_model."
    names = [
        name.removeprefix(prefix) for name in json.loads(path.read_text())["ldm_diffusers_keymap"]
    ]
    names = [name for name in names if not name.startswith(("cond", "first"))]
    assert len(names) > 600
    for name in names:
        assert ema_name_to_dotted(name.replace(".", "")) == name
    assert ema_name_to_dotted("something0else") is None


def test_file_without_vae_takes_one_from_elsewhere(
    sd1: Path, sd1_folder: Path, tmp_path: Path
) -> None:
    tensors = read_tensors(sd1)
    pruned = tmp_path / "pruned.safetensors"
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("first_stage_model.")
    }
    write_tensors(pruned, kept, read_header(sd1).metadata)
    with pytest.raises(
        ModelError, match=r"pruned\.safetensors: holds no VAE\. Give one with --vae"
    ):
        load_base(pruned)
    assert same(load_base(pruned, vae=sd1_folder), random_base("sd1"))
    assert same(load_base(pruned, vae=sd1_folder / "vae"), random_base("sd1"))


def test_folder_of_fp16_variants_shards_and_old_names(sd1_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(sd1_folder, folder)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(unet)
    unet.unlink()
    names = list(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, part in shards.items():
        write_tensors(folder / "unet" / shard, {name: tensors[name] for name in part})
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps(index)
    )
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, tensor in read_tensors(vae).items():
        match = re.match(r"(.*\.attentions\.0\.)(to_q|to_k|to_v|to_out\.0)(\..*)", name)
        renamed[match[1] + old[match[2]] + match[3] if match else name] = tensor.clone()
    assert renamed.keys() != read_tensors(vae).keys()
    torch.save(renamed, vae.with_suffix(".bin"))
    vae.unlink()
    text = folder / "text_encoder" / "model.safetensors"
    bare = {
        name.removeprefix("text_model."): tensor.clone()
        for name, tensor in read_tensors(text).items()
    }
    text.unlink()
    write_tensors(text.with_name("model.fp16.safetensors"), bare)
    assert same(load_base(folder), random_base("sd1"))


def test_published_shapes_give_the_published_configs() -> None:
    """What is inferred from a full-size file equals the configs that ship."""
    from konomi.formats.ldm_keys import UNetLayout, unet_to_ldm, vae_to_ldm
    from konomi.models.parts import empty_part

    for family in FAMILIES:
        base = random_base(family.name, size="full")
        shapes: dict[str, tuple[int, ...]] = {}
        unet, vae = (
            empty_part(
                base.architecture, spec, base.source.configs[spec.folder], where="test"
            ).state_dict()
            for spec in (base.spec.denoiser, base.spec.vae)
        )
        layout = UNetLayout.from_config(base.source.configs["unet"])
        for name, tensor in unet.items():
            shapes[f"model.diffusion_model.{unet_to_ldm(name, layout)}"] = tuple(tensor.shape)
        for name, tensor in vae.items():
            shapes[f"first_stage_model.{vae_to_ldm(name, levels=4)}"] = tuple(tensor.shape)
        inferred = infer_unet(family, shapes, {})
        assert inferred == published_config(family, "unet")
        assert infer_vae(family, shapes, {}) == published_config(family, "vae")
        for loaded_encoder in family.text_encoders:
            published = published_config(family, loaded_encoder.part)
            width, layers = (
                published["hidden_size"],
                published["num_hidden_layers"] + loaded_encoder.file_extra_layers,
            )
            if loaded_encoder.open_clip:
                text = {
                    "token_embedding.weight": (49408, width),
                    "positional_embedding": (77, width),
                }
                text |= {
                    f"transformer.resblocks.{i}.mlp.c_fc.weight": (4 * width, width)
                    for i in range(layers)
                }
                text["text_projection"] = (width, width)
            else:
                root = "text_model."
                text = {f"{root}embeddings.token_embedding.weight": (49408, width)}
                text[f"{root}embeddings.position_embedding.weight"] = (77, width)
                text |= {
                    f"{root}encoder.layers.{i}.mlp.fc1.weight": (4 * width, width)
                    for i in range(layers)
                }
            named = {loaded_encoder.file_prefix + name: shape for name, shape in text.items()}
            assert infer_text(family, loaded_encoder, named, {}) == published


def foreign(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2, 2) for name in names}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            foreign("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
            "Stable Diffusion 3",
        ),
        (foreign("model.diffusion_model.double_blocks.0.img_attn.qkv.weight"), "FLUX"),
        (foreign("double_blocks.0.img_attn.qkv.weight"), "FLUX"),
        (foreign("lora_unet_down_blocks_0.lora_up.weight"), "a LoRA, not a base model"),
        (foreign("unet.down_blocks.0.attentions.0.to_q.lora_A.weight"), "a LoRA, not a base model"),
        (foreign("control_model.input_blocks.0.0.weight"), "a ControlNet"),
        (foreign("emb_params"), "a learned word"),
        (foreign("down_blocks.0.attentions.0.proj_in.weight"), "a diffusers UNet alone"),
        (foreign("encoder.down_blocks.0.resnets.0.conv1.weight"), "a VAE alone"),
        (foreign("conditioner.embedders.0.model.ln_final.weight"), "the SDXL refiner"),
        (
            foreign("model.diffusion_model.input_blocks.0.0.weight"),
            "holds a UNet but no text encoder",
        ),
        (foreign("something"), "no Stable Diffusion 1, 2 or XL model that konomi recognises"),
        ({}, "it holds no tensors"),
    ],
)
def test_what_is_no_base_is_named(tensors: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors(path, tensors)
    with pytest.raises(ModelError, match=re.escape(message)) as error:
        load_base(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def broken(kind: str, sd1: Path, path: Path) -> None:
    tensors, metadata = read_tensors(sd1), read_header(sd1).metadata
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    if kind == "missing":
        del tensors[name]
    elif kind == "shape":
        tensors[name] = tensors[name][:, :, :1].clone()
    elif kind == "unknown":
        tensors["model.diffusion_model.input_blocks.1.0.surprise.weight"] = torch.zeros(1)
    elif kind == "channels":
        first = "model.diffusion_model.input_blocks.0.0.weight"
        tensors[first] = torch.zeros(16, 8, 3, 3)
    elif kind == "metadata":
        metadata = {**metadata, "konomi.configs": "{"}
    elif kind in ("absurd", "nested"):
        told = json.loads(metadata["konomi.configs"])
        if kind == "absurd":
            told["unet"]["attention_head_dim"] = 1e30
        else:
            told["text_encoder"]["num_hidden_layers"] = [[]]
        metadata = {**metadata, "konomi.configs": json.dumps(told)}
    write_tensors(path, tensors, metadata)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "missing",
            (
                "1 of the .* tensors of denoiser are missing, first "
                "down_blocks.0.resnets.0.conv1.weight"
            ),
        ),
        ("shape", r"denoiser.down_blocks.0.resnets.0.conv1.weight has shape"),
        (
            "unknown",
            (
                "have no place in the model, first "
                "model.diffusion_model.input_blocks.1.0.surprise.weight"
            ),
        ),
        ("channels", "takes 8 channels: an image-editing model"),
        ("metadata", "metadata konomi.configs is damaged"),
        ("absurd", "attention_head_dim = 1e"),
        ("nested", "num_hidden_layers = a list or table of 1"),
    ],
)
def test_broken_files_name_the_tensor(kind: str, message: str, sd1: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    broken(kind, sd1, path)
    with pytest.raises(KonomiError, match=message) as error:
        load_base(path).state("denoiser")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-LFS pointer"),
        (b"", "empty"),
        (b"\x00" * 64, "cut short"),
        (b"\x80\x04cposix\nsystem\n.", "bare Python pickle"),
    ],
)
def test_files_that_are_no_model(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        load_base(path)


def edited(folder: Path, tmp_path: Path, component: str, changes: dict[str, Any]) -> Path:
    import shutil

    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    path = copy / component / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copy


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("unet", {"layers_per_block": 10**9}, "layers_per_block = 1000000000"),
        ("unet", {"block_out_channels": [10**12] * 3}, "block_out_channels"),
        ("unet", {"down_block_types": ["os.system"] * 3}, "describes no model that can be built"),
        ("unet", {"cross_attention_dim": 48}, r"has shape \[16, 32\], the model \[16, 48\]"),
        ("unet", {"addition_embed_type": "image"}, "belongs to no family that konomi knows"),
        ("text_encoder", {"model_type": "t5"}, "its text_encoder is a t5, not a clip_text_model"),
        ("text_encoder", {"num_hidden_layers": 10**8}, "num_hidden_layers = 100000000"),
        (
            "text_encoder",
            {"auto_map": {"AutoModel": "evil.py"}, "hidden_act": "evil"},
            "describes no model",
        ),
    ],
)
def test_hostile_configs(
    sd1_folder: Path, tmp_path: Path, component: str, changes: dict[str, Any], message: str
) -> None:
    folder = edited(sd1_folder, tmp_path, component, changes)
    with pytest.raises(ModelError, match=message):
        base = load_base(folder)
        base.state("denoiser")
        base.state("text_encoder")


def test_incomplete_folders_and_wrong_paths(sd1_folder: Path, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "nothing", "there is no such file or folder"),
        (tmp_path, "not a diffusers folder"),
        (sd1_folder / "unet", "one part of a model"),
    ):
        with pytest.raises(ModelError, match=message):
            load_base(path)
    (tmp_path / "unet").mkdir()
    with pytest.raises(ModelError, match=r"config\.json: is missing"):
        load_base(tmp_path)
    with pytest.raises(ModelError, match="prediction is 'x'"):
        load_base(sd1_folder, prediction="x")


def test_hub_asks_for_each_weight_once() -> None:
    names = [
        "README.md", "v1-5.ckpt", "v1-5.safetensors", "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/config.json", "text_encoder/model.fp16.safetensors",
        "safety_checker/model.safetensors",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/evil.py",
    ]  # fmt: skip
    assert sorted(wanted_files(names)) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
    ]
    assert wanted_files(["x.safetensors", "README.md"]) == ["x.safetensors"]
    assert wanted_files(["x.safetensors", "y.safetensors"]) == []
    assert is_hub_id("owner/name-1.5")
    assert not is_hub_id("./folder")
    assert not is_hub_id("a/b/c")
    assert not is_hub_id("models/x.safetensors")


def test_hub_offline_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"owner/name: no such file or folder here, not in the hub's local cache"
    ):
        load_base("owner/name")


def test_hub_cache_is_used_without_network(
    sd1_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    shutil.copytree(sd1_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    base = load_base("owner/name")
    assert base.name == "owner/name"
    assert same(base, random_base("sd1"))
