"""The two kinds of encoder that scorers ask. Shapes: N pictures or texts, D feature width."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor


class ImageEncoder(Protocol):
    """Features of pictures: DINOv2, DINOv3, CLIP, SigLIP 2, or the small CLIP inside konomi."""

    @property
    def name(self) -> str:
        """As the recipe names it."""
        ...

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, D], float32 on the CPU. A picture that was asked for before is not
        computed again."""
        ...

    def style_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [N, G], float32 on the CPU: how the channels of early layers vary together
        over a picture (Gram matrices), which tells how it is drawn and not what it shows."""
        ...


class TextImageEncoder(ImageEncoder, Protocol):
    """Pictures and texts in one space: CLIP, SigLIP 2."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D], float32 on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Encoders:
    """The two that a run of measurements uses; they may be the same."""

    image: ImageEncoder
    """Likeness, drift, diversity, copies."""
    text: TextImageEncoder
    """Prompt following."""
    copies: ImageEncoder | None = None
    """SSCD, which was trained to find copies, where the user has it."""
