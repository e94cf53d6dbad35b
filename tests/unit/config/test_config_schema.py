"""The flat list of settings, and what is made of it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter

from konomi.config import sections
from konomi.config.bounds import STRICT
from konomi.config.schema import docs_table, flatten, help_of, nearest, recipe_settings
from konomi.config.sections import DataConfig, OptimizerConfig, RunConfig
from konomi.config.shape import shape_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    """A toy."""

    __pydantic_config__ = STRICT

    kind: Literal["toy"] = "toy"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Width | height.
    Two lines."""
    needed: str
    """Must be there."""


def test_flatten_gives_path_type_default_bounds_help():
    settings = {setting.path: setting for setting in flatten(ToyConfig, prefix="method.")}
    rank = settings["method.rank"]
    assert (rank.type, rank.default, rank.bounds) == (
        "a whole number",
        16,
        ("at least 1", "at most 1024"),
    )
    assert rank.help == "Width | height. Two lines."
    assert (rank.name, rank.section) == ("rank", "method")
    assert settings["method.needed"].required and not rank.required
    assert settings["method.kind"].help == "A toy."


def test_recipe_settings_hold_the_method_and_list_items():
    paths = [setting.path for setting in recipe_settings(ToyConfig)]
    assert {
        "base",
        "method.rank",
        "data.sources",
        "data.sources.N.repeats",
        "data.captions.shuffle",
    } <= set(paths)
    assert len(paths) == len(set(paths))
    assert not any(path.startswith("method") for path in (s.path for s in recipe_settings()))


@pytest.mark.parametrize("config", [DataConfig, OptimizerConfig, RunConfig])
def test_help_equals_what_pydantic_reads(config):
    schema = TypeAdapter(config).json_schema()
    texts = help_of(config)
    assert len(texts) == len(schema["properties"])
    for name, text in texts.items():
        # What refers to a section carries that section's own description.
        if "description" in schema["properties"][name]:
            assert " ".join(schema["properties"][name]["description"].split()) == text


def test_choices_and_optional():
    settings = {setting.path: setting for setting in flatten(OptimizerConfig)}
    assert settings["schedule"].choices == (
        "constant",
        "linear",
        "cosine",
        "cosine_restarts",
        "polynomial",
    )
    assert settings["learning_rate"].shape.optional
    assert settings["learning_rate"].bounds == ("at least 0", "at most 10")
    assert settings["betas"].type == "a list of 2 values"


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (str, "text"),
        (tuple[str, ...], "a list of texts"),
        (dict[str, float], "a table of numbers"),
        (int | tuple[int, ...], "a whole number or a list of whole numbers"),
        (Literal["a", "b"], "one of a, b"),
        (bool | None, "true or false"),
    ],
)
def test_types_in_words(annotation, text):
    assert shape_of(annotation).text == text


def test_unknown_types_are_our_mistake():
    with pytest.raises(TypeError, match="bytes"):
        shape_of(bytes)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("run.stepz", "run.steps"),
        ("batch_size", "run.batch_size"),
        ("training.batch_size", "run.batch_size"),
        ("learning_rat", "optimizer.learning_rate"),
        ("data.sources.3.repets", "data.sources.3.repeats"),
        ("method.rnk", "method.rank"),
        ("method.everything", None),
        ("q", None),
    ],
)
def test_nearest(typed, meant):
    assert nearest(typed, recipe_settings(ToyConfig)) == meant


def test_docs_table_is_markdown_with_one_row_a_setting():
    settings = flatten(ToyConfig, prefix="method.")
    lines = docs_table(settings).splitlines()
    assert len(lines) == 2 + len(settings)
    row = (
        "| `method.rank` | a whole number, at least 1, at most 1024 | `16` | Width \\| height. "
        "Two lines. |"
    )
    assert row in lines
    assert "(must be set)" in lines[-1]


def test_defaults_obey_their_own_bounds():
    for name in dir(sections):
        config = getattr(sections, name)
        if (
            isinstance(config, type)
            and hasattr(config, "__pydantic_config__")
            and name != "SourceConfig"
        ):
            default = config()
            TypeAdapter(config).validate_json(TypeAdapter(config).dump_json(default), strict=True)
