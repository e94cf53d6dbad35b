"""kohya's LoRA files (sd-scripts; read by every web UI), with LoCon, LyCORIS and bundled
embeddings.

A layer is `{prefix}_{module path, dots as underscores}.{part}`; see `layers` for the parts,
`kohya_keys` for the names, `kohya_metadata` for what a file says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds.magnitude import per_output
from konomi.errors import FileFormatError
from konomi.families.foreign_names import embedding_names, part_of_embedding_name
from konomi.families.recognition import family_of_kohya_names
from konomi.formats import edit_states
from konomi.formats.embedding_metadata import NEGATIVE
from konomi.formats.family import family_by_layers, family_of
from konomi.formats.grouping import assemble, group
from konomi.formats.kohya_keys import PREFIXES, is_norm, key_of, layout_for, name_of
from konomi.formats.kohya_metadata import with_hashes, with_minimum
from konomi.formats.layers import LayerError, layer_from_parts, part_of
from konomi.formats.ldm_keys import UNetLayout
from konomi.formats.source import Parsed, Source, fault, open_source
from konomi.formats.unused import prefixed, with_unused_named
from konomi.formats.writer import Writer
from konomi.storage.tensor_file import is_finite, write_tensors

NAME = "kohya"
_BUNDLE = "bundle_emb."
_EMBEDDING_PARTS = {f".{name}": part for name, part in part_of_embedding_name().items()} | {
    ".string_to_param.*": "text_encoder"
}


def recognise(source: Source) -> bool:
    """Whether any tensor is named as kohya names layers."""
    return any(name.startswith((*PREFIXES, _BUNDLE)) for name in source.shapes)


def parse(source: Source) -> Parsed:
    """Read every variant. Raises FileFormatError naming the tensor whose partner, rank or width is
    wrong.
    """
    tensors = source.tensors()
    embeddings: dict[str, dict[str, Tensor]] = {}
    lost = []
    for name in filter(lambda name: name.startswith(_BUNDLE), tensors):
        if not _add_embedding(source, embeddings, name, tensors[name]):
            lost.append(name)
    beside = (_BUNDLE, edit_states.PREFIX)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(beside)}
    states = {n: tensor for n, tensor in tensors.items() if n.startswith(edit_states.PREFIX)}
    lost += [name for name in states if name not in edit_states.used_names(states)]
    edit = edit_states.read_edit(source.path, states, source.metadata) if states else None
    grouped = group(source.path, rest, _split)
    layout = layout_for(grouped.parts, context_widths(grouped.parts))
    layers, unknown = assemble(source.path, grouped, lambda layer: key_of(layer, layout))
    adapter = Adapter(layers, embeddings, dict(source.metadata), "", source.name, edit=edit)
    # A lone te1 fits several families by its widths; only its name tells, and is not lost on
    # writing.
    numbered = family_of_kohya_names(grouped.parts)
    family = family_by_layers(layers) or (numbered.name if numbered else family_of(adapter))
    adapter = replace(adapter, family=family)
    return _with_negative(
        source, Parsed(adapter, tuple(sorted([*unknown, *lost])), used=frozenset(tensors))
    )


def _split(name: str) -> tuple[str, str] | None:
    layer, _, ending = name.partition(".")
    part = part_of(ending)
    return (layer, part) if part else None


def context_widths(grouped: Mapping[str, Mapping[str, Tensor]]) -> set[int]:
    """Widths of the text states that cross-attention's keys and values read, where their tensors
    tell.
    """
    found = set()
    for layer, parts in grouped.items():
        if layer.endswith(("attn2_to_k", "attn2_to_v", "attn2.to_k", "attn2.to_v")):
            # What is wrong with a layer is told where its name is known.
            with suppress(LayerError):
                found.add(layer_from_parts(parts).input_width)
    return {width for width in found if width is not None}


def write(
    adapter: Adapter,
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    layout: UNetLayout | None = None,
) -> None:
    """Write with complete metadata and hashes. `dtype` None keeps every tensor's; `layout` is of a
    UNet that is not of its family's size.

    Raises FileFormatError for DoRA magnitudes per output: ComfyUI, Forge and LyCORIS read them,
    but A1111 takes every `dora_scale` for one per input, so that the file would mean two things.

    What is for the negative branch of guidance goes into a file beside it, NAME-neg, with the
    negative words.
    """
    path = Path(path)
    if adapter.negative is not None:
        # The first file comes last: it tells of the other.
        half = _negative_path(path)
        write(_negative_half(adapter, half.stem), half, dtype=dtype, layout=layout)
        adapter = replace(adapter, negative=None, embeddings=_words(adapter, negative=False))
    family = adapter.family or family_of(adapter)
    tensors: dict[str, Tensor] = {}
    for key, update in adapter.layers.items():
        if per_output(update.magnitude):
            raise FileFormatError(
                f"{path}: {key} has DoRA magnitudes per output, which A1111 would take for "
                "magnitudes per input: the file would not mean the same everywhere. Convert with "
                "--to peft or diffusers, or with --base BASE to plain differences, which every "
                "program reads; or train with save.format kohya."
            )
        name = name_of(key, family, layout)
        for part, tensor in update.to_parts(norm=is_norm(key)).items():
            tensors[f"{name}.{part}"] = tensor
    for token, vectors in adapter.embeddings.items():
        tensors |= {
            f"{_BUNDLE}{token}.{part}": tensor for part, tensor in embedding_parts(vectors).items()
        }
    tensors = cast_floats(tensors, dtype)
    said = with_minimum(adapter, family, path.stem)
    if adapter.edit is not None:
        # Half precision is for weights: what is mixed by eta stays as it was found.
        tensors |= edit_states.edit_tensors(adapter.edit)
        said = said | edit_states.edit_metadata(adapter.edit)
    metadata = with_hashes(said, tensors)
    write_tensors(path, tensors, metadata)


def embedding_parts(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Part names of an embedding file: `emb_params`, or `clip_l` and `clip_g` with two text
    encoders.
    """
    names = embedding_names(vectors)
    return {names[part]: tensor for part, tensor in vectors.items()}


def cast_floats(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Floating tensors in another type; the rest, and all of them for None, as they are."""
    if dtype is None:
        return tensors
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def _with_negative(source: Source, parsed: Parsed) -> Parsed:
    """With what lies beside a file for the negative branch (DreamArtist++): NAME-neg, which brings
    the negative half of a word that the file itself brings. Another file of that name is none of
    it.

    Raises FileFormatError for a half that is broken.
    """
    path, adapter = _negative_path(source.path), parsed.adapter
    if not adapter.embeddings or not path.is_file():
        return parsed
    half = open_source(path)
    wanted = [f"{_BUNDLE}{word}{NEGATIVE}." for word in adapter.embeddings]
    if not any(name.startswith(start) for name in half.shapes for start in wanted):
        return parsed
    for name, tensor in half.tensors().items():
        if not is_finite(tensor):
            raise fault(
                path, name, "holds NaN or infinity; the file is broken. Use another save of it"
            )
    found = with_unused_named(half, parse(half))
    negative = replace(found.adapter, embeddings={})
    together = replace(
        adapter, embeddings=adapter.embeddings | found.adapter.embeddings, negative=negative
    )
    ignored = {**parsed.ignored, **prefixed(found.ignored, f"{path.name}: ")}
    return replace(
        parsed, adapter=together, unknown=(*parsed.unknown, *found.unknown), ignored=ignored
    )


def _negative_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}{NEGATIVE}{path.suffix}")


def _negative_half(adapter: Adapter, name: str) -> Adapter:
    """What the file beside holds."""
    assert adapter.negative is not None
    metadata = adapter.metadata | {
        key: name for key in ("ss_output_name", "modelspec.title") if key in adapter.metadata
    }
    words = _words(adapter, negative=True)
    return replace(
        adapter,
        layers=adapter.negative.layers,
        embeddings=words,
        metadata=metadata,
        name=name,
        negative=None,
    )


def _words(adapter: Adapter, *, negative: bool) -> dict[str, dict[str, Tensor]]:
    return {
        word: parts
        for word, parts in adapter.embeddings.items()
        if word.endswith(NEGATIVE) == negative
    }


def _add_embedding(
    source: Source, embeddings: dict[str, dict[str, Tensor]], name: str, tensor: Tensor
) -> bool:
    for suffix, part in _EMBEDDING_PARTS.items():
        if name.endswith(suffix):
            token = name.removeprefix(_BUNDLE).removesuffix(suffix)
            if tensor.dim() not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
                raise fault(
                    source.path,
                    name,
                    f"has shape {list(tensor.shape)}; vectors of a word are [count, width]",
                )
            embeddings.setdefault(token, {})[part] = tensor.reshape(-1, tensor.shape[-1])
            return True
    return False


WRITERS = (
    Writer(
        "lora",
        ("kohya", "webui"),
        ".safetensors",
        lambda a, path, o: write(a, path, dtype=o.dtype, layout=o.layout),
    ),
)
