"""What a training changed, in sentences with figures: was the subject learned, and was everything
else left alone?

Features are CLIP's unit vectors of pictures (`Clip.image_features`). Shapes: N pictures of the
subject, K pictures of one prompt (the same seeds before and after), D feature width.
"""

from dataclasses import dataclass

from torch import Tensor

LEARNED = 0.15
"""Rise in likeness from which a subject counts as learned. The demo's mascot, where it is
recognisable, has 0.3."""
KEPT = 0.25
"""Share of the subject's rise by which the class alone may come nearer to the subject and still
count as kept."""
UNHARMED = 0.9
"""Likeness of a picture to the base's own of the same seed; foxes that a person calls wrecked have
0.76."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    good: bool
    text: str
    """Whole sentences."""


def likeness(pictures_KD: Tensor, subject_ND: Tensor) -> float:
    """Mean cosine between pictures and the subject's pictures."""
    return float((pictures_KD @ subject_ND.T).mean())


def subject_finding(
    name: str, before: list[Tensor], after: list[Tensor], subject_ND: Tensor
) -> Finding:
    """Whether the prompts that name the subject show it now; one tensor [K, D] for each prompt."""
    pairs = [
        (likeness(old, subject_ND), likeness(new, subject_ND))
        for old, new in zip(before, after, strict=True)
    ]
    good = subject_rise(before, after, subject_ND) >= LEARNED
    rises = ", and ".join(f"from {old:.2f} to {new:.2f}" for old, new in pairs)
    verdict = f"{name} was learned" if good else f"{name} was hardly learned"
    return Finding(good, f"{verdict}: the similarity to its training pictures went {rises}.")


def class_finding(
    prompt: str, before_KD: Tensor, after_KD: Tensor, subject_ND: Tensor, *, rise: float
) -> Finding:
    """Whether pictures of the class alone stayed away from the subject, which rose by `rise`."""
    drift = likeness(after_KD, subject_ND) - likeness(before_KD, subject_ND)
    good = drift <= KEPT * max(rise, LEARNED)
    verdict = f'The class was kept: "{prompt}"' if good else f'The class was not kept: "{prompt}"'
    moved = (
        f"moved towards the subject by {drift:.2f}"
        if drift > 0
        else "did not move towards the subject"
    )
    return Finding(good, f"{verdict} {moved}; the prompts with its name moved by {rise:.2f}.")


def unrelated_finding(name: str, before_KD: Tensor, after_KD: Tensor) -> Finding:
    """Whether pictures that have nothing to do with the subject are still the base's own."""
    same = float((before_KD * after_KD).sum(dim=1).mean())
    good = same >= UNHARMED
    verdict = f"{name} is unharmed" if good else f"{name} was changed, and should not have been"
    return Finding(
        good,
        f"{verdict}: its similarity to the base's own pictures of the same seeds is {same:.2f}.",
    )


def subject_rise(before: list[Tensor], after: list[Tensor], subject_ND: Tensor) -> float:
    """Mean rise in likeness over the prompts that name the subject."""
    rises = [
        likeness(new, subject_ND) - likeness(old, subject_ND)
        for old, new in zip(before, after, strict=True)
    ]
    return sum(rises) / len(rises)
