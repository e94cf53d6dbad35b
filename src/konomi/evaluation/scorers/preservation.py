"""Whether the class stays any member of the class, and the subject comes only when called."""

from konomi.evaluation.pictures import Material
from konomi.evaluation.prompts import PromptKind
from konomi.evaluation.scorers.closeness import closeness, of_kinds
from konomi.evaluation.scorers.scorer import Need, Scores


class Preservation:
    """Likeness of pictures of the class alone to the subject: PRES. High where every dog has become
    the one dog."""

    name = "preservation"
    title = "Likeness of the class alone to the subject"
    source = "Ruiz et al. 2022, DreamBooth, section 4.3 (PRES)"
    unit = "cosine"
    bounds = (-1.0, 1.0)
    higher_is_better = False
    needs: frozenset[Need] = frozenset({"references"})
    prompts: frozenset[PromptKind] = frozenset({"class"})

    def score(self, material: Material) -> Scores:
        pictures = of_kinds(material.candidate, self.prompts)
        return closeness(pictures, material.references.images, material.encoders.image)


class Leak:
    """How much nearer to the subject pictures without its trigger are than the base's own of the
    same prompt and noise. 0: no nearer; below 0: farther."""

    name = "leak"
    title = "The subject without being called"
    source = "PRES of Ruiz et al. 2022, DreamBooth, section 4.3, paired with the base's pictures"
    unit = "cosine"
    bounds = (-2.0, 2.0)
    higher_is_better = False
    needs: frozenset[Need] = frozenset({"references", "base"})
    prompts: frozenset[PromptKind] = frozenset({"class", "unrelated"})

    def score(self, material: Material) -> Scores:
        subject, encoder = material.references.images, material.encoders.image
        now = closeness(of_kinds(material.candidate, self.prompts), subject, encoder)
        then = closeness(of_kinds(material.base, self.prompts), subject, encoder)
        return {place: now[place] - then[place] for place in now if place in then}
