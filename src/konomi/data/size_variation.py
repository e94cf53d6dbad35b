"""Pictures of a subject at other sizes, with words that say so (Kumari et al. 2022, "Custom
Diffusion", section 4).

Two in three are shrunk onto an empty canvas, where only the pasted part counts; the others are
enlarged and cut. Shapes: B batch, H W pixels, h w latent grid.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from konomi.data.batch import Examples
from konomi.diffusion.random import Rng

SHRUNK_SHARE = 2 / 3
FAR = ("a far away ", "very small ")
NEAR = ("zoomed in ", "close up ")
FAR_BELOW = 0.6
"""Shrunk to less than this, the caption says so."""


@dataclass(frozen=True, slots=True)
class SizeChange:
    """What happens to one picture; places are shares of the room there is."""

    factor: float
    """1/3 to 1, or 1.2 to 1.4."""
    down: float
    right: float
    prefix: str
    """What comes before the caption."""


def draw_size_changes(rng: Rng) -> tuple[SizeChange, ...]:
    """One for each key of `rng`."""
    changes = []
    for kind, size, down, right, word in rng.uniform((5,)).tolist():
        factor = 1 / 3 + size * 2 / 3 if kind < SHRUNK_SHARE else 1.2 + 0.2 * size
        words = FAR if factor < FAR_BELOW else NEAR if factor > 1 else ("", "")
        changes.append(SizeChange(factor, down, right, words[int(word * 2)]))
    return tuple(changes)


def with_sizes_varied(
    examples: Examples, changes: tuple[SizeChange, ...], *, latent_factor: int
) -> Examples:
    """The examples with other pixels, captions, masks and crops. Their latents are to be encoded
    anew.

    The mask is scaled to the mean 1, so that the loss is the mean over what counts, however small
    it is drawn. An empty caption stays empty: it stands for no condition at all.
    """
    if examples.pixels is None:
        raise AssertionError("sizes are varied in pixels")
    drawn = [_draw(examples, index, change, latent_factor) for index, change in enumerate(changes)]
    return replace(
        examples,
        pixels=torch.stack([pixels for pixels, _, _ in drawn]),
        loss_mask=torch.stack([mask for _, mask, _ in drawn]),
        sizes=torch.stack([sizes for _, _, sizes in drawn]),
        captions=tuple(
            c and change.prefix + c for c, change in zip(examples.captions, changes, strict=True)
        ),
        latents=None,
        text=None,
    )


def _draw(
    examples: Examples, index: int, change: SizeChange, cell: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [3, H, W], mask [1, h, w] and sizes [6] of one picture."""
    assert examples.pixels is not None
    picture, sizes = examples.pixels[index], examples.sizes[index]
    height, width = picture.shape[1:]
    if examples.loss_mask is not None:
        # The picture's own mask goes where the picture goes.
        own = functional.interpolate(
            examples.loss_mask[index][None], size=(height, width), mode="nearest"
        )[0]
        picture = torch.cat([picture, own.to(picture)])
    new_height, new_width = round(height * change.factor), round(width * change.factor)
    scaled = functional.interpolate(
        picture[None], size=(new_height, new_width), mode="bilinear", antialias=True
    )[0]
    if change.factor > 1:
        top, left = (
            int(change.down * (new_height - height + 1)),
            int(change.right * (new_width - width + 1)),
        )
        picture = scaled[:, top : top + height, left : left + width]
        mask = picture.new_ones(1, height // cell, width // cell)
        cut = sizes.new_tensor([top, left])
        sizes = torch.cat(
            [sizes[:2], (sizes[2:4] * change.factor).round().to(sizes.dtype) + cut, sizes[4:]]
        )
    else:
        top, left = (
            int(change.down * (height - new_height + 1)),
            int(change.right * (width - new_width + 1)),
        )
        canvas = torch.zeros_like(picture)
        canvas[:, top : top + new_height, left : left + new_width] = scaled
        picture = canvas
        mask = picture.new_zeros(1, height // cell, width // cell)
        mask[:, _cells(top, new_height, cell), _cells(left, new_width, cell)] = 1
    mask = mask / mask.mean()
    if len(picture) == 4:
        mask = mask * functional.avg_pool2d(picture[3:], cell)
    return picture[:3], mask, sizes


def _cells(start: int, length: int, cell: int) -> slice:
    """Latent cells of a pasted stretch, less one at either end; at least the one in its middle."""
    first, end = start // cell + 1, (start + length) // cell - 1
    if first < end:
        return slice(first, end)
    middle = (start + length // 2) // cell
    return slice(middle, middle + 1)
