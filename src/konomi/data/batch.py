"""What training sees: examples of one size, and the batch they form. Shapes: B batch, C channels,
h w latent grid.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from konomi.diffusion.conditioning import Conditioning


@dataclass(frozen=True, slots=True)
class Latents:
    """The VAE's distribution over latents, already multiplied by the family's latent scale. z =
    mean + std * noise.
    """

    mean: Tensor
    """[B, C, h, w]."""
    std: Tensor
    """[B, C, h, w]."""

    def to(self, device: torch.device | str) -> "Latents":
        return Latents(
            self.mean.to(device, non_blocking=True), self.std.to(device, non_blocking=True)
        )


@dataclass(frozen=True, slots=True)
class Examples:
    """Images of one bucket with all that belongs to them. `latents` or `pixels` is there, `text`
    where it is cached.
    """

    names: tuple[str, ...]
    """Where each example comes from, for messages (B entries)."""
    sample_ids: Tensor
    """Int64 [B]: a stable number of each sample and of its repeat; `Rng.for_samples` reads it."""
    captions: tuple[str, ...]
    """The final caption of each (B entries)."""
    sizes: Tensor
    """Int64 [B, 6]: original height, width, crop top, left, target height, width, in pixels."""
    pixels: Tensor | None = None
    """[B, 3, H, W] from -1 to 1."""
    latents: Latents | None = None
    """Cached latents."""
    text: Conditioning | None = None
    """Cached text states."""
    loss_mask: Tensor | None = None
    """[B, 1, h, w], weight of each latent cell."""
    class_nouns: tuple[str, ...] = ()
    """What each is in plain words, where its source says so (B entries, or none at all)."""

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> "Examples":
        """The same, on a device."""
        return replace(
            self,
            sample_ids=self.sample_ids.to(device, non_blocking=True),
            sizes=self.sizes.to(device, non_blocking=True),
            pixels=None if self.pixels is None else self.pixels.to(device, non_blocking=True),
            latents=None if self.latents is None else self.latents.to(device),
            text=None if self.text is None else self.text.to(device),
            loss_mask=None
            if self.loss_mask is None
            else self.loss_mask.to(device, non_blocking=True),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass of one process: subject examples, and prior (class) examples where the
    recipe has such.
    """

    subject: Examples
    prior: Examples | None = None
    weight: float = 1.0
    """This pass's share of the whole optimiser step: its subjects / all subjects of the step, over
    all processes."""

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            subject=self.subject.to(device),
            prior=None if self.prior is None else self.prior.to(device),
        )
