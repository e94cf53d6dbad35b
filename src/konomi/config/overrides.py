"""`method.rank=8`: settings changed one at a time, their values read as the setting's own type."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from konomi.config.parse import parse_toml
from konomi.config.problems import missing, not_a_choice, show, unknown
from konomi.config.recipe import MethodConfig
from konomi.config.schema import Setting, generic, recipe_settings
from konomi.config.shape import Shape
from konomi.errors import RecipeError

SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
START = "start"
_STARTS = ("method.start", "method.lora.start")


def apply_overrides(
    data: Mapping[str, Any], overrides: Sequence[str], method_configs: Sequence[type]
) -> dict[str, Any]:
    """A copy of a recipe's data with settings changed.

    Each override is `DOTTED.NAME=VALUE`; items of a list are counted from 0
    (`data.sources.0.repeats=10`), and the next free number adds one. Text is taken as it is, lists
    are TOML arrays or divided by commas (in free text only by commas without a space behind them),
    and an empty value puts a setting that may be left out back to its default.

    Raises RecipeError with one line for each override that names no setting or does not fit the
    data.
    """
    result = copy.deepcopy(dict(data))
    # A changed kind decides which other names exist.
    pairs = sorted(
        (_split(override) for override in overrides), key=lambda pair: pair[0] != "method.kind"
    )
    lines = []
    for path, text in pairs:
        settings = recipe_settings(method_config_of(result, method_configs))
        try:
            _set(result, _start_of(path, settings), text, settings)
        except RecipeError as error:
            lines.append(str(error))
    if lines:
        raise RecipeError(*lines)
    return result


def method_config_of(data: Mapping[str, Any], method_configs: Sequence[type]) -> type | None:
    """The configuration class whose kind the data names."""
    method = data.get("method")
    kind = method.get("kind") if isinstance(method, Mapping) else None
    return next((config for config in method_configs if kind_of(config) == kind), None)


def kind_of(method_config: type) -> str:
    """`lora` of LoraConfig: the default of its field `kind`."""
    default: str = method_config.__dataclass_fields__["kind"].default  # type: ignore[attr-defined]
    return default


def require_method(kind: object, method_configs: Sequence[type]) -> type:
    """The configuration class of this kind. Raises RecipeError that names the kinds there are."""
    kinds = {kind_of(config): config for config in method_configs}
    if isinstance(kind, str) and kind in kinds:
        return kinds[kind]
    if kind is None:
        raise RecipeError(f"method.kind: must be set; it takes one of {', '.join(kinds)}.")
    raise RecipeError(not_a_choice("method.kind", kind, kinds))


def method_title(method: MethodConfig) -> str:
    """How a recipe's method is called for people: `full`, `lora`, `lora (lokr)`."""
    algorithm = getattr(method, "algorithm", method.kind)
    return method.kind if algorithm == method.kind else f"{method.kind} ({algorithm})"


def named_method(name: str, method_configs: Sequence[type]) -> tuple[type, dict[str, str]]:
    """What a word on the command line stands for: a method's configuration class, and the settings
    that make it what the word says. `lokr` is `lora` with `algorithm = "lokr"`; a method's own name
    goes before such a shorthand (`shorthands` of the class).

    Raises RecipeError that names the words there are.
    """
    kinds = {kind_of(config): config for config in method_configs}
    shorthands = {
        word: (config, dict(settings))
        for config in method_configs
        for word, settings in getattr(config, "shorthands", {}).items()
    }
    if name not in kinds and name in shorthands:
        return shorthands[name]
    if name in kinds:
        return kinds[name], {}
    words = dict.fromkeys([*kinds, *shorthands])
    raise RecipeError(not_a_choice("method.kind", name, list(words)))


def read_value(text: str, shape: Shape) -> Any:
    """Text typed by a person as the value a setting wants; what does not fit stays text, for
    validation to name.
    """
    match shape.word:
        case "text":
            return (
                _literal(text, text)
                if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
                else text
            )
        case "whole number":
            return int(text) if re.fullmatch(r"[+-]?\d[\d_]*", text) else text
        case "number":
            return _number(text)
        case "true or false":
            return SWITCH.get(text.lower(), text)
        case "choice":
            return next((choice for choice in shape.choices if str(choice) == text), text)
        case "list" if not text.startswith("["):
            return _comma_list(text, shape)
        case "table" if not text.startswith("{"):
            return _named_values(text, shape)
        case "either":
            values = [read_value(text, part) for part in shape.parts]
            return next((value for value in values if not isinstance(value, str)), text)
        case _:
            return _literal(text, text)


def _start_of(path: str, settings: tuple[Setting, ...]) -> str:
    """`start` on the command line is the file that the method at hand goes on from."""
    if path != START:
        return path
    # A start that is something by default is a word that an embedding starts from.
    known = {setting.path for setting in settings if not setting.default}
    found = next((name for name in _STARTS if name in known), "")
    if not found:
        raise RecipeError(
            "--start: this method does not go on from an adapter's file. One that trains a whole "
            "model goes on from --base."
        )
    return found


def _split(override: str) -> tuple[str, str]:
    path, equals, text = override.partition("=")
    if not equals or not path.strip():
        raise RecipeError(
            f"{override!r}: a setting is changed by name=value, for example run.steps=500."
        )
    return path.strip(), text.strip()


def _set(data: dict[str, Any], path: str, text: str, settings: tuple[Setting, ...]) -> None:
    known = {setting.path: setting for setting in settings}
    parent, _, name = path.rpartition(".")
    setting = known.get(generic(path))
    shape = setting.shape if setting else _table_value(parent, known)
    if shape is None:
        raise RecipeError(unknown(path, settings))
    if shape.word == "section" or (shape.word == "list" and shape.parts[0].word == "section"):
        first = next(s.path for s in settings if s.path.startswith(f"{path}.")).replace(
            ".N.", ".0."
        )
        raise RecipeError(
            f"{path}: holds several settings; set them one by one, for example {first}=..."
        )
    container = _container(data, parent)
    if text == "" and shape.word not in ("text", "list"):
        if setting is not None and setting.required:
            raise RecipeError(missing(path, setting))
        if shape.optional:
            container.pop(name, None)
            return
    if text == "" and shape.optional:
        container.pop(name, None)
        return
    container[name] = read_value(text, shape)


def _table_value(parent: str, known: Mapping[str, Setting]) -> Shape | None:
    owner = known.get(generic(parent))
    return owner.shape.parts[0] if owner is not None and owner.shape.word == "table" else None


def _container(data: dict[str, Any], parent: str) -> dict[str, Any]:
    """The table at a path, made where it is missing."""
    here: Any = data
    parts = parent.split(".") if parent else []
    for depth, part in enumerate(parts):
        place = ".".join(parts[: depth + 1])
        if isinstance(here, list):
            if int(part) > len(here):
                raise RecipeError(
                    f"{place}: there are {len(here)} so far; the next one is number {len(here)}."
                )
            if int(part) == len(here):
                here.append({})
            here = here[int(part)]
        else:
            here = here.setdefault(
                part, [] if parts[depth + 1 : depth + 2] and parts[depth + 1].isdecimal() else {}
            )
        if not isinstance(here, dict | list):
            raise RecipeError(f"{place} is {show(here)}; it takes a section.")
    if not isinstance(here, dict):
        raise RecipeError(f"{parent} is {show(here)}; it takes a section.")
    return here


def _literal(text: str, otherwise: Any) -> Any:
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return otherwise


def _number(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d[\d_]*", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def _named_values(text: str, shape: Shape) -> Any:
    """`OUT*:16,IN00:conv:4`: names and values, with the last colon of each between them."""
    pairs = [item.rpartition(":") for item in text.split(",") if item.strip()]
    if not all(colon for _, colon, _ in pairs):
        return text
    return {name.strip(): read_value(value.strip(), shape.parts[0]) for name, _, value in pairs}


def _comma_list(text: str, shape: Shape) -> list[Any]:
    if not text:
        return []
    free_text = shape.parts[0].word == "text"
    items = re.split(r",(?!\s)" if free_text else r",", text)
    if shape.fixed and len(items) == len(shape.parts):
        return [read_value(item.strip(), part) for item, part in zip(items, shape.parts)]
    return [read_value(item.strip(), shape.parts[0]) for item in items]
