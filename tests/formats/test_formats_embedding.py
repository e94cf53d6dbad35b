"""Embedding files: web UIs' and diffusers', read, written, converted, refused; pictures against
diffusers itself.
"""

import base64
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.config.sections import TextConfig
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import convert_adapter, inspect_file, read_adapter, write_adapter
from konomi.models.random_base import random_base
from konomi.models.save import save_folder

VECTORS = torch.randn(3, 768, generator=torch.Generator().manual_seed(0))
LARGE = torch.randn(3, 1280, generator=torch.Generator().manual_seed(1))


def webui_pt(tensor: torch.Tensor, **facts: Any) -> dict[str, Any]:
    table = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": tensor},
        "name": "inside",
        "step": 7,
    }
    return table | {"sd_checkpoint": "a1b2c3d4", "sd_checkpoint_name": "v1-5"} | facts


def vectors_of(path: Path, word: str) -> torch.Tensor:
    return read_adapter(path).embeddings[word]["text_encoder"]


def test_a_web_ui_calls_a_word_by_the_files_name(tmp_path: Path) -> None:
    torch.save(webui_pt(VECTORS), tmp_path / "cat.pt")
    adapter = read_adapter(tmp_path / "cat.pt")
    assert list(adapter.embeddings) == ["cat"] and adapter.family == "sd1"
    assert torch.equal(adapter.embeddings["cat"]["text_encoder"], VECTORS)
    report = inspect_file(tmp_path / "cat.pt")
    assert (report.kind, report.format, report.metadata["name"], report.metadata["step"]) == (
        "embedding",
        "webui",
        "inside",
        "7",
    )


@pytest.mark.parametrize("name", ["emb_params", "emp_params"])
@pytest.mark.parametrize("shape", [(1, 768), (768,), (4, 1024)])
def test_safetensors_of_one_encoder(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    save_file({name: torch.ones(shape)}, tmp_path / "x.safetensors")
    adapter = read_adapter(tmp_path / "x.safetensors")
    assert adapter.embeddings["x"]["text_encoder"].shape == (
        1 if len(shape) == 1 else shape[0],
        shape[-1],
    )
    assert adapter.family == ("sd2" if shape[-1] == 1024 else "sd1")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_sdxl_has_two_sets_of_vectors(tmp_path: Path, suffix: str) -> None:
    adapter = Adapter(
        embeddings={"sks": {"text_encoder": VECTORS, "text_encoder_2": LARGE}},
        family="sdxl",
        name="sks",
    )
    write_adapter(adapter, tmp_path / f"sks{suffix}")
    back = read_adapter(tmp_path / f"sks{suffix}")
    assert back.family == "sdxl"
    assert torch.equal(back.embeddings["sks"]["text_encoder_2"], LARGE)
    if suffix == ".safetensors":
        assert set(load_file(tmp_path / "sks.safetensors")) == {"clip_l", "clip_g"}


def test_a_written_file_says_what_it_is(tmp_path: Path) -> None:
    write_adapter(
        Adapter(embeddings={"sks": {"text_encoder": VECTORS}}), tmp_path / "mine-000100.safetensors"
    )
    with safe_open(tmp_path / "mine-000100.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == metadata["konomi.word"] == "sks"
    assert metadata["ss_base_model_version"] == "sd_v1" and "ss_network_dim" not in metadata
    report = inspect_file(tmp_path / "mine-000100.safetensors")
    assert report.tokens == {"mine-000100": {"text_encoder": [3, 768]}}
    assert report.hashes["sshs_model_hash"] == metadata["sshs_model_hash"] and not report.notes


def test_there_and_back_through_every_kind(tmp_path: Path) -> None:
    torch.save(webui_pt(VECTORS), tmp_path / "cat.pt")
    convert_adapter(tmp_path / "cat.pt", tmp_path / "a.safetensors")
    convert_adapter(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    convert_adapter(tmp_path / "b.safetensors", tmp_path / "c.pt", "webui")
    assert set(load_file(tmp_path / "b.safetensors")) == {"cat"}
    assert torch.equal(vectors_of(tmp_path / "c.pt", "c"), VECTORS)
    last = torch.load(tmp_path / "c.pt", weights_only=True)
    assert (last["name"], last["step"], last["sd_checkpoint_name"]) == ("cat", 7, "v1-5")
    assert last["string_to_token"] == {"*": 265}
    with pytest.raises(FileFormatError, match=r"ends in \.safetensors or \.pt"):
        convert_adapter(tmp_path / "cat.pt", tmp_path / "x.bin")
    with pytest.raises(FileFormatError, match=r"ends in \.safetensors in this format"):
        convert_adapter(tmp_path / "cat.pt", tmp_path / "x.bin", "diffusers")
    with pytest.raises(
        FileFormatError, match="not a format that holds an embedding; choose webui or diffusers"
    ):
        convert_adapter(tmp_path / "cat.pt", tmp_path / "x.safetensors", "peft")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_negative_half_lies_beside(tmp_path: Path, suffix: str) -> None:
    adapter = Adapter(
        embeddings={"sks": {"text_encoder": VECTORS}, "sks-neg": {"text_encoder": -VECTORS}},
        name="x",
    )
    write_adapter(adapter, tmp_path / f"dog{suffix}")
    assert {p.name for p in tmp_path.iterdir()} == {f"dog{suffix}", f"dog-neg{suffix}"}
    back = read_adapter(tmp_path / f"dog{suffix}")
    assert list(back.embeddings) == ["dog", "dog-neg"]
    assert torch.equal(back.embeddings["dog-neg"]["text_encoder"], -VECTORS)
    assert list(read_adapter(tmp_path / f"dog-neg{suffix}").embeddings) == ["dog-neg"]
    convert_adapter(tmp_path / f"dog{suffix}", tmp_path / "new.safetensors")
    assert list(read_adapter(tmp_path / "new.safetensors").embeddings) == ["new", "new-neg"]


def test_several_words_one_file_each_for_web_uis_one_for_all_for_diffusers(tmp_path: Path) -> None:
    words = {"sks": VECTORS, "<cat>": VECTORS * 2, "<cat>-neg": VECTORS * 3, "sks-neg": VECTORS * 4}
    adapter = Adapter(embeddings={word: {"text_encoder": tensor} for word, tensor in words.items()})
    write_adapter(adapter, tmp_path / "pets.safetensors")
    names = {
        "pets.safetensors",
        "pets-neg.safetensors",
        "pets.cat.safetensors",
        "pets.cat-neg.safetensors",
    }
    assert {p.name for p in tmp_path.iterdir()} == names
    back = read_adapter(tmp_path / "pets.safetensors").embeddings
    assert back.keys() == {"pets", "pets-neg", "<cat>", "<cat>-neg"}
    assert torch.equal(back["<cat>-neg"]["text_encoder"], words["<cat>-neg"])
    write_adapter(adapter, tmp_path / "d.safetensors", "diffusers")
    together = read_adapter(tmp_path / "d.safetensors").embeddings
    assert all(
        torch.equal(together[word]["text_encoder"], tensor) for word, tensor in words.items()
    )
    (tmp_path / "pets.cat.safetensors").unlink()
    assert "<cat>" not in read_adapter(tmp_path / "pets.safetensors").embeddings


def test_companions_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_file({"emb_params": VECTORS}, tmp_path / "secret.safetensors")
    for name in ("../secret", "/secret", "x/../../secret", 5):
        listed = {"konomi.companions": json.dumps([name])}
        save_file({"emb_params": VECTORS}, tmp_path / "in" / "a.safetensors", listed)
        assert list(read_adapter(tmp_path / "in" / "a.safetensors").embeddings) == ["a"]
    save_file(
        {"emb_params": VECTORS},
        tmp_path / "in" / "a.safetensors",
        {"konomi.companions": "[" * 100_000},
    )
    assert list(read_adapter(tmp_path / "in" / "a.safetensors").embeddings) == ["a"]


def png(path: Path, chunks: list[tuple[bytes, bytes]]) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0\0\0\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*c) for c in chunks) + body)
    return path


def encoded(table: object) -> bytes:
    return b"sd-ti-embedding\0" + base64.b64encode(json.dumps(table).encode())


def test_a_picture_that_carries_an_embedding(tmp_path: Path) -> None:
    table = {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": {"TORCHTENSOR": VECTORS.tolist()}},
        "name": "n",
    }
    path = png(tmp_path / "cat.png", [(b"tEXt", b"parameters\0a cat"), (b"tEXt", encoded(table))])
    assert torch.equal(vectors_of(path, "cat"), VECTORS)
    convert_adapter(path, tmp_path / "cat.safetensors")
    assert torch.equal(vectors_of(tmp_path / "cat.safetensors", "cat"), VECTORS)
    with pytest.raises(FileFormatError, match="this is a PNG image"):
        read_adapter(png(tmp_path / "plain.png", [(b"tEXt", b"parameters\0a cat")]))
    for broken, message in [
        (b"sd-ti-embedding\0!!", "is damaged"),
        (b"sd-ti-embedding\0" + base64.b64encode(b"[" * 100_000), "is damaged"),
        (encoded({"string_to_param": 5}), "no string_to_param"),
        (
            encoded({"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}}),
            "not a table of numbers",
        ),
        (encoded({"string_to_param": {"*": {"TORCHTENSOR": "x"}}}), "not a table of numbers"),
    ]:
        with pytest.raises(FileFormatError, match=message):
            read_adapter(png(tmp_path / "bad.png", [(b"tEXt", broken)]))


BROKEN: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "NaN": ({"emb_params": torch.full((1, 768), float("nan"))}, "emb_params holds NaN or infinity"),
    "whole numbers": (
        {"emb_params": torch.ones(1, 768, dtype=torch.int64)},
        "vectors of a word are",
    ),
    "a cube": ({"emb_params": torch.ones(1, 2, 768)}, r"emb_params is float32 \[1, 2, 768\]"),
    "nothing in it": ({"emb_params": torch.ones(0, 768)}, "vectors of a word are"),
    "unequal halves": (
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(3, 1280)},
        "another number of vectors",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_told(tmp_path: Path, case: str) -> None:
    tensors, message = BROKEN[case]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=message) as told:
        read_adapter(tmp_path / "x.safetensors")
    assert "\n" not in str(told.value) and "x.safetensors" in str(told.value)
    torch.save(tensors, tmp_path / "x.pt")
    if case != "NaN":
        with pytest.raises(FileFormatError, match=message):
            read_adapter(tmp_path / "x.pt")


def test_a_broken_companion_is_told(tmp_path: Path) -> None:
    torch.save(webui_pt(VECTORS), tmp_path / "x.pt")
    torch.save(webui_pt(VECTORS * float("inf")), tmp_path / "x-neg.pt")
    with pytest.raises(FileFormatError, match=r"x-neg\.pt: text_encoder holds NaN or infinity"):
        read_adapter(tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="2 words; an embedding has one"):
        torch.save(
            webui_pt(VECTORS) | {"string_to_param": {"*": VECTORS, "+": VECTORS}}, tmp_path / "y.pt"
        )
        read_adapter(tmp_path / "y.pt")
    with pytest.raises(FileFormatError, match="is not a tensor"):
        torch.save(webui_pt(VECTORS) | {"string_to_param": {"*": [1.0]}}, tmp_path / "z.pt")
        read_adapter(tmp_path / "z.pt")


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/konomi-was-run"),)


def test_hostile_pickles_run_nothing(tmp_path: Path) -> None:
    torch.save(webui_pt(VECTORS) | {"string_to_token": Evil()}, tmp_path / "x.pt")
    with pytest.raises(FileFormatError, match="refused"):
        read_adapter(tmp_path / "x.pt")
    (tmp_path / "x.pt").rename(tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match="refused"):
        read_adapter(tmp_path / "x.safetensors")
    assert not Path("/tmp/konomi-was-run").exists()


def test_nan_is_never_written_and_the_old_file_stays(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"x{suffix}"
        write_adapter(Adapter(embeddings={"x": {"text_encoder": VECTORS}}), path)
        before = path.read_bytes()
        with pytest.raises(FileFormatError, match="holds NaN"):
            write_adapter(Adapter(embeddings={"x": {"text_encoder": VECTORS * float("nan")}}), path)
        assert path.read_bytes() == before


def test_other_tables_are_no_embeddings(tmp_path: Path) -> None:
    # Many of them are as wide as a word.
    for name in (
        "weight",
        "image_embeds",
        "a.b.weight",
        "some.thing",
        "mean",
        "text_features",
        "0",
    ):
        save_file({name: torch.ones(4, 768)}, tmp_path / "x.safetensors")
        assert inspect_file(tmp_path / "x.safetensors").kind == "unknown tensors", name


def test_what_an_embedding_has_beside_its_vectors_is_named(tmp_path: Path) -> None:
    both = {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    save_file(
        both | {"clip_l_out": torch.ones(2, 768), "other": torch.ones(5)},
        tmp_path / "x.safetensors",
    )
    report = inspect_file(tmp_path / "x.safetensors")
    assert (report.kind, report.family) == ("embedding", "sdxl")
    assert (
        set(report.ignored) == {"clip_l_out", "other"}
        and "text encoder returns" in report.ignored["clip_l_out"]
    )
    notes = read_adapter(tmp_path / "x.safetensors").notes
    assert (
        len(notes) == 2 and "clip_l_out is not used" in notes[0] and "other is not used" in notes[1]
    )
    save_file({"clip_l_out": torch.ones(2, 768)}, tmp_path / "x.safetensors")
    with pytest.raises(
        FileFormatError,
        match=r"clip_l_out is all there is, and it is not used.*text encoder returns",
    ):
        read_adapter(tmp_path / "x.safetensors")
    save_file(
        {"clip_l": torch.ones(2, 768), "t5xxl": torch.ones(2, 4096)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(FileFormatError, match="t5xxl is for the text encoder T5"):
        read_adapter(tmp_path / "x.safetensors")


def test_cogs_embedding_of_two_encoders_is_one_for_sdxl(tmp_path: Path) -> None:
    first, second = torch.randn(2, 768).half(), torch.randn(2, 1280).half()
    save_file({"text_encoders_0": first, "text_encoders_1": second}, tmp_path / "x.safetensors")
    found = read_adapter(tmp_path / "x.safetensors")
    assert found.family == "sdxl" and found.notes == ()
    assert torch.equal(found.embeddings["x"]["text_encoder"], first)
    assert torch.equal(found.embeddings["x"]["text_encoder_2"], second)


def test_a_plain_word_is_believed_aloud(tmp_path: Path) -> None:
    save_file({"sks": torch.ones(768)}, tmp_path / "x.safetensors")
    assert (
        "learned word 'sks' by its name and width"
        in read_adapter(tmp_path / "x.safetensors").notes[0]
    )
    save_file({"<sks>": torch.ones(768)}, tmp_path / "x.safetensors")
    assert read_adapter(tmp_path / "x.safetensors").notes == ()


@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_sdxl_embeddings_as_the_words_they_are(tmp_path: Path) -> None:
    """diffusers wants the two halves one after the other, as its documents have it."""
    from diffusers import StableDiffusionXLPipeline

    base = random_base("sdxl")
    save_folder(base, tmp_path / "base", dtype=torch.float32)
    towers = base.text_encoders
    widths = {
        part: int(base.module(f"{part}.text_model.embeddings.token_embedding").weight.shape[1])  # type: ignore[index]
        for part in towers
    }
    generator = torch.Generator().manual_seed(0)
    vectors = {part: torch.randn(3, width, generator=generator) for part, width in widths.items()}
    adapter = Adapter(embeddings={"<cat>": vectors}, family="sdxl")
    write_adapter(adapter, tmp_path / "cat.safetensors")
    stored = load_file(tmp_path / "cat.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        str(tmp_path / "base"), local_files_only=True
    )
    for name, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(
            stored[name], token="<cat>", text_encoder=encoder, tokenizer=tokenizer
        )
    prompt = "a photo of <cat> on a mat"
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
        with attach(base, [(read_adapter(tmp_path / "cat.safetensors"), Strengths())]):
            word = next(iter(base.added_tokens))
            ours = base.encode_captions([prompt.replace("<cat>", word)], TextConfig())
        plain = base.encode_captions(["a photo of cat on a mat"], TextConfig())
    torch.testing.assert_close(ours.states, states, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.pooled, pooled, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain.states, states, atol=1e-2)
