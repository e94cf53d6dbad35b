"""Recipes of other tools' settings: sd-scripts (TOML, command line), OneTrainer (JSON), ai-toolkit
(YAML, JSON).
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit

from konomi.config.foreign.ai_toolkit import import_ai_toolkit
from konomi.config.foreign.onetrainer import import_onetrainer
from konomi.config.foreign.sd_scripts import from_command, import_sd_scripts
from konomi.config.foreign.table import Imported
from konomi.config.load import parse_recipe
from konomi.config.overrides import require_method
from konomi.config.parse import parse_json, parse_toml
from konomi.config.schema import recipe_settings
from konomi.errors import RecipeError, printable

LARGEST = 2**20
"""Bytes of a settings file; real ones have a few thousand."""


def import_settings(source: str, method_configs: Sequence[type]) -> Imported:
    """Settings from a file, or from a command line that starts another tool. They are checked as a
    recipe's.

    Raises RecipeError where they are no settings of a tool that konomi knows, or give no recipe.
    """
    try:
        found = _import(source)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RecipeError(
            f"--from {source[:80]}: cannot be read as settings of a trainer ({error})."
        ) from error
    found.data.setdefault("base", "tiny")
    method = found.data.setdefault("method", {})
    known = {
        setting.path for setting in recipe_settings(require_method(found.kind, method_configs))
    }
    for name in [name for name in method if f"method.{name}" not in known]:
        found.leave(f"method.{name}", f"{found.kind} has no such setting")
        del method[name]
    method["kind"] = found.kind
    found.data.setdefault("data", {}).setdefault("sources", [{"path": "photos"}])
    _take_back_the_impossible(found, method_configs)
    return found


def _take_back_the_impossible(found: Imported, method_configs: Sequence[type]) -> None:
    """What lies beyond konomi's bounds is named, and no reason to refuse the rest. Raises
    RecipeError for others.
    """
    for _ in range(len(found.taken) + 1):
        try:
            parse_recipe(found.data, method_configs)
            return
        except RecipeError as error:
            places = [(re.match(r"[\w.]+", str(line)), str(line)) for line in error.args]
            if not any(place is not None and found.drop(place[0], line) for place, line in places):
                raise


def imported_recipe(found: Imported, source: str) -> str:
    """The recipe as TOML, and above it, as comments, what was not taken over."""
    lines = [
        (
            f"From {source} ({found.tool}): {len(found.taken)} settings imported, "
            f"{len(found.left)} not."
        )
    ]
    lines += [f"- not imported: {line}" for line in found.left]
    comment = "\n".join(
        f"# {part}" for line in lines for part in textwrap.wrap(printable(line), 116)
    )
    document = tomlkit.document()
    for name in sorted(found.data, key=lambda name: isinstance(found.data[name], dict)):
        document.add(name, found.data[name])
    return f"{comment}\n\n{tomlkit.dumps(document)}"


def _import(source: str) -> Imported:
    if "--" in source and (".py" in source or source.lstrip().startswith(("accelerate", "python"))):
        return import_sd_scripts(_with_its_file(from_command(source)))
    path = Path(source)
    return _import_file(path, _text(path, source))


def _with_its_file(fields: dict[str, Any]) -> dict[str, Any]:
    """The settings of `--config_file`, and over them those of the command line."""
    if not isinstance(name := fields.pop("config_file", None), str):
        return fields
    path = Path(name if name.endswith(".toml") else f"{name}.toml")
    flat: dict[str, Any] = {}
    for key, value in parse_toml(_text(path, f"... --config_file {name}")).items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat | fields


def _text(path: Path, source: str) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(
                f"--from {path}: is {path.stat().st_size} bytes long, too much for settings."
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(
            f"--from {source[:80]}: cannot be read ({error.strerror}). Give a .toml, .json or "
            ".yaml file of another "
            'trainer, or its command line in quotes: --from "accelerate launch train_network.py '
            '--..."'
        ) from error


def _import_file(path: Path, text: str) -> Imported:
    fields = _parsed(path, text)
    if not isinstance(fields, Mapping):
        raise RecipeError(f"--from {path}: holds no table of settings.")
    if path.suffix.lower() == ".toml":
        if {"datasets", "general"} & set(fields):
            raise RecipeError(
                f"--from {path}: is a data set of sd-scripts, not its settings. It is read as it "
                f"is: konomi train lora --images {path} --base BASE"
            )
        return import_sd_scripts(fields)
    if isinstance(fields.get("config"), Mapping):
        return import_ai_toolkit(fields)
    if {"training_method", "base_model_name", "model_type"} & set(fields):
        return import_onetrainer(fields)
    return import_sd_scripts(fields)


def _parsed(path: Path, text: str) -> Any:
    match path.suffix.lower():
        case ".toml":
            return parse_toml(text)
        case ".yaml" | ".yml":
            import yaml

            try:
                if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                    # A few lines of them stand for more values than any memory holds.
                    raise ValueError("it has aliases (*name); write these values out")
                return yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
        case _:
            return parse_json(text)
