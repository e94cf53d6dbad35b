"""Relative paths start where a person expects: in a file at its folder, on the command line at the
current one.
"""

from pathlib import Path

import pytest

from konomi.config.load import with_absolute_paths
from konomi.config.paths import ALWAYS, WHERE_THERE
from konomi.config.schema import recipe_settings
from konomi.methods import METHODS
from konomi.tasks.recipes import read_recipe

TEXT = """
base = "models/mine.safetensors"
[method]
kind = "lora"
start = "old.safetensors"
[[data.sources]]
path = "photos"
[validation]
path = "kept"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "mine.safetensors").touch()
    (folder / "recipe.toml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    return folder


def test_every_path_setting_exists():
    known = {setting.path for method in METHODS for setting in recipe_settings(method.config_type)}
    assert set(ALWAYS) | set(WHERE_THERE) <= known


def test_paths_in_a_file_start_at_its_folder(project):
    recipe = read_recipe("project/recipe.toml")
    assert recipe.data.sources[0].path == str(Path("project") / "photos")
    assert recipe.base == str(Path("project") / "models" / "mine.safetensors")
    assert recipe.validation.path == str(Path("project") / "kept")


def test_what_is_only_a_name_stays_one(project):
    (project / "recipe.toml").write_text(TEXT.replace("models/mine.safetensors", "owner/name"))
    recipe = read_recipe("project/recipe.toml")
    assert recipe.base == "owner/name"
    assert recipe.method.start == "old.safetensors"


def test_paths_of_the_command_line_start_at_the_current_folder(project):
    recipe = read_recipe("project/recipe.toml", ["data.sources.0.path=here", "base=tiny"])
    assert recipe.data.sources[0].path == "here"
    assert recipe.base == "tiny"


def test_a_run_knows_its_images_from_any_folder(project, tmp_path, monkeypatch):
    recipe = with_absolute_paths(read_recipe("project/recipe.toml"))
    monkeypatch.chdir(tmp_path.parent)
    assert with_absolute_paths(recipe) == recipe
    assert recipe.data.sources[0].path == str(project / "photos")
    assert recipe.run.output == ""
