"""`bake` and `slim`: one model, written anew tensor by tensor."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from konomi.adapters.apply import Strengths
from konomi.adapters.conversion import weights_of
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter
from konomi.generation.adapter_request import parse_add
from konomi.merging.bake import plan_bake
from konomi.merging.model_file import open_model, with_averages, with_text_encoders
from konomi.merging.plan import plan_copy
from konomi.merging.provenance import Hashes, merge_metadata
from konomi.merging.stream import write_merged
from konomi.models.load import load_base
from konomi.tasks.merging_models import checked_output

FP8 = "fp8"
READS_FP8 = (
    "fp8: ComfyUI keeps the weights in that format; konomi, diffusers and A1111 convert them when "
    "they read the file, with PyTorch 2.1 or later. A weight is rounded by up to 6 %."
)


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
    dtype = checked_output(output, precision)
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
    text_encoder: str | Path | None = None,
    use_ema: bool = False,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Rewritten:
    """Write a model without what lies beside it in its file (running averages, an optimiser's
    state), in a smaller number format, with another VAE or other text encoders. NaN, infinity and
    wrong positions of a text encoder are found on the way; the last are mended.

    model: a file, a diffusers folder, `tiny` or a hub id.
    output: a new .safetensors file.
    precision: of the result (fp32, fp16, bf16, fp8); by default that of the model's tensors. fp8
        (e4m3) is for the matrices of U-Net and text encoders; the rest is fp16 then.
    vae: where the VAE is taken from instead of the model.
    text_encoder: a model of the same family whose text encoders take the place of the model's.
    use_ema: write the running averages in place of the U-Net's weights.
    tell: is handed a line on what a person should know.
    progress: is handed the bytes read so far, and in all.

    Raises KonomiError.
    """
    started = perf_counter()
    output = Path(output)
    dtype = checked_output(output, None if precision == FP8 else precision)
    dtype = torch.float8_e4m3fn if precision == FP8 else dtype
    with ExitStack() as stack:
        opened = stack.enter_context(open_model(model, vae=vae))
        if use_ema:
            opened = with_averages(opened)
        if text_encoder is not None:
            opened = with_text_encoders(opened, stack.enter_context(open_model(text_encoder)))
        plan = plan_copy(opened, dtype=dtype)
        notes = (*plan.notes, *((READS_FP8,) if precision == FP8 else ()))
        for note in notes:
            tell(note)
        metadata = {
            name: value
            for name, value in opened.metadata.items()
            if not name.startswith(("sshs_", "modelspec.hash_sha256"))
        }
        write_merged(output, plan.jobs, metadata, progress=progress)
    return Rewritten(output, (), len(plan.jobs), notes, perf_counter() - started)
