"""What makes a file the one to keep: the constants of the rule in docs/evaluation.md."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from konomi.config.bounds import STRICT, Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestionConfig:
    """How the recommended file is chosen: the best of the files that exceed no limit, and among
    those that are equally good the earliest or smallest.
    """

    __pydantic_config__ = STRICT

    goal: Literal["subject", "style"] = "subject"
    """What is to be learned: likeness means similarity to the subject, or to the style in which the
    images are drawn."""
    copies: Fraction = 0.0
    """Limit: fraction of pictures that may be near copies of training images."""
    memorisation: Annotated[float, Field(ge=0.5, le=1)] = 0.65
    """Limit: how well the loss may tell training images from held-out ones beyond what the base's
    own loss does (area under the ROC curve, at least so much with 95 % confidence). 0.5: not at
    all; 1 allows everything."""
    leak: Annotated[float, Field(ge=0)] = 0.3
    """Limit: how much pictures of the class alone, or of other things, may move towards the
    subject, as a fraction of how much pictures of the subject itself did. 1 allows every dog to
    become this one dog."""
    drift: Annotated[float, Field(ge=0)] = 1.0
    """Limit: how far pictures of the class alone and of other things may be from the base's own, in
    units of the distance between two of the base's pictures of one prompt. 1: as far as a different
    seed."""
    prompt_weight: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Files are ranked by likeness x prompt following to this power. 0 considers likeness alone; 1
    gives equal weight to equal relative changes of the two."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """Files within this many standard errors of the difference to the best one count as equally
    good."""
    prefer: Literal["auto", "earliest", "smallest"] = "auto"
    """Which of the equally good files to choose: the one with the fewest steps, or the smallest.
    auto: the earliest if all are from one run, otherwise the smallest."""
