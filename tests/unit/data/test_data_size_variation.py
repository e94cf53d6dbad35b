"""Subjects at other sizes: what is drawn, where it counts, what the caption says."""

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.data.batch import Examples
from konomi.data.size_variation import FAR, NEAR, SizeChange, draw_size_changes, with_sizes_varied
from konomi.diffusion.random import Rng

SIDE, CELL = 128, 8


def examples(count=1, mask=None, height=SIDE, width=SIDE):
    pixels = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) + 0.5
    return Examples(
        names=tuple(f"{i}.png" for i in range(count)),
        sample_ids=torch.arange(count),
        captions=("a photo of sks", "")[:count],
        sizes=torch.tensor([[height, width, 4, 6, height, width]] * count),
        pixels=pixels,
        loss_mask=mask,
    )


def test_two_in_three_are_shrunk_to_a_third_at_least_the_others_enlarged_by_a_fifth_at_least():
    changes = draw_size_changes(Rng.for_step(0, 0).for_samples(torch.arange(3000)))
    shrunk = [c for c in changes if c.factor <= 1]
    assert len(shrunk) / 3000 == pytest.approx(2 / 3, abs=0.03)
    assert min(c.factor for c in shrunk) == pytest.approx(1 / 3, abs=0.01)
    assert max(c.factor for c in shrunk) == pytest.approx(1, abs=0.01)
    near = [c for c in changes if c.factor > 1]
    assert min(c.factor for c in near) >= 1.2 and max(c.factor for c in near) < 1.4
    for change in changes:
        assert change.prefix in (
            FAR if change.factor < 0.6 else NEAR if change.factor > 1 else ("",)
        )
    assert {c.prefix for c in changes} == {*FAR, *NEAR, ""}


def test_draws_follow_the_sample_not_the_batch():
    rng = Rng.for_step(3, 7)
    whole = draw_size_changes(rng.for_samples(torch.arange(6)))
    assert whole[4:] == draw_size_changes(rng.for_samples(torch.arange(4, 6)))


@pytest.mark.parametrize("factor", [0.34, 0.5, 0.77, 1.0])
def test_shrunk_it_is_pillows_picture_on_an_empty_canvas(factor):
    given = examples()
    out = with_sizes_varied(
        given, (SizeChange(factor, 0.5, 0.25, "very small "),), latent_factor=CELL
    )
    size = round(SIDE * factor)
    top, left = int(0.5 * (SIDE - size + 1)), int(0.25 * (SIDE - size + 1))
    channel = Image.fromarray(given.pixels[0, 0].numpy(), mode="F").resize(
        (size, size), Image.Resampling.BILINEAR
    )
    torch.testing.assert_close(
        out.pixels[0, 0, top : top + size, left : left + size],
        torch.from_numpy(np.array(channel)),
        rtol=0,
        atol=1e-4,
    )
    outside = out.pixels.clone()
    outside[..., top : top + size, left : left + size] = 0
    assert not outside.any()
    # The authors' formula: the pasted cells less one at either end.
    mask = torch.zeros(SIDE // CELL, SIDE // CELL)
    mask[
        top // CELL + 1 : (top + size) // CELL - 1, left // CELL + 1 : (left + size) // CELL - 1
    ] = 1
    torch.testing.assert_close(out.loss_mask[0, 0], mask / mask.mean())
    assert out.captions == ("very small a photo of sks",) and torch.equal(out.sizes, given.sizes)


def test_enlarged_it_is_cut_and_all_of_it_counts():
    given = examples()
    out = with_sizes_varied(given, (SizeChange(1.25, 0.5, 0.999, "close up "),), latent_factor=CELL)
    scaled = torch.nn.functional.interpolate(given.pixels, size=(160, 160), mode="bilinear")
    assert torch.allclose(out.pixels, scaled[..., 16:144, 32:160], atol=1e-5)
    assert torch.equal(out.loss_mask, torch.ones(1, 1, 16, 16))
    assert out.sizes.tolist() == [[128, 128, 5 + 16, 8 + 32, 128, 128]]


def test_the_pictures_own_mask_goes_where_the_picture_goes():
    own = torch.zeros(1, 1, 16, 16)
    own[..., :8] = 1
    out = with_sizes_varied(
        examples(mask=own), (SizeChange(0.5, 0.0, 0.0, ""),), latent_factor=CELL
    )
    pasted = torch.zeros(16, 16)
    pasted[1:7, 1:7] = 1
    # Half as large, its left half ends at column 4.
    expected = pasted.clone()
    expected[:, 4:] = 0
    # Smoothed edges are worth a hundredth of a cell.
    torch.testing.assert_close(out.loss_mask[0, 0] * pasted.mean(), expected, rtol=0, atol=0.02)


def test_an_empty_caption_stays_empty_and_small_pictures_keep_one_cell():
    changes = (SizeChange(0.34, 0.0, 0.0, "very small "),) * 2
    out = with_sizes_varied(examples(2, height=32, width=64), changes, latent_factor=CELL)
    assert out.captions == ("very small a photo of sks", "")
    assert out.loss_mask.shape == (2, 1, 4, 8)
    assert ((out.loss_mask > 0).sum((1, 2, 3)) >= 1).all()
    torch.testing.assert_close(out.loss_mask.mean((1, 2, 3)), torch.ones(2))
