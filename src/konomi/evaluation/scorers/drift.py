"""Drift: what should have stayed as it was, and did not."""

from konomi.evaluation.pictures import Material
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.closeness import of_kinds
from konomi.evaluation.scorers.scorer import Need, Scores


class Drift:
    """Distance, 1 minus cosine, between a picture of something else than the subject and the base's
    own picture of the same prompt from the same noise."""

    name = "drift"
    title = "Drift from the base"
    source = "paired with the base's pictures; cf. Ruiz et al. 2022, DreamBooth, section 3.3"
    unit = "distance"
    bounds = (0.0, 2.0)
    higher_is_better = False
    needs: frozenset[Need] = frozenset({"base"})
    prompts: frozenset[PromptKind] = frozenset({"class", "unrelated"})

    def score(self, material: Material) -> Scores:
        pictures = of_kinds(material.candidate, self.prompts)
        places = [place for place in pictures if place in material.base.images]
        if not places:
            return {}
        encoder = material.encoders.image
        now_ND = encoder.features([pictures[place] for place in places]).double()
        then_ND = encoder.features([material.base.images[place] for place in places]).double()
        # Unit vectors are so to seven digits only; a distance below zero would puzzle.
        distances = (1 - (now_ND * then_ND).sum(1)).clamp(min=0)
        return dict(zip(places, distances.tolist(), strict=True))
