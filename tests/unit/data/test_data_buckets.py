"""Buckets against NovelAI's published list and a brute-force search."""

import pytest

from konomi.config.sections import BucketConfig
from konomi.data.buckets import (
    Bucket,
    area_buckets,
    assign,
    buckets_for,
    novelai_buckets,
    parse_size,
)
from konomi.data.manifest import Record
from konomi.errors import RecipeError


def record(width: int, height: int, name: str = "x.png") -> Record:
    return Record(
        locator=f"/images/{name}",
        name=name,
        role="train",
        repeats=1,
        width=width,
        height=height,
        content="00",
    )


def test_novelai_list_is_the_published_one() -> None:
    half = {
        (256, 1024),
        (320, 1024),
        (384, 1024),
        (384, 960),
        (384, 896),
        (448, 832),
        (512, 768),
        (512, 704),
    }
    half |= {(576, 640)}
    expected = half | {(height, width) for width, height in half} | {(512, 512)}
    assert len(expected) == 19
    assert set(novelai_buckets()) == expected
    assert len(novelai_buckets()) == 19
    assert buckets_for((768, 512), BucketConfig(kind="novelai")) == novelai_buckets()


@pytest.mark.parametrize("side", [128, 256, 512, 768, 1024])
def test_area_buckets_are_all_maximal_sizes(side: int) -> None:
    """Oracle: of all sizes on the grid, those that cannot grow in height (or, transposed, in
    width).
    """
    step, low, high = min(64, side // 8), side // 2, side * 2
    grid = range(low, high + 1, step)
    fits = {(w, h) for w in grid for h in grid if w * h <= side * side}
    tallest = {(w, h) for w, h in fits if (w, h + step) not in fits}
    expected = tallest | {(h, w) for w, h in tallest} | {(side, side)}
    assert set(buckets_for((side, side), BucketConfig())) == expected
    assert all(w % 8 == 0 and h % 8 == 0 for w, h in expected)


def test_tiny_resolution_takes_steps_of_16() -> None:
    sizes = buckets_for((128, 128), BucketConfig())
    assert (128, 128) in sizes and (112, 144) in sizes and (64, 256) in sizes
    assert all(w % 16 == 0 and h % 16 == 0 and w * h <= 128 * 128 for w, h in sizes)


def test_area_of_a_rectangle_has_its_own_square() -> None:
    assert (576, 576) in area_buckets((768, 512), min_side=256, max_side=1024, step=64)
    assert (512, 512) not in area_buckets((768, 512), min_side=256, max_side=1024, step=64)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((1000, 1000), (512, 512)),
        ((768, 512), (768, 512)),
        ((1500, 1000), (768, 512)),
        ((640, 576), (640, 576)),
        ((2000, 1700), (640, 576)),
        ((100, 390), (256, 1024)),
        ((5000, 1000), (1024, 256)),
    ],
)
def test_assignment_takes_the_nearest_ratio(size: Bucket, bucket: Bucket) -> None:
    assignment = assign([record(*size)], (768, 512), BucketConfig(kind="novelai"))
    assert assignment.buckets == (bucket,)
    assert not assignment.excluded


def test_an_exact_size_wins_over_an_equal_ratio() -> None:
    # 256x512 and 320x640 have one ratio; both are sizes on this list.
    sizes = buckets_for((512, 512), BucketConfig())
    twins = [(a, b) for a in sizes for b in sizes if a < b and a[0] * b[1] == a[1] * b[0]]
    for small, large in twins:
        got = assign([record(*small), record(*large)], (512, 512), BucketConfig()).buckets
        assert got == (small, large)
    assert assign([record(384, 640)], (512, 512), BucketConfig()).buckets == ((384, 640),)


def test_extreme_ratio_is_excluded_with_the_reason() -> None:
    records = [
        record(8000, 1000, "panorama.png"),
        record(7999, 1000, "nearly.png"),
        record(1000, 8000, "tower.png"),
    ]
    assignment = assign(records, (768, 512), BucketConfig(kind="novelai"))
    # The widest bucket has ratio 4; at an error of exactly 4 the image is left out.
    assert [excluded.name for excluded in assignment.excluded] == ["panorama.png"]
    assert (
        "8.00" in assignment.excluded[0].reason
        and "max_ratio_error" in assignment.excluded[0].reason
    )
    assert [kept.name for kept in assignment.records] == ["nearly.png", "tower.png"]
    assert assignment.buckets == ((1024, 256), (256, 1024))


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((300, 200), (256, 192)),
        ((64, 64), (64, 64)),
        ((130, 70), (128, 64)),
        ((512, 512), (512, 512)),
        ((1024, 1024), (512, 512)),
        ((2000, 1000), (640, 320)),
        ((1000, 2000), (320, 640)),
    ],
)
def test_without_upscaling_an_image_keeps_its_own_size(size: Bucket, bucket: Bucket) -> None:
    assignment = assign([record(*size)], (512, 512), BucketConfig(upscale=False))
    assert assignment.buckets == (bucket,)
    assert bucket[0] <= size[0] and bucket[1] <= size[1], "nothing is enlarged"


def test_too_small_without_upscaling_is_excluded() -> None:
    assignment = assign([record(63, 500, "thin.png")], (512, 512), BucketConfig(upscale=False))
    assert assignment.records == ()
    assert "63x500" in assignment.excluded[0].reason


def test_fixed_size() -> None:
    assignment = assign([record(300, 900), record(5, 5)], (512, 384), BucketConfig(kind="fixed"))
    assert set(assignment.buckets) == {(512, 384)}


def test_every_record_is_kept_or_excluded() -> None:
    records = [record(1 + 37 * i % 4001, 1 + 91 * i % 3001, f"{i}.png") for i in range(500)]
    for config in (BucketConfig(), BucketConfig(kind="novelai"), BucketConfig(upscale=False)):
        assignment = assign(records, (512, 512), config)
        names = [kept.name for kept in assignment.records] + [
            excluded.name for excluded in assignment.excluded
        ]
        assert sorted(names) == sorted(one.name for one in records)
        assert all(side % 8 == 0 and side > 0 for bucket in assignment.buckets for side in bucket)


@pytest.mark.parametrize(
    ("resolution", "config", "words"),
    [
        ((512, 512), BucketConfig(step=60), "data.buckets.step is 60"),
        ((512, 512), BucketConfig(min_side=700, max_side=600), "data.buckets.min_side is 700"),
        (
            (512, 512),
            BucketConfig(kind="novelai", min_side=640, max_side=704, step=512),
            "data.buckets.min_side",
        ),
        ((500, 500), BucketConfig(kind="fixed"), "data.resolution is 500x500"),
    ],
)
def test_impossible_settings_are_named(
    resolution: Bucket, config: BucketConfig, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        buckets_for(resolution, config)


def test_sizes_are_read() -> None:
    assert parse_size("512") == (512, 512)
    assert parse_size("768x512") == (768, 512)
