"""PyTorch pickles (.ckpt, .pt, .bin): from strangers weights only, sizes checked first, never a
fallback; and written, where other programs read nothing else.
"""

from __future__ import annotations

import io
import mmap
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, cast

from konomi.errors import FileFormatError
from konomi.storage.atomic import write_file
from konomi.storage.pickle_check import (
    LIGHTNING_CALLBACK,
    PARAMETER_DICT,
    Findings,
    ForbiddenError,
    examine,
)
from konomi.storage.sniff import FileKind, refuse, sniff

_MAX_PROGRAM = 64 << 20
"""Bytes of pickle proper (names and structure, not numbers); a checkpoint of 7 GB has about one
MiB."""
_MAX_INFLATION = 4
_MAP_FROM = 256 << 20
"""From this size on, numbers are mapped from the file instead of read, so that loading costs no
second copy."""


class _ParameterBox:
    """What a pickled ParameterDict becomes: a bag of attributes without behaviour."""


class _NamedCallback:
    """What the name of a trainer's callback becomes: nothing that could be called for an effect."""


def read_pickle(path: Path | str) -> Any:
    """Tensors and plain containers of a torch zip or legacy file, on the CPU.

    A Textual Inversion file of 2022 may hold a ParameterDict under `string_to_param`; it comes
    back as a dict. The first Stable Diffusion checkpoints use the name of a trainer's callback as
    a key; it becomes an empty class. Raises FileFormatError: not a PyTorch file, damaged, bigger
    inside than outside, or naming whatever is forbidden.
    """
    path = Path(path)
    kind = sniff(path)
    try:
        if kind is FileKind.TORCH_ZIP:
            findings, can_map = _examine_zip(path)
        elif kind is FileKind.TORCH_LEGACY:
            findings, can_map = _examine_legacy(path), False
        else:
            raise refuse(path, kind, "a PyTorch file")
    except ForbiddenError as error:
        raise _forbidden(path, str(error)) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror}).") from error
    return _load(path, findings, can_map)


def write_pickle(path: Path | str, value: Any) -> None:
    """Write tensors and plain containers as torch.save does, atomically. Raises RunError for the
    disk's refusals.
    """
    import torch

    # Through memory: torch would write the temporary name into the file, and hide the disk's words
    # behind its own.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with write_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _load(path: Path, findings: Findings, can_map: bool) -> Any:
    import torch

    allowed: list[tuple[type, str]] = (
        [(_ParameterBox, PARAMETER_DICT)] if findings.uses_parameter_dict else []
    )
    allowed += [(_NamedCallback, LIGHTNING_CALLBACK)] if findings.names_callback else []
    try:
        with torch.serialization.safe_globals(cast(Any, allowed)), warnings.catch_warnings():
            # What torch finds odd in a stranger's pickle is read, or refused in one line.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # By name, torch would take a pickle called .safetensors for the other format; mapping
            # needs the name.
            if path.suffix.lower() == ".safetensors":
                with path.open("rb") as file:
                    value = torch.load(file, map_location="cpu", weights_only=True)
            else:
                value = torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except pickle.UnpicklingError as error:
        raise _forbidden(path, str(error).splitlines()[0][:200]) from error
    except (
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        TypeError,
        AttributeError,
        IndexError,
        AssertionError,
        OSError,
    ) as error:
        raise _damaged(
            path, str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        ) from error
    if findings.uses_parameter_dict:
        value["string_to_param"] = dict(vars(value["string_to_param"])["_parameters"])
    return value


def _examine_zip(path: Path) -> tuple[Findings, bool]:
    file_size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise ForbiddenError("two archive entries of the same name")
        if (
            archive.comment
            or archive.fp is None
            or any(entry.flag_bits & 1 for entry in entries.values())
        ):
            raise ForbiddenError("an archive with a comment or a password")
        packed = sum(entry.compress_size for entry in entries.values())
        unpacked = sum(entry.file_size for entry in entries.values())
        if packed > file_size or unpacked > _MAX_INFLATION * file_size + (16 << 20):
            raise ForbiddenError(f"an archive of {file_size} bytes that unpacks to {unpacked}")
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
        program = _only_program(entries)
        if entries[program].file_size > _MAX_PROGRAM:
            raise ForbiddenError(f"a pickle program of {entries[program].file_size} bytes")
        findings = examine(io.BytesIO(archive.read(program)))
    root = program.removesuffix("data.pkl")
    for key, storage in findings.storages.items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None or entry.file_size < storage.size:
            held = "none" if entry is None else str(entry.file_size)
            raise ForbiddenError(
                f"a storage that claims {storage.size} bytes where the file holds {held}"
            )
    return findings, stored and file_size >= _MAP_FROM


def _only_program(entries: dict[str, zipfile.ZipInfo]) -> str:
    # torch takes the folder of the first entry for the root of the archive.
    root = next(iter(entries)).partition("/")[0]
    program = f"{root}/data.pkl"
    if program not in entries or sum(name.endswith("data.pkl") for name in entries) != 1:
        raise ForbiddenError("an archive whose pickle is not where torch.save puts it")
    if f"{root}/constants.pkl" in entries:
        raise ForbiddenError("a TorchScript program")
    return program


def _examine_legacy(path: Path) -> Findings:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        # A mapped file never reads further than it goes, whatever length an opcode claims.
        source = cast("IO[bytes]", view)
        for _ in range(3):  # magic number, protocol version, system description
            examine(source)
        findings = examine(source)
        keys = examine(source).value
        rest = len(view) - view.tell()
    if not isinstance(keys, list) or {str(key) for key in keys} != set(findings.storages):
        raise ForbiddenError("another set of storages than it uses")
    if findings.storage_bytes + 8 * len(keys) > rest:
        raise ForbiddenError(
            f"storages of {findings.storage_bytes} bytes where the file holds {rest}"
        )
    return findings


def _forbidden(path: Path, what: str) -> FileFormatError:
    return FileFormatError(
        f"{path}: refused, because it contains {what}, which no model needs and which may harm "
        "your computer. Ask its maker for a safetensors file."
    )


def _damaged(path: Path, reason: str) -> FileFormatError:
    return FileFormatError(f"{path}: a damaged PyTorch file ({reason}). Download it again.")
