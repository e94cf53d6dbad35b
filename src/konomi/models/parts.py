"""From configs and tensors to modules, and the canonical names of what is in them.

Canonical names are diffusers' for the denoiser and the VAE, and classic transformers' for text
encoders: always with `text_model.`, which transformers dropped from `CLIPTextModel` (not from
`CLIPTextModelWithProjection`) in 5.6. Our own modules have these names.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from konomi.errors import ModelError
from konomi.families.family import Part, PartSpec, TextEncoderSpec, VaeSpec
from konomi.models.autoencoder import Autoencoder
from konomi.models.clip_text import TextEncoder
from konomi.models.unet import UNet, is_plain

TEXT_ROOT = "text_model."
_PROJECTION = "text_projection."
_IGNORED = ("text_model.embeddings.position_ids", "logit_scale")
"""Tensors of old files that newer modules compute themselves or never used."""
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_MOST = 1 << 20
"""No count or width of a real model comes near; a config that claims more is refused before
anything is built."""


def build_part(
    spec: PartSpec, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, where: str
) -> nn.Module:
    """The module of a part around the given tensors (not copied), frozen and in evaluation mode.

    Raises ModelError naming the first missing, unknown or misshapen tensor.
    """
    module = empty_part(spec, config, where=where)
    named = {name: tensor for name, tensor in tensors.items() if name not in _IGNORED}
    _check_tensors(spec.part, module, named, where)
    module.load_state_dict(named, strict=False, assign=True)
    return module.requires_grad_(False).eval()


def empty_part(spec: PartSpec, config: Mapping[str, Any], *, where: str) -> nn.Module:
    """The module of a part without numbers, on the meta device. Raises ModelError for a config of
    no model.
    """
    with torch.device("meta"):
        return _empty_module(spec, config, where)


def random_part(spec: PartSpec, config: Mapping[str, Any], *, seed: int) -> dict[str, Tensor]:
    """Freshly initialised tensors of a part under their canonical names; the global generator is
    left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _empty_module(spec, config, "random")
        if isinstance(module, TextEncoder):
            module.initialise()
    return dict(module.state_dict())


def _empty_module(spec: PartSpec, config: Mapping[str, Any], where: str) -> nn.Module:
    _check_config(config, f"{where}: {spec.part}")
    try:
        return _construct(spec, config)
    except (
        TypeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        # PyTorch and diffusers raise all of these for configs that do not fit together.
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{where}: the config of {spec.part} describes no model that can be built ({reason})."
        ) from error


def _construct(spec: PartSpec, config: Mapping[str, Any]) -> nn.Module:
    match spec.class_name:
        case "UNet2DConditionModel":
            return UNet(config) if is_plain(config) else _unusual_unet(config)
        case "AutoencoderKL":
            return Autoencoder(config)
        case "CLIPTextModel" | "CLIPTextModelWithProjection":
            return TextEncoder(config, projection=spec.class_name.endswith("WithProjection"))
    raise ModelError(f"konomi has no {spec.class_name}.")


def _unusual_unet(config: Mapping[str, Any]) -> nn.Module:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel.from_config(_public(config))
    return unet


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse numbers that would take for ever to build."""
    for name, value in config.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        limit = 256 if "layers" in name or "per_block" in name else _MOST
        if len(numbers) > 64 or any(
            isinstance(n, (int, float)) and abs(n) > limit for n in numbers
        ):
            raise ModelError(
                f"{where}: the config says {name} = {str(value)[:60]}, which no model of this kind "
                "has."
            )


def complete_config(spec: PartSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config with the class it belongs to, for a diffusers folder. Nothing local (paths)
    is kept.
    """
    public = _public(config)
    if isinstance(spec, TextEncoderSpec):
        return {**public, "architectures": [spec.class_name], "model_type": "clip_text_model"}
    return {"_class_name": spec.class_name, "_diffusers_version": "0.36.0", **public}


def canonical_tensors(spec: PartSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a diffusers folder, of any age, under canonical names."""
    result: dict[str, Tensor] = {}
    for original, tensor in tensors.items():
        name = original
        if isinstance(spec, TextEncoderSpec):
            name = (
                name
                if name.startswith((TEXT_ROOT, _PROJECTION, "logit_scale"))
                else TEXT_ROOT + name
            )
        elif isinstance(spec, VaeSpec):
            head, _, leaf = name.rpartition(".")
            stem, _, last = head.rpartition(".")
            if ".attentions." in name and last in _OLD_VAE_ATTENTION:
                name = f"{stem}.{_OLD_VAE_ATTENTION[last]}.{leaf}"
                tensor = tensor.flatten(1) if tensor.ndim > 1 else tensor
        result[name] = tensor
    return result


def _check_tensors(part: str, module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Every tensor of the module is there in its shape, and nothing else."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ModelError(
            f"{where}: {len(missing)} of the {len(wanted)} tensors of {part} are missing, first "
            f"{missing[0]}. The file is incomplete, or of another kind of model."
        )
    unknown = [name for name in tensors if name not in wanted]
    if unknown:
        raise ModelError(
            f"{where}: {len(unknown)} tensors of {part} have no place in the model, first "
            f"{unknown[0]}. It is of a kind that konomi does not know."
        )
    for name, place in wanted.items():
        tensor = tensors[name]
        if tensor.shape == place.shape:
            continue
        if tensor.numel() == place.numel() and tensor.flatten(1).shape == place.flatten(1).shape:
            # 1x1 convolutions and linear layers stand for each other between layouts.
            tensors[name] = tensor.reshape(place.shape)
            continue
        raise ModelError(
            f"{where}: {part}.{name} has shape {list(tensor.shape)}, the model {list(place.shape)}."
        )


class LazyParts(Mapping[str, nn.Module]):
    """PART -> module; iterating over names loads nothing."""

    def __init__(self, load: Callable[[Part], nn.Module], parts: tuple[Part, ...]) -> None:
        self._load = load
        self._parts = parts

    def __getitem__(self, part: str) -> nn.Module:
        for known in self._parts:
            if known == part:
                return self._load(known)
        raise KeyError(part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)
