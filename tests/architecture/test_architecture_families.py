"""Families have one place: no file outside `families/` names one, but for a few that have to."""

import ast
import re
from pathlib import Path

import pytest

from konomi.families import FAMILIES
from konomi.families.family import DenoiserSpec, Family, Pipeline, TextEncoderSpec, VaeSpec, Variant

ROOT = Path(__file__).parents[2]
# Translations repeat sentences that stand elsewhere.
SOURCES = sorted(
    path for path in (ROOT / "src" / "konomi").rglob("*.py") if path.parent.name != "japanese"
)
MAY_NAME_FAMILIES = {
    "src/konomi/formats/cloneofsimo.py": "layers in a row without names: the list is of two "
    "families' U-Nets",
    "src/konomi/config/foreign/sd_scripts.py": "a field of sd-scripts is called so",
    "src/konomi/config/foreign/ai_toolkit.py": "AI Toolkit's own words for families",
}


def words_of(family):
    yield from (family.name, family.name.upper(), family.title)
    for variant in family.variants:
        yield from (variant.architecture, variant.base_model_version)


NAMES = re.compile(
    rf"\b({'|'.join(re.escape(word) for family in FAMILIES for word in words_of(family))})\b"
)
WIDTHS = {family.denoiser.context_width for family in FAMILIES} | {
    encoder.width for family in FAMILIES for encoder in family.text_encoders
}


def lists_of_widths(source):
    """Tables and lists in a file that have two of the widths by which families are told."""
    for node in ast.walk(source):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        if len({item.value for item in items if isinstance(item, ast.Constant)} & WIDTHS) > 1:
            yield node.lineno


def test_no_file_outside_families_names_one():
    found = {}
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        if where.startswith("src/konomi/families/"):
            continue
        text = path.read_text(encoding="utf-8")
        lines = [number for number, line in enumerate(text.splitlines(), 1) if NAMES.search(line)]
        if lines := [*lines, *lists_of_widths(ast.parse(text))]:
            found[where] = lines
    allowed = {where: MAY_NAME_FAMILIES[where] for where in found if where in MAY_NAME_FAMILIES}
    print(
        f"files outside families/ that name a family: {len(found) - len(allowed)}; with a reason: "
        f"{allowed}"
    )
    assert {where: lines for where, lines in found.items() if where not in MAY_NAME_FAMILIES} == {}
    assert set(allowed) == set(MAY_NAME_FAMILIES)


@pytest.mark.parametrize(
    "code",
    ['family == "sdxl"', "of SD1", "'sd_v2_v'", "Stable Diffusion XL", "'stable-diffusion-v2-512'"],
)
def test_names_would_be_found(code):
    assert NAMES.search(code)


def test_lists_of_widths_would_be_found():
    assert list(
        lists_of_widths(ast.parse("a = {768: 'x', 1024: 'y'}\nb = (768, 512)\nc = [1280, 768]"))
    ) == [1, 3]


@pytest.mark.parametrize(
    "spec", [Family, DenoiserSpec, TextEncoderSpec, VaeSpec, Variant, Pipeline]
)
def test_every_field_is_read(spec):
    """What a family declares and nobody asks for would be a second truth."""
    readers = "\n".join(
        path.read_text(encoding="utf-8")
        for path in SOURCES
        if not re.search(r"families/(family|sd)\w*\.py$", str(path))
    )
    fields = [name for name in spec.__dataclass_fields__ if name != "part"]
    assert [name for name in fields if not re.search(rf"\.{name}\b", readers)] == []
