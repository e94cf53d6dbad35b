"""Half precision overflows in some VAEs: those compute in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from konomi.errors import ModelError


def finite_or_float32(
    vae: nn.Module,
    compute: Callable[[Any, Tensor], tuple[Tensor, ...]],
    inputs: Tensor,
    *,
    name: str,
    fault: str,
) -> tuple[Tensor, ...]:
    """What `compute(vae, inputs)` gives; on NaN it is computed again in float32, to which `vae` is
    then converted, and stays.

    The VAE computes in the format of its own weights, also inside somebody's autocast, which would
    take a float32 VAE back to half precision. Raises ModelError with `fault` where float32 does
    not help.
    """
    dtype = next(vae.parameters()).dtype
    with torch.autocast(inputs.device.type, enabled=False):
        result = compute(vae, inputs.to(dtype))
        if _finite(result):
            return result
        if not bool(torch.isfinite(inputs).all()):
            raise ModelError(f"{name}: the VAE was given NaN or infinite values.")
        if dtype != torch.float32:
            result = compute(vae.to(torch.float32), inputs.to(torch.float32))
            if _finite(result):
                return result
    raise ModelError(
        f"{name}: {fault}, in float32 too. Its VAE is damaged; take another base or VAE."
    )


def _finite(tensors: tuple[Tensor, ...]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
