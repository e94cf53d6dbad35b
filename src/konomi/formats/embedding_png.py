"""Embeddings inside PNG pictures, as A1111 shares them: a text chunk `sd-ti-embedding` with JSON
in Base64.
"""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from konomi.config.parse import parse_json
from konomi.errors import FileFormatError

_KEYWORD = b"sd-ti-embedding\0"
_MAX_CHUNK = 16 << 20
"""Bytes; 75 vectors of 1,280 numbers as decimal text in Base64 take about 3 MB."""


def read_png_embedding(path: Path) -> dict[str, Any] | None:
    """The table a `.pt` would hold, or None where the picture carries no embedding. Reads no
    pixels.

    Raises FileFormatError where the chunk is there and damaged.
    """
    raw = _text_chunk(path)
    if raw is None:
        return None
    try:
        table = parse_json(base64.b64decode(raw, validate=True))
    except ValueError as error:
        raise FileFormatError(
            f"{path}: the embedding in this picture is damaged ({error})."
        ) from error
    held = table.get("string_to_param") if isinstance(table, dict) else None
    if not isinstance(held, dict):
        raise FileFormatError(f"{path}: the embedding in this picture has no string_to_param.")
    return {
        **table,
        "string_to_param": {name: _tensor(path, value) for name, value in held.items()},
    }


def _text_chunk(path: Path) -> bytes | None:
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            (length,), kind = struct.unpack(">I", head[:4]), head[4:]
            if kind == b"tEXt" and length <= _MAX_CHUNK:
                content = file.read(length)
                if content.startswith(_KEYWORD):
                    return content.removeprefix(_KEYWORD)
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
    return None


def _tensor(path: Path, value: object) -> Tensor:
    rows = value.get("TORCHTENSOR") if isinstance(value, dict) else value
    try:
        return torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FileFormatError(
            f"{path}: the embedding in this picture is not a table of numbers."
        ) from error
