"""Every family draws, in float32 and bfloat16, plain and within a mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.generation.generate import generate
from konomi.generation.request import Request
from konomi.models.random_base import random_base

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
REQUEST = Request(
    prompt="a (dog:1.2) | a cat", negative="", seed=1, steps=2, guidance=4.0, width=72, height=64
)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("inpainting", [False, True])
@pytest.mark.kernels
def test_every_family(family, inpainting):
    base = random_base(family, inpainting=inpainting)
    first, masked, again = generate(
        base,
        [
            REQUEST,
            replace(
                REQUEST, init=Image.new("RGB", (72, 64), "red"), mask=Image.new("L", (72, 64), 255)
            ),
            REQUEST,
        ],
        batch=3,
    )
    assert first.image.size == masked.image.size == (72, 64)
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))
    assert np.asarray(first.image).std() > 0


@pytest.mark.kernels
def test_half_precision_is_close_to_full():
    full, half = (random_base("sd1") for _ in range(2))
    half.place("cpu", torch.bfloat16)
    one, other = (
        np.asarray(next(generate(base, [REQUEST])).image).astype(float) for base in (full, half)
    )
    assert np.abs(one - other).mean() < 8
    assert not np.array_equal(one, other)
