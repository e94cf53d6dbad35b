"""Where a relative path starts: in a recipe file at the file's own folder, on the command line
where one stands.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from konomi.config.weighted_file import weighted_file

ALWAYS = (
    "data.sources.N.path", "data.cache.folder", "validation.path", "run.output",
    "method.initial_file", "method.words.initial_file", "method.start_file",
)  # fmt: skip
"""Settings that are paths."""
WHERE_THERE = ("base", "vae", "prior.clip", "method.start", "method.lora.start")
"""Settings that are a path or a name (`tiny`, a hub id, a word): a path where something lies
there."""
ADAPTERS = "adapters"
"""A list of paths with weights behind them."""


def with_paths_from(
    data: Mapping[str, Any], folder: Path, *, output: bool = True
) -> dict[str, Any]:
    """A copy of a recipe's plain data whose relative paths start at `folder`.

    Without `output`, the run folder stays as it is written.
    """
    result = copy.deepcopy(dict(data))
    for name in (*ALWAYS, *WHERE_THERE):
        if name == "run.output" and not output:
            continue
        for table, key in _places(result, name.split(".")):
            text = table[key]
            if not isinstance(text, str) or not text or text.startswith("~") or "\0" in text:
                continue
            there = folder / text
            if name in ALWAYS or _exists(there):
                table[key] = str(there)
    for place, written in enumerate(_texts(result.get(ADAPTERS))):
        if written and not written.startswith("~") and "\0" not in written:
            found = weighted_file(written, folder)
            if _exists(folder / found.path):
                result[ADAPTERS][place] = f"{folder / found.path}{found.weights}"
    return result


def _texts(value: Any) -> list[str]:
    """A list of texts; empty for what is wrong, which is named later."""
    listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return value if listed else []


def _places(data: Any, parts: list[str]) -> Iterator[tuple[dict[str, Any], str]]:
    head, *rest = parts
    if head == "N":
        for item in data if isinstance(data, list | tuple) else ():
            yield from _places(item, rest)
    elif isinstance(data, dict) and head in data:
        if rest:
            yield from _places(data[head], rest)
        else:
            yield data, head


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
