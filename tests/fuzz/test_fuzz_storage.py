"""Strangers' model files, as bytes: headers of safetensors, pickles, anything that claims to be
something.
"""

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import bounded, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from konomi.config.parse import parse_json, parse_toml
from konomi.storage.pickles import read_pickle
from konomi.storage.sniff import sniff
from konomi.storage.tensor_file import read_header, read_tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning"
)

numbers = st.sampled_from([0, 1, -1, 4, 16, 64, 2**31, 2**63, 2**64, 10**400]) | st.integers(-3, 70)
names = st.sampled_from(
    ["a", "a.weight", "__metadata__", "", "\0", "../a", "\x1b[2J", "\u202e", "\ud800", "é☂"]
)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | names | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "I64", "BOOL", "", 7, None])
        | anything,
        "shape": st.lists(numbers, max_size=4) | anything,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2) | anything,
    }
)
headers = st.dictionaries(names, entries | anything, max_size=4)


@fuzzed
@given(headers, st.binary(max_size=80), st.integers(-2, 2))
def test_safetensors_headers_of_any_content(
    tmp_path: Path, header: dict[str, Any], data: bytes, off: int
) -> None:
    raw = json.dumps(header).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", max(len(raw) + off, 0)) + raw + data)
    with bounded():
        read_header(file)
        read_tensors(file)


def torch_bytes(*, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    value = {
        "state_dict": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)},
        "step": 3,
    }
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


SOUND = (
    torch_bytes(zipped=True),
    torch_bytes(zipped=False),
    save({"a": torch.ones(3), "b": torch.ones(2, 2)}),
)


@fuzzed
@given(
    st.sampled_from(SOUND),
    st.lists(st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=4)), max_size=6),
    st.integers(0, 2**20),
    st.sampled_from(["a.pt", "a.safetensors", "a.ckpt"]),
)
def test_files_with_bytes_changed_and_cut_off(
    tmp_path: Path, sound: bytes, changes: list[tuple[int, bytes]], end: int, name: str
) -> None:
    content = bytearray(sound)
    for place, new in changes:
        place %= len(content)
        content[place : place + len(new)] = new
    file = tmp_path / name
    file.write_bytes(content[: end % (2 * len(content))])
    sniff(file)
    for read in (read_header, read_tensors, read_pickle):
        with bounded():
            read(file)


# Protocol, containers, memo, globals, calls, text, numbers, STOP: what a hostile pickle is made of.
operations = st.sampled_from(
    [
        b"\x80\x02",
        b"]",
        b"}",
        b")",
        b"(",
        b"a",
        b"e",
        b"s",
        b"u",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"q\0",
        b"h\0",
        b"R",
    ]
    + [
        b"b",
        b"Q",
        b"0",
        b"2",
        b"N",
        b"K\x01",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x02\xff\x7f",
        b"X\x01\0\0\0a",
        b"\x88",
    ]
    + [
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"cos\nsystem\n",
        b"S'a\\q'\n",
        b"I01\n",
    ]
    + [
        b"ccollections\nOrderedDict\n",
        b"X\x07\0\0\0storage",
        b"X\x01\0\0\x000",
        b"X\x03\0\0\0cpu",
        b".",
    ]
)


@fuzzed
@given(st.lists(operations, max_size=40))
def test_pickles_of_any_program(tmp_path: Path, program: list[bytes]) -> None:
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"".join(program))
        archive.writestr("a/version", "3")
        archive.writestr("a/data/0", b"\0" * 64)
    with bounded():
        read_pickle(file)


@fuzzed
@given(
    st.text() | anything.map(json.dumps) | st.binary(), st.sampled_from([parse_json, parse_toml])
)
def test_texts_are_values_or_a_value_error(text: str | bytes, parse: Any) -> None:
    if isinstance(text, bytes) and parse is parse_toml:
        text = text.decode("latin-1")
    with bounded():
        try:
            parse(text)
        except ValueError as error:
            assert str(error)
