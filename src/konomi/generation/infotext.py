"""The text that web UIs write into a PNG's `parameters` chunk: written, saved with the picture,
and read back.

Three parts: the prompt; a line `Negative prompt: ...` where there is one; a last line of `Name:
value` pairs divided by commas, values with commas, colons or line breaks in them in JSON quotes.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from konomi import __version__
from konomi.config.generation import SamplerName
from konomi.config.parse import parse_json
from konomi.errors import DataError
from konomi.generation.adapter_request import format_tag
from konomi.generation.request import Origin, Picture, Request, UsedAdapter
from konomi.models.prompt_syntax import extract_tags
from konomi.storage.atomic import explained

_SAMPLER_NAMES: dict[SamplerName, tuple[str, str]] = {
    "ddim": ("DDIM", ""),
    "euler": ("Euler", "Uniform"),
    "euler_a": ("Euler a", "Uniform"),
    "dpmpp_2m": ("DPM++ 2M", "Uniform"),
    "dpmpp_2m_karras": ("DPM++ 2M", "Karras"),
    "heun": ("Heun", "Uniform"),
    "lms": ("LMS", "Uniform"),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", "Uniform"),
    "dpmpp_2m_sde_karras": ("DPM++ 2M SDE", "Karras"),
    "unipc": ("UniPC", ""),
    "pndm": ("PLMS", ""),
}
"""Our name -> theirs, and their schedule type where they choose one: left out, it would be
"Automatic", which is Karras for DPM++ 2M and 2M SDE."""
_AUTOMATIC = {"DPM++ 2M": "Karras", "DPM++ 2M SDE": "Karras"}
"""What web UIs take for a sampler where the schedule is left to them."""

_PAIR = re.compile(r'\s*([\w][\w \-/+]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def _seed(written: str) -> int:
    """-1, by which web UIs mean any, becomes one."""
    seed = int(written)
    return secrets.randbelow(2**32) if seed == -1 else seed


_NUMBERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Seed": ("seed", _seed),
    "Steps": ("steps", int),
    "CFG scale": ("guidance", float),
    "CFG Rescale": ("guidance_rescale", float),
    "Clip skip": ("clip_skip", int),
}
"""Name in the infotext -> field of a request and how to read it."""


@dataclass(frozen=True, slots=True)
class Infotext:
    """What an infotext says."""

    prompt: str
    negative: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    """Name -> value as written, unquoted."""

    def request(self) -> Request:
        """The request that draws it again, as far as the text tells; unknown samplers become the
        default.

        A seed of -1, by which web UIs mean any, becomes one. "Denoising strength" is left out: it
        belongs to a picture to start from (or an enlargement), which a text cannot hold.

        Raises DataError where a number is none.
        """
        try:
            width, height = map(int, self.settings.get("Size", "0x0").split("x"))
            numbers = {
                name: read(self.settings[key])
                for key, (name, read) in _NUMBERS.items()
                if key in self.settings
            }
            sampler = _our_sampler(self.settings)
            return Request(
                prompt=self.prompt,
                negative=self.negative,
                sampler=sampler,
                width=width,
                height=height,
                **numbers,
            )
        except ValueError as error:
            raise DataError(f"The picture's infotext cannot be read: {error}.") from error


def write_infotext(request: Request, origin: Origin) -> str:
    """The infotext of a picture. Adapters that the prompt does not name are added to it as tags."""
    named = {(tag.kind == "hypernet", tag.name) for tag in extract_tags(request.prompt)[1]}
    # No tag calls an embedding: its name as a word does.
    words = [adapter for adapter in origin.adapters if adapter.kind == "embedding"]
    missing = [
        format_tag(adapter)
        for adapter in origin.adapters
        if adapter not in words and (adapter.kind == "hypernet", adapter.name) not in named
    ]
    sampler, schedule = _SAMPLER_NAMES[request.sampler]
    settings = {
        "Steps": str(request.steps),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": f"{request.guidance:g}",
        "CFG Rescale": f"{request.guidance_rescale:g}" if request.guidance_rescale else "",
        "Seed": str(request.seed),
        "Size": f"{request.width}x{request.height}",
        "Model hash": origin.model_hash,
        "Model": origin.model,
        "Denoising strength": f"{request.strength:g}" if request.init is not None else "",
        "Imagic eta": f"{request.eta:g}" if request.edit is not None else "",
        "Clip skip": str(request.clip_skip) if request.clip_skip else "",
        "Lora hashes": _hashes(
            adapter for adapter in origin.adapters if adapter.kind != "embedding"
        ),
        "TI hashes": _hashes(words),
        **origin.extra,
        "Version": f"konomi {__version__}",
    }
    lines = [" ".join([request.prompt, *missing]).strip()]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in settings.items() if value))
    return "\n".join(lines)


def _hashes(adapters: Iterable[UsedAdapter]) -> str:
    return ", ".join(f"{adapter.name}: {adapter.hash}" for adapter in adapters if adapter.hash)


def parse_infotext(text: str) -> Infotext:
    """Read ours or a web UI's. Text without a line of settings is all prompt; nothing is
    refused.
    """
    lines = text.strip().split("\n")
    settings: dict[str, str] = {}
    if len(_PAIR.findall(lines[-1])) >= 3:
        settings = {
            name.strip(): _unquote(value.strip()) for name, value in _PAIR.findall(lines.pop())
        }
    prompt: list[str] = []
    negative: list[str] = []
    current = prompt
    for line in lines:
        if line.startswith("Negative prompt:") and current is prompt:
            current = negative
            line = line.removeprefix("Negative prompt:").removeprefix(" ")
        current.append(line)
    return Infotext("\n".join(prompt), "\n".join(negative), settings)


def read_infotext(path: Path) -> Infotext | None:
    """Of a PNG file; None where it holds none. Raises DataError where the file is no readable
    picture.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get("parameters")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}") from error
    return parse_infotext(text) if isinstance(text, str) else None


def png_bytes(picture: Picture, *, more: Mapping[str, str] | None = None) -> bytes:
    """A PNG file with the infotext in it, and `more` text chunks by their keywords."""
    chunk = PngInfo()
    for keyword, text in {"parameters": picture.infotext, **(more or {})}.items():
        chunk.add_text(keyword, text)
    encoded = BytesIO()
    picture.image.save(encoded, "PNG", pnginfo=chunk)
    return encoded.getvalue()


def save_png(picture: Picture, folder: Path) -> Path:
    """Write `0000-SEED.png` with the next free number; nothing is ever overwritten, also not by
    another process.

    Raises RunError where the folder cannot be written.
    """
    return _save(
        png_bytes(picture), folder, re.compile(r"(\d{4,})-"), f"{{:04d}}-{picture.request.seed}.png"
    )


def save_sheet(sheet: Picture, folder: Path) -> Path:
    """Write `grid-0000.png` with the next free number: no seed, so that nobody takes it for a
    picture.
    """
    return _save(png_bytes(sheet), folder, re.compile(r"grid-(\d{4,})\."), "grid-{:04d}.png")


def _save(encoded: bytes, folder: Path, numbered: re.Pattern[str], name: str) -> Path:
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [
            int(match[1]) for path in folder.iterdir() if (match := numbered.match(path.name))
        ]
        for number in count(max(numbers, default=-1) + 1):
            path = folder / name.format(number)
            try:
                file = path.open("xb")
            except FileExistsError:  # Another process was faster.
                continue
            try:
                with file:
                    file.write(encoded)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            return path
    raise AssertionError("count() never ends")


def _our_sampler(settings: dict[str, str]) -> SamplerName:
    named = settings.get("Sampler", "")
    schedule = settings.get("Schedule type", "")
    if named.endswith(" Karras"):  # Older web UIs write both in one.
        named, schedule = named.removesuffix(" Karras"), "Karras"
    elif schedule == "Automatic":
        schedule = _AUTOMATIC.get(named, "")
    exact = [ours for ours, theirs in _SAMPLER_NAMES.items() if theirs == (named, schedule)]
    similar = [ours for ours, theirs in _SAMPLER_NAMES.items() if theirs[0] == named]
    return (exact or similar or ["dpmpp_2m"])[0]


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(parse_json(value))
        except ValueError:
            return value
    return value
