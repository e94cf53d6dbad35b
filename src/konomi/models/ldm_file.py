"""A whole model in one file in the LDM layout, as Stable Diffusion's authors published it: how it
is written. How it is read: `konomi.models.single_file`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from konomi.diffusion.noise import Prediction
from konomi.errors import ModelError
from konomi.families import published_config
from konomi.families.family import DENOISER, VAE, Family, Part, TextEncoderSpec
from konomi.formats.ldm_keys import UNetLayout, transformers_to_openclip, unet_to_ldm, vae_to_ldm
from konomi.models.infer import DECLARED, infer_text, infer_unet, infer_vae
from konomi.models.noise_config import published_scheduler
from konomi.models.single_file import (
    CONFIGS_KEY,
    NO_VAE,
    VOCABULARY_KEY,
    SingleFileSource,
    open_ldm_file,
)
from konomi.models.tensor_files import TensorFile
from konomi.models.tokenizer import StoredClipTokenizer, clip_vocabulary

if TYPE_CHECKING:
    from konomi.models.latent_diffusion import LatentDiffusion

_LOGIT_SCALE = 4.6052
"""ln 100, what every CLIP ends up with; unused here, but other tools look for it."""


@dataclass(frozen=True, slots=True)
class LdmFile:
    """Implements `konomi.models.architecture.SingleFile`."""

    def open(
        self, file: TensorFile, family: Family, *, prediction: Prediction | None, needs_vae: bool
    ) -> SingleFileSource:
        found = open_ldm_file(file, family, prediction=prediction)
        if needs_vae and not found.has_vae:
            raise ModelError(f"{file.path}: {NO_VAE}")
        return found

    def tensors(
        self, base: "LatentDiffusion", part: Part, state: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return _tensors(base, part, state)

    def metadata(self, base: "LatentDiffusion", content: Mapping[str, Tensor]) -> dict[str, str]:
        """modelspec's facts, and what the shapes do not tell of an unusual architecture."""
        return single_file_metadata(base, content)


def _tensors(base: "LatentDiffusion", part: Part, state: dict[str, Tensor]) -> dict[str, Tensor]:
    spec = base.spec.part(part)
    config = base.source.configs[spec.folder]
    if part == DENOISER:
        layout = UNetLayout.from_config(config)
        return {
            f"{spec.file_prefix}{_known(unet_to_ldm(name, layout), name)}": t
            for name, t in state.items()
        }
    if part == VAE:
        levels, layers = len(config["block_out_channels"]), int(config["layers_per_block"])
        named = {
            _known(vae_to_ldm(name, levels=levels, layers=layers), name): t
            for name, t in state.items()
        }
        return {
            f"{spec.file_prefix}{name}": _as_convolution(name, tensor)
            for name, tensor in named.items()
        }
    encoder = base.spec.text_encoder(part)
    if not encoder.open_clip:
        return {f"{encoder.file_prefix}{name}": tensor for name, tensor in state.items()}
    result = {
        f"{encoder.file_prefix}{name}": tensor
        for name, tensor in transformers_to_openclip(state).items()
    }
    return {**_openclip_rest(base, encoder, result), **result}


def _openclip_rest(
    base: "LatentDiffusion", encoder: TextEncoderSpec, result: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What OpenCLIP's layout has and transformers' lacks: from the base's own file, or the nearest
    thing to it.
    """
    dtype = result[f"{encoder.file_prefix}token_embedding.weight"].dtype
    source: Any = base.source
    source = getattr(source, "main", source)  # The VAE may be from elsewhere.
    kept: dict[str, Tensor] = {}
    if isinstance(source, SingleFileSource):
        kept = {
            n: t.to(dtype)
            for n, t in source.leftovers().items()
            if n.startswith(encoder.file_prefix)
        }
    rest = {f"{encoder.file_prefix}logit_scale": torch.tensor(_LOGIT_SCALE, dtype=dtype)}
    if not encoder.pooled:
        width = base.source.configs[encoder.part]["hidden_size"]
        rest[f"{encoder.file_prefix}text_projection"] = torch.eye(int(width), dtype=dtype)
    last = int(base.source.configs[encoder.part]["num_hidden_layers"]) - 1
    block = f"{encoder.file_prefix}transformer.resblocks."
    for extra in range(encoder.file_extra_layers):
        for name, tensor in result.items():
            if name.startswith(f"{block}{last}."):
                rest[name.replace(f"{block}{last}.", f"{block}{last + 1 + extra}.")] = (
                    tensor.clone()
                )
    return {**rest, **kept}


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    attention = ".mid.attn_1." in f".{name}" and tensor.ndim == 2
    return tensor[:, :, None, None] if attention else tensor


def _known(ldm_name: str | None, name: str) -> str:
    if ldm_name is None:
        raise ModelError(
            f"{name} has no name in the LDM layout: this architecture can only be saved as a "
            "folder."
        )
    return ldm_name


def single_file_metadata(base: "LatentDiffusion", content: Mapping[str, Tensor]) -> dict[str, str]:
    """What a file says of itself: modelspec's facts, and what the shapes do not tell of an unusual
    architecture.

    content: its tensors by name; only their shapes count.
    """
    side = base.resolution
    result = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": base.spec.variant(base.process.prediction).architecture,
        "modelspec.prediction_type": base.process.prediction,
        "modelspec.resolution": f"{side}x{side}",
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in content.items()}
    inferred: dict[str, dict[str, Any]] = {
        "unet": infer_unet(base.spec, shapes, {}, check=False),
        "vae": infer_vae(base.spec, shapes, {}, check=False),
        "scheduler": published_scheduler(base.spec, zero_terminal_snr=base.zero_terminal_snr),
        **{
            encoder.part: infer_text(base.spec, encoder, shapes, {})
            for encoder in base.spec.text_encoders
        },
    }
    inferred["unet"]["sample_size"] = (
        base.spec.variant(base.process.prediction).resolution // base.spec.vae.latent_factor
    )
    inferred["scheduler"]["prediction_type"] = base.scheduler.get("prediction_type", "epsilon")
    unusual = {}
    for name, settings in DECLARED.items():
        actual = base.scheduler if name == "scheduler" else base.source.configs.get(name, {})
        differing = {
            s: actual[s] for s in settings if s in actual and actual[s] != inferred[name].get(s)
        }
        if name in inferred and actual.get("hidden_size") != published_config(base.spec, name).get(
            "hidden_size"
        ):
            # A tool that drops the layers nobody reads must not change which one is read.
            differing["num_hidden_layers"] = actual["num_hidden_layers"]
        if differing:
            unusual[name] = differing
    if unusual:
        result[CONFIGS_KEY] = json.dumps(unusual, sort_keys=True)
    tokenizer = base.source.tokenizer(base.spec.text_encoders[0].tokenizer)
    if isinstance(tokenizer, StoredClipTokenizer) and tokenizer.vocabulary != clip_vocabulary():
        own = tokenizer.vocabulary.to_json()
        result[VOCABULARY_KEY] = json.dumps(own, ensure_ascii=False)
    return result
