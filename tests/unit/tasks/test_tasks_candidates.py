"""Which runs a comparison is made of, and what is refused before anything is loaded."""

from pathlib import Path

import pytest

from konomi.errors import RecipeError
from konomi.tasks.candidates import Asked, wanted_runs
from konomi.tasks.recipes import recipe_from_flags

ASKED = {"images": (Path("photos"),), "base": "tiny", "trigger": "sks", "class_noun": "dog"}


def runs(*what, **asked):
    return wanted_runs(what, Asked(**(ASKED | asked)))


def test_every_value_of_a_sweep_is_a_run_of_every_method():
    found = runs(
        "lora", "dreambooth", sweep=("optimizer.learning_rate=1e-4,1e-3", "run.batch_size=1,2")
    )
    assert len(found) == 8
    assert found[1].id == "lora-learning_rate-1e-4-batch_size-2"
    assert found[1].label == "lora, optimizer.learning_rate=1e-4, run.batch_size=2"
    assert [run.recipe.run.batch_size for run in found] == [1, 2] * 4
    assert {run.recipe.optimizer.learning_rate for run in found} == {1e-4, 1e-3}
    assert {run.recipe.method.kind for run in found} == {"lora", "dreambooth"}
    assert len({run.id for run in found}) == 8


def test_lists_are_divided_by_semicolons():
    found = runs("lora", sweep=("optimizer.betas=0.9,0.99;0.8,0.9",))
    assert [run.recipe.optimizer.betas for run in found] == [(0.9, 0.99), (0.8, 0.9)]


def test_a_recipe_learns_the_pictures_and_words_of_the_command_line(tmp_path):
    from konomi.config.load import write_recipe

    recipe = recipe_from_flags(
        "lora", images=["others"], base="tiny", trigger="abc", overrides=["method.rank=3"]
    )
    path = tmp_path / "slim.toml"
    path.write_text(write_recipe(recipe), encoding="utf-8")
    mine, method = runs(str(path), "textual_inversion")
    assert mine.id == "slim" and mine.recipe.method.rank == 3
    assert mine.recipe.data.sources == method.recipe.data.sources
    (source,) = mine.recipe.data.sources
    assert (source.trigger, source.class_noun) == ("sks", "dog")
    assert source.path == str(Path("photos").absolute())
    own = wanted_runs([path], Asked())
    assert own[0].recipe.data.sources[0].path == str(tmp_path / "others")


@pytest.mark.parametrize(
    ("what", "asked", "told"),
    [
        ((), {}, "name the methods or recipes"),
        (("lora", "lora"), {}, "lora: is named twice"),
        (("lorra",), {}, "Did you mean lora"),
        (("lora", "full"), {"sweep": ("method.rank=4,8",)}, "full has no such setting"),
        (("lora",), {"sweep": ("method.rank",)}, "it takes KEY=V1,V2"),
        (("lora",), {"sweep": ("method.rank=4,,8",)}, "it takes KEY=V1,V2"),
        (("lora",), {"sweep": ("method.rank=4,4",)}, "a value stands twice"),
        (("lora",), {"sweep": ("method.rank=4", "method.rank=8")}, "the same setting stands twice"),
        (("lora",), {"sweep": ("run.steps=4,8",)}, "decided by --budget"),
        (("lora",), {"sweep": ("method.rank=four",)}, "method.rank"),
        (("lora",), {"sweep": ("run.seed=" + ",".join(map(str, range(201))),)}, "makes 201 runs"),
        (("lora",), {"images": ()}, "--images: must be set"),
        (("lora",), {"base": ""}, "--base: must be set"),
        (("no/such.toml",), {}, "no such file"),
        (("full",), {"overrides": ("method.rank=8",)}, "method.rank"),
    ],
)
def test_what_cannot_be_compared_is_one_line(what, asked, told):
    with pytest.raises(RecipeError, match=told) as error:
        runs(*what, **asked)
    assert "\n" not in str(error.value)


def test_candidates_have_one_base_and_one_set_of_pictures():
    def recipe(**changed):
        given = {"images": ["photos"], "base": "tiny", "trigger": "sks"} | changed
        return recipe_from_flags("lora", overrides=[f"run.name={len(changed)}"], **given)

    with pytest.raises(RecipeError, match="compared on one base"):
        wanted_runs([recipe(), recipe(base="other")], Asked())
    with pytest.raises(RecipeError, match="learn other pictures"):
        wanted_runs([recipe(), recipe(images=["others"])], Asked())
    assert len(wanted_runs([recipe(), recipe(base="other")], Asked(base="tiny"))) == 2
