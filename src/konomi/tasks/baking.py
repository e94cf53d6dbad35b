"""`bake` and `slim`: one model, written anew tensor by tensor."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

from konomi.adapters.apply import Strengths
from konomi.adapters.conversion import weights_of
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.generation.adapter_request import parse_add
from konomi.hardware.precision import precision_of_flag
from konomi.merging.bake import plan_bake
from konomi.merging.model_file import open_model, refuse_unnamed
from konomi.merging.plan import plan_copy
from konomi.merging.provenance import Hashes, merge_metadata
from konomi.merging.stream import write_merged
from konomi.models.load import load_base
from konomi.tasks.files import check_new


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What `bake` or `slim` did."""

    path: Path
    layers: tuple[str, ...]
    """Canonical keys of the layers that changed."""
    num_kept: int
    """Tensors that are as they were, but for their number format."""
    notes: tuple[str, ...]
    seconds: float


def bake(
    base: str | Path,
    add: Sequence[str],
    output: str | Path,
    *,
    precision: str | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Rewritten:
    """Fold adapters into a model, and write it as one .safetensors file. The result draws what the
    model draws with the adapters attached at these weights.

    base: the model: a file, a diffusers folder, `tiny` or a hub id.
    add: adapters, each `FILE`, `FILE:0.8` or `FILE:unet=0.8:text=0.5`.
    output: a new .safetensors file.
    precision: of the result (fp32, fp16, bf16); by default that of the model's tensors.
    vae: where the VAE is taken from instead of the model.
    prediction: what the model predicts, in place of what its file says.
    tell: is handed a line on what a person should know.
    progress: is handed the bytes read so far, and in all.

    Raises KonomiError.
    """
    started = perf_counter()
    output = Path(output)
    refuse_unnamed(output)
    check_new(output)
    dtype = None if precision is None else precision_of_flag(precision)
    requests = [parse_add(one) for one in add]
    if not requests:
        raise RecipeError("bake needs at least one adapter: --add FILE:WEIGHT.")
    weight_of = weights_of(load_base(base, needs_vae=False))
    adapters = [
        (
            read_adapter(request.path, weight_of=weight_of),
            Strengths(request.denoiser_weight, request.text_weight),
        )
        for request in requests
    ]
    with open_model(base, prediction=prediction, vae=vae) as model:
        plan = plan_bake(model, adapters, dtype=dtype)
        notes = tuple(dict.fromkeys([*(n for a, _ in adapters for n in a.notes), *plan.notes]))
        for note in notes:
            tell(note)
        files = [
            {"file": r.path.name, "unet": r.denoiser_weight, "text": r.text_weight}
            for r in requests
        ]
        settings = {"how": "bake", "add": files}
        name = Path(vae or "").name
        describe = partial(merge_metadata, [model], output, settings, dtype=dtype, vae=name)
        with closing(Hashes([model.path])) as hashes:
            finish = partial(describe, hashes=hashes)
            write_merged(output, plan.jobs, describe(), finish=finish, progress=progress)
    changed = sum(job.formula is not None for job in plan.jobs)
    return Rewritten(output, plan.keys, len(plan.jobs) - changed, notes, perf_counter() - started)


def slim(
    model: str | Path,
    output: str | Path,
    *,
    precision: str | None = None,
    vae: str | Path | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Rewritten:
    """Write a model without what lies beside it in its file (running averages, an optimiser's
    state), in a smaller number format or with another VAE. NaN and infinity are found on the way.

    model: a file, a diffusers folder, `tiny` or a hub id.
    output: a new .safetensors file.
    precision: of the result (fp32, fp16, bf16); by default that of the model's tensors.
    vae: where the VAE is taken from instead of the model.
    tell: is handed a line on what a person should know.
    progress: is handed the bytes read so far, and in all.

    Raises KonomiError.
    """
    started = perf_counter()
    output = Path(output)
    refuse_unnamed(output)
    check_new(output)
    dtype = None if precision is None else precision_of_flag(precision)
    with open_model(model, vae=vae) as opened:
        plan = plan_copy(opened, dtype=dtype)
        for note in plan.notes:
            tell(note)
        metadata = {
            name: value
            for name, value in opened.metadata.items()
            if not name.startswith(("sshs_", "modelspec.hash_sha256"))
        }
        write_merged(output, plan.jobs, metadata, progress=progress)
    return Rewritten(output, (), len(plan.jobs), plan.notes, perf_counter() - started)
