"""Recipes: what is accepted, what is refused, and how that is said."""

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from konomi.config.bounds import STRICT
from konomi.config.flags import recipe_from_flags
from konomi.config.load import (
    apply_overrides,
    change_recipe,
    check_recipe,
    commented_recipe,
    parse_recipe,
    read_recipe,
    write_recipe,
)
from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, OptimizerConfig, RunConfig, SourceConfig
from konomi.errors import RecipeError


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallConfig:
    """Learns a little."""

    __pydantic_config__ = STRICT

    kind: Literal["small"] = "small"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Width."""
    alpha: Annotated[float, Field(gt=0)] | None = None
    """Scale."""
    targets: tuple[Literal["attention", "conv"], ...] = ("attention",)
    """What is changed."""
    block_rates: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    """Rates of single blocks."""
    width: int | tuple[int, ...] = 4
    """One width or several."""

    def __post_init__(self) -> None:
        if self.rank == 13:
            raise ValueError("rank 13 brings bad luck.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeConfig:
    """Learns a lot."""

    __pydantic_config__ = STRICT

    kind: Literal["large"] = "large"
    everything: bool = False
    """All of it."""


CONFIGS = (SmallConfig, LargeConfig)
LEAST = {"base": "tiny", "method": {"kind": "small"}}


def parse(**sections):
    return parse_recipe({**LEAST, **sections}, CONFIGS)


def complaint(overrides=(), **sections):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(apply_overrides({**LEAST, **sections}, overrides, CONFIGS), CONFIGS)
    return str(caught.value)


def test_least_recipe_is_all_defaults():
    assert parse() == Recipe(base="tiny", method=SmallConfig())


def test_types_are_kept():
    recipe = parse(
        data={
            "sources": [{"path": "a", "repeats": 3}, {"path": "b", "role": "prior"}],
            "resolution": 512,
        },
        optimizer={"betas": [0.8, 0.9], "learning_rate": 1},
    )
    assert recipe.data.sources == (
        SourceConfig(path="a", repeats=3),
        SourceConfig(path="b", role="prior"),
    )
    assert recipe.data.resolution == "512"
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert isinstance(recipe.optimizer.learning_rate, float)
    assert isinstance(parse(method={"kind": "large"}).method, LargeConfig)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"method": {"kind": "small", "rank": 5000}}, "method.rank is 5000; at most 1024."),
        ({"method": {"kind": "small", "alpha": 0}}, "method.alpha is 0; more than 0."),
        ({"run": {"stepz": 1}}, "run.stepz: no such setting. Did you mean run.steps?"),
        ({"runn": {"steps": 1}}, "runn: no such setting. Did you mean run?"),
        ({"run": {"steps": "many"}}, 'run.steps is "many"; it takes a whole number.'),
        ({"run": {"steps": 1.5}}, "run.steps is 1.5; it takes a whole number."),
        ({"run": {"steps": True}}, "run.steps is true; it takes a whole number."),
        (
            {"optimizer": {"weight_decay": True}},
            "optimizer.weight_decay is true; it takes a number.",
        ),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            "optimizer.learning_rate is NaN; it takes a finite number.",
        ),
        ({"memory": {"compile": 1}}, "memory.compile is 1; it takes true or false."),
        (
            {"data": {"resolution": "big"}},
            'data.resolution is "big"; it looks like 512 or 768x512.',
        ),
        (
            {"data": {"sources": [{"path": "a", "repeats": 0}]}},
            "data.sources.0.repeats is 0; at least 1.",
        ),
        ({"data": 3}, "data is 3; it takes a section."),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas is [0.9]; it takes a list of 2 values."),
        (
            {"optimizer": {"betas": [0.9, 0.9, 0.9]}},
            "optimizer.betas is [0.9, 0.9, 0.9]; it takes a list of 2 values.",
        ),
        ({"preview": {"prompts": ["a", 3]}}, "preview.prompts.1 is 3; it takes text."),
        ({"text": {"max_tokens": 100}}, "text.max_tokens is 100; a multiple of 75."),
        (
            {"method": {"kind": "small", "width": "x"}},
            'method.width is "x"; it takes a whole number or a list of whole numbers.',
        ),
        (
            {"method": {"kind": "small", "block_rates": {"mid": -1}}},
            "method.block_rates.mid is -1; at least 0.",
        ),
        ({"method": {"kind": "small", "rank": 13}}, "method: rank 13 brings bad luck."),
        (
            {"run": {"precision": "bfloat16"}},
            (
                'run.precision is "bfloat16"; it takes one of auto, fp32, bf16, fp16. Did you mean '
                "bf16?"
            ),
        ),
        (
            {"method": {"kind": "small", "targets": ["atention"]}},
            (
                'method.targets.0 is "atention"; it takes one of attention, conv. Did you mean '
                "attention?"
            ),
        ),
        (
            {"method": {"kind": "smal"}},
            'method.kind is "smal"; it takes one of small, large. Did you mean small?',
        ),
        ({"method": {}}, "method.kind: must be set; it takes one of small, large."),
        (
            {"objective": {"min_timestep": 9, "max_timestep": 3}},
            "objective.min_timestep is 9; at most objective.max_timestep, which is 3.",
        ),
    ],
)
def test_each_mistake_is_one_line(sections, line):
    assert complaint(**sections) == line


def test_a_missing_setting_says_what_belongs_there():
    assert complaint(base="").startswith("base: must be set. The model to start from")
    assert complaint(data={"sources": [{"repeats": 2}]}).startswith(
        "data.sources.0.path: must be set. A folder"
    )


def test_every_problem_is_named_at_once():
    lines = complaint(method={"kind": "small", "rank": 0}, run={"steps": -1, "sed": 1}).splitlines()
    assert lines == [
        "method.rank is 0; at least 1.",
        "run.steps is -1; at least 0.",
        "run.sed: no such setting. Did you mean run.seed?",
    ]


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("method.rank=8", lambda r: r.method.rank, 8),
        ("method.alpha=4", lambda r: r.method.alpha, 4.0),
        ("method.alpha=", lambda r: r.method.alpha, None),
        ("method.targets=attention,conv", lambda r: r.method.targets, ("attention", "conv")),
        ("method.targets=attention, conv", lambda r: r.method.targets, ("attention", "conv")),
        ('method.targets=["conv"]', lambda r: r.method.targets, ("conv",)),
        ("method.block_rates.mid=0.5", lambda r: r.method.block_rates, {"mid": 0.5}),
        ("method.width=3", lambda r: r.method.width, 3),
        ("method.width=3,4", lambda r: r.method.width, (3, 4)),
        ("run.name=2024", lambda r: r.run.name, "2024"),
        ("run.name=true", lambda r: r.run.name, "true"),
        ("run.name=", lambda r: r.run.name, ""),
        ("run.name=a=b", lambda r: r.run.name, "a=b"),
        ('run.name="好み"', lambda r: r.run.name, "好み"),
        ("optimizer.learning_rate=1e-4", lambda r: r.optimizer.learning_rate, 1e-4),
        ("optimizer.learning_rate=.5", lambda r: r.optimizer.learning_rate, 0.5),
        ("optimizer.betas=0.9,0.99", lambda r: r.optimizer.betas, (0.9, 0.99)),
        ("memory.compile=yes", lambda r: r.memory.compile, True),
        ("data.resolution=512", lambda r: r.data.resolution, "512"),
        ("data.sources.0.repeats=10", lambda r: r.data.sources[0].repeats, 10),
        ("data.sources.1.path=more", lambda r: r.data.sources[1].path, "more"),
        (
            "preview.prompts=a dog, in snow,a cat",
            lambda r: r.preview.prompts,
            ("a dog, in snow", "a cat"),
        ),
        ("preview.prompts=", lambda r: r.preview.prompts, ()),
    ],
)
def test_override_is_read_as_the_setting_wants_it(override, read, value):
    data = {**LEAST, "data": {"sources": [{"path": "images"}]}}
    assert read(parse_recipe(apply_overrides(data, [override], CONFIGS), CONFIGS)) == value


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("run.stepz=3", "run.stepz: no such setting. Did you mean run.steps?"),
        ("rank=3", "rank: no such setting. Did you mean method.rank?"),
        (
            "data.sources.0.repeat=3",
            "data.sources.0.repeat: no such setting. Did you mean data.sources.0.repeats?",
        ),
        ("run.steps=abc", 'run.steps is "abc"; it takes a whole number.'),
        (
            "run.steps",
            "'run.steps': a setting is changed by name=value, for example run.steps=500.",
        ),
        ("run=3", "run: holds several settings; set them one by one, for example run.output=..."),
        (
            "data.sources=x",
            (
                "data.sources: holds several settings; set them one by one, for example "
                "data.sources.0.path=..."
            ),
        ),
        ("data.sources.2.path=x", "data.sources.2: there are 0 so far; the next one is number 0."),
        ("zzz.qqq=1", "zzz.qqq: no such setting."),
        ("method.everything=true", "method.everything: no such setting."),
    ],
)
def test_wrong_override_is_one_line(override, line):
    assert complaint([override]) == line


def test_overrides_leave_the_data_alone_and_report_together():
    data = {"base": "tiny", "method": {"kind": "small"}, "run": {"steps": 1}}
    assert apply_overrides(data, ["run.steps=2"], CONFIGS)["run"] == {"steps": 2}
    assert data["run"] == {"steps": 1}
    assert len(complaint(["run.a=1", "run.b=1"]).splitlines()) == 2


def test_changed_kind_decides_the_names_whatever_the_order():
    data = apply_overrides(LEAST, ["method.everything=true", "method.kind=large"], CONFIGS)
    assert parse_recipe(data, CONFIGS).method == LargeConfig(everything=True)


texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20)
recipes = st.builds(
    Recipe,
    base=texts.filter(bool),
    method=st.builds(
        SmallConfig,
        rank=st.integers(14, 1024),
        alpha=st.none() | st.floats(1e-30, 1e30),
        targets=st.lists(st.sampled_from(("attention", "conv"))).map(tuple),
        block_rates=st.dictionaries(texts, st.floats(0, 1e300)),
        width=st.integers(-(2**62), 2**62) | st.lists(st.integers(0, 9)).map(tuple),
    ),
    data=st.builds(
        DataConfig,
        sources=st.lists(
            st.builds(SourceConfig, path=texts, trigger=texts, repeats=st.integers(1, 99))
        ).map(tuple),
        resolution=st.none() | st.sampled_from(("64", "768x512")),
    ),
    optimizer=st.builds(OptimizerConfig, learning_rate=st.none() | st.floats(0, 10)),
    run=st.builds(RunConfig, name=texts, seed=st.integers(0, 2**63 - 1)),
)


@given(recipes)
def test_what_is_written_reads_back_the_same(recipe):
    assert parse_recipe(tomllib.loads(write_recipe(recipe)), CONFIGS) == recipe
    assert check_recipe(recipe) == recipe


@pytest.mark.parametrize("config", CONFIGS)
def test_commented_recipe_loads_to_the_defaults(config):
    text = commented_recipe(config, base="tiny", images="photos")
    expected = Recipe(
        base="tiny", method=config(), data=DataConfig(sources=(SourceConfig(path="photos"),))
    )
    assert parse_recipe(tomllib.loads(text), CONFIGS) == expected
    # Every default written as a comment is that default: with all of them taken in, nothing
    # changes.
    lines = (
        line[1:] if line.startswith("#") and line[1:2] not in (" ", "") else line
        for line in text.splitlines()
    )
    uncommented = "\n".join(line for line in lines if not line.endswith(" ="))
    assert uncommented.count("\n") > 100
    assert parse_recipe(tomllib.loads(uncommented), CONFIGS) == expected


def test_read_recipe_names_what_is_wrong_with_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(RecipeError, match=r"no such file\. `konomi new lora"):
        read_recipe(path, (), CONFIGS)
    path.write_text('base = "tiny\n')
    with pytest.raises(RecipeError, match=r"not valid TOML: .*line 1"):
        read_recipe(path, (), CONFIGS)
    path.write_bytes(b'base = "\xff"')
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_recipe(path, (), CONFIGS)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path, (), CONFIGS)
    path.write_bytes(b'\xef\xbb\xbfbase = "tiny"\r\n[method]\r\nkind = "small"\r\n')
    assert read_recipe(path, ["run.steps=7"], CONFIGS).run.steps == 7


def test_flags_and_file_are_the_same_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("recipe.toml")
    path.write_text(
        'base = "tiny"\n[method]\nkind = "small"\nrank = 8\n[run]\nsteps = 20\nseed = 3\noutput = '
        '"out"\n'
        '[[data.sources]]\npath = "photos"\ntrigger = "sks"\nclass_noun = "dog"\n'
        '[[data.sources]]\npath = "dogs"\nrole = "prior"\nclass_noun = "dog"\n'
    )
    from_flags = recipe_from_flags(
        "small",
        images=["photos"],
        base="tiny",
        trigger="sks",
        class_noun="dog",
        output="out",
        steps=20,
        seed=3,
        prior_images="dogs",
        overrides=["method.rank=8"],
        method_configs=CONFIGS,
    )
    assert from_flags == read_recipe(path, (), CONFIGS)


def test_flags_need_images_and_a_known_method():
    with pytest.raises(RecipeError, match=r"data\.sources: no images"):
        recipe_from_flags("small", images=[], base="tiny", method_configs=CONFIGS)
    with pytest.raises(RecipeError, match="Did you mean large"):
        recipe_from_flags("larg", images=["x"], base="tiny", method_configs=CONFIGS)


def test_change_recipe_checks_bounds():
    recipe = parse()
    assert change_recipe(recipe, ["run.steps=9"]) == replace(
        recipe, run=replace(recipe.run, steps=9)
    )
    with pytest.raises(RecipeError, match=r"run\.steps is -9; at least 0"):
        change_recipe(recipe, ["run.steps=-9"])
    # A recipe built in Python has not been checked yet.
    with pytest.raises(RecipeError, match=r"method\.rank is 0; at least 1"):
        check_recipe(Recipe(base="tiny", method=SmallConfig(rank=0)))
