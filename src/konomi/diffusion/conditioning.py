"""What the denoiser is told besides the noisy latents.

Shapes: B batch, T text positions, D text width, P pooled width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Encoded captions and whatever else a family's denoiser reads. Fields a family does not use
    are None.
    """

    states: Tensor
    """Text states [B, T, D]."""
    pooled: Tensor | None = None
    """Pooled text [B, P]."""
    sizes: Tensor | None = None
    """Micro-conditioning (Podell et al. 2023) [B, 6]: original height, width, crop top, left,
    target height, width."""
    inpaint: Tensor | None = None
    """Inpainting bases [B, 5, h, w]: the mask (1 = to be drawn), then the latents of the masked
    image."""
    mask: Tensor | None = None
    """Text positions that count, bool [B, T], where the text encoder has an attention mask. None:
    all of them do."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Conditioning":
        """The same, on a device; floating tensors in `dtype`. Sizes stay whole numbers: bfloat16
        cannot hold 1001.
        """
        return self._map(
            lambda t: t.to(device, dtype if t.is_floating_point() else None, non_blocking=True)
        )

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return self._map(lambda tensor: tensor[index])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        values = (self.pooled, self.sizes, self.inpaint, self.mask)
        optional = (None if value is None else change(value) for value in values)
        return Conditioning(change(self.states), *optional)


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """Join along the batch. Text of fewer positions than the longest is padded: with a mask by
    positions that do not count, without one by repeating its last position.

    A field must be there in all parts or in none.
    """
    longest = max(part.states.shape[1] for part in parts)

    def join(name: str) -> Tensor | None:
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        assert len(values) in (0, len(parts)), f"{name} is missing in some parts"
        return torch.cat(values) if values else None

    masks = [part.mask for part in parts if part.mask is not None]
    assert len(masks) in (0, len(parts)), "mask is missing in some parts"
    stretch = _fill_up if masks else _stretch
    states = torch.cat([stretch(part.states, longest) for part in parts])
    mask = torch.cat([_fill_up(mask, longest) for mask in masks]) if masks else None
    return Conditioning(states, join("pooled"), join("sizes"), join("inpaint"), mask)


def _fill_up(values_BT: Tensor, length: int) -> Tensor:
    """[B, T, ...] with zeros up to a length."""
    missing = values_BT.new_zeros(len(values_BT), length - values_BT.shape[1], *values_BT.shape[2:])
    return torch.cat([values_BT, missing], dim=1)


def _stretch(states_BTD: Tensor, length: int) -> Tensor:
    missing = length - states_BTD.shape[1]
    if missing == 0:
        return states_BTD
    return torch.cat([states_BTD, states_BTD[:, -1:].expand(-1, missing, -1)], dim=1)
