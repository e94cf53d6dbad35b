import pytest
import torch

from konomi.diffusion.conditioning import Conditioning, concatenate


def conditioning(batch=2, positions=3, **fields):
    return Conditioning(torch.randn(batch, positions, 4), **fields)


def test_sizes_stay_whole_numbers():
    sizes = torch.tensor([[1001, 515, 3, 0, 1024, 1023]] * 2)
    moved = conditioning(sizes=sizes, pooled=torch.randn(2, 5)).to("cpu", torch.bfloat16)
    assert moved.states.dtype == moved.pooled.dtype == torch.bfloat16
    assert torch.equal(moved.sizes, sizes)
    assert moved.sizes.dtype == torch.int64
    assert moved.inpaint is None


def test_concatenate_and_slice_are_inverse():
    parts = [conditioning(2, pooled=torch.randn(2, 5)), conditioning(1, pooled=torch.randn(1, 5))]
    joined = concatenate(parts)
    assert len(joined) == 3
    assert torch.equal(joined[:2].states, parts[0].states)
    assert torch.equal(joined[2:].pooled, parts[1].pooled)
    assert torch.equal(joined[torch.tensor([2])].states, parts[1].states)
    assert joined.sizes is None


def test_shorter_text_repeats_its_last_position():
    short, long = conditioning(1, 2), conditioning(1, 4)
    joined = concatenate([short, long]).states
    assert torch.equal(joined[1], long.states[0])
    assert torch.equal(joined[0, :2], short.states[0])
    assert torch.equal(joined[0, 2:], short.states[0, 1].expand(2, 4))


def test_a_field_missing_in_one_part_is_a_mistake():
    parts = [conditioning(), conditioning(pooled=torch.randn(2, 5))]
    for order in (parts, parts[::-1]):
        with pytest.raises(AssertionError, match="pooled"):
            concatenate(order)


def test_text_with_a_mask_is_padded_by_positions_that_do_not_count():
    short = Conditioning(torch.ones(1, 2, 3), mask=torch.ones(1, 2, dtype=torch.bool))
    long = Conditioning(
        2 * torch.ones(2, 5, 3), mask=torch.tensor([[True] * 5, [True] * 4 + [False]])
    )
    joined = concatenate([short, long])
    assert joined.mask.tolist() == [
        [True, True, False, False, False],
        [True] * 5,
        [True] * 4 + [False],
    ]
    assert torch.equal(joined.states[0], torch.cat([torch.ones(2, 3), torch.zeros(3, 3)]))
    assert joined[1:].mask.shape == (2, 5)
    assert joined.to("cpu", torch.float16).mask.dtype == torch.bool
    with pytest.raises(AssertionError, match="mask"):
        concatenate([short, Conditioning(torch.ones(1, 2, 3))])
