"""Style likeness: is it drawn as the references are?"""

from konomi.evaluation.pictures import Material
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.closeness import of_kinds
from konomi.evaluation.scorers.scorer import Need, Scores


class StyleLikeness:
    """Mean cosine between a picture's Gram matrices and those of each reference picture. What is
    shown hardly counts: that is `likeness`."""

    name = "style_likeness"
    title = "Likeness to the style"
    source = "Gatys et al. 2016, Image Style Transfer, section 2.2"
    unit = "cosine"
    bounds = (-1.0, 1.0)
    higher_is_better = True
    needs: frozenset[Need] = frozenset({"references"})
    prompts: frozenset[PromptKind] = frozenset({"subject", "context"})

    def score(self, material: Material) -> Scores:
        pictures = of_kinds(material.candidate, self.prompts)
        references = material.references.images
        if not pictures or not references:
            return {}
        encoder = material.encoders.image
        drawn_NG = encoder.style_features(list(pictures.values())).double()
        mean_G = encoder.style_features(references).double().mean(0)
        return dict(zip(pictures, (drawn_NG @ mean_G).tolist(), strict=True))
