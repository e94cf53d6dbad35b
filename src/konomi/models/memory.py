"""Switches that trade speed for memory, or layout for speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from konomi.config.sections import MemoryConfig
from konomi.models.base import BaseModel


def apply_memory_options(base: BaseModel, memory: MemoryConfig) -> None:
    """What a recipe's `[memory]` asks of the modules. Call it once, after the trained parameters
    are marked.
    """
    if memory.channels_last:
        channels_last(base)
    if memory.gradient_checkpointing:
        loaded = base.loaded_parts()
        text = any(
            parameter.requires_grad
            for name in base.text_encoders
            if name in loaded
            for parameter in base.text_encoders[name].parameters()
        )
        enable_gradient_checkpointing(base, text=text)
    if memory.compile:
        compile_denoiser(base)


@contextmanager
def temporarily_loaded(base: BaseModel, memory: MemoryConfig) -> Iterator[None]:
    """With `memory.offload`, parts that are loaded inside are gone again afterwards.

    What is done inside to their weights has to be undone by then.
    """
    before = base.loaded_parts()
    try:
        yield
    finally:
        if memory.offload:
            base.unload(*(part for part in base.loaded_parts() if part not in before))


def enable_gradient_checkpointing(base: BaseModel, *, text: bool = False) -> None:
    """Recompute activations in the backward pass (Chen et al. 2016).

    Of the denoiser and, with `text`, of the text encoders.
    Works in training mode only, and for text encoders only where something in them trains.
    """
    denoiser: Any = base.denoiser
    denoiser.enable_gradient_checkpointing()
    if text:
        for encoder in base.text_encoders.values():
            module: Any = encoder
            module.enable_gradient_checkpointing()


def disable_gradient_checkpointing(base: BaseModel) -> None:
    """Back to keeping activations, in the denoiser and the text encoders."""
    denoiser: Any = base.denoiser
    denoiser.disable_gradient_checkpointing()
    for encoder in base.text_encoders.values():
        module: Any = encoder
        module.disable_gradient_checkpointing()


def channels_last(base: BaseModel) -> None:
    """Keep the denoiser's convolution weights with channels innermost; same result up to
    rounding.
    """
    module: Any = base.denoiser
    module.to(memory_format=torch.channels_last)


def compile_denoiser(base: BaseModel, *, dynamic: bool | None = None) -> None:
    """torch.compile the denoiser in place, so that its layers keep their names. Compiles at the
    first prediction.
    """
    base.denoiser.compile(dynamic=dynamic)
