"""`generate`: pictures from a base with adapters on it."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach, fold
from konomi.config.aesthetic import AestheticConfig
from konomi.data.buckets import parse_size
from konomi.errors import RecipeError
from konomi.generation.adapter_request import (
    AdapterRequest,
    parse_add,
)
from konomi.generation.aesthetic import AestheticGradients
from konomi.generation.drawing import with_size
from konomi.generation.generate import count_on
from konomi.generation.generate import generate as draw
from konomi.generation.infotext import save_png, save_sheet
from konomi.generation.prompt_file import read_prompt_file
from konomi.generation.request import Origin, Picture, Request
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
from konomi.tasks.adapters_to_draw_with import (
    check_all,
    read_adapters,
    strengths_on,
    used_adapter,
)
from konomi.tasks.aesthetic_wish import read_wish
from konomi.tasks.attached import in_order, keep_attached, without_what_it_was_trained_with
from konomi.tasks.edit_wish import read_edit
from konomi.tasks.sheets import sheet_notes, sheet_of
from konomi.tasks.start_picture import start_from


def load_base(
    source: str,
    *,
    vae: str | Path | None = None,
    prediction: str | None = None,
    needs_vae: bool = True,
    adapters: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
) -> BaseModel:
    """A base model on a device.

    source: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    vae: file, folder or hub id whose VAE stands in for the base's own.
    prediction: what the base predicts (epsilon, v_prediction, sample), in place of what its file
        says.
    needs_vae: whether a base without any VAE is an error.
    adapters: what stays attached for as long as the base is in use, each `FILE` or `FILE:0.8`.
    device: auto, cpu, cuda, mps, ...
    precision: number format of weights and computation: auto, fp32, fp16, bf16.

    Raises ModelError or FileFormatError that says what the file is instead, RunError for a device
    that is not there.
    """
    base = open_base(source, vae=vae, prediction=prediction, needs_vae=needs_vae)
    keep_attached(base, adapters)
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
    aesthetic: AestheticConfig | None = None,
    edit: str | Path | None = None,
    eta: float | None = None,
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
    aesthetic: Aesthetic Gradients towards the embeddings it names.
    edit: the file of an edited picture (Imagic); without prompts its own target is drawn.
    eta: how far from the picture's text state (0) to the target's (1); any number.
    tell: is handed a line on everything that has no effect.

    Raises KonomiError.
    """
    _check_counts(count, batch)
    wanted = read_edit(edit, eta, tell, prompts=prompts)
    picture = {"clip_skip": clip_skip, **start_from(init, mask, strength, tell)}
    given = {"negative": negative, "steps": steps, "guidance": guidance, "sampler": sampler,
             "guidance_rescale": guidance_rescale}  # fmt: skip
    if wanted is not None:
        prompts, add = prompts if prompt_file else wanted.prompts(prompts), [wanted.file, *add]
        size = size or (wanted.size if init is None else None)
        picture |= wanted.settings
    default = _default(size, seed, given, picture)
    requests = _requests(default, prompts, prompt_file, count)
    _tell_all(sheet_notes(requests, grid, batch), tell)
    always = [parse_add(argument) for argument in add]
    groups, files = read_adapters(requests, always, [Path.cwd(), Path(output)], tell)
    wish = read_wish(aesthetic)
    loaded = load_base(base, vae=vae, prediction=prediction, device=device, precision=precision)
    gradients = wish.on(loaded)
    check_all(loaded, [*always, *(w for tagged, _ in groups for w in tagged)], files)
    notes = _notes(loaded, requests, always, groups, files)
    _tell_all((*notes, *wish.notes(loaded, gradients, requests)), tell)
    origin = Origin(loaded.name, _model_hash(base), extra=wish.infotext())
    pictures = _drawn(loaded, groups, always, files, origin, batch=batch, aesthetic=gradients)
    yield from _saved(pictures, Path(output), grid=grid)


def _drawn(
    base: BaseModel,
    groups: Sequence[tuple[Sequence[AdapterRequest], Sequence[Request]]],
    always: Sequence[AdapterRequest],
    files: Mapping[Path, Adapter],
    origin: Origin,
    *,
    batch: int,
    aesthetic: AestheticGradients | None,
) -> Iterator[Picture]:
    """The pictures of each group of requests, with its adapters on the base."""
    for tagged, group in groups:
        wanted = [*always, *tagged]
        used = tuple(used_adapter(request, files[request.path]) for request in wanted)
        said = replace(origin, adapters=used)
        # The base is only needed untouched again where the next prompt asks for other adapters.
        put_on = attach if len(groups) > 1 else _folded
        with ExitStack() as attached:
            for layer in in_order(wanted, files):
                pairs = [(files[w.path], strengths_on(base, w, files[w.path])[0]) for w in layer]
                attached.enter_context(put_on(base, pairs))
            yield from draw(base, group, batch=batch, origin=said, aesthetic=aesthetic)


def _folded(
    base: BaseModel, pairs: Sequence[tuple[Adapter, Strengths]]
) -> AbstractContextManager[object]:
    return nullcontext(fold(base, pairs))


def _saved(pictures: Iterable[Picture], output: Path, *, grid: bool) -> Iterator[Path]:
    _make_folder(output)
    kept = []
    for picture in pictures:
        yield save_png(picture, output)
        if grid:
            kept.append(picture)
    if len(kept) > 1:
        yield save_sheet(sheet_of(kept), output)


def _default(
    size: str | None, seed: int | None, given: Mapping[str, Any], picture: Mapping[str, Any]
) -> Request:
    """What every prompt has in common; a setting that is None has its own default."""
    width, height = parse_size(size) if size else (0, 0)
    return Request(
        prompt="",
        seed=secrets.randbelow(2**32) if seed in (None, -1) else seed,
        width=width,
        height=height,
        **{**picture, **{name: value for name, value in given.items() if value is not None}},
    )


def _check_counts(count: int, batch: int) -> None:
    if min(count, batch) < 1:
        raise RecipeError(f"--count is {count} and --batch {batch}; both are at least 1.")


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
    for tagged, _ in groups:
        yield from without_what_it_was_trained_with([*always, *tagged], files, ())
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
            one, files[one.path], requests, strengths_on(base, one, files[one.path])[1]
        )
    for tagged, group in groups:
        for one in tagged:
            yield from unused_in_adapter(
                one, files[one.path], group, strengths_on(base, one, files[one.path])[1]
            )


def _make_folder(folder: Path) -> None:
    # Before the first picture is drawn, not after it.
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


def _model_hash(base: str) -> str:
    return sha256_file(base)[:10] if Path(base).is_file() else ""
