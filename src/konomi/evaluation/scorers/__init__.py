"""The scorers, one file each."""

from konomi.evaluation.scorers.drift import Drift
from konomi.evaluation.scorers.likeness import ClipLikeness, Likeness
from konomi.evaluation.scorers.preservation import Leak, Preservation
from konomi.evaluation.scorers.prompt_following import PromptFollowing
from konomi.evaluation.scorers.scorer import Scorer

SCORERS: tuple[Scorer, ...] = (
    Likeness(),
    ClipLikeness(),
    PromptFollowing(),
    Drift(),
    Preservation(),
    Leak(),
)
