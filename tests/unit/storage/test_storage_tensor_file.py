import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file, save, save_file

from konomi.errors import FileFormatError
from konomi.storage.hashing import sha256_file, short_hash, tensors_hash
from konomi.storage.tensor_file import read_header, read_tensors, serialised, write_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def samples() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {str(dtype): torch.randn(3, 5, generator=generator).to(dtype) for dtype in DTYPES}
    tensors["scalar"] = torch.tensor(2.5, dtype=torch.bfloat16)
    tensors["empty"] = torch.zeros(0, 7)
    tensors["transposed"] = torch.randn(4, 6, generator=generator).t()
    return tensors


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (first, second)]
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(*as_bytes)


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def build(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def test_files_read_by_the_library_and_laid_out_as_the_library_does(tmp_path: Path) -> None:
    tensors = samples()
    write_tensors(tmp_path / "x.safetensors", tensors, {"b": "é", "a": "1"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(same_bits(loaded[name], tensors[name]) for name in tensors)
    header, data = split((tmp_path / "x.safetensors").read_bytes())
    expected_header, expected_data = split(
        save({k: t.contiguous() for k, t in tensors.items()}, {"a": "1", "b": "é"})
    )
    assert header == expected_header
    assert data == expected_data


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = samples()
    write_tensors(tmp_path / "a", tensors, {"x": "1", "y": "2"})
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert tensors_hash(tensors) == tensors_hash(read_tensors(tmp_path / "a"))
    assert tensors_hash(tensors) != tensors_hash(tensors | {"scalar": torch.tensor(2.5)})


def test_reading_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in samples().items()}
    save_file(tensors, tmp_path / "x.bin", {"k": "v"})
    header = read_header(tmp_path / "x.bin")
    assert header.metadata == {"k": "v"}
    assert {name: info.shape for name, info in header.tensors.items()} == {
        k: tuple(t.shape) for k, t in tensors.items()
    }
    some = read_tensors(tmp_path / "x.bin", ["scalar", "empty"])
    assert list(some) == ["scalar", "empty"] and same_bits(some["scalar"], tensors["scalar"])
    with pytest.raises(FileFormatError, match="no tensor named nowhere"):
        read_tensors(tmp_path / "x.bin", ["nowhere"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_broken_numbers_are_never_published(
    tmp_path: Path, value: float, dtype: torch.dtype
) -> None:
    write_tensors(tmp_path / "x", {"good": torch.ones(2)})
    before = (tmp_path / "x").read_bytes()
    bad = torch.ones(3, 4)
    bad[1, 2] = value
    with pytest.raises(FileFormatError, match="lora_down holds NaN or infinity"):
        write_tensors(tmp_path / "x", {"good": torch.ones(2), "lora_down": bad.to(dtype)})
    assert (tmp_path / "x").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_types_the_format_lacks_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"z: torch\.complex128"):
        write_tensors(tmp_path / "x", {"z": torch.zeros(1, dtype=torch.complex128)})


def entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "huge shape": ({"t": entry(shape=[10**12], offsets=[0, 4 * 10**12])}, 8, "t"),
    "overflowing shape": ({"t": entry(shape=[2**62, 2**62])}, 8, "t"),
    "shape unlike size": ({"t": entry(shape=[3])}, 8, "t of shape"),
    "negative shape": ({"t": entry(shape=[-2])}, 8, "t has a shape"),
    "boolean shape": ({"t": entry(shape=[True, 2])}, 8, "t has a shape"),
    "unknown type": ({"t": entry(dtype="F3")}, 8, "unknown type 'F3'"),
    "listed type": ({"t": entry(dtype=["F32"])}, 8, "t has"),
    "backward offsets": ({"t": entry(offsets=[8, 0])}, 8, "t of shape"),
    "overlap": ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "b overlaps"),
    "same place": ({"a": entry(), "b": entry()}, 8, "overlaps"),
    "hole": ({"a": entry(), "b": entry(offsets=[12, 20])}, 20, "b lies behind a hole"),
    "cut short": ({"a": entry(), "b": entry(offsets=[8, 16])}, 12, "cut short inside b"),
    "rest": ({"a": entry()}, 12, "4 bytes follow"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "a is not declared"),
    "twice": (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{}}', 8, "twice"),
    "not json": (b"{nonsense}", 8, "damaged"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 8, "damaged|declared"),
    "numbers as metadata": ({"__metadata__": {"a": 1}, "t": entry()}, 8, "metadata"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_headers_are_refused_by_name(tmp_path: Path, lie: str) -> None:
    header, size, message = LIES[lie]
    path = tmp_path / "x.safetensors"
    path.write_bytes(build(header, b"\0" * size))
    with pytest.raises(FileFormatError, match=message):
        read_header(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_like_the_library(data: st.DataObject) -> None:
    import tempfile

    good = b"".join(
        bytes(block)
        for block in serialised({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, {"m": "x"})
    )
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        path.write_bytes(raw)
        try:
            ours = read_tensors(path)
        except FileFormatError:
            return
        theirs = load(bytes(raw))
        assert ours.keys() == theirs.keys() and all(
            same_bits(ours[name], theirs[name]) for name in ours
        )


def test_file_hashes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    assert sha256_file(tmp_path / "x", start=7) == hashlib.sha256(content[7:]).hexdigest()
    assert short_hash(tmp_path / "x") == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
