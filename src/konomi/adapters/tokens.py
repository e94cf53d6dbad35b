"""Tokens in training (Textual Inversion): their vectors are parameters, the token table they join
never changes.

Shapes: n vectors of a token, D width of a text encoder's token embeddings.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from konomi.adapters.adapter import Adapter
from konomi.adapters.live import paused
from konomi.diffusion.random import Rng

KeepNorm = Literal["none", "clip", "rescale"]

Start = Mapping[str, Tensor]
"""Part of the text encoder -> vectors [n, D]."""


class TrainedTokens:
    """Vectors being learned, as a `LiveAdapter`: whatever encodes captions finds them among the
    added tokens of the base.
    """

    def __init__(
        self,
        known: dict[str, Mapping[str, Tensor]],
        start: Mapping[str, Start],
        *,
        keep_norm: KeepNorm = "none",
        norms: Mapping[str, float] | None = None,
    ) -> None:
        """`known` are the base's added tokens, `norms` the length that `keep_norm` keeps vectors
        to, by part.
        """
        self._known = known
        self._tokens = {
            token: {
                part: nn.Parameter(vectors.detach().float().clone())
                for part, vectors in parts.items()
            }
            for token, parts in start.items()
        }
        self._keep_norm: KeepNorm = keep_norm
        self._norms = dict(norms or {})
        self.attached = False
        self.attach()

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """`PART.TOKEN` -> [n, D]."""
        return {
            f"{part}.{token}": vectors
            for token, parts in self._tokens.items()
            for part, vectors in parts.items()
        }

    def begin_step(self, rng: Rng) -> None:
        """They draw nothing."""

    def with_kept_norm(self, part: str, vectors_nD: Tensor) -> Tensor:
        """The vectors as captions use them: their lengths kept, as a function that training sees
        through.
        """
        if self._keep_norm == "none":
            return vectors_nD
        return with_norm(vectors_nD, self._norms[part], only_shorten=self._keep_norm == "clip")

    def export(self) -> Adapter:
        """The vectors as captions use them, float32 [n, D]."""
        embeddings = {
            token: {
                part: self.with_kept_norm(part, vectors.detach()).clone()
                for part, vectors in parts.items()
            }
            for token, parts in self._tokens.items()
        }
        return Adapter(embeddings=embeddings)

    def pause(self) -> AbstractContextManager[None]:
        """Inside, the base does not know these tokens."""
        return paused(self)

    def attach(self) -> None:
        self._known.update({token: _Live(self, parts) for token, parts in self._tokens.items()})
        self.attached = True

    def detach(self) -> None:
        for token in self._tokens:
            self._known.pop(token, None)
        self.attached = False


class _Live(Mapping[str, Tensor]):
    """Part -> vectors as they are at the moment of asking."""

    def __init__(self, tokens: TrainedTokens, parts: Mapping[str, nn.Parameter]) -> None:
        self._trained, self._parts = tokens, parts

    def __getitem__(self, part: str) -> Tensor:
        return self._trained.with_kept_norm(part, self._parts[part])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def with_norm(vectors_nD: Tensor, norm: float, *, only_shorten: bool) -> Tensor:
    """Each vector at length `norm`, or at most that long."""
    lengths_n1: Tensor = torch.linalg.vector_norm(vectors_nD, dim=-1, keepdim=True)
    factor_n1: Tensor = norm / lengths_n1.clamp(min=torch.finfo(vectors_nD.dtype).tiny)
    kept_nD: Tensor = vectors_nD * (factor_n1.clamp(max=1.0) if only_shorten else factor_n1)
    return kept_nD


def repeated(vectors_nD: Tensor, count: int) -> Tensor:
    """[count, D]: the vectors in their order, over and over."""
    return vectors_nD[torch.arange(count, device=vectors_nD.device) % len(vectors_nD)]
