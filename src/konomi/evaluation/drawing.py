"""The pictures of one candidate: drawn from the same noise as the base's, some at a time, and
never twice.

A picture's file says what it was made of (`KEY`), so that it counts only where all of that is the
same: an interrupted drawing goes on where it was, and a changed one starts afresh. The base's
pictures are also kept in the cache folder, for the next evaluation of anything on that base.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL import Image, UnidentifiedImageError

from konomi import __version__
from konomi.config.generation import GenerationConfig
from konomi.errors import ModelError, RunError
from konomi.evaluation.pictures import Place
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.generation.generate import generate
from konomi.generation.infotext import png_bytes
from konomi.generation.request import Origin, Request
from konomi.models.base import BaseModel
from konomi.storage.atomic import write_file

KEY = "konomi evaluation"
"""Keyword of the text chunk that names what a picture was made of."""
_KEPT = 2000
"""Pictures in the cache folder; the oldest go first."""


class Plan(Protocol):
    """Which pictures, and which of them are drawn together."""

    def groups(self) -> list[tuple[Place, ...]]:
        """Places that are drawn together, in order. Always the same ones, so that an interrupted
        drawing ends in the same pictures to the bit."""
        ...

    def request(self, place: Place) -> Request:
        """What is drawn at a place."""
        ...


@dataclass(frozen=True, slots=True)
class DrawingPlan:
    """What every candidate draws: P prompts by S seeds, all else the same."""

    prompts: tuple[EvaluationPrompt, ...]
    settings: GenerationConfig
    """Its seed is the first of S."""
    count: int
    """S."""
    size: tuple[int, int]
    """Width, height in pixels."""
    clip_skip: int = 0
    batch: int = 4
    """Pictures of one prompt that are drawn together."""

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(range(self.settings.seed, self.settings.seed + self.count))

    @property
    def total(self) -> int:
        """Pictures of each candidate."""
        return len(self.prompts) * self.count

    def places(self) -> tuple[Place, ...]:
        """In the order they are drawn in."""
        return tuple(
            (row, column) for row in range(len(self.prompts)) for column in range(self.count)
        )

    def request(self, place: Place) -> Request:
        """What is drawn at a place."""
        row, column = place
        return Request.of(
            self.settings,
            prompt=self.prompts[row].text,
            seed=self.seeds[column],
            width=self.size[0],
            height=self.size[1],
            clip_skip=self.clip_skip,
        )

    def groups(self) -> list[tuple[Place, ...]]:
        """Places of one prompt that are drawn together."""
        return [
            tuple((row, column) for column in range(first, min(first + self.batch, self.count)))
            for row in range(len(self.prompts))
            for first in range(0, self.count, self.batch)
        ]


def picture_key(plan: Plan, group: Sequence[Place], place: Place, model_key: str) -> str:
    """What the picture at a place of a group is made of, as 32 hexadecimal digits.

    `model_key` names the weights, the device and the number format.
    """
    requests = [_plain(plan.request(one)) for one in group]
    facts = [__version__, model_key, group.index(place), requests]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def model_key(base: BaseModel) -> str:
    """Names the weights of a base without anything on it, its device and its number format."""
    parts: tuple[Literal["denoiser", "vae", "text"], ...] = ("denoiser", "vae", "text")
    prints = [base.fingerprint(part) for part in parts]
    process = (base.process.prediction, base.zero_terminal_snr)
    return " ".join(map(str, (base.family, *prints, *process, base.device.type, base.dtype)))


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Where the pictures of one candidate lie."""

    plan: Plan
    folder: Path
    model_key: str
    """As in `picture_key`."""
    memory: Path | None = None
    """Where they are kept beside, under their keys; None: nowhere else."""

    def missing(self) -> list[tuple[Place, ...]]:
        """The groups that are not there whole, after taking over what is remembered."""
        return [group for group in self.plan.groups() if not all(self._is_there(group))]

    def draw(self, base: BaseModel, origin: Origin) -> Iterator[int]:
        """Draw what is missing; yields how many pictures are there, first those that were.

        `base` has the candidate on it, and `origin` says so in each picture. Raises ModelError
        where a picture is not a number, RunError for the disk.
        """
        missing = self.missing()
        there = sum(map(len, self.plan.groups())) - sum(map(len, missing))
        yield there
        together = True
        for group in missing:
            try:
                self._draw(base, origin, group, together=together)
            except torch.OutOfMemoryError:
                # The same pictures to rounding; the next ones are not tried together again.
                together = False
                self._draw(base, origin, group, together=False)
            there += len(group)
            yield there
        _prune(self.memory)

    def images(self) -> dict[Place, Image.Image]:
        """All of them, read back. Raises RunError where one is not there."""
        images = {}
        for place in (place for group in self.plan.groups() for place in group):
            image = _read(self.path(place))
            if image is None:
                raise RunError(f"{self.path(place)}: the picture is gone. Run the command again.")
            images[place] = image
        return images

    def keys(self) -> list[str]:
        """What each picture is made of, in order."""
        return [
            picture_key(self.plan, group, place, self.model_key)
            for group in self.plan.groups()
            for place in group
        ]

    def path(self, place: Place) -> Path:
        """`PROMPT-SEED.png`, by their numbers in the plan."""
        return self.folder / f"{place[0]}-{place[1]}.png"

    def _draw(
        self, base: BaseModel, origin: Origin, group: Sequence[Place], *, together: bool
    ) -> None:
        requests = [self.plan.request(place) for place in group]
        try:
            drawn = list(
                generate(base, requests, batch=len(group) if together else 1, origin=origin)
            )
        except torch.OutOfMemoryError as error:
            if together and len(group) > 1:
                raise
            width, height = requests[0].width, requests[0].height
            raise ModelError(
                f"{base.device} has too little memory to draw a picture of {width}x{height}. "
                "Choose a smaller size."
            ) from error
        for place, picture in zip(group, drawn, strict=True):
            key = picture_key(self.plan, group, place, self.model_key)
            encoded = png_bytes(picture, more={KEY: key})
            with write_file(self.path(place)) as temporary:
                temporary.write_bytes(encoded)
            _remember(self.memory, key, encoded)

    def _is_there(self, group: Sequence[Place]) -> Iterator[bool]:
        for place in group:
            key, path = picture_key(self.plan, group, place, self.model_key), self.path(place)
            if _key_of(path) == key:
                yield True
                continue
            kept = _remembered(self.memory, key)
            if kept is not None:
                with write_file(path) as temporary:
                    temporary.write_bytes(kept)
            yield kept is not None


def _plain(request: Request) -> dict[str, object]:
    facts = asdict(replace(request, init=None, mask=None, edit=None))
    del facts["init"], facts["mask"]
    return facts


def _read(source: Path | io.BytesIO) -> Image.Image | None:
    """The picture, decoded; None where there is none."""
    try:
        with Image.open(source) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return None


def _key_of(source: Path | io.BytesIO) -> str:
    """What a picture says that it was made of; "" for one that does not, or that is damaged."""
    image = _read(source)
    return "" if image is None else str(image.info.get(KEY, ""))


def _remembered(memory: Path | None, key: str) -> bytes | None:
    if memory is None:
        return None
    try:
        encoded = (memory / f"{key}.png").read_bytes()
    except OSError:
        return None
    return encoded if _key_of(io.BytesIO(encoded)) == key else None


def _remember(memory: Path | None, key: str, encoded: bytes) -> None:
    """A cache that cannot be written costs time the next time, and nothing else."""
    if memory is None:
        return
    with suppress(RunError, OSError), write_file(memory / f"{key}.png") as temporary:
        temporary.write_bytes(encoded)


def _prune(memory: Path | None) -> None:
    if memory is None:
        return
    with suppress(OSError):
        kept = sorted(memory.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
        for old in kept[:-_KEPT]:
            old.unlink(missing_ok=True)
