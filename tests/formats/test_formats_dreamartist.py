"""DreamArtist's pairs of files: NAME and NAME-neg, as learned words or with a LoRA for each
branch.
"""

from dataclasses import replace

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LowRank
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter

KEY = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def half(seed):
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(2, 768, generator=generator), torch.randn(1280, 2, generator=generator)
    return Adapter(layers={KEY: LowRank(down, up, alpha=2.0)}, family="sd1")


def pair(word="sks", parts=("text_encoder",)):
    words = {
        word: {part: torch.randn(3, 768) for part in parts},
        f"{word}-neg": {p: torch.randn(6, 768) for p in parts},
    }
    return replace(half(1), embeddings=words, negative=half(2))


def same(a, b):
    return (
        all(torch.equal(a[word][part], b[word][part]) for word in a for part in a[word])
        and a.keys() == b.keys()
    )


def test_a_pair_of_loras_is_written_as_two_files_and_read_as_one(tmp_path):
    written = pair()
    path, beside = tmp_path / "mine.safetensors", tmp_path / "mine-neg.safetensors"
    write_adapter(written, path)
    assert sorted(tmp_path.iterdir()) == [beside, path]
    read = read_adapter(path)
    assert same(read.embeddings, written.embeddings)
    assert torch.equal(read.layers[KEY].up, written.layers[KEY].up)
    assert torch.equal(read.negative.layers[KEY].up, written.negative.layers[KEY].up)
    # Each alone is an ordinary LoRA with its word, for programs that know no branches.
    only = read_adapter(beside)
    assert list(only.embeddings) == ["sks-neg"] and only.negative is None
    assert inspect_file(beside).metadata["ss_output_name"] == "mine-neg"
    beside.unlink()
    lone = read_adapter(path)
    assert list(lone.embeddings) == ["sks"] and lone.negative is None
    # Converting keeps both.
    write_adapter(read, tmp_path / "again.safetensors", dtype=torch.float16)
    again = read_adapter(tmp_path / "again.safetensors")
    assert again.negative.layers[KEY].up.dtype == torch.float16


def test_a_file_that_only_happens_to_be_called_so_is_no_half(tmp_path):
    path = tmp_path / "mine.safetensors"
    write_adapter(replace(half(1), embeddings={"sks": {"text_encoder": torch.ones(1, 768)}}), path)
    write_adapter(half(2), tmp_path / "mine-neg.safetensors")
    assert read_adapter(path).negative is None
    (tmp_path / "plain.safetensors").write_bytes((tmp_path / "mine-neg.safetensors").read_bytes())
    write_adapter(pair(), tmp_path / "other.safetensors")
    (tmp_path / "other-neg.safetensors").rename(tmp_path / "plain-neg.safetensors")
    assert read_adapter(tmp_path / "plain.safetensors").negative is None


def test_a_broken_half_is_named(tmp_path):
    path = tmp_path / "mine.safetensors"
    write_adapter(pair(), path)
    from safetensors.torch import load_file, save_file

    beside = tmp_path / "mine-neg.safetensors"
    tensors = load_file(beside)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, beside)
    with pytest.raises(FileFormatError, match=rf"mine-neg\.safetensors: {name} holds NaN"):
        read_adapter(path)
    save_file({n: t for n, t in tensors.items() if n != name}, beside)
    with pytest.raises(FileFormatError, match=r"mine-neg\.safetensors: .*"):
        read_adapter(path)
    beside.write_bytes(beside.read_bytes()[:100])
    with pytest.raises(FileFormatError, match=r"mine-neg\.safetensors"):
        read_adapter(path)


@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_formats_without_branches_refuse_a_pair(tmp_path, target):
    with pytest.raises(FileFormatError, match="only kohya's files hold a LoRA for each branch"):
        write_adapter(pair(), tmp_path / "out", target)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_words_is_two_files_of_the_web_ui(tmp_path):
    words = pair().embeddings
    write_adapter(Adapter(embeddings=words, family="sd1"), tmp_path / "sks.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sks-neg.safetensors",
        "sks.safetensors",
    ]
    assert same(read_adapter(tmp_path / "sks.safetensors").embeddings, words)
