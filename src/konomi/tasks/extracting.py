"""`extract`: what a tuned model has learned, as a LoRA."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from konomi.adapters.adapter import Adapter
from konomi.errors import ModelError, RecipeError
from konomi.families.selectors import check_selectors
from konomi.formats.adapter_file import write_adapter
from konomi.formats.writer import Target
from konomi.hardware.precision import precision_of_flag
from konomi.merging.extract import ExtractedLayer, extract_layers
from konomi.merging.low_rank import RankChoice
from konomi.merging.model_file import ModelFile, open_model
from konomi.tasks.files import check_new

LAYERS = ("transformer", "conv", "text")
"""What a LoRA of kohya's with convolutions (LoCon) holds."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """What `extract` did."""

    path: Path
    layers: tuple[ExtractedLayer, ...]
    error: float
    """|differences - what is written| / |differences|, of these layers together."""
    left: tuple[str, ...]
    """Tensors that differ and are not in the file."""
    notes: tuple[str, ...]
    seconds: float


def rank_choice(
    rank: int | None, energy: float | None, max_mib: float | None, *, required: bool = True
) -> RankChoice | None:
    """Of three flags, of which one may be given. Raises RecipeError."""
    given = [
        flag
        for flag, value in (("--rank", rank), ("--energy", energy), ("--max-mib", max_mib))
        if value is not None
    ]
    if len(given) > 1:
        raise RecipeError(f"{' and '.join(given)} exclude each other: choose one.")
    if not given and required:
        raise RecipeError(
            "say how large the result may be: --rank 32, --energy 0.99 or --max-mib 50."
        )
    if rank is not None and rank < 1:
        raise RecipeError(f"--rank is {rank}; it is a whole number from 1.")
    if energy is not None and not 0 < energy <= 1:
        raise RecipeError(f"--energy is {energy}; it is a share above 0 and at most 1.")
    if max_mib is not None and not (max_mib > 0 and math.isfinite(max_mib)):
        raise RecipeError(f"--max-mib is {max_mib}; it is a number above 0.")
    if not given:
        return None
    return RankChoice(rank, energy, None if max_mib is None else int(max_mib * (1 << 20)))


def extract(
    tuned: str | Path,
    base: str | Path,
    output: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_mib: float | None = None,
    layers: Sequence[str] = LAYERS,
    precision: str | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Extraction:
    """Write the difference of two models as a LoRA. Neither is ever in memory whole.

    tuned, base: files, diffusers folders, `tiny` or hub ids, of one family.
    output: the new file.
    rank: of each layer, less where its difference has less.
    energy: share of each layer's squared difference that is kept, in place of a rank.
    max_mib: size of the file, in place of a rank; layers get what they gain most from.
    layers: which layers, by kind: transformer, conv, text and other selectors.
    precision: of the file (fp32, fp16, bf16); by default that of the tuned model's weights.
    to: the format (kohya, diffusers, peft); by default what most programs read.
    tell: is handed a line on what a person should know.
    progress: is handed tensors done, and in all.

    Raises KonomiError.
    """
    started = perf_counter()
    output = Path(output)
    check_new(output)
    choice = rank_choice(rank, energy, max_mib)
    assert choice is not None
    with open_model(tuned) as one, open_model(base) as other:
        if one.family is not other.family:
            raise ModelError(
                f"{one.path}: is {one.family.title}, and {other.path} is {other.family.title}. "
                "Only models of one family have a difference."
            )
        check_selectors(one.family, layers)
        dtype = _dtype_of(one) if precision is None else precision_of_flag(precision)
        found = extract_layers(one, other, choice, selectors=layers, dtype=dtype, progress=progress)
        adapter = Adapter(
            layers=found.layers,
            metadata={
                "ss_training_comment": f"extracted from {one.path.stem} against {other.path.stem}",
                "ss_sd_model_name": other.path.name,
            },
            family=one.family.name,
            name=output.stem,
        )
        write_adapter(adapter, output, to, dtype=dtype, layout=one.layout.unet)
        notes = list(dict.fromkeys([*one.base.notes, *other.base.notes]))
        if found.left:
            notes.append(
                f"{len(found.left)} more tensors differ ({found.left_share:.1%} of the squared "
                f"difference) and are not in the file, such as {found.left[0]}."
            )
        if one.base.process.prediction != other.base.process.prediction:
            notes.append("the models predict different things; the LoRA turns one into the other.")
    for note in notes:
        tell(note)
    whole = sum(layer.norm**2 for layer in found.report)
    missed = sum((layer.error * layer.norm) ** 2 for layer in found.report)
    error = math.sqrt(missed / whole)
    return Extraction(
        output, found.report, error, found.left, tuple(notes), perf_counter() - started
    )


def _dtype_of(model: ModelFile) -> torch.dtype:
    """The type of most of its weights; float32 for one that a LoRA is not written in."""
    sizes: dict[torch.dtype, int] = {}
    for stored in model.tensors.values():
        sizes[stored.dtype] = sizes.get(stored.dtype, 0) + math.prod(stored.shape)
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return most if most in (torch.float16, torch.bfloat16) else torch.float32
