"""Base folders and single files with anything in their configs, vocabularies and headers: only a
KonomiError leaves.
"""

import json
import os
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import CHARACTERS, bounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from konomi.config.sections import TextConfig
from konomi.errors import KonomiError
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.models.tokenizer import vocabulary_of_merges

EXAMPLES = int(os.environ.get("KONOMI_FUZZ_EXAMPLES", "12"))
few = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.sampled_from([10**9, -(10**9), 10**400, 0.0,
    -1.5, 1e308]),
    st.text(CHARACTERS, max_size=5), st.just("\ud83d"), st.lists(st.integers(-2, 64), max_size=5),
    st.just([[[[]]]]),
    st.dictionaries(st.text(CHARACTERS, max_size=3), st.integers(), max_size=2),
)  # fmt: skip
CONFIGS = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
WORDS = (("c", "a"), ("ca", "t</w>"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "a"
    save_folder(
        random_base("sd1", vocabulary=vocabulary_of_merges(WORDS)), path, dtype=torch.float32
    )
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "a.safetensors"
    save_single_file(
        random_base("sd1", vocabulary=vocabulary_of_merges(WORDS)), path, dtype=torch.float32
    )
    return path


def use(path: Path) -> None:
    """All that a run would ask of it, or one line."""
    with bounded():
        base = load_base(path)
        assert all("\n" not in note for note in base.notes)
        base.encode_captions(["a cat!"], TextConfig())
        base.tokens("cat")
        base.select_layers("attention")
        base.encode_images(torch.zeros(1, 3, 64, 64))


@few
@given(data=st.data())
def test_configs(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    changed = tmp_path / "a"
    shutil.copytree(folder, changed, dirs_exist_ok=True)
    path = changed / data.draw(st.sampled_from(CONFIGS))
    table = json.loads((folder / path.relative_to(changed)).read_text())
    names = data.draw(
        st.lists(
            st.sampled_from([*table, "trained_betas", "prediction_type"]), min_size=1, max_size=2
        )
    )
    path.write_text(json.dumps({**table, **{name: data.draw(ODD) for name in names}}))
    use(changed)


@few
@given(data=st.data())
def test_vocabularies(folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    changed = tmp_path / "a"
    shutil.copytree(folder, changed, dirs_exist_ok=True)
    name = data.draw(
        st.sampled_from(["vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer.json"])
    )
    path = changed / "tokenizer" / name
    text = (
        (folder / "tokenizer" / name).read_text()
        if name != "tokenizer.json"
        else '{"model": {"vocab": {}, "merges": []}}'
    )
    if name.endswith(".json") and data.draw(st.booleans()):
        table = json.loads(text)
        key = data.draw(st.sampled_from(list(table)))
        text = json.dumps({**table, key: data.draw(ODD)})
    else:
        start = data.draw(st.integers(0, len(text)))
        text = (
            text[:start]
            + data.draw(st.text(CHARACTERS, max_size=6))
            + text[start + data.draw(st.integers(0, 9)) :]
        )
    path.write_text(text, errors="surrogatepass")
    if name == "tokenizer.json":
        (changed / "tokenizer" / "vocab.json").unlink()
    use(changed)


@few
@given(data=st.data())
def test_headers(file: Path, tmp_path: Path, data: st.DataObject) -> None:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    name = data.draw(st.sampled_from([key for key in header if key != "__metadata__"]))
    what = data.draw(st.sampled_from(["rename", "shape", "metadata", "configs", "cut"]))
    if what == "rename":
        header[
            data.draw(st.text(CHARACTERS, max_size=20)) + name[data.draw(st.integers(0, 60)) :]
        ] = header.pop(name)
    elif what == "shape":
        header[name]["shape"] = data.draw(ODD)
    elif what == "metadata":
        key = data.draw(
            st.sampled_from(["konomi.configs", "konomi.vocabulary", "modelspec.prediction_type"])
        )
        header["__metadata__"][key] = data.draw(
            st.one_of(st.text(CHARACTERS, max_size=20), st.just("[" * 100_000))
        )
    elif what == "configs":
        told = json.loads(header["__metadata__"]["konomi.configs"])
        part = data.draw(st.sampled_from(list(told)))
        told[part] = data.draw(
            st.one_of(ODD, st.fixed_dictionaries(dict.fromkeys(told[part], ODD)))
        )
        header["__metadata__"]["konomi.configs"] = json.dumps(told)
    changed = json.dumps(header).encode()
    body = raw[8 + length :]
    if what == "cut":
        body = body[: data.draw(st.integers(0, len(body)))]
    path = tmp_path / "b.safetensors"
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + body)
    use(path)


def test_deep_lists_in_a_checkpoint(tmp_path: Path) -> None:
    program = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    with zipfile.ZipFile(tmp_path / "deep.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(KonomiError, match=r"deep\.ckpt"):
        load_base(tmp_path / "deep.ckpt")


def test_deep_configs(folder: Path, tmp_path: Path) -> None:
    for name in (*CONFIGS, "tokenizer/vocab.json", "tokenizer/special_tokens_map.json"):
        changed = tmp_path / name.replace("/", "-")
        shutil.copytree(folder, changed)
        (changed / name).write_text("[" * 200_000)
        with pytest.raises(KonomiError):
            base = load_base(changed)
            base.encode_captions(["a"], TextConfig())
