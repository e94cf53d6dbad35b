"""Names of Stable Diffusion's original (LDM) layout and of the diffusers/transformers layout, both
ways.

Nothing here holds a table of a particular model: the maps are computed from the block structure,
which published configs give, so they serve any UNet or VAE of these architectures. Part prefixes
(`model.diffusion_model.`, `first_stage_model.`) are the caller's. A name is a tensor's
(`input_blocks.1.0.in_layers.0.weight`) or a module's; what no rule covers gives None.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from konomi.families import FAMILIES, family_named, published_config


@dataclass(frozen=True, slots=True)
class UNetLayout:
    """Block structure of a UNet, from the highest resolution to the lowest."""

    resnets: tuple[int, ...]
    """Residual blocks in each down block (the up blocks have one more)."""
    attention: tuple[bool, ...]
    """Whether the blocks of this resolution have transformers."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "UNetLayout":
        """From the config of a diffusers `UNet2DConditionModel`."""
        types = config["down_block_types"]
        count = config.get("layers_per_block", 2)
        resnets = (count,) * len(types) if isinstance(count, int) else tuple(count)
        return cls(resnets, tuple("CrossAttn" in name for name in types))


@lru_cache
def published_layout(family: str) -> UNetLayout:
    """Of the published U-Net of a family."""
    spec = family_named(family)
    return UNetLayout.from_config(published_config(spec, spec.denoiser.folder))


@lru_cache
def published_layouts() -> tuple[UNetLayout, ...]:
    """Those of all families; first that of the family whose LoRA files have the original names."""
    known = [family for family in FAMILIES if family.denoiser.file_layout == "ldm"]
    known.sort(key=lambda family: not family.denoiser.kohya_original_names)
    return tuple(dict.fromkeys(published_layout(family.name) for family in known))


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@lru_cache(maxsize=32)
def unet_modules(layout: UNetLayout) -> dict[str, str]:
    """LDM module -> diffusers module: leaves, except transformers (`...attentions.0`), whose
    inside is named alike.
    """
    modules = dict(_UNET_TOP)

    def resnet(ldm: str, diffusers: str) -> None:
        modules.update(
            {f"{ldm}.{ours}": f"{diffusers}.{theirs}" for ours, theirs in _RESNET.items()}
        )

    last = len(layout.resnets) - 1
    index = 0
    for level, (count, attention) in enumerate(zip(layout.resnets, layout.attention, strict=True)):
        for layer in range(count):
            index += 1
            resnet(f"input_blocks.{index}.0", f"down_blocks.{level}.resnets.{layer}")
            if attention:
                modules[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{layer}"
        if level < last:
            index += 1
            modules[f"input_blocks.{index}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    resnet("middle_block.0", "mid_block.resnets.0")
    modules["middle_block.1"] = "mid_block.attentions.0"
    resnet("middle_block.2", "mid_block.resnets.1")
    index = 0
    for up, (count, attention) in enumerate(
        zip(reversed(layout.resnets), reversed(layout.attention), strict=True)
    ):
        for layer in range(count + 1):
            resnet(f"output_blocks.{index}.0", f"up_blocks.{up}.resnets.{layer}")
            if attention:
                modules[f"output_blocks.{index}.1"] = f"up_blocks.{up}.attentions.{layer}"
            if layer == count and up < last:
                modules[f"output_blocks.{index}.{1 + attention}.conv"] = (
                    f"up_blocks.{up}.upsamplers.0.conv"
                )
            index += 1
    return modules


@lru_cache(maxsize=32)
def _unet_modules_reversed(layout: UNetLayout) -> dict[str, str]:
    return {theirs: ours for ours, theirs in unet_modules(layout).items()}


@lru_cache(maxsize=32)
def _unet_modules_flat(layout: UNetLayout) -> dict[str, str]:
    return {name.replace(".", "_"): theirs for name, theirs in unet_modules(layout).items()}


def _translate(name: str, modules: Mapping[str, str]) -> str | None:
    """Replace the longest leading part of a dotted name that `modules` knows."""
    end = len(name)
    while end > 0:
        found = modules.get(name[:end])
        if found is not None:
            return found + name[end:]
        end = name.rfind(".", 0, end)
    return None


def unet_to_diffusers(name: str, layout: UNetLayout) -> str | None:
    """`input_blocks.1.0.in_layers.2.weight` -> `down_blocks.0.resnets.0.conv1.weight`."""
    return _translate(name, unet_modules(layout))


def unet_to_ldm(name: str, layout: UNetLayout) -> str | None:
    """The way back."""
    return _translate(name, _unet_modules_reversed(layout))


_TRANSFORMER_FLAT = re.compile(
    r"transformer_blocks_(\d+)_(?:(attn[12])_(to_q|to_k|to_v|to_out_0)|(norm[123])|ff_net_(0_proj|2))"
)


def _transformer_module(flat: str) -> str | None:
    """`transformer_blocks_0_attn1_to_out_0` -> `transformer_blocks.0.attn1.to_out.0`."""
    if flat in ("norm", "proj_in", "proj_out"):
        return flat
    match = _TRANSFORMER_FLAT.fullmatch(flat)
    if match is None:
        return None
    block, attention, projection, norm, feed_forward = match.groups()
    if attention:
        inner = f"{attention}.{projection.replace('to_out_0', 'to_out.0')}"
    else:
        inner = norm or f"ff.net.{feed_forward.replace('_', '.')}"
    return f"transformer_blocks.{block}.{inner}"


def ldm_unet_module_to_diffusers(name: str, layout: UNetLayout | None = None) -> str | None:
    """Path of a UNet module from its LDM name, dotted or flattened with underscores as in kohya's
    LoRA files.

    `input_blocks_4_1_transformer_blocks_0_attn1_to_q` ->
    `down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`. Without a layout, that of the
    family whose LoRA files have such names.
    """
    layout = layout or published_layouts()[0]
    if "." in name:
        return unet_to_diffusers(name, layout)
    flat_modules = _unet_modules_flat(layout)
    end = len(name)
    while end > 0:
        found = flat_modules.get(name[:end])
        if found is not None:
            if end == len(name):
                return found
            inner = _transformer_module(name[end + 1 :]) if ".attentions." in found else None
            return None if inner is None else f"{found}.{inner}"
        end = name.rfind("_", 0, end)
    return None


def diffusers_unet_module_to_ldm(path: str, layout: UNetLayout | None = None) -> str | None:
    """Dotted LDM name of a UNet module; kohya's files write it with underscores. Without a layout
    as above.
    """
    return unet_to_ldm(path, layout or published_layouts()[0])


_VAE_SHARED = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "norm_out": "conv_norm_out",
    "conv_in": "conv_in",
    "conv_out": "conv_out",
}


@lru_cache(maxsize=16)
def vae_modules(levels: int, layers: int = 2) -> dict[str, str]:
    """LDM module -> diffusers module of an `AutoencoderKL` with `levels` resolutions and `layers`
    blocks in each.
    """
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        modules.update(
            {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in _VAE_SHARED.items()}
        )
    for level in range(levels):
        up = levels - 1 - level
        down = f"encoder.down_blocks.{level}"
        for layer in range(layers):
            _add_vae_resnet(
                modules, f"encoder.down.{level}.block.{layer}", f"{down}.resnets.{layer}"
            )
        for layer in range(layers + 1):
            _add_vae_resnet(
                modules,
                f"decoder.up.{up}.block.{layer}",
                f"decoder.up_blocks.{level}.resnets.{layer}",
            )
        modules[f"encoder.down.{level}.downsample.conv"] = f"{down}.downsamplers.0.conv"
        modules[f"decoder.up.{up}.upsample.conv"] = f"decoder.up_blocks.{level}.upsamplers.0.conv"
    return modules


def _add_vae_resnet(modules: dict[str, str], ldm: str, diffusers: str) -> None:
    modules[ldm] = diffusers
    modules[f"{ldm}.nin_shortcut"] = f"{diffusers}.conv_shortcut"


def vae_to_diffusers(name: str, *, levels: int, layers: int = 2) -> str | None:
    """`encoder.down.0.block.0.conv1.weight` -> `encoder.down_blocks.0.resnets.0.conv1.weight`.

    The four projections of `mid.attn_1` are [C, C, 1, 1] in LDM files and [C, C] in diffusers.
    """
    return _translate(name, vae_modules(levels, layers))


def vae_to_ldm(name: str, *, levels: int, layers: int = 2) -> str | None:
    """The way back."""
    return _translate(name, {theirs: ours for ours, theirs in vae_modules(levels, layers).items()})


_OPENCLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OPENCLIP_TOP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPENCLIP_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)(?:\.|_)(weight|bias)")


def openclip_to_transformers(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One tensor of OpenCLIP's text encoder as tensors of transformers' `CLIPTextModel` (classic
    names).

    `in_proj` is cut into q, k, v; `text_projection` is transposed. What transformers does not have
    gives {}.
    """
    if name in _OPENCLIP_TOP:
        return {_OPENCLIP_TOP[name]: tensor}
    if name == "text_projection":
        return {"text_projection.weight": tensor.T.contiguous()}
    match = _OPENCLIP_BLOCK.fullmatch(name)
    if match is None:
        return {}
    layer, inner, kind = match.groups()
    prefix = f"text_model.encoder.layers.{layer}"
    if inner == "attn.in_proj":
        return {
            f"{prefix}.self_attn.{letter}_proj.{kind}": third.clone()
            for letter, third in zip("qkv", tensor.chunk(3), strict=True)
        }
    return {f"{prefix}.{_OPENCLIP_LAYER[inner]}.{kind}": tensor} if inner in _OPENCLIP_LAYER else {}


def transformers_to_openclip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole text encoder (classic names) in OpenCLIP's layout. Names of no place there are left
    out.
    """
    top = {theirs: ours for ours, theirs in _OPENCLIP_TOP.items()}
    layers = {theirs: ours for ours, theirs in _OPENCLIP_LAYER.items()}
    pattern = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in top:
            result[top[name]] = tensor
        elif name == "text_projection.weight":
            result["text_projection"] = tensor.T.contiguous()
        elif match := pattern.fullmatch(name):
            layer, inner, kind = match.groups()
            prefix = f"transformer.resblocks.{layer}"
            if inner in layers:
                result[f"{prefix}.{layers[inner]}.{kind}"] = tensor
            elif inner == "self_attn.q_proj":
                source = f"text_model.encoder.layers.{layer}.self_attn"
                result[f"{prefix}.attn.in_proj_{kind}"] = torch.cat(
                    [tensor, tensors[f"{source}.k_proj.{kind}"], tensors[f"{source}.v_proj.{kind}"]]
                )
    return result


_FLAT_BLOCK = re.compile(
    r"(?:(input_blocks|output_blocks)(\d+)(\d)|(middle_block)(\d)|(time_embed|out)(\d))(\D*.*)"
)
_FLAT_RESNET = re.compile(
    r"(in_layers|emb_layers|out_layers)(\d)|skip_connection|op|conv|norm|proj_in|proj_out|"
)


def ema_name_to_dotted(flat: str) -> str | None:
    """Name of a UNet tensor from the name of its running average, which LDM stores without dots.

    `input_blocks41transformer_blocks0norm1weight` ->
    `input_blocks.4.1.transformer_blocks.0.norm1.weight`.
    """
    for kind in ("weight", "bias"):
        if flat.endswith(kind):
            head = _dotted_module(flat.removesuffix(kind))
            return None if head is None else f"{head}.{kind}"
    return None


def _dotted_module(flat: str) -> str | None:
    if label := re.fullmatch(r"label_emb(\d)(\d)", flat):
        return f"label_emb.{label[1]}.{label[2]}"
    match = _FLAT_BLOCK.fullmatch(flat)
    if match is None:
        return None
    *numbers, rest = match.groups()
    block = ".".join(part for part in numbers if part is not None)
    if inner := re.fullmatch(
        r"transformer_blocks(\d+)(?:(attn[12])(to_q|to_k|to_v|to_out0)|(norm[123])|ffnet(0proj|2))",
        rest,
    ):
        index, attention, projection, norm, feed_forward = inner.groups()
        if attention:
            leaf = f"{attention}.{projection.replace('to_out0', 'to_out.0')}"
        else:
            leaf = norm or f"ff.net.{feed_forward.replace('0proj', '0.proj')}"
        return f"{block}.transformer_blocks.{index}.{leaf}"
    layer = _FLAT_RESNET.fullmatch(rest)
    if layer is None:
        return None
    name = f"{layer[1]}.{layer[2]}" if layer[1] else rest
    return f"{block}.{name}" if name else block
