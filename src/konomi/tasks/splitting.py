"""`split`: an adapter by the blocks of the denoiser."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from konomi.adapters.adapter import Adapter
from konomi.errors import RecipeError
from konomi.families import known_family, published_config
from konomi.families.blocks import BASE, block_name
from konomi.families.family import Family
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.formats.writer import Target
from konomi.generation.block_weights import layer_weights, parse_blocks_of
from konomi.hardware.precision import precision_of_flag
from konomi.merging.adapters import weighted_layers
from konomi.models.base import BaseModel
from konomi.models.load import load_base
from konomi.tasks.files import check_new
from konomi.tasks.merging_adapters import finest


@dataclass(frozen=True, slots=True)
class Split:
    """What `split` did."""

    path: Path
    weights: dict[str, float]
    """Of each block that the adapter has layers in."""
    num_layers: int
    """In the file; those at weight 0 are left out."""
    rest: Path | None
    num_rest: int
    notes: tuple[str, ...]


def split(
    adapter: str | Path,
    output: str | Path,
    *,
    blocks: str,
    rest: str | Path | None = None,
    base: str | None = None,
    precision: str | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
) -> Split:
    """Write an adapter with a weight for each block, for programs that know none, and what is left
    of it as a second file: the two together are the whole.

    adapter: the file.
    output: the new file, with the blocks at their weights.
    blocks: `IN00-IN08:0,OUT03:0.5` (blocks that are not named keep 1), a list of 12, 17, 20 or 26
        numbers or a preset as the block weight extension of web UIs has them (`OUTALL`). BASE is
        the text encoder.
    rest: a second new file, with each block at 1 minus its weight.
    base: the model the adapter belongs to, where its U-Net is not the family's published one, or
        an update depends on its weights (OFT, DoRA, (IA)^3) and a weight is neither 0 nor 1.
    precision: of the files (fp32, fp16, bf16); by default the adapter's own.
    to: the format (kohya, diffusers, peft); by default what most programs read.
    tell: is handed a line on what a person should know.

    Raises KonomiError.
    """
    output, second = Path(output), None if rest is None else Path(rest)
    check_new(output)
    if second is not None:
        check_new(second)
        if second.absolute() == output.absolute():
            raise RecipeError("--rest and --output are the same file. Choose another name for one.")
    read = read_adapter(adapter)
    family = known_family(read.family)
    if family is None:
        raise RecipeError(
            f"{adapter}: its layers do not tell which family it is for, so its blocks are unknown."
        )
    weights = parse_blocks_of(blocks, family)
    loaded = None if base is None else load_base(base, needs_vae=False)
    block_of = _block_of(family, loaded)
    chosen, without = layer_weights(weights, read.layers, block_of)
    notes = [*read.notes, *_notes(blocks, read, weights, without, block_of)]
    for note in notes:
        tell(note)
    factors = dict.fromkeys(read.layers, 1.0) | chosen
    dtype = finest([read]) if precision is None else precision_of_flag(precision)
    results = {output: factors}
    if second is not None:
        results[second] = {key: 1 - factor for key, factor in factors.items()}
    made = {
        path: replace(
            read,
            layers=weighted_layers(read, factor, loaded),
            embeddings=read.embeddings if path == output else {},
            name=path.stem,
            metadata={k: v for k, v in read.metadata.items() if k not in _TITLES}
            | {"konomi.blocks": blocks if path == output else f"1 - ({blocks})"},
        )
        for path, factor in results.items()
    }
    for path, result in made.items():
        if not result.layers and not result.embeddings:
            raise RecipeError(f"{path}: nothing is left in it, because all of its weights are 0.")
    for path, result in made.items():
        write_adapter(result, path, to, dtype=dtype)
    by_block = {block_of(key): factor for key, factor in factors.items()}
    return Split(
        output,
        by_block,
        len(made[output].layers),
        second,
        0 if second is None else len(made[second].layers),
        tuple(notes),
    )


_TITLES = ("ss_output_name", "modelspec.title")


def _block_of(family: Family, base: BaseModel | None) -> Callable[[str], str]:
    configs = {spec.folder: published_config(family, spec.folder) for spec in family.adapted_parts}
    text = tuple(f"{encoder.part}." for encoder in family.text_encoders)

    def block_of(key: str) -> str:
        if key.startswith(text):
            return BASE
        return block_name(family, key, configs) if base is None else base.block_of(key)

    return block_of


def _notes(
    blocks: str,
    read: Adapter,
    weights: dict[str, float],
    without: tuple[str, ...],
    block_of: Callable[[str], str],
) -> list[str]:
    notes = []
    there = {block_of(key) for key in read.layers}
    alone = [entry.rpartition(":")[0].strip().upper() for entry in blocks.split(",")]
    # Of a range or a list, some blocks have no layers that are ever trained.
    idle = [block for block in weights if block in alone and block not in there]
    if idle:
        notes.append(f"--blocks: the adapter has no layers in {', '.join(idle)}.")
    if without and ":" not in blocks:
        notes.append(
            f"--blocks: {len(without)} layers are in blocks without a weight and stay as they are, "
            f"such as {without[0]}."
        )
    if read.embeddings:
        notes.append("its words stay as they are, because they lie in no block.")
    return notes
