"""Custom Diffusion's files: the authors', diffusers', konomi's; read, written, and what is wrong
with them named.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import Difference, LowRank, Replacement
from konomi.errors import FileFormatError
from konomi.formats.adapter_file import inspect_file, read_adapter, write_adapter
from konomi.formats.writer import content_of

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
K, V = f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.to_v"
WEIGHTS = "pytorch_custom_diffusion_weights"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def delta() -> dict[str, object]:
    return {
        "unet": {f"{K}.weight": random(320, 768), f"{V}.weight": random(320, 768, seed=1)},
        "modifier_token": {"<new1>": random(768, seed=2), "<new2>": random(768, seed=3)},
    }


def adapter(words: int = 1, origin: bool = False) -> Adapter:
    layers = {
        f"denoiser.{key}": Replacement(
            random(320, 768, seed=i), random(320, 768, seed=i + 9) if origin else None
        )
        for i, key in enumerate((K, V))
    }
    embeddings = {
        f"<new{i + 1}>": {"text_encoder": random(1, 768, seed=20 + i)} for i in range(words)
    }
    return Adapter(layers, embeddings, {}, "sd1", "x")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_delta(tmp_path: Path, zipped: bool) -> None:
    value = delta()
    torch.save(value, tmp_path / "delta.bin", _use_new_zipfile_serialization=zipped)
    found = read_adapter(tmp_path / "delta.bin")
    assert found.family == "sd1" and content_of(found) == "custom diffusion"
    for name, tensor in value["unet"].items():
        assert torch.equal(found.layers[f"denoiser.{name.removesuffix('.weight')}"].weight, tensor)
    for word, vector in value["modifier_token"].items():
        assert torch.equal(found.embeddings[word]["text_encoder"], vector[None])
    report = inspect_file(tmp_path / "delta.bin")
    assert (report.kind, report.format, report.family) == (
        "custom diffusion",
        "custom diffusion",
        "sd1",
    )
    assert report.tokens == {w: {"text_encoder": [1, 768]} for w in ("<new1>", "<new2>")}
    assert (
        report.layers == {"denoiser": 2}
        and report.layer_kinds == {"whole": 2}
        and report.num_tensors == 4
    )


def test_the_authors_delta_compressed(tmp_path: Path) -> None:
    u, v = random(320, 5), random(5, 768, seed=1)
    torch.save(
        {"unet": {f"{K}.weight": {"u": u, "v": v}}, "modifier_token": {"<a>": random(768)}},
        tmp_path / "d.bin",
    )
    layer = read_adapter(tmp_path / "d.bin").layers[f"denoiser.{K}"]
    assert isinstance(layer, LowRank) and layer.alpha == 5
    assert torch.equal(layer.up, u) and torch.equal(layer.down, v)
    write_adapter(read_adapter(tmp_path / "d.bin"), tmp_path / "e.bin", "custom")
    again = torch.load(tmp_path / "e.bin", weights_only=True)["unet"][f"{K}.weight"]
    assert torch.equal(again["u"], u) and torch.equal(again["v"], v)


def test_a_text_encoder_in_a_delta(tmp_path: Path) -> None:
    value = delta()
    q = "text_model.encoder.layers.0.self_attn.q_proj"
    value["text_encoder"] = {
        f"{q}.weight": random(768, 768),
        f"{q}.bias": random(768),
        "text_model.final_layer_norm.weight": random(768),
        "text_model.embeddings.token_embedding.weight": random(10, 768),
        "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    torch.save(value, tmp_path / "delta.bin")
    found = read_adapter(tmp_path / "delta.bin")
    assert {key for key in found.layers if key.startswith("text_encoder.")} == {
        f"text_encoder.{q}",
        "text_encoder.text_model.final_layer_norm",
    }
    assert found.layers[f"text_encoder.{q}"].bias is not None
    with pytest.raises(FileFormatError, match="only cross-attention"):
        write_adapter(found, tmp_path / "out", "diffusers")


def test_what_diffusers_own_script_writes(tmp_path: Path) -> None:
    """Weights with an empty table for self-attention, pickled, and a file for each word."""
    table: dict[str, object] = {
        f"{BLOCK}.attn2.processor.to_k_custom_diffusion.weight": random(320, 768),
        f"{BLOCK}.attn2.processor.to_v_custom_diffusion.weight": random(320, 768, seed=1),
        f"{BLOCK}.attn1.processor": {},
    }
    torch.save(table, tmp_path / f"{WEIGHTS}.bin")
    torch.save({"<new1>": random(768)}, tmp_path / "<new1>.bin")
    torch.save({"other": random(768)}, tmp_path / "unrelated.bin")
    for path in (tmp_path, tmp_path / f"{WEIGHTS}.bin"):
        found = read_adapter(path)
        assert set(found.layers) == {f"denoiser.{K}", f"denoiser.{V}"} and set(
            found.embeddings
        ) == {"<new1>"}
        assert found.name == tmp_path.name


def test_a_folder_for_diffusers_comes_back(tmp_path: Path) -> None:
    write_adapter(adapter(2), tmp_path / "x")
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert names == {f"{WEIGHTS}.safetensors", "new1.safetensors", "new2.safetensors"}
    tensors = load_file(tmp_path / "x" / f"{WEIGHTS}.safetensors")
    assert tensors[f"{BLOCK}.attn1.processor"].numel() == 0
    assert set(load_file(tmp_path / "x" / "new2.safetensors")) == {"<new2>"}
    found = read_adapter(tmp_path / "x")
    for key, layer in adapter(2).layers.items():
        assert torch.equal(found.layers[key].weight, layer.weight)
    for word, vectors in adapter(2).embeddings.items():
        assert torch.equal(found.embeddings[word]["text_encoder"], vectors["text_encoder"])


def test_two_text_encoders_come_back(tmp_path: Path) -> None:
    layers = {f"denoiser.{key}": Replacement(random(640, 2048)) for key in (K, V)}
    words = {"<a>": {"text_encoder": random(1, 768), "text_encoder_2": random(1, 1280)}}
    write_adapter(Adapter(layers, words, {}, "sdxl", "x"), tmp_path / "x")
    assert set(load_file(tmp_path / "x" / "a.safetensors")) == {"clip_l", "clip_g"}
    found = read_adapter(tmp_path / "x")
    assert found.family == "sdxl" and set(found.embeddings["<a>"]) == {
        "text_encoder",
        "text_encoder_2",
    }
    with pytest.raises(FileFormatError, match="one text encoder"):
        write_adapter(found, tmp_path / "x.bin", "custom")


def test_words_whose_names_no_system_allows_or_that_collide(tmp_path: Path) -> None:
    words = {
        w: {"text_encoder": random(1, 768, seed=i)}
        for i, w in enumerate(("<a/b>", "ab", "<*>", "犬"))
    }
    write_adapter(Adapter(adapter().layers, words, {}, "sd1", "x"), tmp_path / "x")
    names = {path.name for path in (tmp_path / "x").iterdir()} - {f"{WEIGHTS}.safetensors"}
    assert names == {"ab.safetensors", "ab-2.safetensors", "word.safetensors", "犬.safetensors"}
    assert set(read_adapter(tmp_path / "x").embeddings) == set(words)


def test_for_web_uis_it_is_a_file_of_differences(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="--base BASE"):
        write_adapter(adapter(), tmp_path / "x.safetensors", "webui")
    given = adapter(origin=True)
    write_adapter(given, tmp_path / "x.safetensors", "webui")
    tensors = load_file(tmp_path / "x.safetensors")
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.diff"
    layer = given.layers[f"denoiser.{K}"]
    assert torch.equal(tensors[name], layer.weight - layer.origin)
    assert torch.equal(
        tensors["bundle_emb.<new1>.emb_params"], given.embeddings["<new1>"]["text_encoder"]
    )
    found = read_adapter(tmp_path / "x.safetensors")
    assert content_of(found) == "custom diffusion" and found.family == "sd1"
    with pytest.raises(FileFormatError, match="--base BASE"):
        write_adapter(found, tmp_path / "y", "diffusers")


def test_contents_are_told_apart() -> None:
    change = {f"denoiser.{K}": Difference(random(320, 768))}
    assert content_of(Adapter(change)) == "lora"
    assert content_of(Adapter(change, adapter().embeddings)) == "custom diffusion"
    assert (
        content_of(
            Adapter({"denoiser.x.attn1.to_k": Difference(random(3, 3))}, adapter().embeddings)
        )
        == "lora"
    )
    assert content_of(adapter()) == "custom diffusion"


def broken_delta(case: str) -> tuple[dict[str, object], str]:
    value = delta()
    unet, words = value["unet"], value["modifier_token"]
    match case:
        case "nan":
            unet[f"{K}.weight"][3, 4] = float("nan")
            return value, "to_k.*NaN"
        case "nan word":
            words["<new1>"][4] = float("inf")
            return value, "<new1>.*NaN"
        case "wide word":
            words["<new1>"] = random(1024)
            return value, "<new1> is 1024 wide.*768"
        case "two widths":
            unet[f"{V}.weight"] = random(320, 1024)
            return value, "to_v.*1024 wide, others 768"
        case "unknown":
            unet["something.else.weight"] = random(3, 3)
            return value, "something.else.weight.*knows no such layer"
        case "axes":
            unet[f"{K}.weight"] = random(3, 3, 3)
            return value, r"to_k.weight has shape \[3, 3, 3\]"
        case "integers":
            unet[f"{K}.weight"] = torch.ones(3, 3, dtype=torch.int64)
            return value, "to_k.weight has shape.*int64"
        case "half":
            unet[f"{K}.weight"] = {"u": random(320, 2)}
            return value, "to_k.weight has no matrix 'v'"
        case "ranks":
            unet[f"{K}.weight"] = {"u": random(320, 2), "v": random(3, 768)}
            return value, "no common rank"
        case "rank 0":
            unet[f"{K}.weight"] = {"u": random(320, 0), "v": random(0, 768)}
            return value, "no common rank"
        case "no vector":
            words["<new1>"] = "text"
            return value, "<new1> is not a vector"
        case "no table":
            value["modifier_token"] = [1]
            return value, "modifier_token is not a table"
    raise AssertionError(case)


CASES = (
    "nan", "nan word", "wide word", "two widths", "unknown", "axes", "integers", "half", "ranks",
    "rank 0", "no vector",
    "no table",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_tensor_at_fault_is_named(tmp_path: Path, case: str) -> None:
    value, said = broken_delta(case)
    torch.save(value, tmp_path / "delta.bin")
    with pytest.raises(FileFormatError, match=said) as raised:
        read_adapter(tmp_path / "delta.bin")
    assert "delta.bin" in str(raised.value) and "\n" not in str(raised.value)


def folder(tmp_path: Path) -> Path:
    write_adapter(adapter(), tmp_path / "x")
    return tmp_path / "x"


def test_a_word_that_is_missing_broken_or_elsewhere_is_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    word = path / "new1.safetensors"
    save_file({"<new1>": random(1, 768) * float("nan")}, word)
    with pytest.raises(FileFormatError, match=r"new1.safetensors: <new1> holds NaN"):
        read_adapter(path)
    word.write_bytes(word.read_bytes()[:-5])
    with pytest.raises(FileFormatError, match=r"new1\.safetensors"):
        read_adapter(path)
    word.unlink()
    with pytest.raises(FileFormatError, match=r"new1.safetensors: is missing"):
        read_adapter(path)
    tensors = load_file(path / f"{WEIGHTS}.safetensors")
    for names in (["../secret.safetensors"], "x", [1], ["/etc/passwd"]):
        save_file(tensors, path / f"{WEIGHTS}.safetensors", {"konomi_words": json.dumps(names)})
        with pytest.raises(FileFormatError, match="not a list of file names"):
            read_adapter(path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))  # type: ignore[return-value]


def inspected(path: Path) -> None:
    """Raises what a report has as its problem, or what there is no report of."""
    raise FileFormatError(inspect_file(path).problem)


@pytest.mark.parametrize("place", ["value", "word", "legacy", "beside", "renamed"])
def test_nothing_of_a_strangers_file_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "delta.bin"
    value = delta()
    if place == "value":
        value["unet"]["x"] = Hostile()
    else:
        value["modifier_token"]["<new1>"] = Hostile()
    if place == "beside":
        table = {f"{BLOCK}.attn2.processor.to_k_custom_diffusion.weight": random(320, 768)}
        torch.save(table, tmp_path / f"{WEIGHTS}.bin")
        torch.save({"<new1>": Hostile()}, tmp_path / "<new1>.bin")
        path = tmp_path
    elif place == "renamed":
        path = tmp_path / "delta.safetensors"
        torch.save(value, path)
    else:
        torch.save(
            value, path, _use_new_zipfile_serialization=place != "legacy", pickle_module=pickle
        )
    for read in (read_adapter, inspected):
        with pytest.raises(FileFormatError, match="refused"):
            read(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS"),
    ],
)
def test_what_came_instead_of_a_download_is_named(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "delta.bin"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=said):
        read_adapter(path)
    torch.save(delta(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FileFormatError, match=r"delta\.bin"):
        read_adapter(path)


def test_nan_is_never_written(tmp_path: Path) -> None:
    bad = adapter(origin=True)
    bad.layers[f"denoiser.{K}"].weight[0, 0] = float("nan")
    for name, to in (("a", "diffusers"), ("b.bin", "custom"), ("c.safetensors", "webui")):
        with pytest.raises(FileFormatError, match="NaN"):
            write_adapter(bad, tmp_path / name, to)
    assert list(tmp_path.iterdir()) == []


def test_what_a_form_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="written as a folder"):
        write_adapter(adapter(), tmp_path / "x.safetensors", "diffusers")
    with pytest.raises(FileFormatError, match="custom"):
        write_adapter(adapter(), tmp_path / "x", "peft")
    lora = Adapter(
        {
            "text_encoder.text_model.encoder.layers.0.mlp.fc1": LowRank(
                random(2, 3), random(3, 2), 2.0
            )
        }
    )
    with pytest.raises(FileFormatError, match="no place"):
        write_adapter(lora, tmp_path / "x.bin", "custom")
