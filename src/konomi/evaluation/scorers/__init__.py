"""The scorers, one file each."""

from konomi.evaluation.scorers.scorer import Scorer

SCORERS: tuple[Scorer, ...] = ()
