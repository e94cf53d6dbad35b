"""An encoder that computes each picture and each text once."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from konomi.evaluation.encoders.gram import gram
from konomi.evaluation.encoders.network import Network

Key = TypeVar("Key")
Value = TypeVar("Value")
_BATCH = 16


@dataclass(frozen=True, slots=True)
class RememberingEncoder:
    """Features of a network, kept by what a picture shows, not by which object it is."""

    name: str
    network: Network
    _pictures: dict[bytes, Tensor] = field(default_factory=dict)
    _styles: dict[bytes, Tensor] = field(default_factory=dict)
    _texts: dict[str, Tensor] = field(default_factory=dict)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        return self._of_pictures(self._pictures, images, self.network.see)

    def style_features(self, images: Sequence[Image.Image]) -> Tensor:
        return self._of_pictures(
            self._styles, images, lambda pixels: gram(self.network.early_layers(pixels))
        )

    def text_features(self, texts: Sequence[str]) -> Tensor:
        read = self.network.read
        assert read is not None  # `load_encoders` refuses a network without texts.
        _fill(self._texts, dict(zip(texts, texts, strict=True)), read)
        return torch.stack([self._texts[text] for text in texts])

    def _of_pictures(
        self,
        known: dict[bytes, Tensor],
        images: Sequence[Image.Image],
        see: Callable[[Tensor], Tensor],
    ) -> Tensor:
        keys = [content_of(image) for image in images]
        _fill(
            known,
            dict(zip(keys, images, strict=True)),
            lambda some: see(torch.stack([self.network.prepare(image) for image in some])),
        )
        return torch.stack([known[key] for key in keys])


def content_of(image: Image.Image) -> bytes:
    """A digest of size and pixels."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def _fill(
    known: dict[Key, Tensor],
    asked: dict[Key, Value],
    compute: Callable[[Sequence[Value]], Tensor],
) -> None:
    """Compute what is not known yet, some at a time, and keep it as unit vectors."""
    missing = [key for key in asked if key not in known]
    for start in range(0, len(missing), _BATCH):
        some = missing[start : start + _BATCH]
        with torch.no_grad():
            vectors = compute([asked[key] for key in some]).float().cpu()
        known.update(zip(some, functional.normalize(vectors, dim=1), strict=True))
