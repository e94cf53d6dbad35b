"""The documents tell the truth: the Python page runs, the ready recipe loads, the README's tree
exists.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_python_page_runs(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "photos").symlink_to(pictures, target_is_directory=True)
    names: dict[str, object] = {}
    pieces = blocks("docs/python.md", "python")
    assert len(pieces) >= 5
    for piece in pieces:
        exec(compile(piece, "docs/python.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "5 images x 1 repeat" in printed
    assert "lora" in printed
    assert (tmp_path / "for-diffusers.safetensors").exists()


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "docs" / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_ready_recipes_load(recipe):
    import konomi

    loaded = konomi.read_recipe(recipe)
    assert loaded.run.epochs or loaded.run.steps


@pytest.mark.parametrize("page", ["README.md", "README.ja.md", "docs/architecture.md"])
def test_every_path_in_a_tree_exists(page):
    trees = [block for block in blocks(page, "") if "cli/" in block]
    assert trees
    for line in trees[0].splitlines():
        for word in re.findall(r"^\s*((?:[\w.]+/?\s{1,4})*[\w.]+/)", line):
            for name in word.split():
                found = [p for p in (ROOT / name, ROOT / "src" / "konomi" / name) if p.exists()]
                assert found, f"{page}: {name}"


def test_the_settings_page_is_what_the_code_says():
    import runpy

    made = runpy.run_path(str(ROOT / "tools" / "settings_page.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == made, (
        "run: python tools/settings_page.py"
    )


def test_every_method_has_a_page():
    from konomi.methods import METHODS

    for method in METHODS:
        assert (ROOT / "docs" / "methods" / f"{method.config_type().kind}.md").is_file()


def test_every_test_named_on_the_faults_page_exists():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 50
    missing = [
        f"{file}::{name}"
        for file, name in named
        if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []
