"""`generate`: pictures from a base with adapters on it."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from konomi.adapters import hypernetwork
from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach, check_fits, fold
from konomi.data.buckets import parse_size
from konomi.data.images import read_image, read_mask
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.formats.writer import content_of
from konomi.generation.adapter_request import (
    AdapterRequest,
    adapters_of_prompt,
    parse_add,
    strengths,
    tag_kind,
)
from konomi.generation.drawing import with_size
from konomi.generation.embedding_request import (
    embeddings_of_prompt,
    named_as_trained,
    named_by_file,
)
from konomi.generation.generate import count_on
from konomi.generation.generate import generate as draw
from konomi.generation.infotext import save_png, save_sheet
from konomi.generation.prompt_file import read_prompt_file
from konomi.generation.request import Origin, Picture, Request, UsedAdapter
from konomi.generation.unused import (
    resized,
    trained_otherwise,
    unread_text,
    unused_in_adapter,
    unused_in_request,
)
from konomi.hardware.device import choose_device
from konomi.hardware.precision import choose_precision, slow_precision_notes
from konomi.models.base import BaseModel
from konomi.models.load import load_base as open_base
from konomi.storage.atomic import explained
from konomi.storage.hashing import sha256_file
from konomi.tasks.sheets import sheet_notes, sheet_of

DEFAULT_STRENGTH = 0.7
"""Of a picture to start from."""


def load_base(
    source: str,
    *,
    vae: str | Path | None = None,
    prediction: str | None = None,
    needs_vae: bool = True,
    device: str = "auto",
    precision: str = "auto",
) -> BaseModel:
    """A base model on a device.

    source: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    vae: file, folder or hub id whose VAE stands in for the base's own.
    prediction: what the base predicts (epsilon, v_prediction, sample), in place of what its file
        says.
    needs_vae: whether a base without any VAE is an error.
    device: auto, cpu, cuda, mps, ...
    precision: number format of weights and computation: auto, fp32, fp16, bf16.

    Raises ModelError or FileFormatError that says what the file is instead, RunError for a device
    that is not there.
    """
    base = open_base(source, vae=vae, prediction=prediction, needs_vae=needs_vae)
    where = choose_device(device)
    base.place(where, choose_precision(precision, where))
    return base


def generate(
    prompts: Sequence[str],
    *,
    base: str,
    vae: str | Path | None = None,
    prediction: str | None = None,
    add: Sequence[str] = (),
    negative: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    guidance_rescale: float | None = None,
    sampler: str | None = None,
    size: str | None = None,
    count: int = 1,
    init: str | Path | None = None,
    strength: float | None = None,
    mask: str | Path | None = None,
    output: str | Path = "images",
    batch: int = 1,
    grid: bool = False,
    clip_skip: int = 0,
    device: str = "auto",
    precision: str = "auto",
    prompt_file: str | Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[Path]:
    """Draw pictures and yield the path of each.

    prompts: one or more; `<lora:name:0.8>` and `<hypernet:name:0.8>` in them look for the name in
        the current folder, `output` and the folders of `add`.
    base, vae, prediction, device, precision: as in `load_base`.
    add: adapters: `FILE`, `FILE:0.8` or `FILE:unet=0.8:text=0.5`.
    negative, steps, guidance, guidance_rescale, sampler: see
        `konomi.config.generation.GenerationConfig`, whose defaults count for None.
    seed: of the noise; picture i of a count has seed + i. None or -1 draws one by chance.
    size: `WIDTHxHEIGHT` or one side, in pixels; by default the base's own.
    count: pictures of each prompt.
    init: a picture to start from (img2img).
    strength: how much of `init` is drawn anew, above 0 and at most 1; the share of the steps that
        is done.
    mask: a picture, white where `init` is drawn anew.
    output: the folder for the pictures.
    batch: how many are drawn at a time.
    grid: also save all on one sheet.
    clip_skip: which layer of CLIP from the end: 1 the last; 0 is the base's own choice.
    prompt_file: a file of further prompts, one a line, with options such as `--n` and `--s`.
    tell: is handed a line on everything that has no effect.

    Raises KonomiError.
    """
    output = Path(output)
    if min(count, batch) < 1:
        raise RecipeError(f"--count is {count} and --batch {batch}; both are at least 1.")
    width, height = parse_size(size) if size else (0, 0)
    start, area = _start_from(init, mask)
    given = {"negative": negative, "steps": steps, "guidance": guidance, "sampler": sampler,
             "guidance_rescale": guidance_rescale}  # fmt: skip
    default = Request(
        prompt="",
        seed=secrets.randbelow(2**32) if seed in (None, -1) else seed,
        width=width,
        height=height,
        clip_skip=clip_skip,
        init=start,
        strength=_strength(strength, start, tell),
        mask=area,
        **_without_none(given),
    )
    requests = _requests(default, prompts, prompt_file, count)
    _tell_all(sheet_notes(requests, grid, batch), tell)
    always = [parse_add(argument) for argument in add]
    groups, files = _read_adapters(requests, always, [Path.cwd(), output], tell)
    loaded = load_base(base, vae=vae, prediction=prediction, device=device, precision=precision)
    _check_all(loaded, [*always, *(w for tagged, _ in groups for w in tagged)], files)
    _tell_all(_notes(loaded, requests, always, groups, files), tell)
    pictures = _drawn(loaded, groups, always, files, model_hash=_model_hash(base), batch=batch)
    yield from _saved(pictures, output, grid=grid)


def _drawn(
    base: BaseModel,
    groups: Sequence[tuple[Sequence[AdapterRequest], Sequence[Request]]],
    always: Sequence[AdapterRequest],
    files: Mapping[Path, Adapter],
    *,
    model_hash: str,
    batch: int,
) -> Iterator[Picture]:
    """The pictures of each group of requests, with its adapters on the base."""
    for tagged, group in groups:
        wanted = [*always, *tagged]
        used = tuple(_used(request, files[request.path]) for request in wanted)
        origin = Origin(model=base.name, model_hash=model_hash, adapters=used)
        put_on = [(files[w.path], _strengths(base, w, files[w.path])[0]) for w in wanted]
        # The base is only needed untouched again where the next prompt asks for other adapters.
        attached = attach(base, put_on) if len(groups) > 1 else nullcontext(fold(base, put_on))
        with attached:
            yield from draw(base, group, batch=batch, origin=origin)


def _saved(pictures: Iterable[Picture], output: Path, *, grid: bool) -> Iterator[Path]:
    _make_folder(output)
    kept = []
    for picture in pictures:
        yield save_png(picture, output)
        if grid:
            kept.append(picture)
    if len(kept) > 1:
        yield save_sheet(sheet_of(kept), output)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _requests(
    default: Request, prompts: Sequence[str], prompt_file: str | Path | None, count: int
) -> list[Request]:
    requests = [replace(default, prompt=prompt) for prompt in prompts]
    requests += read_prompt_file(Path(prompt_file), default) if prompt_file else []
    if not requests:
        raise RecipeError(
            "there is no prompt. Say what to generate: konomi generate 'a cat' --base tiny"
        )
    requests = [one for request in requests for one in count_on(request, count)]
    for request in requests:
        request.check()
    return requests


def _tell_all(notes: Iterable[str], tell: Callable[[str], object]) -> None:
    for note in dict.fromkeys(notes):
        tell(note)


def _strengths(
    base: BaseModel, request: AdapterRequest, adapter: Adapter
) -> tuple[Strengths, tuple[str, ...]]:
    return strengths(request, adapter, base.block_of)


def _notes(
    base: BaseModel,
    requests: Sequence[Request],
    always: Sequence[AdapterRequest],
    groups: Sequence[tuple[tuple[AdapterRequest, ...], list[Request]]],
    files: Mapping[Path, Adapter],
) -> Iterator[str]:
    """What has no effect, or is not drawn as it is given."""
    yield from base.notes
    yield from slow_precision_notes(base.dtype, base.device)
    for name, adapter in {path.name: adapter for path, adapter in files.items()}.items():
        yield from trained_otherwise(name, adapter, base)
    for request in requests:
        yield from unused_in_request(request)
        yield from unread_text(base, request)
    rescale = base.guidance_rescale
    if any(request.guidance_rescale == rescale for request in requests):
        yield f"--guidance-rescale {rescale:g} has no effect: it is the base's own choice."
    for request in requests[:1]:
        yield from resized(request, with_size(base, request))
    for one in always:
        yield from unused_in_adapter(
            one, files[one.path], requests, _strengths(base, one, files[one.path])[1]
        )
    for tagged, group in groups:
        for one in tagged:
            yield from unused_in_adapter(
                one, files[one.path], group, _strengths(base, one, files[one.path])[1]
            )


def _strength(
    given: float | None, start: Image.Image | None, tell: Callable[[str], object]
) -> float:
    if start is not None:
        return DEFAULT_STRENGTH if given is None else given
    if given is not None:
        tell("--strength has no effect without --init.")
    return 1.0


def _check_all(
    base: BaseModel, wanted: Sequence[AdapterRequest], files: Mapping[Path, Adapter]
) -> None:
    """Before anything is drawn, though the adapters of later prompts are attached when their turn
    comes.
    """
    for request in wanted:
        adapter = files[request.path]
        request.check(content_of(adapter))
        if adapter.hypernetwork is not None and request.denoiser_weight != 0.0:
            hypernetwork.check_fits(base, adapter.hypernetwork, adapter.name, adapter.family)
        check_fits(base, adapter, _strengths(base, request, adapter)[0])


def _read_adapters(
    requests: Sequence[Request],
    always: Sequence[AdapterRequest],
    folders: Sequence[Path],
    tell: Callable[[str], object],
) -> tuple[list[tuple[tuple[AdapterRequest, ...], list[Request]]], dict[Path, Adapter]]:
    """Requests by the adapters that their prompts ask for, in order, and every adapter by
    its path.
    """
    folders = [*folders, *(wanted.path.parent for wanted in always)]
    files = {
        one.path: named_by_file(named_as_trained(read_adapter(one.path)), one.path)
        for one in always
    }
    words = {word for adapter in files.values() for word in adapter.embeddings}

    @cache  # It looks through folders, and a hundred seeds of a prompt ask for the same.
    def asked_for(prompt: str, negative: str) -> tuple[AdapterRequest, ...]:
        tagged = adapters_of_prompt(prompt, folders)
        known = words | {one.path.stem for one in tagged}
        return tagged + embeddings_of_prompt((prompt, negative), folders, known=known)

    by_files = groupby(requests, key=lambda request: asked_for(request.prompt, request.negative))
    groups = [(asked, list(group)) for asked, group in by_files]
    for one in (one for asked, _ in groups for one in asked if one.path not in files):
        # Called by the file's name: the word it was trained as may well be another file's.
        files[one.path] = named_by_file(read_adapter(one.path), one.path)
    for note in dict.fromkeys(note for adapter in files.values() for note in adapter.notes):
        tell(note)
    return groups, files


def _used(request: AdapterRequest, adapter: Adapter) -> UsedAdapter:
    hashed = adapter.metadata.get("sshs_model_hash", "")[:12]
    content = content_of(adapter)
    kind = "embedding" if content == "embedding" else tag_kind(content)
    return UsedAdapter(
        request.path.stem, request.denoiser_weight, request.text_weight, hashed, kind
    )


def _picture(path: str | Path) -> Image.Image:
    try:
        return Image.fromarray(read_image(str(path)).pixels)
    except (FileNotFoundError, UnidentifiedImageError) as error:
        raise RecipeError(f"{path}: no such image.") from error


def _start_from(
    init: str | Path | None, mask: str | Path | None
) -> tuple[Image.Image | None, Image.Image | None]:
    """The picture to start from, and what of it is drawn anew."""
    if init is None:
        if mask is not None:
            raise RecipeError(
                "--mask is given without --init. Give the picture that the mask belongs to."
            )
        return None, None
    start = _picture(init)
    return start, None if mask is None else _mask(mask, start.size, str(init))


def _mask(path: str | Path, size: tuple[int, int], init: str) -> Image.Image:
    """As a person sees it. Raises RecipeError where nothing in it is white."""
    try:
        mask = read_mask(str(path), size, init)
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such image.") from error
    if mask.getextrema()[1] < 128:  # type: ignore[operator]
        raise RecipeError(
            f"{path}: nothing in this mask is white, so nothing would be drawn. Paint white what "
            "to redraw."
        )
    return mask


def _make_folder(folder: Path) -> None:
    # Before the first picture is drawn, not after it.
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _model_hash(base: str) -> str:
    return sha256_file(base)[:10] if Path(base).is_file() else ""
