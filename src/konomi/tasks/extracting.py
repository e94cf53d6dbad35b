"""`extract`: what a tuned model has learned, as a LoRA or a LoKr."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LayerUpdate
from konomi.errors import ModelError, RecipeError
from konomi.families.selectors import check_selectors
from konomi.formats.adapter_file import write_adapter
from konomi.formats.writer import Target
from konomi.hardware.precision import precision_of_flag
from konomi.merging.extract import Extracted, ExtractedLayer, extract_layers
from konomi.merging.low_rank import RankChoice
from konomi.merging.model_file import ModelFile, open_model
from konomi.tasks.extraction_picture import check_picture, draw_extraction
from konomi.tasks.files import check_new

Kind = Literal["lora", "locon", "lokr"]
LAYERS: dict[str, tuple[str, ...]] = {
    "lora": ("transformer", "text"),
    "locon": ("transformer", "conv", "text"),
    "lokr": ("transformer", "conv", "text"),
}
"""Kind -> the layers that it has in other programs too."""
FACTOR = 8
"""The usual width of a LoKr's first factor."""


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
    picture: Path | None = None
    """Of the singular values and errors, where one was asked for."""


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
    kind: Kind = "locon",
    factor: int | None = None,
    layers: Sequence[str] | None = None,
    picture: str | Path | None = None,
    precision: str | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Extraction:
    """Write the difference of two models as a LoRA or LoKr. Neither is ever in memory whole.

    tuned, base: files, diffusers folders, `tiny` or hub ids, of one family.
    output: the new file.
    rank: of each layer, less where its difference has less.
    energy: share of each layer's squared difference that is kept, in place of a rank.
    max_mib: size of the file, in place of a rank; layers get what they gain most from.
    kind: lora (linear layers), locon (convolutions too), or lokr: the nearest Kronecker product,
        for which nothing else says how large it is than `factor`.
    factor: of a lokr, the width of the first of both factors, 8 by default; the smaller it is, the
        larger the file and the smaller the error.
    layers: which layers, in place of those of the kind: transformer, conv, text and other
        selectors.
    picture: a new .png or .svg file that shows the singular values and the error of each layer.
    precision: of the file (fp32, fp16, bf16); by default that of the tuned model's weights.
    to: the format (kohya, diffusers, peft); by default what most programs read.
    tell: is handed a line on what a person should know.
    progress: is handed tensors done, and in all.

    Raises KonomiError.
    """
    started = perf_counter()
    output = Path(output)
    check_new(output)
    choice, factor = _size(kind, factor, rank, energy, max_mib)
    chosen = LAYERS[kind] if layers is None else tuple(layers)
    if picture is not None:
        check_picture(Path(picture))
    with open_model(tuned) as one, open_model(base) as other:
        if one.family is not other.family:
            raise ModelError(
                f"{one.path}: is {one.family.title}, and {other.path} is {other.family.title}. "
                "Only models of one family have a difference."
            )
        check_selectors(one.family, chosen)
        dtype = _dtype_of(one) if precision is None else precision_of_flag(precision)
        found = extract_layers(
            one, other, choice, selectors=chosen, dtype=dtype, factor=factor, progress=progress
        )
        _write(found.layers, one, other, output, to, dtype)
        notes = _notes(found, one, other)
    for note in notes:
        tell(note)
    whole = sum(layer.norm**2 for layer in found.report)
    missed = sum((layer.error * layer.norm) ** 2 for layer in found.report)
    if picture is not None:
        draw_extraction(found, Path(picture))
    return Extraction(
        output,
        found.report,
        math.sqrt(missed / whole),
        found.left,
        tuple(notes),
        perf_counter() - started,
        None if picture is None else Path(picture),
    )


def _write(
    layers: dict[str, LayerUpdate],
    tuned: ModelFile,
    base: ModelFile,
    output: Path,
    to: Target | None,
    dtype: torch.dtype,
) -> None:
    adapter = Adapter(
        layers=layers,
        metadata={
            "ss_training_comment": f"extracted from {tuned.path.stem} against {base.path.stem}",
            "ss_sd_model_name": base.path.name,
        },
        family=tuned.family.name,
        name=output.stem,
    )
    write_adapter(adapter, output, to, dtype=dtype, layout=tuned.layout.unet)


def _notes(found: Extracted, tuned: ModelFile, base: ModelFile) -> list[str]:
    notes = list(dict.fromkeys([*tuned.base.notes, *base.base.notes]))
    if found.left:
        parts = ", ".join(sorted({key.partition(".")[0] for key in found.left}))
        notes.append(
            f"{len(found.left)} more tensors of {parts} differ ({found.left_share:.1%} of the "
            f"squared difference) and are not in the file, such as {found.left[0]}."
        )
    if tuned.base.process.prediction != base.base.process.prediction:
        notes.append("the models predict different things; the LoRA turns one into the other.")
    return notes


def _size(
    kind: Kind,
    factor: int | None,
    rank: int | None,
    energy: float | None,
    max_mib: float | None,
) -> tuple[RankChoice, int | None]:
    """How much of each layer is kept: directions, or the factor of a LoKr. Raises RecipeError."""
    if kind not in LAYERS:
        raise RecipeError(f"--kind is {kind!r}; choose {', '.join(LAYERS)}.")
    if kind != "lokr":
        if factor is not None:
            raise RecipeError("--factor: only --kind lokr has one. Leave it out.")
        choice = rank_choice(rank, energy, max_mib)
        assert choice is not None
        return choice, None
    if any(value is not None for value in (rank, energy, max_mib)):
        raise RecipeError(
            "--kind lokr has no ranks: --factor says how large it is. Leave --rank, --energy and "
            "--max-mib out."
        )
    if factor is not None and factor < 2:
        raise RecipeError(f"--factor is {factor}; it is a whole number from 2.")
    return RankChoice(), factor or FACTOR


def _dtype_of(model: ModelFile) -> torch.dtype:
    """The type of most of its weights; float32 for one that a LoRA is not written in."""
    sizes: dict[torch.dtype, int] = {}
    for stored in model.tensors.values():
        sizes[stored.dtype] = sizes.get(stored.dtype, 0) + math.prod(stored.shape)
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return most if most in (torch.float16, torch.bfloat16) else torch.float32
