"""Likeness: is it the subject?"""

from konomi.evaluation.encoders.encoder import ImageEncoder
from konomi.evaluation.pictures import Material
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.closeness import closeness, of_kinds
from konomi.evaluation.scorers.scorer import Need, Scores


class Likeness:
    """Mean cosine between a picture's features and those of each reference picture: DINO of the
    DreamBooth paper, with whichever encoder was chosen (newer ones: DINOv2, DINOv3)."""

    name = "likeness"
    title = "Likeness to the subject"
    source = "Ruiz et al. 2022, DreamBooth, section 4.1 (DINO)"
    unit = "cosine"
    bounds = (-1.0, 1.0)
    higher_is_better = True
    needs: frozenset[Need] = frozenset({"references"})
    prompts: frozenset[PromptKind] = frozenset({"subject", "context"})

    def score(self, material: Material) -> Scores:
        return _likeness(material, material.encoders.image, self.prompts)


class ClipLikeness:
    """The same by the encoder that also reads texts: CLIP-I. Left out where both are one."""

    name = "clip_likeness"
    title = "Likeness to the subject, by the encoder of texts"
    source = "Gal et al. 2022, Textual Inversion, section 5.1 (CLIP-I)"
    unit = "cosine"
    bounds = (-1.0, 1.0)
    higher_is_better = True
    needs: frozenset[Need] = frozenset({"references"})
    prompts: frozenset[PromptKind] = frozenset({"subject", "context"})

    def score(self, material: Material) -> Scores:
        if material.encoders.text is material.encoders.image:
            return {}
        return _likeness(material, material.encoders.text, self.prompts)


def _likeness(material: Material, encoder: ImageEncoder, kinds: frozenset[PromptKind]) -> Scores:
    pictures = of_kinds(material.candidate, kinds)
    return closeness(pictures, material.references.images, encoder)
