"""What an evaluation is about: the files, what they draw, and what that is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.candidates import CandidateFile
from konomi.evaluation.drawing import DrawingPlan
from konomi.evaluation.fixed_noise import LossPictures
from konomi.evaluation.pictures import References
from konomi.evaluation.scorers.scorer import Scorer
from konomi.generation.request import UsedAdapter


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that is compared, and against what."""

    base: str
    """As it is named to people and in commands."""
    plan: DrawingPlan
    candidates: tuple[CandidateFile, ...]
    references: References
    training: Sequence[Image.Image]
    """Pictures that were trained on; empty where unknown."""
    training_names: Sequence[str]
    """Their files' names."""
    limits: SuggestionConfig
    losses: LossPictures
    """Pictures whose loss is measured."""
    preference: tuple[Scorer, ...] = ()
    """Scorers beside those that are always there."""
    notes: tuple[str, ...] = ()
    """What had no effect or had to be assumed, a line each."""
    adapters: tuple[str, ...] = ()
    """What is attached to the base, `FILE` or `FILE:0.8`."""
    attached: tuple[UsedAdapter, ...] = ()
    """The same for the settings that pictures carry."""
