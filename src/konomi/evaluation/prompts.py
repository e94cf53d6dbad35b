"""What is drawn to be measured: the subject, the subject elsewhere, its class alone, and something
unrelated.
"""

from dataclasses import dataclass
from typing import Literal

PromptKind = Literal["subject", "context", "class", "unrelated"]
"""`context` names the subject in a place where it was not photographed (recontextualisation, Ruiz
et al. 2023, section 4); `class` and `unrelated` should stay as the base draws them."""


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One prompt, and what it is for."""

    text: str
    """As it is drawn, with the trigger."""
    kind: PromptKind
    plain: str
    """The same in words that a text encoder knows: without the trigger, with the class noun. Prompt
    following is measured against it."""
