"""LoRA files for diffusers and PEFT, loaded by diffusers and peft themselves into tiny random
models.
"""

import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.delta import delta
from konomi.adapters.kinds import LayerUpdate, LowRank, Rescale
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import convert_adapter, inspect_file, read_adapter, write_adapter


@pytest.fixture(autouse=True)
def others_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers and peft warn about their own futures
        yield


def tiny_pipeline(family: str) -> Any:
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    xl = family == "sdxl"
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, use_linear_projection=xl,
        **({"addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2),
            "projection_class_embeddings_input_dim": 80} if xl else {}),
    )  # fmt: skip
    config = CLIPTextConfig(
        hidden_size=16 if xl else 32, intermediate_size=37, num_hidden_layers=2,
        num_attention_heads=4, vocab_size=99,
        projection_dim=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    parts = {
        "vae": AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        "text_encoder": CLIPTextModel(config),
        "tokenizer": None, "unet": unet, "scheduler": DDIMScheduler(clip_sample=False,
        steps_offset=1),
    }  # fmt: skip
    if xl:
        second = CLIPTextModelWithProjection(config)
        return StableDiffusionXLPipeline(
            **parts, text_encoder_2=second, tokenizer_2=None, add_watermarker=False
        )
    return StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def canonical(part: str, name: str) -> str:
    return (
        f"{part}.{name}"
        if part == "denoiser"
        else f"{part}.text_model.{name.removeprefix('text_model.')}"
    )


def modules(pipeline: Any) -> dict[str, nn.Module]:
    """Canonical key -> every matrix and convolution of a pipeline."""
    parts = {"denoiser": pipeline.unet, "text_encoder": pipeline.text_encoder}
    if getattr(pipeline, "text_encoder_2", None) is not None:
        parts["text_encoder_2"] = pipeline.text_encoder_2
    return {
        canonical(part, name): module
        for part, model in parts.items()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name != "text_projection"
    }


def random_adapter(
    pipeline: Any, family: str, *, alpha: float = 1.5, dora: bool = False
) -> Adapter:
    torch.manual_seed(1)
    layers: dict[str, LayerUpdate] = {}
    for index, (key, module) in enumerate(modules(pipeline).items()):
        weight = module.weight
        assert isinstance(weight, Tensor)
        rank = 2 + index % 3
        down, up = (
            torch.randn(rank, *weight.shape[1:]) * 0.2,
            torch.randn(weight.shape[0], rank) * 0.2,
        )
        up = up.reshape(*up.shape, *([1] * (weight.dim() - 2)))
        norms = (
            weight.detach().flatten(1).norm(dim=1).reshape(-1, *([1] * (weight.dim() - 1)))
            if dora
            else None
        )
        layers[key] = LowRank(down, up, alpha if index % 2 else float(rank), None, norms)
    return Adapter(layers, {}, {}, family, "tiny")


def weights(pipeline: Any) -> dict[str, Tensor]:
    found = {}
    for key, module in modules(pipeline).items():
        assert isinstance(module.weight, Tensor)
        found[key] = module.weight.detach().clone()
    return found


def assert_applied(pipeline: Any, before: dict[str, Tensor], adapter: Adapter) -> None:
    after = weights(pipeline)
    assert before.keys() == after.keys() == adapter.layers.keys()
    for key, update in adapter.layers.items():
        change = delta(update, before[key])
        assert change.abs().max() > 1e-3
        assert torch.allclose(after[key], before[key] + change, atol=2e-6), key


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_diffusers_applies_our_file_as_we_do(tmp_path: Path, family: str, dora: bool) -> None:
    pipeline = tiny_pipeline(family)
    adapter = random_adapter(pipeline, family, dora=dora)
    write_adapter(adapter, tmp_path / "out", "diffusers")
    before = weights(pipeline)
    pipeline.load_lora_weights(tmp_path / "out")
    pipeline.fuse_lora(
        components=[
            name for name in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, name)
        ]
    )
    pipeline.unload_lora_weights()
    assert_applied(pipeline, before, adapter)


def test_the_prediction_changes_as_the_update_says(tmp_path: Path) -> None:
    pipeline, plain = tiny_pipeline("sd1"), tiny_pipeline("sd1")
    adapter = random_adapter(pipeline, "sd1")
    write_adapter(adapter, tmp_path / "x.safetensors", "diffusers")
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), torch.randn(2, 5, 32))
    with torch.no_grad():
        original_base = pipeline.unet(*inputs).sample
        pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
        theirs = pipeline.unet(*inputs).sample
        for key, module in modules(plain).items():
            assert isinstance(module.weight, Tensor)
            module.weight += delta(adapter.layers[key], module.weight)
        ours = plain.unet(*inputs).sample
    assert (theirs - original_base).abs().max() > 1e-2
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_there_and_back(tmp_path: Path, family: str) -> None:
    # Scales that are powers of two multiply into `up` exactly, so even the bits survive.
    pipeline = tiny_pipeline(family)
    adapter = random_adapter(pipeline, family)
    layers: dict[str, LayerUpdate] = {}
    for key, update in adapter.layers.items():
        assert isinstance(update, LowRank)
        layers[key] = replace(update, alpha=update.down.shape[0] / 4)
    write_adapter(replace(adapter, layers=layers), tmp_path / "k.safetensors")
    convert_adapter(tmp_path / "k.safetensors", tmp_path / "d", "diffusers")
    convert_adapter(tmp_path / "d", tmp_path / "k2.safetensors", "webui")
    back = read_adapter(tmp_path / "k2.safetensors")
    assert back.layers.keys() == layers.keys()
    for key, update in layers.items():
        other = back.layers[key]
        assert isinstance(update, LowRank) and isinstance(other, LowRank)
        assert other.alpha == other.down.shape[0]
        assert torch.equal(other.up, update.up / 4) and torch.equal(other.down, update.down)


def test_small_scales_do_not_drown_in_float16(tmp_path: Path) -> None:
    down, up = torch.randn(128, 64), torch.randn(32, 128) * 1e-3
    layers: dict[str, LayerUpdate] = {
        "denoiser.mid_block.attentions.0.proj_in": LowRank(down.half(), up.half(), 0.05)
    }
    write_adapter(Adapter(layers, family="sd2"), tmp_path / "d", "diffusers")
    update = read_adapter(tmp_path / "d").layers["denoiser.mid_block.attentions.0.proj_in"]
    expected = up.half().double() @ down.half().double() * 0.05 / 128
    change = delta(update, torch.zeros(32, 64, dtype=torch.float64))
    assert torch.allclose(change, expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-5)


GENERATIONS = {
    "2023-01": (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.{}.weight",
        "down",
        "up",
    ),
    "2023-03": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.{}.weight",
        "down",
        "up",
    ),
    "2023-06": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora.{}.weight",
        "down",
        "up",
    ),
    "2023-12": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_{}.weight",
        "A",
        "B",
    ),
    "named": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.lora_{}.default.weight",
        "A",
        "B",
    ),
}
TEXTS = {
    "linear layer": (
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_linear_layer.{}.weight",
        "down", "up",
    ),
    "processor": ("text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora.{}.weight",
    "down", "up"),
    "peft": ("text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_{}.weight", "A",
    "B"),
    "newest layout": ("text_encoder.encoder.layers.1.self_attn.out_proj.lora_{}.weight", "A", "B"),
    "second": ("text_encoder_2.text_model.encoder.layers.1.self_attn.out_proj.lora_{}.weight", "A",
    "B"),
}  # fmt: skip


@pytest.mark.parametrize("generation", [*GENERATIONS, *TEXTS])
def test_four_generations_are_read(tmp_path: Path, generation: str) -> None:
    name, first, second = (GENERATIONS | TEXTS)[generation]
    down, up = torch.randn(2, 6), torch.randn(5, 2)
    save_file({name.format(first): down, name.format(second): up}, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    key = "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    if generation in TEXTS:
        part = "text_encoder_2" if generation == "second" else "text_encoder"
        key = f"{part}.text_model.encoder.layers.1.self_attn.out_proj"
    update = adapter.layers[key]
    assert isinstance(update, LowRank) and len(adapter.layers) == 1
    assert torch.equal(update.down, down) and torch.equal(update.up, up) and update.alpha == 2
    assert inspect_file(tmp_path / "x.safetensors").format == "diffusers"


def test_a_file_that_diffusers_itself_wrote_with_settings(tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = tiny_pipeline("sd1")
    before = weights(pipeline)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "proj_in"], alpha_pattern={"mid_block.*to_q": 1}
    )
    pipeline.unet.add_adapter(config)
    torch.manual_seed(0)
    for name, parameter in pipeline.unet.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipeline.unet))
    settings = pipeline.unet.peft_config["default"].to_dict()
    pipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=settings
    )
    adapter = read_adapter(tmp_path)
    assert {update.alpha for update in adapter.layers.values() if isinstance(update, LowRank)} == {
        6.0,
        1.0,
    }
    pipeline.unet.fuse_lora()
    pipeline.unet.unload_lora()
    after = weights(pipeline)
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed == set(adapter.layers)
    for key, update in adapter.layers.items():
        assert torch.allclose(after[key], before[key] + delta(update, before[key]), atol=2e-6)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_loads_our_folder(tmp_path: Path, dora: bool) -> None:
    from peft import PeftModel

    pipeline = tiny_pipeline("sd1")
    adapter = random_adapter(pipeline, "sd1", dora=dora)
    layers = {key: update for key, update in adapter.layers.items() if key.startswith("denoiser.")}
    adapter = replace(adapter, layers=layers)
    write_adapter(adapter, tmp_path / "p", "peft")
    before = {key: value for key, value in weights(pipeline).items() if key in layers}
    merged = PeftModel.from_pretrained(pipeline.unet, tmp_path / "p").merge_and_unload()
    for name, module in merged.named_modules():
        if (key := f"denoiser.{name}") in layers:
            assert torch.allclose(
                module.weight, before[key] + delta(layers[key], before[key]), atol=2e-6
            ), key
    back = read_adapter(tmp_path / "p")
    assert back.layers.keys() == layers.keys()
    for key, update in layers.items():
        assert torch.equal(delta(back.layers[key], before[key]), delta(update, before[key]))


def test_a_folder_that_peft_wrote_with_rank_stabilised_scale_and_patterns(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    pipeline = tiny_pipeline("sd1")
    before = weights(pipeline)
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "conv1"], use_rslora=True,
        rank_pattern={"conv1": 2},
        alpha_pattern={"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 3},
        init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(pipeline.unet, config)
    model.save_pretrained(tmp_path / "p")
    adapter = read_adapter(tmp_path / "p")
    merged = model.merge_and_unload()
    seen = 0
    for name, module in merged.named_modules():
        if (key := f"denoiser.{name}") in adapter.layers:
            seen += 1
            assert torch.allclose(
                module.weight, before[key] + delta(adapter.layers[key], before[key]), atol=2e-6
            ), key
    assert seen == len(adapter.layers) > 5


def test_several_parts_become_several_folders(tmp_path: Path) -> None:
    adapter = random_adapter(tiny_pipeline("sdxl"), "sdxl")
    write_adapter(adapter, tmp_path / "p", "peft")
    assert {path.name for path in (tmp_path / "p").iterdir()} == {
        "unet",
        "text_encoder",
        "text_encoder_2",
    }
    back = read_adapter(tmp_path / "p")
    assert back.layers.keys() == adapter.layers.keys()
    assert inspect_file(tmp_path / "p").format == "peft"


def test_tokens_become_files_beside_the_diffusers_file(tmp_path: Path) -> None:
    layers: dict[str, LayerUpdate] = {
        "denoiser.conv_in": LowRank(torch.ones(1, 4, 3, 3), torch.ones(8, 1, 1, 1), 1.0)
    }
    vectors = {"<cat>": {"text_encoder": torch.randn(2, 768)}}
    write_adapter(Adapter(layers, vectors, family="sd1"), tmp_path / "x.safetensors", "diffusers")
    assert torch.equal(
        load_file(tmp_path / "x.cat.safetensors")["<cat>"], vectors["<cat>"]["text_encoder"]
    )
    with pytest.raises(FileFormatError, match="PEFT folders hold no token embeddings"):
        write_adapter(Adapter(layers, vectors, family="sd1"), tmp_path / "p", "peft")


def test_what_a_format_cannot_hold_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    key = "denoiser.mid_block.attentions.0.proj_in"
    ia3: dict[str, LayerUpdate] = {key: Rescale(torch.ones(6), on_input=False)}
    per_input: dict[str, LayerUpdate] = {
        key: LowRank(torch.ones(1, 4), torch.ones(6, 1), 1.0, None, torch.ones(1, 4))
    }
    for layers, message in (
        (ia3, "kind ia3"),
        (per_input, "DoRA norms per input"),
        ({}, "no layers"),
    ):
        for to in ("diffusers", "peft"):
            with pytest.raises(FileFormatError, match=message):
                write_adapter(Adapter(layers, family="sd2"), tmp_path / "out", to)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


BAD_CONFIGS = {
    "other kind": ({"peft_type": "LOKR"}, "PEFT type LOKR"),
    "text alpha": ({"lora_alpha": "8"}, "must be numbers"),
    "infinite alpha": ({"lora_alpha": float("inf")}, "must be numbers"),
    "endless pattern": ({"alpha_pattern": {"(?=a)": 1}}, "looks around"),
    "broken pattern": ({"alpha_pattern": {"(": 1}}, "not a regular expression"),
    "biases": ({"bias": "all"}, "biases"),
    "a list": ([], "not a table"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_improper_peft_settings(tmp_path: Path, case: str) -> None:
    config, message = BAD_CONFIGS[case]
    folder = tmp_path / "p"
    layer: LayerUpdate = LowRank(torch.ones(1, 4), torch.ones(6, 1), 1.0)
    write_adapter(
        Adapter({"denoiser.mid_block.attentions.0.proj_in": layer}, family="sd2"), folder, "peft"
    )
    table = json.loads((folder / "adapter_config.json").read_text())
    changed = table | config if isinstance(config, dict) else config
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(FileFormatError, match=message):
        read_adapter(folder)
