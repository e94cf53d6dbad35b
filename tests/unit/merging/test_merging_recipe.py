"""`merge recipe`: several merges in one pass."""

import json

import pytest
import torch
from safetensors.torch import load_file

from konomi.config.merging import read_merge_recipe
from konomi.errors import KonomiError
from konomi.storage.hashing import sha256_file
from konomi.storage.tensor_file import read_header
from konomi.tasks import merge_models, merge_recipe

VAE = "first_stage_model."

TWO_STEPS = """
precision = "fp32"

[[merge]]
name = "mixed"
models = ["{a}", "{b}"]
how = "{first}"
alpha = 0.25

[[merge]]
models = ["mixed", "{c}", "{b}"]
how = "{second}"
rules = ["*attn2*:0.5"]
"""


def written(folder, text, **names):
    path = folder / "recipe.toml"
    path.write_text(text.format(**names))
    return path


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("weighted_sum", "add_difference"),
        pytest.param("slerp", "train_difference", marks=pytest.mark.slow),
    ],
)
def test_steps_are_what_merges_one_after_the_other_are(models, tmp_path, first, second):
    a, b, c = (models("sd1", seed) for seed in range(3))
    recipe = written(tmp_path, TWO_STEPS, a=a, b=b, c=c, first=first, second=second)
    done = merge_recipe(recipe, tmp_path / "out.safetensors")
    between = merge_models([a, b], tmp_path / "between.safetensors", how=first, alpha=0.25)
    last = merge_models(
        [between.path, c, b], tmp_path / "last.safetensors", how=second, rules=["*attn2*:0.5"]
    )
    merged, expected = load_file(done.path), load_file(last.path)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert (done.how, done.num_merged) == ("recipe", last.num_merged)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "between.safetensors",
        "last.safetensors",
        "out.safetensors",
        "recipe.toml",
    ]


def test_the_file_holds_the_recipe(models, tmp_path):
    a, b, c = models("sd1", 0, dtype=torch.float16), models("sd1", 1), models("sd1", 2)
    text = TWO_STEPS.replace('precision = "fp32"', "").replace("*attn2*", "*nothing*")
    names = {"first": "weighted_sum", "second": "add_difference"}
    done = merge_recipe(
        written(tmp_path, text, a=a, b=b, c=c, **names), tmp_path / "out.safetensors"
    )
    assert {tensor.dtype for tensor in load_file(done.path).values()} == {torch.float16}
    metadata = read_header(done.path).metadata
    recipe = json.loads(metadata["sd_merge_recipe"])
    hashes = [sha256_file(path) for path in (a, b, c)]
    assert recipe["type"] == "webui" and recipe["konomi"]["merge"] == [
        {"name": "mixed", "models": [a.name, b.name], "how": "weighted_sum", "alpha": 0.25},
        {
            "models": ["mixed", c.name, b.name],
            "how": "add_difference",
            "alpha": 1.0,
            "rules": ["*nothing*:0.5"],
        },
    ]
    assert list(json.loads(metadata["sd_merge_models"])) == hashes == list(done.hashes)
    assert done.notes == ("--rule *nothing*: no tensor has such a name.",)


def test_paths_start_at_the_file(models, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "a.safetensors").symlink_to(models("sd1", 0))
    text = '[[merge]]\nmodels = ["a.safetensors", "tiny", "x"]\n[[merge]]\nname = "x"\n'
    path = folder / "recipe.toml"
    path.write_text(text.replace('"x"', '"b"') + 'models = ["b"]\n[[merge]]\nmodels = ["b"]')
    with pytest.raises(KonomiError, match=r"merge\.0\.models: 'b' is a step that comes later"):
        read_merge_recipe(path)
    path.write_text('[[merge]]\nmodels = ["a.safetensors", "tiny"]\n')
    (step,) = read_merge_recipe(path).merge
    assert step.models == (str(folder / "a.safetensors"), "tiny")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has no \[\[merge\]\]"),
        ("[[merge]]\nalpha = 0.5", "merge.0.models"),
        ('[[merge]]\nmodels = ["a"]\nalfa = 1', "merge.0.alfa.*alpha"),
        ('[[merge]]\nmodels = ["a", "b"]\nalpha = "much"', "merge.0.alpha"),
        ('[[merge]]\nmodels = ["a", "b"]\n[[merge]]\nmodels = ["c", "d"]', "merge.0.name is miss"),
        (
            '[[merge]]\nname = "x"\nmodels = ["a", "b"]\n[[merge]]\nmodels = ["c", "d"]',
            "no later step takes the result of 'x'",
        ),
        ('[[merge]]\nmodels = ["a", "b"]\nhow = "magic"', "choose one of weighted_sum"),
        (
            '[[merge]]\nname = "x"\nmodels = ["a", "b"]\nhow = "ties"\ndensity = 2.0\n'
            '[[merge]]\nmodels = ["x", "d"]',
            "x: --density is 2.0",
        ),
        ("merge = 3", "merge"),
        ("[[merge", "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_said_in_a_line(tmp_path, text, said):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(KonomiError, match=said) as caught:
        merge_recipe(path, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.toml"]
