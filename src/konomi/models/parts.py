"""From configs and tensors to modules, and the canonical names of what is in them.

Canonical names are diffusers' for the denoiser and the VAE, and classic transformers' for text
encoders. The architecture's own modules have these names.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from konomi.errors import ModelError
from konomi.families.family import Part, PartSpec, TextEncoderSpec
from konomi.models.architecture import Architecture

_MOST = 1 << 20
"""No count or width of a real model comes near; a config that claims more is refused before
anything is built."""


def build_part(
    architecture: Architecture,
    spec: PartSpec,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    where: str,
) -> nn.Module:
    """The module of a part around the given tensors (not copied), frozen and in evaluation mode.

    Raises ModelError naming the first missing, unknown or misshapen tensor.
    """
    module = empty_part(architecture, spec, config, where=where)
    obsolete = architecture.obsolete
    named = {name: tensor for name, tensor in tensors.items() if name not in obsolete}
    _check_tensors(spec.part, module, named, where)
    module.load_state_dict(named, strict=False, assign=True)
    return module.requires_grad_(False).eval()


def empty_part(
    architecture: Architecture, spec: PartSpec, config: Mapping[str, Any], *, where: str
) -> nn.Module:
    """The module of a part without numbers, on the meta device. Raises ModelError for a config of
    no model.
    """
    with torch.device("meta"):
        return new_part(architecture, spec, config, where=where)


def random_part(
    architecture: Architecture, spec: PartSpec, config: Mapping[str, Any], *, seed: int
) -> dict[str, Tensor]:
    """Freshly initialised tensors of a part under their canonical names; the global generator is
    left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = new_part(architecture, spec, config, where="random")
        initialise = getattr(module, "initialise", None)
        if initialise is not None:
            initialise()
    return dict(module.state_dict())


def new_part(
    architecture: Architecture, spec: PartSpec, config: Mapping[str, Any], *, where: str
) -> nn.Module:
    """The module of a part as its class makes it. Raises ModelError for a config of no model."""
    _check_config(config, f"{where}: {spec.part}")
    try:
        return architecture.build(spec, config)
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


def public_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what libraries note in it for themselves."""
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
    public = public_settings(config)
    if isinstance(spec, TextEncoderSpec):
        return {**public, "architectures": [spec.class_name], "model_type": spec.model_type}
    return {"_class_name": spec.class_name, "_diffusers_version": "0.36.0", **public}


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
