"""Batches: the same steps whatever interrupts, shares or prepares them."""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from konomi.config.sections import CaptionConfig, DataConfig, ImageConfig, TextConfig
from konomi.data.batch import Batch, Examples, Latents
from konomi.data.buckets import Assignment, Bucket
from konomi.data.captions import final_caption
from konomi.data.crops import Crop, PreparedImage
from konomi.data.latent_cache import LatentCache
from konomi.data.loader import BatchStream, static_captions
from konomi.data.manifest import Finding, Manifest, Record
from konomi.data.summary import dataset_summary, steps_sentence
from konomi.data.text_cache import TextCache
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.random import stable_hash
from konomi.errors import DataError

SQUARE, WIDE = (64, 64), (80, 48)


def record(
    index: int, *, repeats: int = 1, role: str = "train", captions: tuple[str, ...] = ()
) -> Record:
    return Record(
        locator=f"/images/{role}/{index}.png",
        name=f"{role}/{index}.png",
        role=role,  # type: ignore[arg-type]
        repeats=repeats,
        width=64,
        height=64,
        content=hashlib.sha256(f"{role}{index}".encode()).hexdigest(),
        captions=captions or (f"picture {index}, red, green, blue",),
    )


def assignment(
    buckets: Sequence[Bucket],
    *,
    repeats: Sequence[int] | None = None,
    priors: Sequence[Bucket] = (),
) -> Assignment:
    repeats = repeats or [1] * len(buckets)
    records = [record(i, repeats=repeat) for i, repeat in enumerate(repeats)]
    records += [record(i, role="prior") for i in range(len(priors))]
    return Assignment(tuple(records), (*buckets, *priors))


def fake_image(one: Record, bucket: Bucket, crop: Crop) -> PreparedImage:
    """Pixels that tell image and cut."""
    values = torch.tensor([int(one.content[:6], 16) / 2**24, crop.x, crop.y - crop.flip])
    pixels = values[:, None, None].expand(3, bucket[1], bucket[0])
    mask = (
        torch.full((1, bucket[1] // 8, bucket[0] // 8), 0.5)
        if one.content[0] in "01234567"
        else None
    )
    return PreparedImage(
        pixels, (one.height, one.width, round(crop.y * 10), 0, bucket[1], bucket[0]), mask
    )


def encode(pixels: Tensor) -> Latents:
    mean = pixels[:, [0, 1, 2, 0], ::8, ::8]
    return Latents(mean, mean.abs() + 0.1)


def encode_captions(captions: Sequence[str]) -> Conditioning:
    codes = torch.tensor(
        [list(hashlib.sha256(caption.encode()).digest()) for caption in captions]
    ).float()
    return Conditioning(codes.view(-1, 4, 8), codes[:, :5])


def stream(
    data: Assignment,
    config: DataConfig | None = None,
    *,
    batch_size: int = 2,
    seed: int = 5,
    cached: bool = True,
) -> BatchStream:
    config = config or DataConfig(workers=0)
    latents = text = None
    if cached:
        latents = LatentCache("vae", config.images, folder=None)
        list(latents.build(data, fake_image, encode))
        text = TextCache("clip", TextConfig(), folder=None)
        list(text.build(static_captions(data.records, config)[0], encode_captions))
    return BatchStream(
        data,
        config,
        batch_size=batch_size,
        seed=seed,
        latents=latents,
        text=text,
        load_image=fake_image,
    )


def flat(examples: Examples | None) -> list[object]:
    """Everything of the examples, comparable."""
    if examples is None:
        return []
    tensors = [examples.sample_ids, examples.sizes, examples.pixels, examples.loss_mask]
    tensors += [examples.latents.mean, examples.latents.std] if examples.latents else []
    tensors += [examples.text.states, examples.text.pooled] if examples.text else []
    return [
        examples.names,
        examples.captions,
        *(None if tensor is None else tensor.tolist() for tensor in tensors),
    ]


def content(batches: Sequence[Batch]) -> list[object]:
    return [(batch.weight, flat(batch.subject), flat(batch.prior)) for batch in batches]


VARIED = DataConfig(
    workers=0,
    captions=CaptionConfig(shuffle=True, tag_dropout=0.2, dropout=0.1),
    images=ImageConfig(crop="random", crops=3, flip=True),
)
MIXED = assignment(
    [SQUARE, SQUARE, WIDE, SQUARE, WIDE], repeats=[1, 3, 2, 1, 1], priors=[SQUARE] * 3 + [WIDE] * 2
)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("config", [DataConfig(workers=0), VARIED])
def test_resuming_anywhere_gives_the_same_steps(config: DataConfig, cached: bool) -> None:
    whole = stream(MIXED, config, cached=cached)
    total = 3 * whole.steps_per_epoch + 1
    expected = [content(step) for step in whole.iterate(0, total)]
    assert len(expected) == total
    for k in (1, 2, whole.steps_per_epoch, whole.steps_per_epoch + 1, total - 1):
        resumed = stream(MIXED, config, cached=cached)
        assert [content(step) for step in resumed.iterate(k, total)] == expected[k:]


@pytest.mark.parametrize("cached", [True, False])
def test_workers_change_nothing(cached: bool) -> None:
    expected = [content(step) for step in stream(MIXED, VARIED, cached=cached).iterate(0, 15)]
    for workers in (1, 3):
        threaded = stream(MIXED, replace(VARIED, workers=workers), cached=cached)
        assert [content(step) for step in threaded.iterate(0, 15)] == expected


def joined(parts: Sequence[Examples | None]) -> list[object]:
    """Names, ids, captions and latents of several parts, as if of one batch."""
    present = [part for part in parts if part is not None]
    return [
        (name, int(number), caption, mean.tolist())
        for part in present
        for name, number, caption, mean in zip(
            part.names, part.sample_ids, part.captions, part.latents.mean if part.latents else []
        )
    ]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_and_passes_share_out_the_same_steps(world: int, accumulation: int) -> None:
    one = stream(MIXED, VARIED, batch_size=3)
    many = [stream(MIXED, VARIED, batch_size=3) for _ in range(world)]
    for number in range(2 * one.steps_per_epoch):
        (whole,) = one.step(number)
        assert whole.weight == 1.0
        by_rank = [
            many[rank].step(number, rank=rank, world=world, accumulation=accumulation)
            for rank in range(world)
        ]
        parts = [batches[i] for i in range(accumulation) for batches in by_rank if i < len(batches)]
        assert joined([part.subject for part in parts]) == joined([whole.subject])
        assert joined([part.prior for part in parts]) == joined([whole.prior])
        assert sum(part.weight for part in parts) == pytest.approx(1.0, abs=1e-12)
        assert all(part.weight == len(part.subject) / len(whole.subject) for part in parts)


def test_two_then_one_then_two_processes_keep_the_order() -> None:
    total = 18
    expected = [
        joined([batch.subject for batch in step]) for step in stream(MIXED).iterate(0, total)
    ]
    got = []
    for start, stop, world in ((0, 5, 2), (5, 11, 1), (11, total, 2)):
        ranks = [
            stream(MIXED).iterate(start, stop, rank=rank, world=world) for rank in range(world)
        ]
        got += [
            joined([batch.subject for batches in step for batch in batches]) for step in zip(*ranks)
        ]
    assert got == expected


buckets_and_repeats = st.lists(
    st.tuples(st.sampled_from([SQUARE, WIDE]), st.integers(1, 4)), min_size=1, max_size=9
)


@settings(max_examples=40, deadline=None)
@given(
    data=buckets_and_repeats,
    batch_size=st.integers(1, 6),
    priors=st.lists(st.sampled_from([SQUARE, WIDE]), max_size=4),
    world=st.integers(1, 3),
    accumulation=st.integers(1, 3),
    epochs=st.integers(1, 3),
)
def test_predicted_steps_are_the_actual_ones(
    data: list[tuple[Bucket, int]],
    batch_size: int,
    priors: list[Bucket],
    world: int,
    accumulation: int,
    epochs: int,
) -> None:
    """Counted from the drawn batches alone: steps until every image was seen `repeats` times in
    each epoch.
    """
    repeats = [repeat for _, repeat in data]
    images = assignment([bucket for bucket, _ in data], repeats=repeats, priors=priors)
    summary = dataset_summary(
        Manifest(images.records), images, DataConfig(), batch_size=batch_size, epochs=epochs
    )
    batches = BatchStream(
        images, DataConfig(workers=0), batch_size=batch_size, seed=1, load_image=fake_image
    )
    seen: Counter[str] = Counter()
    steps = 0
    while sum(seen.values()) < epochs * sum(repeats):
        drawn = [
            batch
            for rank in range(world)
            for batch in batches.step(steps, rank=rank, world=world, accumulation=accumulation)
        ]
        for batch in drawn:
            assert (batch.prior is not None) == bool(priors)
            assert batch.prior is None or len(batch.prior) == len(batch.subject)
            seen.update(batch.subject.names)
        steps += 1
    assert steps == summary.steps == epochs * batches.steps_per_epoch
    assert seen == Counter({f"train/{i}.png": epochs * repeat for i, repeat in enumerate(repeats)})
    stated = re.search(r"= (\d+) steps?", summary.sentence)
    assert stated is not None and int(stated[1]) == steps


def test_samples_have_stable_and_distinct_ids() -> None:
    batches = stream(MIXED, batch_size=1)
    epochs = [
        [
            int(batch.subject.sample_ids[0])
            for (batch,) in batches.iterate(start, start + batches.steps_per_epoch)
        ]
        for start in (0, batches.steps_per_epoch)
    ]
    assert len(set(epochs[0])) == sum(one.repeats for one in MIXED.records if one.role == "train")
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    first = MIXED.records[0]
    assert stable_hash(first.content, first.name, 0) in epochs[0]


def test_one_file_under_one_name_in_two_sources_is_two_samples() -> None:
    twins = Assignment((record(0), record(0)), (SQUARE, SQUARE))
    (batch,) = stream(twins).step(0)
    assert len(set(batch.subject.sample_ids.tolist())) == 2


def test_batches_hold_one_bucket_and_their_own_data() -> None:
    batches = stream(MIXED, VARIED)
    by_name = {one.name: (one, bucket) for one, bucket in zip(MIXED.records, MIXED.buckets)}
    for number in range(12):
        for batch in batches.step(number):
            for examples in (batch.subject, batch.prior):
                assert examples is not None and examples.latents is not None
                for i, name in enumerate(examples.names):
                    one, bucket = by_name[name]
                    height, width = examples.latents.mean.shape[2:]
                    assert (width * 8, height * 8) == bucket
                    assert examples.latents.mean[i, 0, 0, 0] == torch.tensor(
                        int(one.content[:6], 16) / 2**24
                    )
                    assert examples.sizes[i, 4:].tolist() == [bucket[1], bucket[0]]
                    masked = one.content[0] in "01234567"
                    weight = (
                        1.0 if examples.loss_mask is None else float(examples.loss_mask[i].mean())
                    )
                    assert weight == (0.5 if masked else 1.0)


def test_crops_flips_and_captions_vary_between_epochs() -> None:
    batches = stream(assignment([SQUARE] * 2), VARIED, batch_size=2)
    cuts, captions = set(), set()
    for (batch,) in batches.iterate(0, 40):
        assert batch.subject.latents is not None
        cuts |= {tuple(mean[1:3, 0, 0].tolist()) for mean in batch.subject.latents.mean}
        captions |= set(batch.subject.captions)
    assert len(cuts) == 2 * 6, "every cut of every image turns up in 40 epochs"
    assert "" in captions and len(captions) > 10


def test_text_comes_from_the_cache_only_where_it_can_come_again() -> None:
    steady = stream(MIXED).step(0)[0].subject
    assert steady.text is not None
    torch.testing.assert_close(
        steady.text.states, encode_captions(steady.captions).states, rtol=0, atol=0
    )
    shuffled = stream(MIXED, VARIED)
    texts = [batch.subject for (batch,) in shuffled.iterate(0, 30)]
    assert all(
        (examples.text is not None) == (set(examples.captions) == {""}) for examples in texts
    )


def test_static_captions_are_those_that_training_sees() -> None:
    several = [record(0, captions=("one, a", "two, b")), record(1, captions=("three",)), record(2)]
    dropped = DataConfig(captions=CaptionConfig(dropout=0.3))
    captions, complete = static_captions(several, dropped)
    seen = {final_caption(one, dropped.captions, key) for one in several for key in range(60)}
    assert complete and captions == seen
    shuffled = DataConfig(captions=CaptionConfig(shuffle=True, dropout=0.3))
    assert static_captions(several, shuffled) == ({"three", ""}, False)
    assert static_captions(several, VARIED) == ({""}, False), "any tag may be dropped"


def test_without_a_cache_pixels_come_with_fresh_cuts() -> None:
    (batch,) = stream(MIXED, VARIED, cached=False).step(0)
    assert batch.subject.latents is None and batch.subject.pixels is not None
    cuts = set()
    for (batch,) in stream(assignment([SQUARE]), VARIED, cached=False).iterate(0, 30):
        assert batch.subject.pixels is not None
        cuts.add(tuple(batch.subject.pixels[0, 1:, 0, 0].tolist()))
    assert len(cuts) == 30


def test_latents_and_pixels_show_the_same_cut() -> None:
    cache = LatentCache("vae", VARIED.images, folder=None)
    list(cache.build(MIXED, fake_image, encode))
    batches = BatchStream(
        MIXED, VARIED, batch_size=2, seed=0, latents=cache, pixels=True, load_image=fake_image
    )
    for (batch,) in batches.iterate(0, 10):
        assert batch.subject.latents is not None and batch.subject.pixels is not None
        torch.testing.assert_close(
            batch.subject.latents.mean, encode(batch.subject.pixels).mean, rtol=0, atol=0
        )


def test_real_images(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((64, 64, 3), 100 * i, np.uint8)).save(path)
    records = tuple(replace(record(i), locator=str(path)) for i, path in enumerate(paths))
    images = Assignment(records, (SQUARE,) * 3)
    (batch,) = BatchStream(images, DataConfig(), batch_size=3, seed=0).step(0)
    assert batch.subject.pixels is not None
    for name, pixels in zip(batch.subject.names, batch.subject.pixels):
        level = 100 * int(name[-5])
        torch.testing.assert_close(pixels, torch.full((3, 64, 64), level / 127.5 - 1))
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    threaded = BatchStream(images, DataConfig(workers=2), batch_size=1, seed=0).iterate(0, 3)
    with pytest.raises(DataError, match=r"1\.png"):
        list(threaded)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("konomi-data")]


def test_batches_are_pinned_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.data_ptr())
        return tensor

    expected = content(stream(MIXED).step(3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    (batch,) = batches = stream(MIXED).step(3)
    assert content(batches) == expected
    for examples in (batch.subject, batch.prior):
        assert examples is not None and examples.latents is not None and examples.text is not None
        for tensor in (examples.sample_ids, examples.sizes, examples.latents.mean,
        examples.latents.std,
                       examples.text.states, examples.text.pooled):  # fmt: skip
            assert tensor is not None and tensor.data_ptr() in pinned


def test_closing_ends_the_threads() -> None:
    running = stream(MIXED, replace(VARIED, workers=3), cached=False).iterate(0, 10**6)
    next(running)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("konomi-data")]
    running.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("konomi-data")]


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no image to train"):
        stream(assignment([], priors=[SQUARE]), cached=False)


def test_sentence_of_the_issue() -> None:
    data = assignment([SQUARE] * 14, repeats=[10] * 14)
    assert (
        steps_sentence(data, batch_size=2, epochs=10)
        == "14 images x 10 repeats x 10 epochs / batch 2 = 700 steps"
    )
    assert (
        steps_sentence(data, batch_size=2, steps=700)
        == "14 images x 10 repeats / batch 2 = 70 steps an epoch; "
        "700 steps = 10 epochs"
    )


def test_sentence_stays_true_where_the_division_leaves_a_rest() -> None:
    data = assignment(
        [SQUARE, SQUARE, SQUARE, WIDE, WIDE], repeats=[1, 1, 1, 2, 3], priors=[SQUARE] * 2
    )
    assert steps_sentence(data, batch_size=2, epochs=1) == (
        "5 images (8 with their repeats) x 1 epoch / batch 2 = 5 steps (2 buckets; 2 short batches "
        "in each epoch); beside each image one of 2 prior images"
    )
    assert steps_sentence(data, batch_size=2, steps=7).endswith(
        "; 7 steps = about 1.40 epochs; beside each image one of 2 prior images"
    )


def test_summary_tells_each_image() -> None:
    one = replace(
        record(0, captions=("a dog, red",)), width=1000, height=500, trigger="sks", repeats=4
    )
    data = Assignment((one,), ((80, 48),))
    summary = dataset_summary(
        Manifest((one,), findings=(Finding("odd"),)), data, DataConfig(), batch_size=3, epochs=2
    )
    (image,) = summary.images
    assert image.caption == "sks, a dog, red"
    assert image.bucket == (80, 48) and image.repeats == 4 and image.size == (1000, 500)
    # 80:48 of 1000x500 keeps the height, and 833 of the width, from the middle.
    assert image.crop == (83, 0, 917, 500)
    assert summary.bucket_counts == {(80, 48): 4}
    assert (
        summary.steps_per_epoch == 2
        and summary.steps == 4
        and summary.findings == (Finding("odd"),)
    )
