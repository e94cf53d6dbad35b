"""Randomness as an argument: every draw is a pure function of (seed, step, sample, purpose).

A counter-based generator in plain tensor operations (the finaliser of SplitMix64, Steele et al.
2014, over a key and a counter). It runs on the device of its keys, needs no state to save, no host
synchronisation, and can be captured in a CUDA graph. A batch cut into micro-batches or spread over
processes draws exactly what the whole batch would.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same bits: torch has no unsigned 64-bit multiplication."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift: int64's own shift would drag the sign bit along."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift_right(bits, 30)) * _signed(_MIX_1)
    bits = (bits ^ _shift_right(bits, 27)) * _signed(_MIX_2)
    return bits ^ _shift_right(bits, 31)


def stable_hash(*parts: object) -> int:
    """A signed 64-bit number from anything with a stable text form; the same in every process and
    on every machine.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Rng:
    """A key per sample, int64 [B]. `rng.fork("noise")` gives an independent generator for another
    purpose.
    """

    def __init__(self, keys_B: Tensor) -> None:
        self.keys = keys_B

    @classmethod
    def for_step(cls, seed: int, step: float, *, device: torch.device | str = "cpu") -> "Rng":
        """The generator of one optimiser step, with a single key; see `for_samples`."""
        # Filled by a kernel on the device: a copy from the host could make the host wait.
        return cls(
            torch.full((1,), stable_hash("step", seed, step), dtype=torch.int64, device=device)
        )

    def for_samples(self, sample_ids_B: Tensor) -> "Rng":
        """One key per sample, from this generator's key and the samples' ids (int64 [B])."""
        return Rng(_mix(self.keys + _mix(sample_ids_B * _signed(_GOLDEN))))

    def fork(self, purpose: str) -> "Rng":
        """An independent generator; the same purpose gives the same one."""
        return Rng(_mix(self.keys ^ stable_hash("fork", purpose)))

    def __len__(self) -> int:
        return self.keys.shape[0]

    def bits(self, shape: Sequence[int]) -> Tensor:
        """Random int64 [B, *shape]."""
        count = math.prod(shape)
        counter = torch.arange(1, count + 1, device=self.keys.device, dtype=torch.int64) * _signed(
            _GOLDEN
        )
        return _mix(self.keys[:, None] + counter).view(len(self), *shape)

    def uniform(self, shape: Sequence[int] = ()) -> Tensor:
        """Float32 [B, *shape], 0 <= u < 1, from 24 bits."""
        return _shift_right(self.bits(shape), 40).to(torch.float32) * 2.0**-24

    def integers(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Int64 [B, *shape], low <= n < high."""
        return low + _shift_right(self.bits(shape), 11) % (high - low)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal float32 [B, *shape] (Box and Muller 1958)."""
        count = math.prod(shape)
        half = (count + 1) // 2
        bits = self.bits((half,))
        # 32 bits for the radius, half a unit away from 0 so that the logarithm stays finite; 32
        # for the angle.
        radius = ((bits & 0xFFFFFFFF).to(torch.float32) + 0.5) * 2.0**-32
        angle = _shift_right(bits, 32).to(torch.float32) * (2.0**-32 * 2 * math.pi)
        length = torch.sqrt(-2.0 * torch.log(radius.clamp(max=1 - 2.0**-24)))
        pair = torch.cat([length * torch.cos(angle), length * torch.sin(angle)], dim=1)
        return pair[:, :count].reshape(len(self), *shape)
