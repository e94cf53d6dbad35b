"""What a method needs of a base that not every family has: asked before anything is loaded."""

from collections.abc import Iterable

from konomi.errors import RecipeError
from konomi.families.selectors import known_selectors
from konomi.models.base import BaseModel


def require_added_tokens(base: BaseModel, method: str) -> None:
    """Raises RecipeError where learned tokens cannot be put into the base's captions."""
    if not base.takes_added_tokens:
        raise RecipeError(
            f"{method} learns a token, and the text encoder of {base.name} ({base.spec.title}) "
            "takes none beside its own. Use lora or full."
        )


def require_layers(base: BaseModel, method: str, selectors: Iterable[str]) -> None:
    """Raises RecipeError where the base's family has no layers by one of these names."""
    known = known_selectors(base.spec)
    missing = [selector for selector in selectors if selector not in known]
    if missing:
        raise RecipeError(
            f"{method} works on the layers called {missing[0]!r}, which {base.name} "
            f"({base.spec.title}) does not have. Use lora or full."
        )
