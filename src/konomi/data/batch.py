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


@dataclass(slots=True)
class LossRecord:
    """What each example's loss was, noted while the loss of a pass is computed. Without gradient,
    on the device.
    """

    losses_B: Tensor | None = None
    """Float32 [B]: the mean distance between answer and target where the example counts, before
    the weight of its noise level. None where the method computes none."""
    timesteps_B: Tensor | None = None

    def note(self, losses_B: Tensor, timesteps_B: Tensor, mask: Tensor | None) -> None:
        """`losses_B`: means over all cells, weighted by `mask` [B, 1, h, w] where there is one."""
        losses_B = losses_B.detach()
        if mask is not None:
            # A small or a strongly weighted subject is no easier or harder for that.
            losses_B = losses_B / mask.flatten(1).mean(1).clamp(min=1e-6)
        self.losses_B, self.timesteps_B = losses_B, timesteps_B


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
    record: LossRecord | None = None
    """Where the loss of each is noted, if anybody wants to know it."""

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
    first: int = 0
    """Place of its first subject among those of the step."""
    images: tuple[int, ...] = ()
    """A stable number of the image of every subject of the step, over all processes; empty where
    nobody asks for the loss of each."""

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            subject=self.subject.to(device),
            prior=None if self.prior is None else self.prior.to(device),
        )

    def recorded(self, record: LossRecord) -> "Batch":
        """The same; the loss of each subject will be noted in `record`."""
        return replace(self, subject=replace(self.subject, record=record))
