"""Caption tables: `metadata.jsonl` and `metadata.csv` of an image folder, and sd-scripts' metadata
JSON.
"""

import csv
import io
from collections.abc import Iterator
from typing import Any

from konomi.config.parse import parse_json
from konomi.data.containers import Entry, read_bytes
from konomi.data.encodings import decode_text
from konomi.errors import DataError, printable, shortened

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
CAPTION_COLUMNS = ("text", "caption", "texts", "captions", "prompt", "description")

_FILE_COLUMN = "file_name"


def read_table(entry: Entry, where: str) -> dict[str, tuple[str, ...]]:
    """File name (relative to the table's folder) -> captions, in the order of the rows.

    The caption column is one of `CAPTION_COLUMNS` (a text, or a list of texts), else the only
    other text column (such as `additional_feature`), else `name`. A file listed twice has both
    captions.

    Raises:
        DataError: names the line that cannot be read.
    """
    text = decode_text(read_bytes(entry.locator), where)
    rows = (
        _csv_rows(text, where) if entry.name.lower().endswith(".csv") else _jsonl_rows(text, where)
    )
    table: dict[str, tuple[str, ...]] = {}
    for line, row in rows:
        place = f"{printable(where)}, line {line}"
        name = row.get(_FILE_COLUMN)
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{place}: no `{_FILE_COLUMN}`, the image's path relative to this file. Add it."
            )
        name = name.replace("\\", "/").removeprefix("./")
        table[name] = table.get(name, ()) + captions_of(row, place)
    return table


def read_kohya_table(entry: Entry, where: str) -> dict[str, tuple[str, ...]]:
    """sd-scripts' `{image: {"caption": ..., "tags": ...}}`: image path or key -> captions; tags
    follow the caption.

    Raises:
        DataError: not such a file.
    """
    try:
        content = parse_json(decode_text(read_bytes(entry.locator), where))
    except ValueError as error:
        raise DataError(f"{printable(where)}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{printable(where)}: expected an object with an entry for each image")
    table: dict[str, tuple[str, ...]] = {}
    for key, values in content.items():
        place = f"{printable(where)}, {printable(key)!r}"
        if not isinstance(values, dict):
            raise DataError(f'{place}: expected an object with "caption" or "tags"')
        parts = [
            _clean(values[column], place) for column in ("caption", "tags") if values.get(column)
        ]
        caption = ", ".join(part for part in parts if part)
        table[key.replace("\\", "/")] = (caption,) if caption else ()
    return table


def _jsonl_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not `splitlines`, which also cuts at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, lone_surrogates=True)
        except ValueError as error:
            raise DataError(
                f"{printable(where)}, line {number}: not valid JSON ({error})"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{printable(where)}, line {number}: expected an object such as "
                + '{"file_name": "a.png"}'
            )
        yield number, row


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(
            f"{printable(where)}, line {reader.line_num}: not valid CSV ({error})"
        ) from error


def captions_of(row: dict[str, Any], place: str) -> tuple[str, ...]:
    for column in CAPTION_COLUMNS:
        value = row.get(column)
        if isinstance(value, list):
            value = [item for item in value if item]
        if value:
            values = value if isinstance(value, list) else [value]
            return tuple(filter(None, (_clean(item, place) for item in values)))
    others = [
        value
        for column, value in row.items()
        if column != _FILE_COLUMN and isinstance(value, str) and value
    ]
    if len(others) != 1:
        others = [row["name"]] if isinstance(row.get("name"), str) else []
    return tuple(filter(None, (_clean(value, place) for value in others)))


def _clean(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: the caption is {shortened(value, quoted=True)}, expected a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: the caption has half a character (a lone surrogate). Write it again."
        ) from error
    return " ".join(value.split())
