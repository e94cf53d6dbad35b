"""The folder of an evaluation: `summary.json` and `scores.jsonl`, and what was found of each
candidate, beside its pictures. All of it the same for the same command, without times.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from konomi.config.parse import parse_json
from konomi.config.problems import adapter_of
from konomi.errors import FileFormatError, RunError
from konomi.evaluation.pictures import Place
from konomi.evaluation.summary import Copy, Summary
from konomi.storage.atomic import write_text
from konomi.storage.regular import read_small

SUMMARY, SCORES, PICTURES = "summary.json", "scores.jsonl", "pictures"
_FOUND, _LOSSES = "scores.json", "losses.json"
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of one candidate."""

    scores: Mapping[str, Mapping[Place, float]]
    """By scorer; places it says nothing of are absent."""
    copies: tuple[Copy, ...] = ()


def write_summary(summary: Summary, folder: Path) -> None:
    """Raises RunError for the disk."""
    write_text(folder / SUMMARY, f"{_json(asdict(summary), indent=1)}\n")


def read_summary(folder: Path) -> Summary:
    """Of a folder, or of the file itself. Raises RunError where there is none, FileFormatError for
    one that is damaged.
    """
    path = folder if folder.is_file() else folder / SUMMARY
    if not path.is_file():
        raise RunError(
            f"{folder}: holds no {SUMMARY}. Name a folder that `konomi evaluate` or `konomi "
            "compare` wrote."
        )
    summary: Summary = _read(path, adapter_of(Summary))
    return summary


def write_scores(summary: Summary, found: Mapping[str, Found], folder: Path) -> None:
    """`scores.jsonl`: one object a picture, in the order of the summary. `found`: by candidate.
    Raises RunError for the disk.
    """
    lines = (_json(row) for row in rows(summary, found))
    write_text(folder / SCORES, "".join(f"{line}\n" for line in lines))


def rows(summary: Summary, found: Mapping[str, Found]) -> Iterable[dict[str, Any]]:
    """The objects of `scores.jsonl`."""
    for candidate in summary.candidates:
        if candidate.id not in found:
            continue
        scores = found[candidate.id].scores
        for place, picture in candidate.pictures.items():
            prompt, seed = map(int, place.split("-"))
            yield {
                "candidate": candidate.id,
                "prompt": summary.prompts[prompt].text,
                "seed": summary.seeds[seed],
                "picture": picture,
                "scores": {
                    name: values[prompt, seed]
                    for name, values in scores.items()
                    if (prompt, seed) in values
                },
            }


def keep_found(found: Found, key: str, folder: Path) -> None:
    """Keep what was measured beside a candidate's pictures, so that it is not measured again.

    `key` names everything it depends on. Raises RunError for the disk.
    """
    scores = {
        name: [[*place, value] for place, value in sorted(values.items())]
        for name, values in found.scores.items()
    }
    content = {"key": key, "scores": scores, "copies": [asdict(copy) for copy in found.copies]}
    write_text(folder / _FOUND, _json(content))


def kept_found(key: str, folder: Path) -> Found | None:
    """What was kept under that key; None where there is nothing, or it is damaged."""
    try:
        content = _read(folder / _FOUND, adapter_of(_Kept))
    except FileFormatError:
        return None
    if content.key != key:
        return None
    scores = {
        name: {(prompt, seed): value for prompt, seed, value in values}
        for name, values in content.scores.items()
    }
    return Found(scores, content.copies)


def keep_losses(losses: Mapping[str, Sequence[float]], key: str, folder: Path) -> None:
    """Keep the losses of a candidate beside its pictures, as `keep_found` does. What is not a
    number is not kept.
    """
    finite = {name: values for name, values in losses.items() if all(map(math.isfinite, values))}
    write_text(folder / _LOSSES, _json({"key": key, "losses": finite}))


def kept_losses(key: str, folder: Path) -> dict[str, tuple[float, ...]] | None:
    """What was kept under that key; None where there is nothing, or it is damaged."""
    try:
        content: _KeptLosses = _read(folder / _LOSSES, adapter_of(_KeptLosses))
    except FileFormatError:
        return None
    return content.losses if content.key == key else None


@dataclass(frozen=True, slots=True)
class _KeptLosses:
    key: str
    losses: dict[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class _Kept:
    key: str
    scores: dict[str, list[tuple[int, int, float]]]
    copies: tuple[Copy, ...]


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)


def _read(path: Path, adapter: TypeAdapter[Any]) -> Any:
    content = read_small(path, _MOST_BYTES, "result of an evaluation")
    try:
        return adapter.validate_python(parse_json(content))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise FileFormatError(
            f"{path}: is damaged ({where}: {first['msg']}). Remove it and run the command again."
        ) from error
    except ValueError as error:
        raise FileFormatError(
            f"{path}: is damaged ({error}). Remove it and run the command again."
        ) from error
