"""Embedding files that a prompt calls by their names."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from konomi.adapters.adapter import Adapter
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.generation.embedding_request import (
    embeddings_of_prompt,
    named_as_trained,
    named_by_file,
)
from konomi.generation.infotext import write_infotext
from konomi.generation.request import Origin, Request, UsedAdapter

VECTORS = torch.ones(2, 768)


def embedding(path: Path, word: str = "sks") -> Path:
    write_adapter(Adapter(embeddings={word: {"text_encoder": VECTORS}}), path)
    return path


def called(texts: list[str], *folders: Path, **options) -> list[str]:
    return [request.path.name for request in embeddings_of_prompt(texts, folders, **options)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "embeddings").mkdir()
    embedding(tmp_path / "my-cat.safetensors")
    embedding(tmp_path / "bad-hands.pt")
    embedding(tmp_path / "embeddings" / "deep.safetensors")
    embedding(tmp_path / "pair.safetensors")
    embedding(tmp_path / "pair-neg.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1, 4)}, tmp_path / "lora.safetensors")
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return tmp_path


def test_words_of_prompt_and_negative_prompt_in_their_order(folder: Path) -> None:
    assert called(["a my-cat, (MY-CAT:1.2)", "bad-hands"], folder) == [
        "my-cat.safetensors",
        "bad-hands.pt",
    ]
    assert called(["deep in the woods"], folder) == ["deep.safetensors"]
    assert called(["my-cats and a lora of text in a picture", ""], folder) == []
    assert called(["<lora:my-cat:1>"], folder) == []
    assert called(["my-cat"], folder, known={"My-Cat"}) == []
    assert called(["my-cat"], folder / "nowhere") == []


def test_a_negative_half_comes_with_its_file(folder: Path) -> None:
    assert called(["pair", "pair-neg"], folder) == ["pair.safetensors"]
    assert called(["a dog", "pair-neg"], folder) == ["pair-neg.safetensors"]
    adapter = named_as_trained(read_adapter(folder / "pair.safetensors"))
    assert adapter.embeddings.keys() == {"pair", "pair-neg", "sks", "sks-neg"}


def test_the_first_folder_counts(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    embedding(other / "my-cat.pt")
    assert called(["my-cat"], other, folder) == ["my-cat.pt"]
    assert called(["my-cat"], folder, other) == ["my-cat.safetensors"]


def test_a_large_file_is_not_looked_at(folder: Path) -> None:
    with (folder / "huge.pt").open("wb") as file:
        file.truncate(1 << 40)
    assert called(["huge"], folder) == []


def test_one_word_may_be_called_by_the_files_name(tmp_path: Path) -> None:
    write_adapter(
        Adapter(embeddings={"<cat>": {"text_encoder": VECTORS}}),
        tmp_path / "toy.safetensors",
        "diffusers",
    )
    adapter = read_adapter(tmp_path / "toy.safetensors")
    assert named_by_file(adapter, tmp_path / "toy.safetensors").embeddings.keys() == {
        "<cat>",
        "toy",
    }
    assert named_as_trained(adapter) == adapter
    two = Adapter(
        embeddings={"a": {"text_encoder": VECTORS}, "b": {"text_encoder": VECTORS}}, name="x"
    )
    assert named_by_file(two, Path("x.pt")) is two


def test_the_infotext_names_an_embedding_by_its_hash_and_not_by_a_tag() -> None:
    adapters = (UsedAdapter("sks", hash="abc", kind="embedding"), UsedAdapter("style", hash="def"))
    text = write_infotext(Request(prompt="a sks"), Origin(model="m", adapters=adapters))
    assert text.splitlines()[0] == "a sks <lora:style:1>"
    assert 'Lora hashes: "style: def", TI hashes: "sks: abc"' in text
