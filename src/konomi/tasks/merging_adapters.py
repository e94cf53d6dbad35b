"""`merge adapters` and `resize`: several adapters as one file, or one in fewer ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths
from konomi.adapters.kinds import tensors_of
from konomi.errors import RecipeError
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.formats.writer import Target
from konomi.generation.adapter_request import parse_add
from konomi.hardware.precision import precision_of_flag
from konomi.merging.adapters import ReducedLayer, reduce_ranks, sum_adapters, summable
from konomi.merging.low_rank import RankChoice
from konomi.merging.nested import MODULE, cut, is_nested
from konomi.models.load import load_base
from konomi.tasks.extracting import rank_choice
from konomi.tasks.files import check_new


@dataclass(frozen=True, slots=True)
class AdapterMerge:
    """What `merge_adapters` or `resize` did."""

    path: Path
    num_layers: int
    reduced: tuple[ReducedLayer, ...]
    """Layers whose rank was chosen anew; empty where the result is exact."""
    error: float
    """The largest of their errors; 0 where the result is exact but for rounding."""
    notes: tuple[str, ...]


def merge_adapters(
    adapters: Sequence[str],
    output: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_mib: float | None = None,
    base: str | None = None,
    precision: str | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> AdapterMerge:
    """Write one adapter that does what several do together at their weights: exactly, with as many
    ranks as all of them have, and then, if asked, in fewer.

    adapters: each `FILE`, `FILE:0.8` or `FILE:unet=0.8:text=0.5`.
    output: the new file.
    rank, energy, max_mib: how far each layer is reduced, one of the three: its rank, the share of
        its squared change that is kept, or the size of the file.
    base: the model they belong to, where an update depends on its weights (DoRA, (IA)^3).
    precision: of the file (fp32, fp16, bf16); by default the finest of theirs.
    to: the format (kohya, diffusers, peft); by default what most programs read.
    tell: is handed a line on what a person should know.

    Raises KonomiError.
    """
    output = Path(output)
    check_new(output)
    if not adapters:
        raise RecipeError("merge adapters needs at least one file.")
    choice = rank_choice(rank, energy, max_mib, required=False)
    return _write(adapters, output, choice, base, precision, to, tell)


def resize(
    adapter: str,
    output: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_mib: float | None = None,
    base: str | None = None,
    precision: str | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> AdapterMerge:
    """Write an adapter in fewer ranks.

    adapter: the file; `FILE:0.8` also makes it weaker for good.
    output: the new file.
    rank: of each layer, at most.
    energy: share of each layer's squared change that is kept, in place of a rank.
    max_mib: size of the file, in place of a rank; layers get what they gain most from.
    base: the model it belongs to, where an update depends on its weights (DoRA, (IA)^3).
    precision: of the file (fp32, fp16, bf16); by default its own.
    to: the format (kohya, diffusers, peft); by default what most programs read.
    tell: is handed a line on what a person should know.

    Raises KonomiError.
    """
    output = Path(output)
    check_new(output)
    choice = rank_choice(rank, energy, max_mib)
    return _write([adapter], output, choice, base, precision, to, tell)


def _write(
    files: Sequence[str],
    output: Path,
    choice: RankChoice | None,
    base: str | None,
    precision: str | None,
    to: Target | None,
    tell: Callable[[str], object],
) -> AdapterMerge:
    parts = [_read(file, base) for file in files]
    notes = tuple(note for adapter, _ in parts for note in adapter.notes)
    for note in notes:
        tell(note)
    dtype = finest([a for a, _ in parts]) if precision is None else precision_of_flag(precision)
    merged = sum_adapters(parts, output.stem)
    reduced: tuple[ReducedLayer, ...] = ()
    nested = len(parts) == 1 and is_nested(parts[0][0].metadata)
    if nested:
        merged = replace(merged, metadata=merged.metadata | {"ss_network_module": MODULE})
    if choice is not None and choice.rank is not None and nested:
        tell("was trained as DyLoRA: cut to its first ranks, which are good without the others.")
        layers, reduced = cut(merged, choice.rank, dtype)
        merged = replace(merged, layers=layers)
    elif choice is not None:
        layers, reduced = reduce_ranks(merged, choice, dtype)
        merged = replace(merged, layers=layers)
    write_adapter(merged, output, to, dtype=dtype)
    error = max((layer.error for layer in reduced), default=0.0)
    return AdapterMerge(output, len(merged.layers), reduced, error, notes)


def _read(file: str, base: str | None) -> tuple[Adapter, Strengths]:
    request = parse_add(file)
    adapter = read_adapter(request.path)
    strengths = Strengths(request.denoiser_weight, request.text_weight)
    # Loading costs nothing until a weight is asked for.
    loaded = None if base is None else load_base(base, needs_vae=False)
    return summable(adapter, strengths, loaded)


def finest(adapters: Sequence[Adapter]) -> torch.dtype:
    """The number format in which nothing of these adapters is lost."""
    found = {
        tensor.dtype
        for adapter in adapters
        for update in adapter.layers.values()
        for tensor in tensors_of(update).values()
        if tensor.is_floating_point()
    }
    if found and found <= {torch.float16, torch.bfloat16}:
        return found.pop() if len(found) == 1 else torch.float32
    return torch.float32
