"""The families konomi knows. A new one is a file beside `sd1.py` and an entry here."""

from pathlib import Path
from typing import Any

from konomi.config.parse import parse_json
from konomi.errors import ModelError
from konomi.models.family import Family
from konomi.models.sd1 import SD1
from konomi.models.sd2 import SD2
from konomi.models.sdxl import SDXL

FAMILIES: tuple[Family, ...] = (SD1, SD2, SDXL)

CONFIGS = Path(__file__).parent / "configs"


def family_named(name: str) -> Family:
    """Raises ModelError naming the known families."""
    for family in FAMILIES:
        if family.name == name:
            return family
    raise ModelError(f"there is no model family {name!r}. Known: {', '.join(family.name for family in FAMILIES)}.")


def shipped_config(family: Family, component: str) -> dict[str, Any]:
    """The published config of a component: `unet`, `vae`, `text_encoder`, `text_encoder_2` or `scheduler`."""
    config: dict[str, Any] = parse_json((CONFIGS / family.name / f"{component}.json").read_text(encoding="utf-8"))
    return config
