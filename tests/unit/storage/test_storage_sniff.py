import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from konomi.storage.sniff import FileKind, refuse, sniff


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, kind)
    return buffer.getvalue()


def torch_file(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(300)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def archive(**names: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in names.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("a"))
    return buffer.getvalue()


SAFE = save({"a": torch.ones(300)})
CONTENTS = {
    FileKind.SAFETENSORS: [SAFE, save({})],
    FileKind.TORCH_ZIP: [torch_file(zipped=True)],
    FileKind.TORCH_LEGACY: [torch_file(zipped=False)],
    FileKind.PICKLE: [pickle.dumps({"a": 1})],
    FileKind.ZIP: [archive(image=b"1")],
    FileKind.PNG: [image("PNG")],
    FileKind.JPEG: [image("JPEG")],
    FileKind.WEBP: [image("WEBP")],
    FileKind.GIF: [image("GIF")],
    FileKind.BMP: [image("BMP")],
    FileKind.TIFF: [image("TIFF")],
    FileKind.HTML: [b"\n<!DOCTYPE html><html>", b"\xef\xbb\xbf<html lang=en>", b"<HTML>"],
    FileKind.LFS_POINTER: [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"],
    FileKind.GZIP: [gzip.compress(b"1", mtime=0)],
    FileKind.TAR: [tar()],
    FileKind.GGUF: [b"GGUF\x03\0\0\0"],
    FileKind.NUMPY: [b"\x93NUMPY\x01\0"],
    FileKind.JSON: [b'{"error": "not found"}'],
    FileKind.EMPTY: [b""],
    FileKind.TRUNCATED: [SAFE[:40], torch_file(zipped=True)[:-30], bytes(1000)],
    FileKind.UNKNOWN: [b"hello", b"\x01"],
}


@pytest.mark.parametrize(
    ("kind", "content"), [(kind, item) for kind, items in CONTENTS.items() for item in items]
)
@pytest.mark.parametrize("suffix", [".safetensors", ".png"])
def test_content_decides_not_the_extension(
    tmp_path: Path, kind: FileKind, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert sniff(path) is kind


@pytest.mark.parametrize("length", [0x80, 0x0280, 0x8B1F, 0x4D42, 0xD8FF, 0x5A4D])
def test_a_header_length_that_looks_like_a_magic_number_does_not_mislead(
    tmp_path: Path, length: int
) -> None:
    header = b'{"__metadata__":{"a":"b"}}'
    (tmp_path / "x").write_bytes(struct.pack("<Q", length) + header + b" " * (length - len(header)))
    assert sniff(tmp_path / "x") is FileKind.SAFETENSORS


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert sniff(tmp_path / "pipe") is FileKind.SPECIAL
    assert sniff(tmp_path) is FileKind.FOLDER
    assert sniff(tmp_path / "none") is FileKind.MISSING
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(Exception, match="cannot be opened"):
        sniff(tmp_path / "loop")


def test_the_refusal_is_a_sentence_with_the_way_out(tmp_path: Path) -> None:
    message = str(refuse(tmp_path / "x", FileKind.LFS_POINTER, "a safetensors file"))
    assert "git lfs pull" in message and message.endswith(".") and "\n" not in message
