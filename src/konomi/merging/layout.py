"""The single-file layout of Stable Diffusion, tensor by tensor: which of the modules that adapters
change lie in a tensor, and how a tensor of the file is put together of theirs.

Names are those of `.safetensors` checkpoints (`model.diffusion_model.input_blocks.1.0...`);
canonical names are `PART.PATH.weight` and `.bias` as everywhere in konomi.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from konomi.families.family import DENOISER, VAE, Family, Part, TextEncoderSpec
from konomi.formats.ldm_keys import (
    UNetLayout,
    openclip_to_transformers,
    transformers_to_openclip,
    unet_to_diffusers,
    unet_to_ldm,
    vae_to_diffusers,
    vae_to_ldm,
)

_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_ATTENTION = ("encoder.mid.attn_1.", "decoder.mid.attn_1.")
"""Its projections are 1x1 convolutions in a single file, and linear layers here."""
_TEXT_ROOT = "text_model."


@dataclass(frozen=True, slots=True)
class SingleFileLayout:
    """Of one model."""

    family: Family
    unet: UNetLayout
    vae_levels: int
    vae_layers: int

    @classmethod
    def of(cls, family: Family, configs: Mapping[str, Mapping[str, Any]]) -> SingleFileLayout:
        """configs: of the parts, by folder, in diffusers' terms."""
        vae = configs[family.vae.folder]
        return cls(
            family,
            UNetLayout.from_config(configs[family.denoiser.folder]),
            len(vae["block_out_channels"]),
            int(vae.get("layers_per_block", 2)),
        )

    def part_of(self, name: str) -> Part | None:
        """The part that a tensor of the file belongs to; None for one that is no weight of the
        model.
        """
        denoiser, vae = self.family.denoiser, self.family.vae
        if name.startswith(denoiser.file_prefix):
            return DENOISER
        if name.startswith(tuple(vae.file_prefix + part for part in _VAE_PARTS)):
            return VAE
        for encoder in self.family.text_encoders:
            if name.startswith(encoder.file_prefix) and "position_ids" not in name:
                return encoder.part
        return None

    def usual_name(self, name: str) -> str:
        """A tensor's name as every tool reads it: transformers left `text_model.` out for a
        while.
        """
        for encoder in self.family.text_encoders:
            prefix = encoder.file_prefix
            if name.startswith(prefix) and not encoder.open_clip:
                inner = name[len(prefix) :]
                return prefix + (inner if inner.startswith(_TEXT_ROOT) else _TEXT_ROOT + inner)
        return name

    def canonical(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """A tensor of the file as the weights and biases of modules, by canonical name; views
        where that is possible. Empty for what belongs to no module.
        """
        part = self.part_of(name)
        if part is None:
            return {}
        inner = name[len(self.family.part(part).file_prefix) :]
        if part == DENOISER:
            path = unet_to_diffusers(inner, self.unet)
            return {} if path is None else {f"{part}.{path}": tensor}
        if part == VAE:
            path = vae_to_diffusers(inner, levels=self.vae_levels, layers=self.vae_layers)
            if path is None:
                return {}
            flat = ".attentions." in path and tensor.ndim == 4
            return {f"{part}.{path}": tensor.flatten(1) if flat else tensor}
        if self.family.text_encoder(part).open_clip:
            found = openclip_to_transformers(inner, tensor)
            return {f"{part}.{path}": piece for path, piece in found.items()}
        return {f"{part}.{inner}": tensor}

    def names(self, name: str) -> tuple[str, ...]:
        """The canonical names alone."""
        return tuple(self.canonical(name, torch.empty(3, 1, device="meta")))

    def assemble(self, name: str, pieces: Mapping[str, Tensor]) -> Tensor:
        """The way back: a tensor of the file from the modules' tensors that `names` tells."""
        part = self.part_of(name)
        assert part is not None
        inner = name[len(self.family.part(part).file_prefix) :]
        plain = {path.removeprefix(f"{part}."): piece for path, piece in pieces.items()}
        if part not in (DENOISER, VAE) and self.family.text_encoder(part).open_clip:
            return transformers_to_openclip(plain)[inner]
        ((path, tensor),) = plain.items()
        if (
            part == VAE
            and ".attentions." in path
            and inner.startswith(_ATTENTION)
            and tensor.ndim == 2
        ):
            return tensor[:, :, None, None]
        return tensor

    def file_name(self, canonical: str) -> str | None:
        """Of the tensor of the file in which a module's weight or bias lies; None if it has no
        place there.
        """
        part, _, path = canonical.partition(".")
        prefix = self.family.part(part).file_prefix
        if part == DENOISER:
            found = unet_to_ldm(path, self.unet)
        elif part == VAE:
            found = vae_to_ldm(path, levels=self.vae_levels, layers=self.vae_layers)
        elif self.family.text_encoder(part).open_clip:
            found = _openclip_name(path)
        else:
            found = path
        return None if found is None else prefix + found


def _openclip_name(path: str) -> str | None:
    third = torch.empty(1, device="meta")
    if ".self_attn." in path and "out_proj" not in path:
        # The three projections lie in one tensor, which is named after the first of them.
        stem, _, last = path.rpartition(".self_attn.")
        kind = last.rpartition(".")[2]
        group = {f"{stem}.self_attn.{letter}_proj.{kind}": third for letter in "qkv"}
        return next(iter(transformers_to_openclip(group)), None)
    shape = torch.empty(1, 1, device="meta")
    return next(iter(transformers_to_openclip({path: shape})), None)


def openclip_extras(
    encoder: TextEncoderSpec, width: int, num_layers: int
) -> dict[str, str | Callable[[], Tensor]]:
    """What a single file holds of OpenCLIP and diffusers' folders do not: name in the file -> the
    name of the tensor that it is a copy of, or what makes it. No program computes with them;
    several look for them.
    """
    prefix = encoder.file_prefix
    extras: dict[str, str | Callable[[], Tensor]] = {
        f"{prefix}logit_scale": lambda: torch.tensor(4.6052)  # ln 100, as in every CLIP.
    }
    if not encoder.pooled:
        extras[f"{prefix}text_projection"] = lambda: torch.eye(width)
    block = f"{prefix}transformer.resblocks."
    for extra in range(encoder.file_extra_layers):
        extras[f"{block}{num_layers + extra}."] = f"{block}{num_layers - 1}."
    return extras
