"""What the denoiser is told besides the noisy latents. Shapes: B batch, T text positions, D text width, P pooled width."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Encoded captions and whatever else a family's denoiser reads. Fields a family does not use are None."""

    states: Tensor
    """Text states [B, T, D]."""
    pooled: Tensor | None = None
    """Pooled text [B, P] (SDXL)."""
    sizes: Tensor | None = None
    """SDXL micro-conditioning [B, 6]: original height, width, crop top, left, target height, width."""
    inpaint: Tensor | None = None
    """Inpainting bases [B, 5, h, w]: the mask (1 = to be drawn), then the latents of the masked image."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Conditioning":
        """The same, on a device; floating tensors in `dtype`."""
        moved = {
            f.name: None if (value := getattr(self, f.name)) is None else value.to(device, dtype, non_blocking=True)
            for f in fields(self)
        }
        return Conditioning(**moved)

    def __len__(self) -> int:
        return self.states.shape[0]

    def __getitem__(self, index: slice | Tensor) -> "Conditioning":
        return Conditioning(*(None if (v := getattr(self, f.name)) is None else v[index] for f in fields(self)))


def concatenate(parts: Sequence[Conditioning]) -> Conditioning:
    """Join along the batch. Text of fewer positions than the longest is padded by repeating its last position."""
    longest = max(part.states.shape[1] for part in parts)
    columns: list[Tensor | None] = [torch.cat([_stretch(part.states, longest) for part in parts])]
    for f in fields(Conditioning)[1:]:
        values = [getattr(part, f.name) for part in parts]
        columns.append(None if values[0] is None else torch.cat(values))
    return Conditioning(*columns)  # type: ignore[arg-type]


def _stretch(states_BTD: Tensor, length: int) -> Tensor:
    missing = length - states_BTD.shape[1]
    if missing == 0:
        return states_BTD
    return torch.cat([states_BTD, states_BTD[:, -1:].expand(-1, missing, -1)], dim=1)
