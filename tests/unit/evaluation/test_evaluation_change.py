"""What changed, in sentences: right on features whose cosines are known by construction."""

import torch

from konomi.evaluation.change import (
    class_finding,
    likeness,
    subject_finding,
    subject_rise,
    unrelated_finding,
)

SUBJECT = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])


def towards(cosine: float, count: int = 3) -> torch.Tensor:
    """Unit vectors at this cosine from the subject."""
    return torch.tensor([[cosine, (1 - cosine**2) ** 0.5, 0.0]]).repeat(count, 1)


def test_likeness_is_the_mean_cosine():
    assert abs(likeness(towards(0.6), SUBJECT) - 0.6) < 1e-6
    assert (
        abs(subject_rise([towards(0.1), towards(0.0)], [towards(0.5), towards(0.4)], SUBJECT) - 0.4)
        < 1e-6
    )


def test_a_subject_that_was_learned_and_one_that_was_not():
    good = subject_finding("The mascot", [towards(0.14)], [towards(0.45)], SUBJECT)
    assert good.good and "was learned" in good.text and "from 0.14 to 0.45" in good.text
    bad = subject_finding("The mascot", [towards(0.14)], [towards(0.16)], SUBJECT)
    assert not bad.good and "hardly learned" in bad.text


def test_a_class_that_became_the_subject_is_said_to_be_lost():
    """0.06 to 0.44 is what a LoRA alone did to "a creature" in the demo, while its word rose by
    0.28.
    """
    lost = class_finding("a creature", towards(0.06), towards(0.44), SUBJECT, rise=0.28)
    assert not lost.good and "not kept" in lost.text and "by 0.38" in lost.text
    kept = class_finding("a creature", towards(0.06), towards(0.08), SUBJECT, rise=0.28)
    assert kept.good and "was kept" in kept.text
    away = class_finding("a creature", towards(0.06), towards(0.01), SUBJECT, rise=0.28)
    assert away.good and "did not move towards" in away.text


def test_a_wrecked_fox_is_not_called_unharmed():
    fox, other = torch.tensor([[0.0, 1, 0]]), torch.tensor([[0.0, 0.76, (1 - 0.76**2) ** 0.5]])
    wrecked = unrelated_finding("The fox", fox, other)
    assert not wrecked.good and "was changed" in wrecked.text and "0.76" in wrecked.text
    assert unrelated_finding("The fox", fox, fox).good
