"""Adapter files of any format: recognised, read, written, converted, inspected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from konomi.adapters.kinds import tensors_of
from konomi.errors import FileFormatError
from konomi.formats import ADAPTER_FORMATS, WRITERS, edit_states, hypernetwork, peft_lora
from konomi.formats.adapter_format import AdapterFormat
from konomi.formats.family import odd_context_layer
from konomi.formats.recognition import unsupported_kind_of
from konomi.formats.report import (
    FileReport,
    adapter_report,
    named_tensors,
    not_finite,
    other_report,
    other_width,
    refused_report,
    unknown_layers,
)
from konomi.formats.source import Source, open_source
from konomi.formats.unused import lines, with_unused_named
from konomi.formats.writer import Content, Target, WriteOptions, Writer, content_of
from konomi.storage.tensor_file import is_finite

if TYPE_CHECKING:
    import torch

    from konomi.adapters.adapter import Adapter
    from konomi.formats.ldm_keys import UNetLayout


def read_adapter(path: Path | str, *, weight_of: peft_lora.WeightOf | None = None) -> Adapter:
    """Read an adapter of any known format, recognised by its content.

    Raises FileFormatError naming the file, and the tensor where one is at fault: unpaired halves,
    rank 0, widths that do not fit, NaN or infinity, layers of no known name; or saying what the
    file is if it holds no adapter. What of the file is not used is told in the adapter's `notes`.
    `weight_of`: canonical key -> the weight of the base at hand, for the files (PiSSA, OLoRA) that
    mean nothing without it.
    """
    source = open_source(path)
    found = format_of(source)
    if found is None:
        if what := unsupported_kind_of(source):
            raise FileFormatError(f"{path}: {what}, so nothing was loaded.")
        report = other_report(source, check=False)
        raise FileFormatError(
            f"{path}: holds no LoRA that konomi knows; it is a file of kind {report.kind!r}."
        )
    is_peft = found is peft_lora and weight_of is not None
    parsed = with_unused_named(
        source, peft_lora.parse(source, weight_of) if is_peft else found.parse(source)
    )
    if parsed.unknown:
        raise FileFormatError(unknown_layers(path, parsed.unknown))
    if odd := odd_context_layer(parsed.adapter.layers):
        raise FileFormatError(other_width(path, odd))
    _check_numbers(path, source, parsed.adapter)
    return replace(parsed.adapter, notes=lines(str(path), parsed))


def writer_for(content: Content, to: Target | None = None) -> Writer:
    """Who writes a content for a target; None takes the usual one. Raises FileFormatError with the
    choices.
    """
    if content == "lora" and to == "custom":
        # Compressed, Custom Diffusion is low rank; the writer refuses what changes other layers.
        content = "custom diffusion"
    fitting = [writer for writer in WRITERS if writer.content == content]
    found = next((writer for writer in fitting if to is None or to in writer.targets), None)
    if found is None:
        known = dict.fromkeys(target for writer in fitting for target in writer.targets)
        kind = (
            "a LoRA"
            if content == "lora"
            else f"an {content}"
            if content == "embedding"
            else f"a {content} result"
        )
        raise FileFormatError(
            f"{to!r} is not a format that holds {kind}; choose {' or '.join(known) or 'none'}."
        )
    return found


def write_adapter(
    adapter: Adapter,
    path: Path | str,
    to: Target | None = None,
    *,
    dtype: torch.dtype | None = None,
    layout: UNetLayout | None = None,
    replace_folder: bool = False,
) -> None:
    """Write an adapter for other tools; `webui` is what every web UI reads, and for LoRA the same
    as `kohya`.

    `to` None takes what most programs read. `dtype` None keeps each tensor's type. `layout` names
    the blocks of a UNet that is not of its family's size. `replace_folder`: a folder of that name
    is replaced; otherwise it is an error. Raises FileFormatError for what the format cannot hold
    and for NaN, RunError for the disk's refusals.
    """
    options = WriteOptions(dtype=dtype, layout=layout, replace_folder=replace_folder)
    writer = writer_for(content_of(adapter), to)
    if adapter.negative is not None and "kohya" not in writer.targets:
        raise FileFormatError(
            f"{path}: only kohya's files hold a LoRA for each branch of guidance (DreamArtist++). "
            "Use --to kohya."
        )
    if adapter.edit is not None and "kohya" not in writer.targets:
        raise FileFormatError(
            f"{path}: only kohya's files hold the text states of an edited picture (Imagic). Use "
            "--to kohya."
        )
    writer.check_ending(Path(path))
    writer.write(adapter, Path(path), options)


def convert_adapter(source: Path | str, target: Path | str, to: Target | None = None) -> Adapter:
    """Read one file and write it in another format. Returns what was read."""
    adapter = read_adapter(source)
    name = Path(target).stem if Path(target).suffix else Path(target).name
    write_adapter(replace(adapter, name=adapter.name or name), target, to)
    return adapter


def inspect_file(path: Path | str, *, check: bool = True) -> FileReport:
    """What a model or adapter file is. With `check`, its numbers and hashes too, which reads the
    whole file.

    Where the file cannot be used, `problem` says why, and the report has what can be told all the
    same.

    Raises FileFormatError if it is no model file at all (a web page, a git-LFS pointer, cut short,
    hostile ...).
    """
    source = open_source(path)
    found = format_of(source)
    if found is None:
        return other_report(source, check=check)
    try:
        parsed = with_unused_named(source, found.parse(source))
    except FileFormatError as error:
        return refused_report(source, found.NAME, str(error), check=check)
    return adapter_report(source, found.NAME, parsed, check=check)


def format_of(source: Source) -> AdapterFormat | None:
    """The format that recognises a source; None if none does, and for LoRA of other families and
    of other kinds.
    """
    if unsupported_kind_of(source):
        return None
    return next((candidate for candidate in ADAPTER_FORMATS if candidate.recognise(source)), None)


def _check_numbers(path: Path | str, source: Source, adapter: Adapter) -> None:
    tensors = [
        tensor for update in adapter.layers.values() for tensor in tensors_of(update).values()
    ]
    tensors += [tensor for vectors in adapter.embeddings.values() for tensor in vectors.values()]
    if adapter.hypernetwork is not None:
        tensors += hypernetwork.tensors_of(adapter.hypernetwork).values()
    if adapter.edit is not None:
        tensors += edit_states.edit_tensors(adapter.edit).values()
    if all(is_finite(tensor) for tensor in tensors):
        return
    for name, tensor in named_tensors(source, adapter).items():
        if not is_finite(tensor):
            raise FileFormatError(not_finite(path, name))
