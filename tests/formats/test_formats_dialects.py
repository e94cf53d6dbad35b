"""The dialects of LoRA files that are met, and what is no LoRA for Stable Diffusion: said by
name.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from konomi.adapters.delta import bias_delta, delta
from konomi.adapters.kinds import Difference, LowRank, Replacement
from konomi.errors import FileFormatError, RecipeError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.models.load import load_base
from konomi.tasks.files import convert

A, B = torch.randn(2, 768), torch.randn(320, 2)
LDM = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.mlp.fc1"
FLAT = PATH.replace(".", "_")
KEY = f"denoiser.{PATH}"
DIALECTS = {
    "comfyui, A and B": (f"diffusion_model.{LDM}.lora_A.weight",
    f"diffusion_model.{LDM}.lora_B.weight"),
    "comfyui, down and up": (f"diffusion_model.{LDM}.lora_down.weight",
    f"diffusion_model.{LDM}.lora_up.weight"),
    "comfyui, diffusers' names": (f"diffusion_model.{PATH}.lora_A.weight",
    f"diffusion_model.{PATH}.lora_B.weight"),
    "lycoris": (f"lycoris_{FLAT}.lora_down.weight", f"lycoris_{FLAT}.lora_up.weight"),
    "kohya": (f"lora_unet_{FLAT}.lora_down.weight", f"lora_unet_{FLAT}.lora_up.weight"),
    "kohya with A and B": (f"lora_unet_{FLAT}.lora_A.weight", f"lora_unet_{FLAT}.lora_B.weight"),
    "diffusers": (f"unet.{PATH}.lora_A.weight", f"unet.{PATH}.lora_B.weight"),
    "old diffusers": (f"unet.base_model.model.{PATH}.lora_A.weight",
    f"unet.base_model.model.{PATH}.lora_B.weight"),
    "peft": (f"base_model.model.{PATH}.lora_A.weight", f"base_model.model.{PATH}.lora_B.weight"),
    "bare": (f"{PATH}.lora_A.default.weight", f"{PATH}.lora_B.default.weight"),
    "peft with the part inside": (
        f"base_model.model.unet.{PATH}.lora_A.weight",
        f"base_model.model.unet.{PATH}.lora_B.weight",
    ),
}  # fmt: skip


def stored(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata or None)
    return path


@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_is_the_same_update(tmp_path: Path, name: str) -> None:
    down, up = DIALECTS[name]
    path = stored(tmp_path / "x.safetensors", {down: A, up: B})
    adapter = read_adapter(path)
    assert list(adapter.layers) == [KEY] and adapter.family == "sd1"
    torch.testing.assert_close(delta(adapter.layers[KEY], torch.zeros(320, 768)), B @ A)
    assert inspect_file(path).kind == "lora"
    if "peft" in name or name == "bare":
        assert "scale 1" in adapter.notes[0]


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.float16, torch.float64]
)
@pytest.mark.parametrize("name", ["comfyui, down and up", "kohya", "lycoris"])
def test_alpha_of_any_number_type(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    down, up = DIALECTS[name]
    alpha = {down.replace("lora_down.weight", "alpha"): torch.tensor(8, dtype=dtype)}
    adapter = read_adapter(stored(tmp_path / "x.safetensors", {down: A, up: B} | alpha))
    torch.testing.assert_close(delta(adapter.layers[KEY], torch.zeros(320, 768)), B @ A * 4)


def test_text_encoders_of_comfyui(tmp_path: Path) -> None:
    halves = {"lora_down.weight": torch.randn(2, 768), "lora_up.weight": torch.randn(3072, 2)}
    for encoder, part in (
        ("clip_l", "text_encoder"),
        ("clip_g", "text_encoder_2"),
        ("clip_h", "text_encoder"),
    ):
        prefix = f"text_encoders.{encoder}.transformer.{TEXT}"
        adapter = read_adapter(
            stored(tmp_path / "x.safetensors", {f"{prefix}.{n}": t for n, t in halves.items()})
        )
        assert list(adapter.layers) == [f"{part}.{TEXT}"]


def test_original_block_numbers_are_of_the_model_that_the_widths_tell(tmp_path: Path) -> None:
    # output_blocks.3.1 is another block in SD1 than in SDXL.
    for width, path in ((768, "up_blocks.1.attentions.0"), (2048, "up_blocks.1.attentions.0")):
        name = "diffusion_model.output_blocks.4.1.transformer_blocks.0.attn2.to_v"
        tensors = {
            f"{name}.lora_A.weight": torch.ones(1, width),
            f"{name}.lora_B.weight": torch.ones(1280, 1),
        }
        (key,) = read_adapter(stored(tmp_path / "x.safetensors", tensors)).layers
        assert key.startswith("denoiser." + path.replace("attentions.0", "attentions.1"))
    name = "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_v"
    tensors = {
        f"{name}.lora_A.weight": torch.ones(1, 768),
        f"{name}.lora_B.weight": torch.ones(1280, 1),
    }
    assert read_adapter(stored(tmp_path / "x.safetensors", tensors)).family == "sd1"


def test_a_bias_beside_low_rank_and_whole_weights(tmp_path: Path) -> None:
    down, up = DIALECTS["comfyui, A and B"]
    bias, whole = torch.randn(320), torch.randn(320, 768)
    layer = f"diffusion_model.{LDM}"
    path = stored(tmp_path / "x.safetensors", {down: A, up: B, f"{layer}.diff_b": bias})
    found = read_adapter(path).layers[KEY]
    assert isinstance(found, LowRank)
    assert torch.equal(bias_delta(found, torch.zeros(320)), bias)  # type: ignore[arg-type]
    write_adapter(read_adapter(path), tmp_path / "y.safetensors")
    assert torch.equal(load_file(tmp_path / "y.safetensors")[f"lora_unet_{FLAT}.diff_b"], bias)
    found = read_adapter(stored(tmp_path / "x.safetensors", {f"{layer}.set_weight": whole})).layers[
        KEY
    ]
    assert isinstance(found, Replacement) and torch.equal(found.weight, whole)
    # Whole weights are no Custom Diffusion unless they are where that method changes a model.
    tensors = {"diffusion_model.input_blocks.0.0.set_weight": torch.randn(320, 4, 3, 3)}
    report = inspect_file(stored(tmp_path / "x.safetensors", tensors))
    assert (report.kind, report.layer_kinds, report.problem) == ("lora", {"whole": 1}, "")
    found = read_adapter(
        stored(tmp_path / "x.safetensors", {f"{layer}.diff": whole, f"{layer}.diff_b": bias})
    ).layers[KEY]
    assert isinstance(found, Difference) and found.bias is not None
    reshaped = {down: A, up: B, f"{layer}.reshape_weight": torch.tensor([320.0, 768.0])}
    with pytest.raises(FileFormatError, match="reshape_weight gives the layer another shape"):
        read_adapter(stored(tmp_path / "x.safetensors", reshaped))


def test_sdxls_first_text_encoder_alone_keeps_its_name(tmp_path: Path) -> None:
    name = f"lora_te1_{TEXT.replace('.', '_')}"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 768),
        f"{name}.lora_up.weight": torch.ones(3072, 2),
    }
    adapter = read_adapter(stored(tmp_path / "x.safetensors", tensors))
    write_adapter(adapter, tmp_path / "y.safetensors")
    assert adapter.family == "sdxl" and all(
        n.startswith(name) for n in load_file(tmp_path / "y.safetensors")
    )


def test_pefts_weights_stand_for_their_folder(tmp_path: Path) -> None:
    layer = LowRank(A, B, 7.0)
    write_adapter(
        read_adapter(stored(tmp_path / "x.safetensors", dict(zip(DIALECTS["kohya"], (A, B))))),
        tmp_path / "p",
        "peft",
    )
    config = tmp_path / "p" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 7'))
    found = read_adapter(tmp_path / "p" / "adapter_model.safetensors")
    torch.testing.assert_close(
        delta(found.layers[KEY], torch.zeros(320, 768)), delta(layer, torch.zeros(320, 768))
    )
    assert found.notes == ()
    config.unlink()
    for path in (tmp_path / "p" / "adapter_model.safetensors", tmp_path / "p"):
        assert "no adapter_config.json lies beside it" in read_adapter(path).notes[0]


OTHERS = {
    "FLUX": "lora_unet_double_blocks_0_img_attn_qkv",
    "FLUX.2": "diffusion_model.double_stream_modulation_img.lin",
    "SD3": "diffusion_model.joint_blocks.0.x_block.attn.qkv",
    "Qwen-Image": "transformer.transformer_blocks.0.img_mlp.net.2",
    "Z-Image": "diffusion_model.layers.0.attention.qkv",
    "Anima": "lora_unet_blocks_0_self_attn_q_proj",
    "Krea 2": "diffusion_model.blocks.0.attn.wq",
    "Chroma": "diffusion_model.distilled_guidance_layer.in_proj",
    "Wan": "diffusion_model.blocks.0.cross_attn.k_img",
    "HiDream": "transformer.double_stream_blocks.0.block.attn1.to_q",
    "a transformer family": "transformer.transformer_blocks.3.attn.to_q",
    "SD3 or FLUX": "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_are_named(tmp_path: Path, family: str) -> None:
    tensors = {
        f"{OTHERS[family]}.lora_A.weight": torch.ones(2, 8),
        f"{OTHERS[family]}.lora_B.weight": torch.ones(8, 2),
    }
    path = stored(tmp_path / "x.safetensors", tensors)
    with pytest.raises(FileFormatError, match=rf"is for {family}.*Stable Diffusion 1, 2 and XL"):
        read_adapter(path)
    report = inspect_file(path)
    assert report.kind == "lora" and report.family.startswith(family) and family in report.notes[0]


def test_metadata_tells_a_family_that_names_do_not(tmp_path: Path) -> None:
    name = f"lora_te1_{TEXT.replace('.', '_')}"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 768),
        f"{name}.lora_up.weight": torch.ones(3072, 2),
    }
    path = stored(
        tmp_path / "x.safetensors", tensors, **{"modelspec.architecture": "Flux.1-dev/lora"}
    )
    with pytest.raises(FileFormatError, match=r"is for FLUX\.1"):
        read_adapter(path)


KINDS = {
    "GLoRA": f"base_model.model.{PATH}.glora_A.Xd",
    "VeRA": f"base_model.model.{PATH}.vera_lambda_b",
    "HRA": f"base_model.model.{PATH}.hra_u",
    "AdaLoRA": f"unet.{PATH}.lora_E",
    "FourierFT": f"{PATH}.fourierft_spectrum",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_are_named(tmp_path: Path, kind: str) -> None:
    name = KINDS[kind]
    alpha = (
        {f"{name.partition('.')[0]}.alpha": torch.tensor(1.0)}
        if name.startswith("lora_unet")
        else {}
    )
    path = stored(tmp_path / "x.safetensors", {name: torch.ones(4, 4)} | alpha)
    with pytest.raises(FileFormatError, match=f"{kind}.*does not apply"):
        read_adapter(path)
    assert kind in inspect_file(path).notes[0]


def test_a_lora_with_layers_of_a_text_encoder_is_no_text_encoder(tmp_path: Path) -> None:
    for prefix in ("", "base_model.model.", "text_encoder."):
        name = f"{prefix}{TEXT}"
        tensors = {
            f"{name}.lora_A.weight": torch.ones(2, 768),
            f"{name}.lora_B.weight": torch.ones(3072, 2),
        }
        path = stored(tmp_path / "x.safetensors", tensors)
        assert inspect_file(path).kind == "lora" and list(read_adapter(path).layers) == [
            f"text_encoder.{TEXT}"
        ]


def test_a_word_without_vectors_is_one_line(tmp_path: Path) -> None:
    for shape in ((), (0,), (2, 2, 2)):
        tensors = {"<t>": torch.ones(shape), "unet:0:up": torch.ones(1)}
        path = stored(tmp_path / "x.safetensors", tensors, **{"<t>": "<embed>"})
        assert "<t> is" in inspect_file(path).problem
        with pytest.raises(FileFormatError, match="<t> is"):
            read_adapter(path)


def test_whole_weights_become_differences_from_their_base(tmp_path: Path) -> None:
    before = load_base("tiny", needs_vae=False).module("denoiser.conv_in").weight
    assert isinstance(before, Tensor)
    path = stored(
        tmp_path / "x.safetensors", {"diffusion_model.conv_in.set_weight": before.float() + 0.25}
    )
    with pytest.raises(RecipeError, match=r"1 layers are given as whole weights .*--base BASE"):
        convert(path, tmp_path / "y.safetensors")
    found = read_adapter(convert(path, tmp_path / "y.safetensors", base="tiny")).layers[
        "denoiser.conv_in"
    ]
    assert isinstance(found, Difference) and found.weight is not None
    torch.testing.assert_close(found.weight, torch.full_like(found.weight, 0.25))
