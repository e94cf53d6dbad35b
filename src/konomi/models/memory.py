"""Switches that trade speed for memory, or layout for speed."""

from typing import Any

import torch

from konomi.models.base import BaseModel


def enable_gradient_checkpointing(base: BaseModel, *, text: bool = False) -> None:
    """Recompute activations in the backward pass (Chen et al. 2016): of the denoiser; with `text`, of text encoders too.

    Works in training mode only, and for text encoders only where something in them trains.
    """
    denoiser: Any = base.denoiser
    denoiser.enable_gradient_checkpointing()
    if text:
        for encoder in base.text_encoders.values():
            module: Any = encoder
            module.gradient_checkpointing_enable({"use_reentrant": False})


def disable_gradient_checkpointing(base: BaseModel) -> None:
    """Back to keeping activations, in the denoiser and the text encoders."""
    denoiser: Any = base.denoiser
    denoiser.disable_gradient_checkpointing()
    for encoder in base.text_encoders.values():
        module: Any = encoder
        module.gradient_checkpointing_disable()


def channels_last(base: BaseModel) -> None:
    """Keep the denoiser's convolution weights with channels innermost; same result up to rounding."""
    module: Any = base.denoiser
    module.to(memory_format=torch.channels_last)


def compile_denoiser(base: BaseModel, *, dynamic: bool | None = None) -> None:
    """torch.compile the denoiser in place, so that its layers keep their names. Compiles at the first prediction."""
    base.denoiser.compile(dynamic=dynamic)
