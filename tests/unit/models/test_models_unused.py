"""What a base's files hold and nothing uses is named; what only follows from the rest is not."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from konomi.diffusion.noise import scaled_linear_schedule
from konomi.errors import ModelError
from konomi.models.clip_unet_rules import CLIP_TEXT, UNET, VAE
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors


def notes(base: Any, extra: dict[str, Tensor], tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "a.safetensors"
    save_single_file(base, path, dtype=torch.float32)
    write_tensors(path, {**read_tensors(path), **extra}, read_header(path).metadata)
    return load_base(path).notes


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_plain_file_has_no_notes(family: str, tmp_path: Path) -> None:
    """Nor have the buffers of LDM's noise process, of its text encoders, or the markers."""
    schedule = scaled_linear_schedule().alphas_cumprod
    extra = {
        "alphas_cumprod": schedule,
        "sqrt_one_minus_alphas_cumprod": (1 - schedule).sqrt(),
        "betas": schedule,
    }
    loaded_encoders = {"sd1": "cond_stage_model.transformer.text_model.embeddings.position_ids",
              "sd2": "cond_stage_model.model.attn_mask",
              "sdxl": "conditioner.embedders.1.model.attn_mask"}  # fmt: skip
    if family == "sd1":
        extra[loaded_encoders[family]] = torch.arange(77)[None]
    assert notes(random_base(family), extra, tmp_path) == ()


@pytest.mark.parametrize(
    ("family", "names", "words"),
    [
        (
            "sd1",
            ["model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay"],
            "2 of running averages of the UNet",
        ),
        (
            "sd1",
            ["lora_unet_x.lora_up.weight"],
            "1 of a LoRA beside the model, which is not applied",
        ),
        ("sd1", ["first_stage_model.loss.logvar"], "1 of what trained the VAE"),
        ("sdxl", ["control_model.zero_convs.0.0.weight"], "1 of a ControlNet"),
        ("sd1", ["something.\x1b[31mnew.weight"], r"1 of something.\x1b[31mnew"),
        ("sd2", ["cond_stage_model.model.transformer.resblocks.4.ln_1.weight"], "resblocks.4"),
        (
            "sd1",
            ["cond_stage_model.transformer.text_model.encoder.layers.3.mlp.fc1.bias"],
            "encoder.layers",
        ),
    ],
)
def test_what_is_left_over_is_named_in_one_line(
    family: str, names: list[str], words: str, tmp_path: Path
) -> None:
    (note,) = notes(random_base(family), {name: torch.zeros(2) for name in names}, tmp_path)
    assert note.startswith(f"{tmp_path / 'a.safetensors'}: {len(names)} tensors are not used: ")
    assert words in note
    assert "\n" not in note
    assert "\x1b" not in note


def test_another_noise_process_in_a_file_is_spoken_of(tmp_path: Path) -> None:
    other = {"alphas_cumprod": scaled_linear_schedule(end=0.02).alphas_cumprod}
    (note,) = notes(random_base("sd1"), other, tmp_path)
    assert "alphas_cumprod are those of another noise process" in note
    (note,) = notes(random_base("sd1"), {"ztsnr": torch.zeros(0)}, tmp_path)
    assert "ztsnr marks zero terminal SNR" in note


@pytest.mark.parametrize("name", ["edm_mean", "edm_vpred.sigma_max"])
def test_edm_models_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="another noise process"):
        notes(random_base("sdxl"), {name: torch.zeros(4)}, tmp_path)


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("unet", {"surprise": [1, 2]}, "unet has settings that are not used: surprise = [1, 2]"),
        ("vae", {"shift_factor": 0.1}, "vae has settings that are not used: shift_factor = 0.1"),
        ("vae", {"latents_mean": [0.1] * 4}, "latents_mean"),
        ("text_encoder", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("scheduler", {"thresholding": True}, "thresholding = True"),
        ("scheduler", {"timestep_spacing": "trailing"}, "timestep_spacing = trailing"),
    ],
)
def test_settings_of_a_folder_that_nothing_applies_are_named(
    component: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_folder(random_base("sd1"), tmp_path / "a", dtype=torch.float32)
    assert load_base(tmp_path / "a").notes == ()
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    path = tmp_path / "a" / component / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (note,) = load_base(tmp_path / "a").notes
    assert words in note


def test_schedulers_of_another_process_are_refused(tmp_path: Path) -> None:
    save_folder(random_base("sdxl"), tmp_path / "a", dtype=torch.float32)
    path = tmp_path / "a" / "scheduler" / "scheduler_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "_class_name": "EDMEulerScheduler"})
    )
    with pytest.raises(
        ModelError, match="its scheduler is EDMEulerScheduler: another noise process"
    ):
        load_base(tmp_path / "a")


def test_known_settings_are_those_of_the_libraries() -> None:
    import diffusers
    import transformers

    unet = set(inspect.signature(diffusers.UNet2DConditionModel.__init__).parameters) - {"self"}
    vae = set(inspect.signature(diffusers.AutoencoderKL.__init__).parameters) - {"self"}
    text = {name for name in transformers.CLIPTextConfig().to_dict() if not name.startswith("_")}
    assert unet == UNET.known
    assert vae <= VAE.known
    assert text <= CLIP_TEXT.known
