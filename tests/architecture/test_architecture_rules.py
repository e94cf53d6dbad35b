"""The house rules that a reader relies on, held for every file below src/."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from konomi.config.schema import flatten, recipe_settings
from konomi.methods import METHODS

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "konomi").rglob("*.py"))
LONGEST_FILE = 400
LONGEST_FUNCTION = 80
TRANSLATIONS = ("src/konomi/cli/japanese/*", "src/konomi/evaluation/page/texts.py")
HEAVY = {"torch", "pydantic", "rich", "diffusers", "transformers", "numpy", "PIL", "tomlkit"}
UNSAFE_CALLS = {
    "pickle.load",
    "pickle.loads",
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
}
UNSAFE_ARGUMENTS = {
    "weights_only=False",
    "trust_remote_code=True",
    "shell=True",
    "allow_pickle=True",
}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def where(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at():
    assert len(SOURCES) > 30


def test_files_are_short():
    lengths = {where(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_line_is_let_off():
    """Ruff holds lines to 100 columns; only a sentence and its translation may stay together."""
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert ruff["line-length"] == 100 and "E" in ruff["lint"]["select"]
    assert "E501" not in ruff["lint"]["ignore"] and "extend-exclude" not in ruff
    assert ruff["lint"]["per-file-ignores"] == {key: ["E501"] for key in TRANSLATIONS}
    pragma = "noqa: " + "E501"
    folders = ("src", "tests", "tools", "bench")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [where(path) for path in paths if pragma in path.read_text(encoding="utf-8")] == []


def test_functions_are_short():
    long = {}
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long[f"{where(path)}:{node.name}"] = length
    assert long == {}


CATCH_ALL = {"src/konomi/cli/main.py": 1, "src/konomi/training/optional_work.py": 1}
"""The two places that take whatever comes: the top of the command line, and what is worth nothing
beside a run."""


def test_nothing_is_caught_that_cannot_be_handled():
    broad = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler):
                caught = (
                    []
                    if node.type is None
                    else [n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)]
                )
                # Tidying up and raising on is no handling; `except BaseException: ...; raise` may
                # stay.
                goes_on = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
                if not goes_on and (
                    node.type is None or {"Exception", "BaseException"} & set(caught)
                ):
                    broad.append(where(path))
    assert Counter(broad) == CATCH_ALL


def unsafe_calls(source):
    """Calls in a parsed file that can run a stranger's code. Words in texts and comments are no
    calls.
    """
    found = []
    for node in ast.walk(source):
        if isinstance(node, ast.Call):
            arguments = {f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords}
            found += sorted(
                ({ast.unparse(node.func)} & UNSAFE_CALLS) | (arguments & UNSAFE_ARGUMENTS)
            )
    return found


def test_files_of_strangers_cannot_run_code():
    assert {where(path): found for path in SOURCES if (found := unsafe_calls(tree(path)))} == {}


EXAMPLES = sorted(
    [f"{name}(x)" for name in UNSAFE_CALLS] + [f"f({argument})" for argument in UNSAFE_ARGUMENTS]
)


@pytest.mark.parametrize("call", EXAMPLES)
def test_every_unsafe_call_would_be_found(call):
    assert len(unsafe_calls(ast.parse(call))) == 1
    assert unsafe_calls(ast.parse(f"model.eval()\n{call!r}  # {call}")) == []


def test_torch_loads_weights_only():
    careless = []
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {k.arg: ast.unparse(k.value) for k in node.keywords}.get(
                    "weights_only"
                ) == "True"
                if not safe:
                    careless.append(f"{where(path)}:{node.lineno}")
    assert careless == []


def test_texts_of_strangers_are_read_within_bounds():
    """JSON and TOML go through konomi.config.parse; only memory in the cache reads what konomi
    wrote and checked.
    """
    plain = {
        "json.load",
        "json.loads",
        "tomllib.load",
        "tomllib.loads",
        "tomlkit.parse",
        "tomlkit.load",
    }
    readers = (
        "src/konomi/config/parse.py",
        "src/konomi/data/file_index.py",
        "src/konomi/data/scan_cache.py",
    )
    found = []
    for path in SOURCES:
        calls = [ast.unparse(n.func) for n in ast.walk(tree(path)) if isinstance(n, ast.Call)]
        found += [
            f"{where(path)}: {call}"
            for call in calls
            if call in plain and where(path) not in readers
        ]
    assert found == []


def test_names_of_files_say_something():
    empty = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
    assert [where(path) for path in SOURCES if empty & set(path.with_suffix("").parts)] == []


def test_import_floors():
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["generate", "--help"], ["inspect", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    # The flags of a picture's settings are made of the schema.
    heavy = HEAVY - {"pydantic"} if arguments[0] == "generate" else HEAVY
    script = (
        "import sys\nfrom konomi.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"heavy = {heavy!r} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_setting_is_explained(method):
    settings = recipe_settings(method.config_type)
    assert [setting.path for setting in settings if not setting.help.strip()] == []
    assert len(flatten(method.config_type)) >= 1
