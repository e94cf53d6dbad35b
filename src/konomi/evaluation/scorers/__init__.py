"""The scorers, one file each."""

from konomi.evaluation.scorers.copies import Copies
from konomi.evaluation.scorers.diversity import Diversity, LpipsDiversity
from konomi.evaluation.scorers.drift import Drift
from konomi.evaluation.scorers.likeness import ClipLikeness, Likeness
from konomi.evaluation.scorers.preservation import Leak, Preservation
from konomi.evaluation.scorers.prompt_following import PromptFollowing
from konomi.evaluation.scorers.scorer import Scorer
from konomi.evaluation.scorers.style import StyleLikeness

SCORERS: tuple[Scorer, ...] = (
    Likeness(),
    ClipLikeness(),
    StyleLikeness(),
    PromptFollowing(),
    Drift(),
    Preservation(),
    Leak(),
    Diversity(),
    LpipsDiversity(),
    Copies(),
)
