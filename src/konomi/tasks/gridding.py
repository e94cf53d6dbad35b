"""`grid`: two or three settings against each other, in one picture and on a page."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from konomi.config.generation import GenerationConfig
from konomi.data.buckets import parse_size
from konomi.errors import FileFormatError, ModelError, RecipeError, RunError
from konomi.evaluation.axes import Axis, Cell, cells, parse_axis
from konomi.evaluation.candidates import content, drawn_with, one_line, open_saved
from konomi.evaluation.drawing import PictureFolder, model_key
from konomi.evaluation.grid_store import PICTURE, StoredAxis, StoredGrid, write_grid
from konomi.evaluation.pictures import Place
from konomi.generation.adapter_request import parse_add
from konomi.generation.drawing import with_size
from konomi.generation.fonts import unknown_note
from konomi.generation.grid import make_grid, stacked
from konomi.generation.request import Origin, Request
from konomi.models.base import BaseModel
from konomi.storage.atomic import explained, sweep_temporaries, write_file
from konomi.storage.home import shown
from konomi.storage.lock import RunLock
from konomi.tasks.edit_wish import read_edit
from konomi.tasks.generating import load_base
from konomi.tasks.reporting import ends_with_page, page_of_run
from konomi.training.events import Event, Finished, Prepared, Warned


def grid(
    x: str,
    y: str = "",
    *,
    base: str,
    z: str = "",
    prompt: str = "",
    add: str = "",
    edit: str | Path | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
    negative: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    guidance_rescale: float | None = None,
    sampler: str | None = None,
    size: str | None = None,
    clip_skip: int | None = None,
    output: str | Path | None = None,
    batch: int = 4,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Event]:
    """Draw every combination of two or three settings into one labelled picture.

    x, y, z: the settings from left to right, from top to bottom, and from sheet to sheet:
        `weight=0.4:1.2:5`, `file=a.safetensors,b.safetensors,base`, `prompt=a dog; a cat`,
        `seed=1:4`, `steps=10,20`, and likewise guidance, guidance_rescale, sampler, negative, size,
        clip_skip and, of an edit, eta. Without y there is one row.
    prompt: what to draw, where no axis says it.
    edit: the file of an edited picture (Imagic), whose target is drawn where nothing else is asked.
    add: an adapter or whole model, where no axis is of files; `FILE:WEIGHT` where none is of
        weights.
    base, vae, prediction, device, precision: as in `load_base`.
    negative: what to avoid.
    seed: of the noise, 0 by default.
    steps: sampling steps.
    guidance: strength of classifier-free guidance.
    guidance_rescale: how far it is scaled back to the contrast without it.
    sampler: one of `konomi.config.generation.SAMPLERS`.
    size: `WxH` in pixels; by default the base's own.
    clip_skip: CLIP layer from the end; 0 is the base's own choice.
    output: the folder; by default one below `grids`, the same for the same grid. What is there
        already is not drawn again.
    batch: pictures drawn together.

    The last event is `Finished` with the page's path, and the picture's. What cannot be drawn is an
    empty place, with a note. Raises KonomiError.
    """
    y = y or f"seed={seed or 0}"
    axes = [parse_axis(text, f"--{name}") for name, text in (("x", x), ("y", y), ("z", z)) if text]
    given = {"prompt": prompt or None, "negative": negative, "seed": seed, "steps": steps,
             "guidance": guidance, "guidance_rescale": guidance_rescale, "sampler": sampler,
             "size": size, "clip_skip": clip_skip}  # fmt: skip
    add, given, notes = _with_edit(axes, edit, add, given)
    wanted, more = _wanted(axes, given, add)
    notes += unknown_note((label for axis in axes for label in axis.labels), PICTURE)
    folder = Path(output) if output is not None else _usual_folder(wanted, base)
    with RunLock(folder):
        for place in (folder, *sorted((folder / "pictures").glob("*"))):
            sweep_temporaries(place)
        loaded = load_base(base, vae=vae, prediction=prediction, device=device, precision=precision)
        yield from map(Warned, [*loaded.notes, *notes, *more])
        drawn = _Drawn(
            tuple(replace(one, request=with_size(loaded, one.request)) for one in wanted)
        )
        yield from _draw(drawn, loaded, folder, max(batch, 1))
        if not drawn.files:
            raise RunError(*dict.fromkeys(drawn.failures))
        yield from map(Warned, drawn.failures)
        sheet = folder / PICTURE
        with write_file(sheet) as temporary:
            _sheet(axes, drawn).save(temporary, "PNG")
        write_grid(_stored(axes, given, add, drawn, folder, base), folder)
        about_page: list[str] = []
        page = page_of_run(folder, about_page) if ends_with_page() else ""
        yield from map(Warned, about_page)
        yield Finished(0, page or str(sheet), pictures=(str(sheet),))


@dataclass(frozen=True, slots=True)
class _Cells:
    """The pictures of one file at one strength."""

    cells: tuple[Cell, ...]
    batch: int

    def groups(self) -> list[tuple[Place, ...]]:
        numbers = range(len(self.cells))
        return [
            tuple((number, 0) for number in numbers[first : first + self.batch])
            for first in numbers[:: self.batch]
        ]

    def request(self, place: Place) -> Request:
        return self.cells[place[0]].request


@dataclass(slots=True)
class _Drawn:
    """What has been drawn so far."""

    cells: tuple[Cell, ...]
    files: dict[tuple[int, int, int], Path] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def _wanted(
    axes: Sequence[Axis], given: Mapping[str, Any], add: str
) -> tuple[tuple[Cell, ...], list[str]]:
    """The cells, and a line on what has no effect. Raises RecipeError."""
    on_axes = {axis.setting for axis in axes}
    if not given.get("prompt") and "prompt" not in on_axes:
        raise RecipeError(
            "there is no prompt. Say what to draw: konomi grid 'a cat' --x ..., or --y prompt=..."
        )
    idle = [name for name in given if name in on_axes]
    notes = [f"{name} has no effect beside the axis of that name." for name in idle]
    if add and "file" in on_axes:
        raise RecipeError("--add: files stand on an axis already. Leave one of them out.")
    file, weight = (None, 1.0) if not add else _added(add)
    values = {name: value for name, value in given.items() if name not in idle}
    if "size" in values:
        values["width"], values["height"] = parse_size(values.pop("size"))
    default = Request(**({"prompt": ""} | values))
    x, y, z = (*axes, None)[:3]
    assert x is not None and y is not None
    return cells(x, y, z, default, file=file, weight=weight), notes


def _with_edit(
    axes: Sequence[Axis], edit: str | Path | None, add: str, given: Mapping[str, Any]
) -> tuple[str, dict[str, Any], list[str]]:
    """`add` and what is given, with those of an edit, and a line on what has no effect. Raises
    RecipeError."""
    told: list[str] = []
    wish = read_edit(edit, None, told.append)
    said = {name: value for name, value in given.items() if value is not None}
    on_axes = {axis.setting for axis in axes}
    if wish is None:
        if "eta" in on_axes:
            raise RecipeError("eta: of nothing. Name an edited picture with --edit FILE.")
        return add, said, told
    if add:
        raise RecipeError("--add: --edit puts a file on already. Leave one of them out.")
    own = {"prompt": wish.edit.prompt, "size": wish.size, **wish.settings}
    own = {n: value for n, value in own.items() if value is not None and n not in on_axes}
    return str(wish.path), own | said, told


def _added(add: str) -> tuple[Path, float]:
    request = parse_add(add)
    if request.denoiser_weight != request.text_weight:
        raise RecipeError(f"--add {add}: takes one weight here, FILE:0.8.")
    return request.path, request.denoiser_weight


def _draw(drawn: _Drawn, base: BaseModel, folder: Path, batch: int) -> Iterator[Event]:
    together: dict[tuple[Path | None, float], list[Cell]] = {}
    for cell in drawn.cells:
        together.setdefault((cell.file, cell.weight if cell.file else 0.0), []).append(cell)
    untouched, total = model_key(base), len(drawn.cells)
    done = last = 0
    for number, ((file, weight), some) in enumerate(together.items()):
        named = "base" if file is None else f"{file.stem}@{weight:g}"
        place = folder / "pictures" / f"{number:03d}-{named}"
        try:
            key = untouched
            if file is not None:
                with explained(file):
                    key = f"{untouched} {content(file)} {weight!r}"
            stored = PictureFolder(_Cells(tuple(some), batch), place, key)
            for there in _drawn(stored, base, file, weight):
                last = done + there
                yield Prepared("pictures", last, total)
            drawn.files |= {cell.place: stored.path((n, 0)) for n, cell in enumerate(some)}
        except (ModelError, FileFormatError) as error:
            if (reason := one_line(error)) not in drawn.failures:
                drawn.failures.append(reason)
        done += len(some)
        if last < done:
            # What was there already, or could not be drawn.
            yield Prepared("pictures", done, total)


def _drawn(
    stored: PictureFolder, base: BaseModel, file: Path | None, weight: float
) -> Iterator[int]:
    if not stored.missing():
        return
    if file is None:
        yield from stored.draw(base, Origin(model=base.name))
        return
    opened = open_saved(file)
    with drawn_with(opened, base, weight) as model:
        yield from stored.draw(model, Origin(model=base.name, adapters=opened.used(weight)))


def _sheet(axes: Sequence[Axis], drawn: _Drawn) -> Image.Image:
    """All pictures with their labels; sheets of a third axis below one another."""
    x, y, z = (*axes, None)[:3]
    assert x is not None and y is not None
    images: dict[tuple[int, int, int], Image.Image] = {}
    for place, path in drawn.files.items():
        with Image.open(path) as image:
            images[place] = image.convert("RGB")
    size = next(iter(images.values())).size
    empty = Image.new("RGB", size, "#dddddd")
    sheets = [
        make_grid(
            [
                images.get((deep, row, column), empty)
                for row in range(len(y.values))
                for column in range(len(x.values))
            ],
            columns=len(x.values),
            column_labels=x.labels,
            row_labels=y.labels,
        )
        for deep in range(1 if z is None else len(z.values))
    ]
    return sheets[0] if z is None else stacked(sheets, z.labels)


def _stored(
    axes: Sequence[Axis],
    given: Mapping[str, Any],
    add: str,
    drawn: _Drawn,
    folder: Path,
    base: str,
) -> StoredGrid:
    on_axes = {axis.setting for axis in axes}
    first = drawn.cells[0].request
    values = {item.name: getattr(first, item.name) for item in fields(GenerationConfig)}
    values = {"prompt": first.prompt, "size": f"{first.width}x{first.height}", **values}
    stored = [StoredAxis(axis.setting, axis.labels) for axis in axes]
    return StoredGrid(
        base=shown(Path(base)) if Path(base).exists() else base,
        x=stored[0],
        y=stored[1],
        z=stored[2] if len(stored) > 2 else None,
        settings={
            **({"file": add} if add else {}),
            **{name: f"{value}" for name, value in values.items() if name not in on_axes and value},
        },
        pictures={
            "-".join(map(str, place)): path.relative_to(folder).as_posix()
            for place, path in sorted(drawn.files.items())
        },
        failures=tuple(drawn.failures),
    )


def _usual_folder(wanted: Sequence[Cell], base: str) -> Path:
    """The same for the same grid, so that asking again goes on with it."""
    facts = repr((base, wanted)).encode("utf-8", "surrogatepass")
    return Path("grids") / hashlib.sha256(facts).hexdigest()[:10]
