"""Strangers' data sets: whatever lies in tables, captions, archives and pictures."""

import io
import json
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bounds import CHARACTERS, bounded, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.encodings import decode_text
from konomi.data.images import read_image
from konomi.data.kohya_dataset import read_dataset_toml
from konomi.data.sources import scan

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

words = st.sampled_from(
    ["a.png", "./a.png", "../a.png", "b/c.png", "", "\0", "~nosuchuser", "é☂", "\ud800", "9" * 400]
)
texts = st.one_of(words, st.text(CHARACTERS, max_size=12))
numbers = st.one_of(
    st.integers(-5, 5), st.just(10**400), st.just(2**63), st.floats(width=32), st.booleans()
)
plain = st.one_of(st.none(), numbers, texts)
columns = st.sampled_from(["file_name", "text", "caption", "captions", "name", "tags", "x"])
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(columns, inner, max_size=3)
)


def scan_and_read(path: Path | str) -> None:
    manifest = scan(DataConfig(sources=(SourceConfig(path=str(path), trigger="sks"),)))
    for record in manifest.records:
        with bounded():
            read_image(record.locator, mask=record.mask)


def picture(kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((20, 12)).convert("RGB").save(stream, kind)
    return stream.getvalue()


PICTURE = picture()


def folder_of(tmp_path: Path, files: dict[str, bytes]) -> Path:
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Some bytes changed, often near the start or end, sometimes cut off or doubled."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        near = draw(st.sampled_from([64, 256, len(data)]))
        place = draw(st.integers(0, min(near, len(data)) - 1))
        place = len(data) - 1 - place if draw(st.booleans()) else place
        data[place] = draw(st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255)))
    cut = draw(st.sampled_from([None, None, None, 1, len(data) // 2, -1, -20]))
    return bytes(data[:cut])


@fuzzed
@given(st.binary(max_size=60))
def test_captions(data: bytes) -> None:
    with bounded():
        assert isinstance(decode_text(data, "x.txt"), str)


@fuzzed
@given(rows=st.lists(st.dictionaries(columns, values, max_size=4), max_size=4), flip=st.booleans())
def test_metadata_tables(tmp_path: Path, rows: list[dict[str, Any]], flip: bool) -> None:
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    table = lines.replace(b'"', b"'", 1) if flip else lines
    with bounded():
        scan_and_read(folder_of(tmp_path, {"a.png": PICTURE, "metadata.jsonl": table}))
    kohya = json.dumps(dict(enumerate(rows)) | {"a.png": rows[0] if rows else 1}).encode()
    folder_of(tmp_path, {"metadata.jsonl": b"", "m.json": kohya})
    with bounded():
        scan_and_read(tmp_path / "set" / "m.json")


@fuzzed
@given(header=texts, cells=st.lists(texts, max_size=6))
def test_csv_tables(tmp_path: Path, header: str, cells: list[str]) -> None:
    table = f"file_name,{header}\n" + "\n".join(f"a.png,{cell}" for cell in cells)
    with bounded():
        folder = folder_of(
            tmp_path, {"a.png": PICTURE, "metadata.csv": table.encode("utf-8", "surrogatepass")}
        )
        scan_and_read(folder)


KEYS = st.sampled_from(
    [
        *(
            "image_dir",
            "metadata_file",
            "class_tokens",
            "is_reg",
            "num_repeats",
            "keep_tokens",
            "shuffle_caption",
        ),
        *(
            "resolution",
            "batch_size",
            "enable_bucket",
            "min_bucket_reso",
            "bucket_reso_steps",
            "flip_aug",
        ),
        *("caption_extension", "caption_prefix", "enable_wildcard"),
    ]
)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + "}"
    return '""' if value is None else json.dumps(value)


@fuzzed
@given(
    tables=st.tuples(*[st.dictionaries(KEYS, values, max_size=3)] * 3),
    garbage=st.sampled_from(["", "x = [", "[[", "\0", "image_dir = 1", "a" * 5000, "[" * 3000]),
)
def test_dataset_tomls(tmp_path: Path, tables: tuple[dict[str, Any], ...], garbage: str) -> None:
    folder_of(tmp_path, {"a.png": PICTURE})
    text = "\n".join(
        f"{head}\n" + "\n".join(f"{key} = {toml(value)}" for key, value in table.items())
        for head, table in zip(
            ("[general]", "[[datasets]]", '[[datasets.subsets]]\nimage_dir = "set"'), tables
        )
    )
    path = tmp_path / "d.toml"
    path.write_bytes(f"{text}\n{garbage}".encode("utf-8", "surrogatepass"))
    with bounded():
        read_dataset_toml(path)
    with bounded():
        scan_and_read(path)


def zipped(method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as target:
        for name, content in {
            "a.png": PICTURE,
            "a.txt": b"a caption",
            "é/b.png": PICTURE,
            "metadata.csv": b"x",
        }.items():
            target.writestr(name, content)
    return stream.getvalue()


@fuzzed
@given(
    st.sampled_from(
        [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    ).flatmap(lambda method: damaged(zipped(method)))
)
def test_zips(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / f"{time.monotonic_ns()}.zip"
    path.write_bytes(data)
    with bounded():
        scan_and_read(path)
    path.unlink()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        for name, content in {
            "1.png": PICTURE,
            "1.txt": b"a caption",
            "2.png": PICTURE,
            "2.json": b'{"text": 1}',
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@fuzzed
@given(damaged(tarred()))
def test_tars(tmp_path: Path, data: bytes) -> None:
    pytest.importorskip("webdataset")
    path = tmp_path / "shard.tar"
    path.write_bytes(data)
    with bounded():
        scan_and_read(path)


def heic() -> bytes:
    try:
        import pillow_heif
    except ImportError:
        return b"\0\0\0\x18ftypheic" + bytes(40)
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.linear_gradient("L").resize((64, 64)).convert("RGB")).save(stream)
    return stream.getvalue()


MAKERS: tuple[Callable[[], bytes], ...] = (
    *(
        lambda kind=kind: picture(kind)
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
    ),
    *(lambda kind=kind: picture(kind) for kind in ("PPM", "QOI", "TGA", "JPEG2000")),
    heic,
)


@fuzzed
@given(st.sampled_from(MAKERS).flatmap(lambda make: damaged(make())))
def test_pictures(tmp_path: Path, data: bytes) -> None:
    with bounded():
        scan_and_read(
            folder_of(tmp_path, {"a.png": PICTURE, "b.img": data, "a-masklabel.png": data})
        )


@fuzzed
@given(names=st.lists(st.binary(min_size=1, max_size=20), max_size=5))
def test_file_names(tmp_path: Path, names: list[bytes]) -> None:
    folder = folder_of(tmp_path, {"a.png": PICTURE})
    for name in names:
        for suffix in (b".png", b".txt"):
            plain_name = name.replace(b"/", b"_").replace(b"\0", b"_") + suffix
            with open(os.path.join(os.fsencode(folder), plain_name), "wb") as file:  # noqa: PTH118, PTH123
                file.write(PICTURE if suffix == b".png" else b"text")
    with bounded():
        scan_and_read(folder)
