"""The families of models that konomi knows. A new one is a file beside `sd1.py` and a line in
`FAMILIES`.

What a family is called, is recognised by, names its tensors and says in metadata lies in its file
and nowhere else.
"""

from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from konomi.config.parse import parse_json
from konomi.errors import ModelError
from konomi.families.family import Family
from konomi.families.sd1 import SD1
from konomi.families.sd2 import SD2
from konomi.families.sdxl import SDXL

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)

CONFIGS = Path(__file__).parent / "configs"


def family_named(name: str) -> Family:
    """Raises ModelError naming the known families."""
    found = known_family(name)
    if found is None:
        raise ModelError(
            f"there is no model family {name!r}. Known: "
            f"{', '.join(family.name for family in FAMILIES)}."
        )
    return found


def known_family(name: str) -> Family | None:
    """The family of a name that an adapter has; None for "" and for a name of something else."""
    return next((family for family in FAMILIES if family.name == name), None)


def title_of(name: str) -> str:
    """What to call a family in a message, by its name; "" for a name that is none."""
    family = known_family(name)
    return "" if family is None else family.title


def titles(last: str) -> str:
    """All families in a sentence, `last` before the last of them: `Stable Diffusion 1, 2 and
    XL`.
    """
    said, before = [], ""
    for family in FAMILIES:
        kind, _, version = family.title.rpartition(" ")
        said.append(version if kind == before else family.title)
        before = kind
    return f"{', '.join(said[:-1])} {last} {said[-1]}"


def published_config(family: Family, folder: str) -> dict[str, Any]:
    """The published config of a part, by its folder in a diffusers folder, or of the
    `scheduler`.
    """
    if folder in family.published:
        return deepcopy(dict(family.published[folder]))
    config: dict[str, Any] = parse_json(_config_text(family.name, folder))
    return config


@lru_cache
def _config_text(family: str, folder: str) -> str:
    return (CONFIGS / family / f"{folder}.json").read_text(encoding="utf-8")
