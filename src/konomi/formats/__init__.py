"""Files of other tools and of konomi: read to an Adapter, written back, inspected, converted.

A format is one module with NAME, `recognise(source)`, `parse(source)` and, where konomi writes it,
`write(adapter, path)`. Adding one is that file and a line in ADAPTER_FORMATS.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from konomi.errors import FileFormatError
from konomi.formats import cloneofsimo, diffusers_lora, kohya, peft_lora
from konomi.formats.family import odd_context_layer
from konomi.formats.layers import tensors_of
from konomi.formats.report import FileReport, adapter_report, named_tensors, other_report
from konomi.formats.source import Parsed, Source, open_source
from konomi.storage.tensor_file import is_finite

if TYPE_CHECKING:
    import torch

    from konomi.adapters.adapter import Adapter
    from konomi.formats.ldm_keys import UNetLayout

Target = Literal["kohya", "diffusers", "peft", "webui"]
TARGETS: tuple[Target, ...] = ("kohya", "diffusers", "peft", "webui")


class AdapterFormat(Protocol):
    """What a format's module offers for reading."""

    NAME: str

    def recognise(self, source: Source) -> bool: ...
    def parse(self, source: Source) -> Parsed: ...


ADAPTER_FORMATS: tuple[AdapterFormat, ...] = (kohya, diffusers_lora, peft_lora, cloneofsimo)


def read_adapter(path: Path | str) -> Adapter:
    """Read an adapter of any known format, recognised by its content.

    Raises FileFormatError naming the file, and the tensor where one is at fault: unpaired halves, rank 0, widths that
    do not fit, NaN or infinity, layers of no known name; or saying what the file is if it holds no adapter.
    """
    source = open_source(path)
    found = adapter_format(source)
    if found is None:
        report = other_report(source, check=False)
        raise FileFormatError(f"{path}: holds no LoRA that konomi knows; it is a file of kind {report.kind!r}.")
    parsed = found.parse(source)
    if parsed.unknown:
        more = f" and {len(parsed.unknown) - 1} more" if len(parsed.unknown) > 1 else ""
        raise FileFormatError(f"{path}: {parsed.unknown[0]}{more}: konomi knows no such layer, so nothing was loaded.")
    if odd := odd_context_layer(parsed.adapter.layers):
        raise FileFormatError(f"{path}: {odd} reads text states of another width than the layers before it.")
    _check_numbers(path, source, parsed.adapter)
    return parsed.adapter


def write_adapter(
    adapter: Adapter,
    path: Path | str,
    to: Target = "kohya",
    *,
    dtype: torch.dtype | None = None,
    layout: UNetLayout | None = None,
    replace_folder: bool = False,
) -> None:
    """Write an adapter for other tools; `webui` is kohya's format, which every web UI reads.

    `dtype` None keeps each tensor's type. `layout` names the blocks of an SDXL-like UNet that is not SDXL's size.
    `replace_folder`: a PEFT folder of that name is replaced; otherwise it is an error.
    Raises FileFormatError for what the format cannot hold and for NaN, RunError for the disk's refusals.
    """
    if to in ("kohya", "webui"):
        kohya.write(adapter, path, dtype=dtype, layout=layout)
    elif to == "diffusers":
        diffusers_lora.write(adapter, path, dtype=dtype)
    elif to == "peft":
        peft_lora.write(adapter, path, dtype=dtype, replace_folder=replace_folder)
    else:
        raise FileFormatError(f"{to!r} is no format to convert to; known are {', '.join(TARGETS)}.")


def convert_adapter(source: Path | str, target: Path | str, to: Target = "kohya") -> Adapter:
    """Read one file and write it in another format. Returns what was read."""
    adapter = read_adapter(source)
    if to in ("kohya", "webui") and Path(target).suffix == "":
        raise FileFormatError(f"{target}: a file name ending in .safetensors is wanted.")
    name = Path(target).stem if Path(target).suffix else Path(target).name
    write_adapter(replace(adapter, name=adapter.name or name), target, to)
    return adapter


def inspect_file(path: Path | str, *, check: bool = True) -> FileReport:
    """What a model or adapter file is. With `check`, its numbers and hashes too, which reads the whole file.

    Raises FileFormatError if it is no model file at all (a web page, a git-LFS pointer, cut short, hostile ...).
    """
    source = open_source(path)
    found = adapter_format(source)
    if found is None:
        return other_report(source, check=check)
    return adapter_report(source, found.NAME, found.parse(source), check=check)


def adapter_format(source: Source) -> AdapterFormat | None:
    """The format that recognises a source; None if none does."""
    return next((candidate for candidate in ADAPTER_FORMATS if candidate.recognise(source)), None)


def _check_numbers(path: Path | str, source: Source, adapter: Adapter) -> None:
    tensors = [tensor for update in adapter.layers.values() for tensor in tensors_of(update).values()]
    tensors += [tensor for vectors in adapter.embeddings.values() for tensor in vectors.values()]
    if all(is_finite(tensor) for tensor in tensors):
        return
    for name, tensor in named_tensors(source, adapter).items():
        if not is_finite(tensor):
            raise FileFormatError(f"{path}: {name} holds NaN or infinity; the file is broken. Use another save of it.")
