"""What a comparison found: the one object behind `summary.json`, the page and the suggestion."""

from dataclasses import dataclass

from konomi.evaluation.prompts import EvaluationPrompt


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over P prompts x S seeds with its 95 % interval, beside the base's at the same
    places."""

    mean: float
    low: float
    high: float
    base: float | None
    """The base's own mean; None for the base itself and where it has none."""
    difference: tuple[float, float, float] | None = None
    """Mean, low and high of candidate minus base, paired by picture."""
    count: int = 0
    """How many pictures."""


@dataclass(frozen=True, slots=True)
class ScorerNote:
    """What a score is, for whoever shows it."""

    name: str
    title: str
    source: str
    unit: str
    higher_is_better: bool
    note: str = ""
    """Such as that the references were trained on."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A drawn picture that is very near to one that was trained on."""

    picture: str
    """Path relative to the folder of the summary."""
    training: str
    similarity: float
    usual: float
    """The nearest that another training picture, or the base, comes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file at one weight, or the base."""

    id: str
    """Unique in the summary and stable between runs of the same command: `base`,
    `lora-step400@0.8`."""
    label: str
    """For people: `step 400 at weight 0.8`."""
    method: str
    """`lora`, ...; `base` for the base; empty where the file does not say."""
    file: str
    """Empty for the base."""
    run: str
    """The run folder it comes from, or empty."""
    step: int
    weight: float
    bytes: int
    scores: dict[str, Estimate]
    pictures: dict[str, str]
    """`PROMPT-SEED` (their numbers) -> path relative to the folder of the summary."""
    copies: tuple[Copy, ...] = ()
    failure: str = ""
    """Why it could not be trained, drawn or measured: one line. Its scores are then empty."""
    whole_model: bool = False
    """It is a base by itself, not something that is put on one."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Which file to keep, and why, in one sentence."""

    id: str
    """Of the candidate; empty where none can be recommended."""
    reason: str
    reason_ja: str
    command: str
    """What to type to draw with it."""
    refused: dict[str, str]
    """Candidate -> the constraint it broke, in a few words."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that was measured. Candidates in the order they were asked for, the base first."""

    base: str
    prompts: tuple[EvaluationPrompt, ...]
    seeds: tuple[int, ...]
    references: int
    references_held_out: bool
    encoders: dict[str, str]
    scorers: tuple[ScorerNote, ...]
    candidates: tuple[Candidate, ...]
    suggestion: Suggestion | None
    notes: tuple[str, ...] = ()
    """What had no effect or could not be measured, a line each."""
    adapters: tuple[str, ...] = ()
    """What is attached to the base, `FILE` or `FILE:0.8`; everything is drawn on top of it."""
