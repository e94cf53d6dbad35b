"""Recipes of other tools' settings: sd-scripts (TOML, command line), OneTrainer (JSON), ai-toolkit (YAML, JSON)."""

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
    """Settings from a file, or from a command line that starts another tool. They are checked as a recipe's.

    Raises RecipeError where they are no settings of a tool that konomi knows, or give no recipe.
    """
    try:
        found = _import(source)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RecipeError(f"--from {source[:80]}: cannot be read as settings of a trainer ({error}).") from error
    found.data.setdefault("base", "tiny")
    method = found.data.setdefault("method", {})
    known = {setting.path for setting in recipe_settings(require_method(found.kind, method_configs))}
    for name in [name for name in method if f"method.{name}" not in known]:
        found.leave(f"method.{name}", f"{found.kind} has no such setting")
        del method[name]
    method["kind"] = found.kind
    found.data.setdefault("data", {}).setdefault("sources", [{"path": "photos"}])
    parse_recipe(found.data, method_configs)
    return found


def imported_recipe(found: Imported, source: str) -> str:
    """The recipe as TOML, and above it, as comments, what was not taken over."""
    lines = [f"From {source} ({found.tool}): {len(found.taken)} settings taken over, {len(found.left)} not."]
    lines += [f"- not taken over: {line}" for line in found.left]
    comment = "\n".join(f"# {part}" for line in lines for part in textwrap.wrap(printable(line), 116))
    document = tomlkit.document()
    for name in sorted(found.data, key=lambda name: isinstance(found.data[name], dict)):
        document.add(name, found.data[name])
    return f"{comment}\n\n{tomlkit.dumps(document)}"


def _import(source: str) -> Imported:
    if "--" in source and (".py" in source or source.lstrip().startswith(("accelerate", "python"))):
        return import_sd_scripts(from_command(source))
    path = Path(source)
    try:
        if path.stat().st_size > LARGEST:
            raise RecipeError(f"--from {path}: is {path.stat().st_size} bytes long, too much for settings.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError(
            f"--from {source[:80]}: cannot be read ({error.strerror}). Give a .toml, .json or .yaml file of another "
            'trainer, or its command line in quotes: --from "accelerate launch train_network.py --..."'
        ) from error
    fields = _parsed(path, text)
    if not isinstance(fields, Mapping):
        raise RecipeError(f"--from {path}: holds no table of settings.")
    if path.suffix.lower() == ".toml":
        if {"datasets", "general"} & set(fields):
            raise RecipeError(
                f"--from {path}: is a data set of sd-scripts, not its settings. It is read as it is: "
                f"konomi train lora --images {path} --base BASE"
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
