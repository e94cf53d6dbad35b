import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import konomi
from konomi.errors import FileFormatError
from konomi.storage.pickle_check import ForbiddenError, examine
from konomi.storage.pickles import read_pickle

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path: Path, value: object, *, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


class Call:
    """Pickles as the call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def rewritten(
    path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes
) -> Path:
    """A torch zip file with another pickle in it."""
    save(path, {"a": torch.ones(4)})
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/data.pkl"] = program
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (
            entries | {f"{root}/{name}": content for name, content in more.items()}
        ).items():
            archive.writestr(name, content)
    return path


def storage_program(
    *,
    count: int,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    key: str = "0",
    kind: str = "FloatStorage",
) -> bytes:
    """The pickle of one tensor with any claims."""

    def number(value: int) -> bytes:
        raw = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + raw

    def word(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"("
        + word("storage")
        + f"ctorch\n{kind}\n".encode()
        + word(key)
        + word("cpu")
        + number(count)
        + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\x00"
        + numbers(sizes)
        + numbers(strides)
    )
    return b"\x80\x02" + call + b"\x89" + hooks + b"tR."


@BOTH
def test_model_files_are_read_like_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    shared = torch.randn(4, 6)
    value = {
        "state_dict": torch.nn.Linear(3, 4).state_dict(),
        "half": torch.randn(3).half(),
        "bf16": torch.randn(3).bfloat16(),
        "int": torch.arange(5),
        "flag": torch.tensor([True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "view": shared[1:3, ::2],
        "transposed": shared.t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "epoch": 3, "lr": 0.5, "name": "好み", "none": None, "yes": True, "bytes": b"\x00\xff",
        "big": 2**40,
        "nested": [1, (2, "x"), {"k": [torch.ones(1)]}], "set": {1, 2}, "size": torch.Size([1, 2]),
        320: (1, 2),
    }  # fmt: skip
    path = save(tmp_path / "x.png", value, zipped=zipped)
    ours, theirs = read_pickle(path), torch.load(path, weights_only=True)
    assert ours.keys() == theirs.keys()
    for name, item in theirs.items():
        if isinstance(item, torch.Tensor):
            assert torch.equal(ours[name], item) and ours[name].dtype == item.dtype
    plain = [
        name
        for name, item in theirs.items()
        if not isinstance(item, torch.Tensor) and name != "nested"
    ]
    assert {name: ours[name] for name in plain if name != "state_dict"} == {
        name: theirs[name] for name in plain if name != "state_dict"
    }
    assert torch.equal(ours["state_dict"]["weight"], value["state_dict"]["weight"])  # type: ignore[index]


def test_a_2022_textual_inversion_keeps_its_parameter_dict(tmp_path: Path) -> None:
    vectors = torch.nn.Parameter(torch.randn(2, 768))
    value = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": torch.nn.ParameterDict({"*": vectors}),
    }
    read = read_pickle(save(tmp_path / "x.pt", value))
    assert type(read["string_to_param"]) is dict
    assert torch.equal(read["string_to_param"]["*"], vectors)
    assert not any("ParameterDict" in str(item) for item in torch.serialization.get_safe_globals())
    for elsewhere in (
        {"x": value["string_to_param"]},
        value | {"again": torch.nn.ParameterDict()},
        [value],
    ):
        with pytest.raises(FileFormatError, match="ParameterDict"):
            read_pickle(save(tmp_path / "y.pt", elsewhere))


@BOTH
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("suffix", ["ckpt", "pt", "bin", "safetensors"])
def test_malicious_pickles_do_nothing_and_are_named(
    tmp_path: Path, zipped: bool, nested: bool, suffix: str
) -> None:
    prize = tmp_path / "pwned"
    attack: object = Call(os.system, f"touch {prize}")
    if nested:
        inner = io.BytesIO()
        torch.save(attack, inner)
        attack = {"state_dict": [Call(torch.storage._load_from_bytes, inner.getvalue())]}
    path = save(tmp_path / f"x.{suffix}", {"w": torch.ones(2), "x": attack}, zipped=zipped)
    with pytest.raises(
        FileFormatError, match=r"torch\.storage\._load_from_bytes" if nested else r"posix\.system"
    ):
        read_pickle(path)
    assert not prize.exists()


FORBIDDEN: dict[str, tuple[object, str]] = {
    "eval": (Call(eval, "1"), r"builtins\.eval"),
    "exec": (Call(exec, "1"), r"builtins\.exec"),
    "getattr": (Call(getattr, "a", "upper"), r"builtins\.getattr"),
    "allocation": (Call(bytearray, 8), r"builtins\.bytearray"),
    "storage object": (Call(torch.FloatStorage, 8), "FloatStorage"),
    "tensor class": (Call(torch.FloatTensor, 8), "FloatTensor"),
    "numpy": (np.float64(1.0), "numpy"),
    "module": (torch.nn.Linear(1, 1), "Linear|stored object"),
    "sparse": (torch.eye(2).to_sparse(), "_rebuild_sparse_tensor|_get_layout"),
    "expanded": (torch.zeros(1).expand(10**6, 10**6), r"shape \[1000000, 1000000\]"),
    "tuple key": ({(1, 2): 3}, "dictionary key"),
}


@BOTH
@pytest.mark.parametrize("case", FORBIDDEN)
def test_whatever_a_model_does_not_need_is_refused_by_name(
    tmp_path: Path, zipped: bool, case: str
) -> None:
    value, message = FORBIDDEN[case]
    with pytest.raises(FileFormatError, match=message):
        read_pickle(save(tmp_path / "x.pt", {"a": value}, zipped=zipped))


def test_a_bare_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FileFormatError, match="bare Python pickle"):
        read_pickle(tmp_path / "x.ckpt")


def test_the_sample_program_is_a_good_one(tmp_path: Path) -> None:
    program = storage_program(count=4, sizes=(2, 2), strides=(2, 1))
    assert torch.equal(read_pickle(rewritten(tmp_path / "x.pt", program)), torch.ones(2, 2))
    assert examine(io.BytesIO(program)).storage_bytes == 16


CLAIMS = {
    "a storage of 10^12 numbers": storage_program(count=10**12, sizes=(10**12,), strides=(1,)),
    "a view of 10^12 numbers": storage_program(count=4, sizes=(10**6, 10**6), strides=(0, 0)),
    "a view past the end": storage_program(count=4, sizes=(2,), strides=(4,)),
    "a negative size": storage_program(count=4, sizes=(-1,), strides=(1,)),
    "a negative count": storage_program(count=-1, sizes=(1,), strides=(1,)),
    "a missing record": storage_program(count=4, sizes=(4,), strides=(1,), key="7"),
    "a record outside": storage_program(count=4, sizes=(4,), strides=(1,), key="../version"),
    "an unknown storage": storage_program(count=4, sizes=(4,), strides=(1,), kind="QInt8Storage"),
    "wider numbers than the record": storage_program(
        count=4, sizes=(4,), strides=(1,), kind="DoubleStorage"
    ),
    "many views of one storage": b"\x80\x02]("
    + storage_program(count=4, sizes=(4,), strides=(1,))[2:-1] * 1000
    + b"e.",
    "a stored module": b"\x80\x02(X\x06\x00\x00\x00module"
    b"X\x01\x00\x00\x00aX\x01\x00\x00\x00bX\x01\x00\x00\x00ctQ.",
    "deeply nested keys": b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s.",
    "a wild memo index": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "a long string that is not there": b"\x80\x02X\xff\xff\xff\xffab.",
    "an opcode of another protocol": pickle.dumps(bytearray(3), protocol=5),
    "stack underflow": b"\x80\x02\x87.",
    "no end": b"\x80\x02N",
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_checked_before_anything_is_allocated(tmp_path: Path, claim: str) -> None:
    with pytest.raises(FileFormatError) as caught:
        read_pickle(rewritten(tmp_path / "x.pt", CLAIMS[claim]))
    assert "\n" not in str(caught.value)
    if claim not in ("a missing record", "a record outside", "wider numbers than the record"):
        with pytest.raises((ForbiddenError, ValueError)):
            findings = examine(io.BytesIO(CLAIMS[claim]))
            if findings.storage_bytes > 10**9:
                raise ForbiddenError("its size, which is checked against the file")


def inflating(path: Path, program: bytes, record: str, size_mib: int) -> Path:
    """A torch zip file with one record of zeros that takes a thousandth of its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if record != "data.pkl":
            archive.writestr("a/data.pkl", program)
        with archive.open(f"a/{record}", "w", force_zip64=True) as file:
            for _ in range(size_mib):
                file.write(bytes(2**20))
    return path


@pytest.mark.slow
def test_bombs_stay_under_a_gigabyte(tmp_path: Path) -> None:
    inflating(
        tmp_path / "unused.pt", storage_program(count=4, sizes=(4,), strides=(1,)), "data/1", 1100
    )
    inflating(
        tmp_path / "used.pt",
        storage_program(count=2**28, sizes=(2**28,), strides=(1,)),
        "data/0",
        1100,
    )
    inflating(tmp_path / "program.pt", b"", "data.pkl", 100)
    for claim in ("a storage of 10^12 numbers", "a view of 10^12 numbers"):
        rewritten(tmp_path / f"{len(claim)}.pt", CLAIMS[claim])
    legacy = save(tmp_path / "legacy.pt", torch.ones(4), zipped=False).read_bytes()
    (tmp_path / "legacy.pt").write_bytes(
        legacy.replace(b"K\x04N", b"\x8a\x06\x00\x00\x00\x00\x00\x01N")
    )
    watch = (
        "import re, sys\nfrom pathlib import Path\nfrom konomi.errors import FileFormatError\n"
        "from konomi.storage.pickles import read_pickle\nrefused = 0\n"
        "for path in Path(sys.argv[1]).glob('*.pt'):\n"
        "    try: read_pickle(path)\n"
        "    except FileFormatError: refused += 1\n"
        "print(refused, re.search(r'VmHWM:\\s*(\\d+) kB', "
        "Path('/proc/self/status').read_text())[1])\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", watch, str(tmp_path)], capture_output=True, text=True, check=True
    )
    refused, peak_kib = map(int, answer.stdout.split())
    assert refused == len(list(tmp_path.glob("*.pt"))) == 6
    assert peak_kib < 2**20


@BOTH
def test_any_damage_is_one_clear_line(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "x.pt", OrderedDict(a=torch.randn(40), b=torch.ones(3)), zipped=zipped)
    raw = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for round_number in range(150):
        damaged = bytearray(raw)
        for place in generator.integers(0, len(raw), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(
            damaged[: generator.integers(1, len(raw))] if round_number % 2 else damaged
        )
        try:
            read_pickle(path)
        except FileFormatError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused >= 75


@BOTH
def test_a_damaged_number_of_the_protocol_makes_no_noise(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "x.pt", OrderedDict(a=torch.ones(3)), zipped=zipped)
    raw = path.read_bytes()
    for place in (at for at in range(len(raw) - 1) if raw[at : at + 2] == b"\x80\x02"):
        path.write_bytes(raw[: place + 1] + b"\xa3" + raw[place + 2 :])
        with suppress(FileFormatError):
            read_pickle(path)


def test_nothing_in_the_source_loads_unsafely() -> None:
    unsafe = re.compile(
        r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|yaml\.load|shell\s*=\s*True|trust_remote_code"
        r"|\bpickle\.loads?\(|\bos\.system\("
    )
    found = [
        f"{path.name}:{number}"
        for path in Path(konomi.__file__).parent.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if unsafe.search(line)
    ]
    assert found == []


def lightning_callback(monkeypatch):
    """A class with the name that the first Stable Diffusion checkpoints hold; gone again before
    the file is read.
    """
    import sys
    import types

    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    cls = type("ModelCheckpoint", (), {"__module__": name})
    sys.modules[name].ModelCheckpoint = cls
    return cls


def test_the_name_of_a_trainers_callback_is_read_as_a_key_and_nothing_else(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        callback = lightning_callback(patch)
        weights = {"weight": torch.arange(4.0)}
        torch.save(
            {"state_dict": weights, "callbacks": {callback: {"monitor": "loss"}}},
            tmp_path / "model.ckpt",
        )
        torch.save({"state_dict": weights, "hook": callback()}, tmp_path / "object.ckpt")
    value = read_pickle(tmp_path / "model.ckpt")
    assert torch.equal(value["state_dict"]["weight"], torch.arange(4.0))
    assert list(value["callbacks"].values()) == [{"monitor": "loss"}]
    with pytest.raises(FileFormatError, match="ModelCheckpoint"):
        read_pickle(tmp_path / "object.ckpt")


@BOTH
def test_a_pickle_named_safetensors_is_read_as_what_it_is(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "renamed.safetensors"
    torch.save({"weight": torch.arange(3.0)}, path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(read_pickle(path)["weight"], torch.arange(3.0))


def test_an_odd_escape_in_a_strangers_string_is_nobodys_warning() -> None:
    with pytest.raises(ForbiddenError, match="STRING"):
        examine(io.BytesIO(b"S'a\\q'\n."))
