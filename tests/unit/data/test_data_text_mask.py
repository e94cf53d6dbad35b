"""Text states of an encoder with an attention mask: kept as long as their captions."""

import torch

from konomi.config.sections import TextConfig
from konomi.data.text_cache import TextCache
from konomi.diffusion.conditioning import Conditioning


def encode(captions):
    lengths = [len(caption.split()) for caption in captions]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    states = torch.stack([torch.full((max(lengths), 3), float(length)) for length in lengths])
    return Conditioning(states, mask=mask)


def test_captions_of_different_length_come_back_with_their_mask(tmp_path):
    captions = ["a dog", "a dog on the beach", "cat"]
    for _ in range(2):  # The second time from disk.
        cache = TextCache("x", TextConfig(), folder=tmp_path)
        list(cache.build(captions, encode, batch_size=3))
        found = cache.get(captions)
        assert found.mask.sum(1).tolist() == [2, 5, 1]
        assert found.mask.dtype == torch.bool and found.states.shape == (3, 5, 3)
        assert not found.states[~found.mask].any()
    alone = TextCache("y", TextConfig(), folder=None)
    list(alone.build(["a dog"], encode))
    assert torch.equal(alone.get(["a dog"]).states, found.states[:1, :2])
    assert cache.get(["cat"]).states.shape == (1, 1, 3)
