"""Bucket sides follow the base: latent cells, and the patches that its denoiser reads."""

import pytest

from konomi.config.sections import BucketConfig
from konomi.data.buckets import buckets_for, grid_for
from konomi.errors import RecipeError


def test_sides_are_multiples_of_what_the_base_asks_for():
    assert (grid_for(8), grid_for(4), grid_for(16), grid_for(12)) == (8, 8, 16, 24)
    for kind in ("area", "novelai"):
        sizes = buckets_for((144, 144), BucketConfig(kind=kind), 16)
        assert sizes and all(side % 16 == 0 for size in sizes for side in size)
    with pytest.raises(RecipeError, match="multiple of 16"):
        buckets_for((64, 64), BucketConfig(step=8), 16)
    with pytest.raises(RecipeError, match="multiples of 16"):
        buckets_for((72, 48), BucketConfig(kind="fixed"), 16)
