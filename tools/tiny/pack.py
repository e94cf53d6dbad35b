"""Last stage: half-precision safetensors in the folder layout of diffusers, as konomi ships
them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tools.tiny.clip import WIDTH_SHARED, ClipModel, text_config
from tools.tiny.scenes import SIDE
from tools.tiny.vae import new_vae
from torch import Tensor

from konomi.models.residual_image_encoder import WIDTHS

LIMIT = 24 * 2**20
"""Bytes of all weights together."""

SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1, "clip_sample": False, "trained_betas": None,
}  # fmt: skip

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp16, refusing weights that it cannot hold."""
    out = {}
    for name, tensor in tensors.items():
        packed = tensor.detach().to("cpu", torch.float16).contiguous()
        if not torch.isfinite(packed).all():
            raise ValueError(f"{name} does not fit into half precision")
        out[name] = packed
    return out


def _write(
    folder: Path, config: Mapping[str, object], file: str, tensors: Mapping[str, Tensor]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(half(tensors), folder / file, metadata={"format": "pt"})
    (folder / file).chmod(0o644)


_NOISE = (
    "transformers_version", "dtype", "id2label", "label2id", "return_dict", "problem_type",
    "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder",
)  # fmt: skip
"""What transformers writes into configs that says nothing about the model."""


def _plain(config: Mapping[str, object], name: str) -> dict[str, object]:
    """A config without versions and paths of the machine that wrote it."""
    return {"_class_name": name} | {
        k: v for k, v in config.items() if not k.startswith("_") and v is not None
    }


def _encoder(config: Mapping[str, object], name: str) -> dict[str, object]:
    # As in published SD1 folders: without it, transformers >= 5 computes in the file's format,
    # beside a float32 UNet.
    return {"architectures": [name], "torch_dtype": "float32"} | {
        k: v for k, v in config.items() if k not in _NOISE and not k.startswith("_")
    }


def pack_vae(vae: AutoencoderKL, folder: Path) -> None:
    config = _plain(dict(vae.config), "AutoencoderKL")
    _write(folder / "vae", config, "diffusion_pytorch_model.safetensors", vae.state_dict())


def pack_unet(unet: UNet2DConditionModel, folder: Path) -> None:
    config = _plain(dict(unet.config), "UNet2DConditionModel")
    _write(folder / "unet", config, "diffusion_pytorch_model.safetensors", unet.state_dict())


def pack_clip(clip_model: ClipModel, folder: Path) -> None:
    """`text_encoder` as every SD1 checkpoint has it; `clip` with the image encoder and both
    projections.
    """
    state = {
        f"text_model.{k.removeprefix('text_model.')}": v
        for k, v in clip_model.text.text_model.state_dict().items()
    }
    config = _encoder(text_config().to_dict(), "CLIPTextModel")
    _write(folder / "text_encoder", config, "model.safetensors", state)
    image = {f"image.{k}": v for k, v in clip_model.image.state_dict().items()}
    others = {
        "text_projection.weight": clip_model.text.text_projection.weight,
        "logit_scale": clip_model.log_scale,
    }
    config = {
        "architectures": ["ResidualImageEncoder"], "model_type": "konomi_residual_tower",
        "widths": list(WIDTHS),
        "image_size": SIDE, "projection_dim": WIDTH_SHARED,
    }  # fmt: skip
    _write(folder / "clip", config, "model.safetensors", {**image, **others})


def pack_rest(tokenizer: Path, folder: Path) -> None:
    """Scheduler, tokenizer, index."""
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
        target = folder / "tokenizer" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tokenizer / name).read_bytes())
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(SCHEDULER, indent=2) + "\n"
    )
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


def weigh(folder: Path) -> int:
    """Bytes of all weights. Raises ValueError over the limit."""
    total = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    if total > LIMIT:
        raise ValueError(
            f"the weights take {total / 2**20:.2f} MiB; the limit is {LIMIT / 2**20:.0f}"
        )
    return total


def load_vae(state: Mapping[str, Tensor]) -> AutoencoderKL:
    vae = new_vae()
    vae.load_state_dict(dict(state))
    return vae.eval()


def load_clip_model(folder: Path) -> ClipModel:
    """Both towers of a packed model, float32; the proxies of training are not in it (random)."""
    clip_model = ClipModel(concepts=1)
    text = load_file(folder / "text_encoder" / "model.safetensors")
    others = load_file(folder / "clip" / "model.safetensors")
    clip_model.text.text_model.load_state_dict(
        {k.removeprefix("text_model."): v for k, v in text.items()}
    )
    image = {k.removeprefix("image."): v for k, v in others.items() if k.startswith("image.")}
    clip_model.image.load_state_dict(image)
    with torch.no_grad():
        clip_model.text.text_projection.weight.copy_(others["text_projection.weight"])
        clip_model.log_scale.copy_(others["logit_scale"])
    return clip_model.float().eval()
