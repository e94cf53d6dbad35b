"""A recipe card: a PNG picture with a recipe in it, and nothing that tells who trained, or where.

The recipe is TOML in an `iTXt` chunk of the keyword `konomi-recipe` (PNG specification, third
edition, section 11.3.3.4), before the pixels.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.config.parse import parse_toml
from konomi.config.paths import ADAPTERS, ALWAYS, WHERE_THERE
from konomi.config.recipe import Recipe
from konomi.config.write import recipe_data, toml_of
from konomi.errors import RecipeError

KEYWORD = "konomi-recipe"
MAX_RECIPE = 2**20
"""Bytes of the recipe; konomi's own have some five thousand."""
MAX_CHUNKS = 20_000
"""Looked through for the recipe: a picture of 1 GiB, where programs write 64 KiB in each."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
_OTHERS = {b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP", b"GIF8": "GIF"}
"""What other pictures begin with."""
_HEAD = KEYWORD.encode() + b"\0"
_PATH = re.compile(r"""(?:(?<![\w/\\:.~])~|\b[A-Za-z]:|(?<![\w/\\:.~<]))[\\/]+[\w.~-][^\s"'<>|]*""")
"""An absolute path within a text, or one from somebody's home folder."""
_URL = re.compile(r"""\b[a-z][a-z0-9+.-]*://[^\s"'<>]+""", re.IGNORECASE)
_SECRET = re.compile(
    r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA)[A-Za-z0-9_-]{12,}"
    r"|\b[0-9a-fA-F]{32,}\b"
)
"""Access tokens of the hub and others, and keys of hexadecimal digits."""
_ENCODERS = "evaluation.encoders."


def recipe_for_others(recipe: Recipe) -> str:
    """The recipe as TOML, complete but for what is private: of paths the last name is left, and
    the run folder, the cache folder, the device, URLs and access tokens are taken out.
    """
    run = replace(recipe.run, output="", device="auto")
    cache = replace(recipe.data.cache, folder="")
    recipe = replace(recipe, run=run, data=replace(recipe.data, cache=cache))
    return toml_of(_cleaned(recipe_data(recipe), ""))


def _cleaned(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return {
            key: _cleaned(item, f"{path}.{key}" if path else key) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_cleaned(item, f"{path}.N") for item in value]
    if not isinstance(value, str):
        return value
    may_be_path = path in WHERE_THERE or path.startswith(_ENCODERS)
    if path in (*ALWAYS, f"{ADAPTERS}.N") or (may_be_path and is_path(value)):
        value = last_name(value)
    text = _URL.sub("", value)
    text = _PATH.sub(lambda found: last_name(found[0]), text)
    return _SECRET.sub("", text)


def is_path(text: str) -> bool:
    """Whether a name of a model is a path, and neither `tiny` nor a hub id."""
    return (
        text.startswith((".", "~", "/", "\\"))
        or "\\" in text
        or text.count("/") > 1
        or text[1:2] == ":"
        or Path(text).exists()
    )


def last_name(path: str) -> str:
    """`dog` of `/home/me/photos/dog/`, on any system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1].removeprefix("~")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its first bytes."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError:
        return False
    return start == SIGNATURE or start.startswith(tuple(_OTHERS))


def read_card(path: Path) -> dict[str, Any]:
    """The plain data of the recipe in a picture. Reads no pixels. Raises RecipeError."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        content = next(_recipes(path), None) if start == SIGNATURE else None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from error
    for mark, kind in _OTHERS.items():
        if start.startswith(mark):
            raise RecipeError(
                f"{path}: is a {kind} picture, and recipe cards are PNG files. Where it was "
                "converted, the recipe is gone; ask for the original."
            )
    if content is None:
        raise RecipeError(
            f"{path}: is a picture without a recipe. Runs of konomi end with one that has it, "
            "NAME.card.png; some sites remove what pictures carry."
        )
    try:
        return parse_toml(_text(content).decode("utf-8"))
    except (ValueError, IndexError, zlib.error) as damage:
        reason = "it is not UTF-8 text" if isinstance(damage, UnicodeDecodeError) else damage
        raise RecipeError(f"{path}: the recipe in this picture is damaged ({reason}).") from damage


def _text(content: bytes) -> bytes:
    """The text of an `iTXt` chunk, also of one that another program has compressed."""
    compressed, method, rest = (
        content[len(_HEAD)],
        content[len(_HEAD) + 1],
        content[len(_HEAD) + 2 :],
    )
    _, _, text = rest.split(b"\0", 2)
    if not compressed:
        return text
    if method:
        raise ValueError("its compression is unknown")
    unpacked = zlib.decompressobj().decompress(text, MAX_RECIPE + 1)
    if len(unpacked) > MAX_RECIPE:
        raise ValueError("it is far too long for a recipe")
    return unpacked


def _recipes(path: Path) -> Iterator[bytes]:
    """The contents of the chunks that hold a recipe. Raises RecipeError for one that is damaged
    or far too large.
    """
    with path.open("rb") as file:
        file.seek(len(SIGNATURE))
        for _ in range(MAX_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return
            (length,), kind = struct.unpack(">I", head[:4]), head[4:]
            start = file.read(min(length, len(_HEAD))) if kind == b"iTXt" else b""
            if start != _HEAD:
                file.seek(length - len(start) + 4, 1)
                continue
            if length > MAX_RECIPE:
                raise RecipeError(
                    f"{path}: the recipe in this picture is {length} bytes long, far too much for "
                    "a recipe. It is not read."
                )
            content, check = start + file.read(length - len(start)), file.read(4)
            if len(content) < length or check != struct.pack(">I", zlib.crc32(kind + content)):
                raise RecipeError(
                    f"{path}: the recipe in this picture is damaged (its checksum does not fit)."
                )
            yield content
