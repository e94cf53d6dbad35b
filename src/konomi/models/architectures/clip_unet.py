"""CLIP's text encoders, a U-Net and an `AutoencoderKL`, for text to image and for inpainting
(Rombach et al. 2022; Podell et al. 2023).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from konomi.config.sections import TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.families import published_config
from konomi.families.family import Family, PartSpec, TextEncoderSpec, VaeSpec
from konomi.models.architecture import (
    AddedTokens,
    ConfigRules,
    Configs,
    Facts,
    LoadedTextEncoder,
    StoredTokenizer,
    TextTraits,
)
from konomi.models.autoencoder import Autoencoder
from konomi.models.clip_text import TextEncoder
from konomi.models.clip_unet_rules import check_together, rules_of
from konomi.models.ldm_file import LdmFile
from konomi.models.parts import public_settings
from konomi.models.text_encoding import TOKENS_PER_CHUNK, count_chunks, encode_text
from konomi.models.tokenizer import (
    END,
    START,
    StoredClipTokenizer,
    Vocabulary,
    clip_vocabulary,
    read_clip_tokenizer,
)
from konomi.models.unet import UNet, is_plain

_LEGACY_END = 2
"""`eos_token_id` in the published configs, a mistake that transformers works around by taking the
highest token. That goes wrong once words are added, so the true number is set."""
_CLIP_END = 49407
_VAE_DEFAULTS = {"latent_channels": 4, "block_out_channels": [64]}
_TEXT_ROOT = "text_model."
_PROJECTION = "text_projection."
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True, slots=True)
class ClipUNet:
    """Implements `konomi.models.architectures.architecture.Architecture`."""

    name: ClassVar[str] = "clip_unet"
    single_file: ClassVar[LdmFile] = LdmFile()
    obsolete: ClassVar[tuple[str, ...]] = ("text_model.embeddings.position_ids", "logit_scale")

    def rules(self, spec: PartSpec) -> ConfigRules:
        return rules_of(spec)

    def fill(self, family: Family, configs: dict[str, dict[str, Any]]) -> None:
        unet, vae = family.denoiser.folder, family.vae.folder
        if unet in configs:
            sample_size = published_config(family, unet)["sample_size"]
            defaults = {"sample_size": sample_size, "in_channels": 4, "out_channels": 4}
            _fill(configs[unet], defaults)
        if vae in configs:
            _fill(configs[vae], _VAE_DEFAULTS)
        for encoder in family.text_encoders:
            text = configs.get(encoder.folder, {})
            size = text.get("vocab_size", 0)
            known = isinstance(size, int) and size > _CLIP_END
            if known and text.get("eos_token_id") == _LEGACY_END:
                text["eos_token_id"] = _CLIP_END

    def check(self, family: Family, configs: Configs) -> None:
        check_together(family, configs)

    def facts(self, family: Family, configs: Configs) -> Facts:
        unet, vae = configs[family.denoiser.folder], configs[family.vae.folder]
        channels, factor = int(vae["latent_channels"]), 2 ** (len(vae["block_out_channels"]) - 1)
        first = family.text_encoders[0]
        text = configs[first.folder]
        positions = int(text.get("max_position_embeddings", first.max_length))
        return Facts(
            resolution=int(unet["sample_size"]) * factor,
            latent_channels=channels,
            latent_factor=factor,
            latent_scale=float(vae.get("scaling_factor") or family.vae.latent_scale),
            width=int(unet["block_out_channels"][0]),
            inpainting=int(unet["in_channels"]) == 2 * channels + 1,
            casts_weights=is_plain(unet),
            text=TextTraits(num_positions=positions),
        )

    def build(self, spec: PartSpec, config: Mapping[str, Any]) -> nn.Module:
        if isinstance(spec, TextEncoderSpec):
            return TextEncoder(config, projection=spec.class_name.endswith("WithProjection"))
        if isinstance(spec, VaeSpec):
            return Autoencoder(config)
        return UNet(config) if is_plain(config) else _unusual_unet(config)

    def canonical(self, spec: PartSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Text encoders always with `text_model.`, which transformers dropped from `CLIPTextModel`
        (not from `CLIPTextModelWithProjection`) in 5.6.
        """
        if isinstance(spec, TextEncoderSpec):
            kept = (_TEXT_ROOT, _PROJECTION, "logit_scale")
            return {n if n.startswith(kept) else _TEXT_ROOT + n: t for n, t in tensors.items()}
        if isinstance(spec, VaeSpec):
            return dict(_modern_attention(name, tensor) for name, tensor in tensors.items())
        return dict(tensors)

    def predict(
        self,
        denoiser: nn.Module,
        noisy_latents: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        unet: Any = denoiser
        # Its bias, for weights may be kept in another format.
        dtype = unet.conv_in.bias.dtype
        inputs = noisy_latents.to(dtype)
        if conditioning.inpaint is not None:
            inputs = torch.cat([inputs, conditioning.inpaint.to(dtype)], dim=1)
        added = None
        if conditioning.pooled is not None and conditioning.sizes is not None:
            added = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": conditioning.sizes}
        states = conditioning.states.to(dtype)
        output: Tensor = unet(
            inputs,
            timesteps,
            encoder_hidden_states=states,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output

    def read_tokenizer(self, folder: Path) -> StoredTokenizer:
        return read_clip_tokenizer(folder)

    def encode(
        self,
        encoders: Sequence[LoadedTextEncoder],
        captions: Sequence[str],
        text: TextConfig,
        tokens: AddedTokens,
    ) -> Conditioning:
        return encode_text(encoders, captions, text, tokens=tokens)

    def uncut(
        self,
        encoders: Sequence[LoadedTextEncoder],
        captions: Sequence[str],
        text: TextConfig,
        tokens: AddedTokens,
    ) -> TextConfig:
        chunks = count_chunks(encoders, captions, text, tokens=tokens)
        return replace(text, max_tokens=TOKENS_PER_CHUNK * chunks)

    def scratch(
        self,
        family: Family,
        configs: dict[str, dict[str, Any]],
        *,
        resolution: int | None,
        inpainting: bool,
        vocabulary: Vocabulary | None,
    ) -> Mapping[str, StoredTokenizer]:
        unet, channels = configs[family.denoiser.folder], family.vae.latent_channels
        if resolution is not None:
            unet["sample_size"] = resolution // family.vae.latent_factor
        unet["in_channels"] = 2 * channels + 1 if inpainting else channels
        if vocabulary is not None:
            for encoder in family.text_encoders:
                configs[encoder.folder].update(
                    vocab_size=max(vocabulary.tokens.values()) + 1,
                    bos_token_id=vocabulary.tokens[START],
                    eos_token_id=vocabulary.tokens[END],
                    pad_token_id=vocabulary.tokens.get(encoder.pad_token, vocabulary.tokens[END]),
                )
        known = vocabulary or clip_vocabulary()
        return {e.tokenizer: StoredClipTokenizer(known, e.pad_token) for e in family.text_encoders}


def _unusual_unet(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel.from_config(public_settings(config))
    return unet


def _modern_attention(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """A VAE's tensor under the name that attention has since 2023."""
    head, _, leaf = name.rpartition(".")
    stem, _, last = head.rpartition(".")
    if ".attentions." not in name or last not in _OLD_VAE_ATTENTION:
        return name, tensor
    linear = tensor.flatten(1) if tensor.ndim > 1 else tensor
    return f"{stem}.{_OLD_VAE_ATTENTION[last]}.{leaf}", linear


def _fill(config: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for setting, value in defaults.items():
        if config.get(setting) is None:
            config[setting] = value
