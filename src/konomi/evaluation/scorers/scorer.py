"""What a scorer is. One file each beside this one, all of them in `SCORERS`."""

from collections.abc import Mapping
from typing import Literal, Protocol

from konomi.evaluation.pictures import Material, Place
from konomi.evaluation.prompts import PromptKind

Need = Literal["references", "training", "base", "captions", "package"]
Scores = Mapping[Place, float]
"""One value for each picture it speaks about; places it says nothing of are absent."""


class Scorer(Protocol):
    """One number for each picture, and what it means."""

    name: str
    """In `scores.jsonl` and `summary.json`: `likeness`, `prompt_following`, ..."""
    title: str
    """For people, in a few plain words."""
    source: str
    """The paper and section that the formula comes from."""
    unit: str
    """`cosine`, `distance`, `share` ..."""
    bounds: tuple[float, float]
    """The least and the largest value there can be; no interval reaches beyond them."""
    higher_is_better: bool
    needs: frozenset[Need]
    """Where one of these is not there, the scorer is left out, and that is said."""
    prompts: frozenset[PromptKind]
    """The kinds of prompt it is computed for."""

    def score(self, material: Material) -> Scores:
        """Raises nothing for odd pictures: what cannot be scored is absent."""
        ...
