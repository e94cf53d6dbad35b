"""Prompt files: one picture a line, as kohya's scripts read them."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.data.encodings import decode_text
from konomi.errors import DataError, KonomiError
from konomi.generation.request import Request

MAX_BYTES = 16 << 20
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "s": ("steps", int),
    "l": ("guidance", float),
}
"""Letter -> field of a request and how to read it."""


def read_prompt_file(path: Path, default: Request) -> list[Request]:
    """The requests of a text file (encodings as for captions); what a line does not say is taken
    from `default`.

    A line is `a prompt --n negative --w 512 --h 512 --d seed --s steps --l guidance`, every option
    may be missing. Empty lines and lines that start with `#` are passed over. Raises DataError
    naming file and line.
    """
    text = decode_text(_read(path), str(path))
    requests = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                requests.append(parse_prompt_line(line, default))
            except KonomiError as error:
                raise DataError(f"{path}, line {number}: {error}") from error
    if not requests:
        raise DataError(f"{path} holds no prompt. Write one prompt a line.")
    return requests


def _read(path: Path) -> bytes:
    # Asked first: a pipe or device may never end.
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: not a text file. Name a file with one prompt a line.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if len(data) > MAX_BYTES:
        raise DataError(
            f"{path}: larger than {MAX_BYTES >> 20} MiB, which no prompt file is. Is it the right "
            "file?"
        )
    return data


def parse_prompt_line(line: str, default: Request) -> Request:
    """One line. Raises DataError for an unknown option or a value that cannot be read."""
    prompt, *options = re.split(r"(?:^|\s)--(?=[A-Za-z])", line.strip())
    values: dict[str, Any] = {"prompt": prompt.strip() or default.prompt}
    for option in options:
        letter, _, written = option.partition(" ")
        if letter not in _OPTIONS:
            known = " ".join(f"--{known}" for known in _OPTIONS)
            raise DataError(f"--{letter} is not known; the options are {known}.")
        name, read = _OPTIONS[letter]
        try:
            values[name] = read(written.strip())
        except ValueError as error:
            raise DataError(f"--{letter} {written.strip()!r} is not a number.") from error
    request = replace(default, **values)
    request.check()
    return request
