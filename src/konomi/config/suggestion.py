"""What makes a file the one to keep: the constants of the rule in docs/evaluation.md."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from konomi.config.bounds import STRICT, Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestionConfig:
    """Which of the measured files is recommended: of those that break no limit the best, and of
    those that are as good the earliest or smallest.
    """

    __pydantic_config__ = STRICT

    goal: Literal["subject", "style"] = "subject"
    """What was to be learned: likeness is that to the subject, or that to how the images are
    drawn."""
    copies: Fraction = 0.0
    """Limit: share of the pictures that may be near copies of training pictures."""
    leak: Annotated[float, Field(ge=0)] = 0.3
    """Limit: how far pictures of the class alone, or of other things, may come nearer to the
    subject, as a share of how far pictures of the subject itself did. 1 allows every dog to become
    the one dog."""
    drift: Annotated[float, Field(ge=0)] = 0.75
    """Limit: how far pictures of the class alone and of other things may be from the base's own, in
    units of the distance between two of the base's pictures of one prompt. 1: as far as another
    seed."""
    prompt_weight: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Files are ranked by likeness x prompt following to this power; 0 looks at likeness alone, 1
    weighs a tenth of the one as much as a tenth of the other."""
    tolerance: Annotated[float, Field(ge=0)] = 1.0
    """Files count as equally good as the best within so many standard errors of the difference."""
    prefer: Literal["auto", "earliest", "smallest"] = "auto"
    """Which of the equally good: that of the fewest steps, or the smallest file. auto: the earliest
    where all are of one run, else the smallest."""
