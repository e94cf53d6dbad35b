"""How near pictures are to others in an encoder's space: what several scorers start from."""

from collections.abc import Collection, Mapping, Sequence

from PIL import Image

from konomi.evaluation.encoders.encoder import ImageEncoder
from konomi.evaluation.pictures import Pictures, Place
from konomi.evaluation.prompts import PromptKind


def of_kinds(pictures: Pictures, kinds: Collection[PromptKind]) -> dict[Place, Image.Image]:
    """The pictures of prompts of these kinds."""
    return {
        place: image
        for place, image in pictures.images.items()
        if pictures.prompts[place[0]].kind in kinds
    }


def closeness(
    pictures: Mapping[Place, Image.Image], others: Sequence[Image.Image], encoder: ImageEncoder
) -> dict[Place, float]:
    """Mean cosine between each picture and all `others`, in float64; nothing without pictures."""
    if not pictures or not others:
        return {}
    seen_ND = encoder.features(list(pictures.values())).double()
    mean_D = encoder.features(others).double().mean(0)
    return dict(zip(pictures, (seen_ND @ mean_D).tolist(), strict=True))
