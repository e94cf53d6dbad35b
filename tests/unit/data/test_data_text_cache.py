"""The cache of text states: by caption, exact, only for captions that come again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from konomi.config.sections import TextConfig
from konomi.data.shards import Notice, Progress
from konomi.data.text_cache import TextCache
from konomi.diffusion.conditioning import Conditioning
from konomi.errors import ModelError


class TextEncoder:
    """States from the caption's bytes."""

    def __init__(self, pooled: bool) -> None:
        self.pooled = pooled
        self.seen: list[str] = []

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        self.seen += captions
        codes = torch.tensor(
            [list(hashlib.sha256(caption.encode()).digest()) for caption in captions]
        ).float()
        return Conditioning(codes.view(-1, 4, 8), codes[:, :6] if self.pooled else None)


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("on_disk", [True, False])
def test_text_states_by_caption(tmp_path: Path, pooled: bool, on_disk: bool) -> None:
    captions = ["a cat", "a dog", "", "赤い猫, 帽子", "a cat"]
    encoder = TextEncoder(pooled)
    cache = TextCache("clip", TextConfig(), folder=tmp_path if on_disk else None)
    events = list(cache.build(captions, encoder, batch_size=3))
    assert events == [Progress(0, 4), Progress(3, 4), Progress(4, 4)]
    assert sorted(encoder.seen) == sorted(set(captions))
    got = cache.get(["a dog", "赤い猫, 帽子", "a dog"])
    expected = TextEncoder(pooled)(["a dog", "赤い猫, 帽子", "a dog"])
    assert got is not None
    torch.testing.assert_close(got.states, expected.states, rtol=0, atol=0)
    if pooled:
        torch.testing.assert_close(got.pooled, expected.pooled, rtol=0, atol=0)
    else:
        assert got.pooled is None
    assert cache.get(["a dog", "a new caption"]) is None


def test_text_cache_on_disk_is_reused_and_only_for_the_captions_asked(tmp_path: Path) -> None:
    list(TextCache("clip", TextConfig(), folder=tmp_path).build(["a", "b"], TextEncoder(True)))
    encoder = TextEncoder(True)
    cache = TextCache("clip", TextConfig(), folder=tmp_path)
    list(cache.build(["b", "c"], encoder))
    assert encoder.seen == ["c"]
    # What other runs left on disk must not decide whether a step's text comes from the cache.
    assert cache.get(["a"]) is None and cache.get(["b", "c"]) is not None
    other = TextEncoder(True)
    list(TextCache("clip", TextConfig(clip_skip=2), folder=tmp_path).build(["a", "b"], other))
    assert other.seen == ["a", "b"]
    reader = TextCache("clip", TextConfig(), folder=tmp_path)
    assert reader.open(["a", "c"]) == []
    assert reader.get(["a", "c"]) is not None


def test_damaged_text_shard_is_rebuilt(tmp_path: Path) -> None:
    list(TextCache("clip", TextConfig(), folder=tmp_path).build(["a", "b"], TextEncoder(False)))
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)
    cache = TextCache("clip", TextConfig(), folder=tmp_path)
    encoder = TextEncoder(False)
    events = list(cache.build(["a", "b"], encoder))
    assert isinstance(events[0], Notice) and "damaged" in events[0].message
    assert encoder.seen == ["a", "b"]
    got = cache.get(["b"])
    assert got is not None
    torch.testing.assert_close(got.states, TextEncoder(False)(["b"]).states, rtol=0, atol=0)


def test_nan_text_names_the_caption(tmp_path: Path) -> None:
    def poisoned(captions: Sequence[str]) -> Conditioning:
        return Conditioning(torch.full((len(captions), 2, 2), float("nan")))

    with pytest.raises(ModelError, match="'a cat'"):
        list(TextCache("clip", TextConfig(), folder=tmp_path).build(["a cat"], poisoned))
    assert sorted(tmp_path.rglob("*.safetensors")) == []
