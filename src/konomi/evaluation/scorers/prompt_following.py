"""Prompt following: does the picture show what was asked for?"""

from konomi.evaluation.pictures import Material
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.closeness import of_kinds
from konomi.evaluation.scorers.scorer import Need, Scores


class PromptFollowing:
    """Cosine between a picture and its prompt in plain words: CLIP-T. The trigger is no word that
    an encoder knows, so the class noun stands in its place."""

    name = "prompt_following"
    title = "Prompt following"
    source = "Ruiz et al. 2022, DreamBooth, section 4.1 (CLIP-T); Hessel et al. 2021, CLIPScore"
    unit = "cosine"
    bounds = (-1.0, 1.0)
    higher_is_better = True
    needs: frozenset[Need] = frozenset()
    prompts: frozenset[PromptKind] = frozenset({"subject", "context"})

    def score(self, material: Material) -> Scores:
        pictures = of_kinds(material.candidate, self.prompts)
        if not pictures:
            return {}
        encoder, prompts = material.encoders.text, material.candidate.prompts
        seen_ND = encoder.features(list(pictures.values())).double()
        texts_ND = encoder.text_features([prompts[prompt].plain for prompt, _ in pictures]).double()
        return dict(zip(pictures, (seen_ND * texts_ND).sum(1).tolist(), strict=True))
