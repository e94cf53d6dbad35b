"""Recipes as TOML: resolved, for the run folder; commented, to start from."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import tomlkit

from konomi.config.overrides import kind_of
from konomi.config.recipe import Recipe
from konomi.config.schema import INDEX, Setting, recipe_settings, summary

HEADER = """\
# A recipe for konomi. Check it with `konomi check FILE`, run it with `konomi train FILE`.
# Every setting is here with its default; take the # away in front of one to change it.
"""
WIDTH = 110


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data; what is None is left out."""
    data = _plain(dataclasses.asdict(recipe))
    assert isinstance(data, dict)
    return data


def write_recipe(recipe: Recipe) -> str:
    """The whole recipe as TOML, defaults included, so that it still means the same when defaults
    change.
    """
    return toml_of(recipe_data(recipe))


def toml_of(data: Mapping[str, Any]) -> str:
    """A recipe's plain data as TOML, sections last."""
    document = tomlkit.document()
    for name in sorted(data, key=lambda name: isinstance(data[name], dict)):
        document.add(name, data[name])
    return tomlkit.dumps(document)


def commented_recipe(
    method_config: type,
    *,
    base: str = "tiny",
    images: str = "photos",
    trigger: str = "",
    settings: Mapping[str, str] | None = None,
) -> str:
    """A recipe to fill in: every setting with its meaning, bounds and default. It loads to the
    defaults, but for `settings` of the method.
    """
    given = {
        "base": base,
        "method.kind": kind_of(method_config),
        f"data.sources.{INDEX}.path": images,
    }
    given |= {f"method.{name}": value for name, value in (settings or {}).items()}
    if trigger:
        given[f"data.sources.{INDEX}.trigger"] = trigger
    known = recipe_settings(method_config)
    blocks = [HEADER]
    top = [s for s in known if not s.section and s.shape.word != "section"]
    blocks += ["\n".join(_lines(setting, given)) for setting in top]
    for section in (s for s in known if s.shape.word == "section" or _is_section_list(s)):
        is_list = _is_section_list(section)
        path = f"{section.path}.{INDEX}" if is_list else section.path
        name = f"[[{section.path}]]" if is_list else f"[{section.path}]"
        own = [
            s
            for s in known
            if s.section == path and s.shape.word != "section" and not _is_section_list(s)
        ]
        about = summary(method_config) if section.path == "method" else section.help
        lines = [*_comment(about), name]
        for setting in own:
            lines += ["", *_lines(setting, given)]
        blocks.append("\n".join(lines))
    return "\n\n".join(block.rstrip("\n") for block in blocks) + "\n"


def toml_value(value: Any) -> str:
    """A value as it stands behind the `=`."""
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{tomlkit.item(str(k)).as_string()} = {toml_value(v)}" for k, v in value.items()
            )
            + "}"
        )
    text: str = tomlkit.item(_plain(value)).as_string()
    return text


def _lines(setting: Setting, given: dict[str, str]) -> Iterator[str]:
    yield from _comment(setting.help)
    accepts = ", ".join((setting.type, *setting.bounds))
    if setting.path != "method.kind":
        yield from _comment(f"({accepts})")
    if setting.path in given:
        yield f"{setting.name} = {toml_value(given[setting.path])}"
    elif setting.default is None:
        yield f"#{setting.name} ="
    else:
        yield f"#{setting.name} = {toml_value(setting.default)}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False)]


def _is_section_list(setting: Setting) -> bool:
    return setting.shape.word == "list" and setting.shape.parts[0].word == "section"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
