"""What is written follows the name's ending, or the ending is refused: for every writer
there is.
"""

from pathlib import Path

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.kinds import LowRank, Replacement
from konomi.errors import FileFormatError
from konomi.formats import WRITERS
from konomi.formats.adapter_file import write_adapter
from konomi.formats.writer import Writer
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.storage.sniff import FileKind, sniff
from konomi.tasks.files import convert

KEY = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
ENDINGS = ("", ".safetensors", ".SafeTensors", ".pt", ".bin", ".ckpt", ".pth", ".png", ".v2")
KINDS = {
    ".safetensors": {FileKind.SAFETENSORS},
    ".pt": {FileKind.TORCH_ZIP},
    ".bin": {FileKind.TORCH_ZIP},
    "": {FileKind.FOLDER},
}


def adapter(writer: Writer) -> Adapter:
    if writer.content == "embedding":
        return Adapter(
            embeddings={"sks": {"text_encoder": torch.ones(2, 768)}}, family="sd1", name="sks"
        )
    if writer.content == "hypernetwork":
        return hypernetwork()
    if writer.content == "custom diffusion":
        weight = torch.ones(8, 768)
        word = {"<new1>": {"text_encoder": torch.ones(1, 768)}}
        return Adapter({KEY: Replacement(weight * 2, weight)}, word, {}, "sd1", "x")
    return Adapter({KEY: LowRank(torch.ones(2, 768), torch.ones(8, 2), 2.0)}, {}, {}, "sd1", "x")


def hypernetwork() -> Adapter:
    from konomi.adapters.adapter import Hypernetwork, Perceptron

    def half() -> Perceptron:
        widths = ((8, 4), (4, 8))
        tensors = {f"linear.{i}.weight": torch.ones(*shape) for i, shape in enumerate(widths)}
        return Perceptron(
            tensors | {f"linear.{i}.bias": torch.ones(shape[0]) for i, shape in enumerate(widths)}
        )

    return Adapter(hypernetwork=Hypernetwork({4: (half(), half())}), family="sd1", name="x")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "index", range(len(WRITERS)), ids=[f"{w.content} {w.targets[0]}" for w in WRITERS]
)
def test_content_follows_the_ending_or_the_ending_is_refused(
    tmp_path: Path, index: int, ending: str
) -> None:
    writer = WRITERS[index]
    target = tmp_path / f"sks{ending}"
    try:
        write_adapter(adapter(writer), target, writer.targets[0])
    except FileFormatError as error:
        assert str(target) in str(error) and "\n" not in str(error)
        assert ending.lower() not in (writer.suffix, *writer.others) or ending in ("", ".v2")
        assert not list(tmp_path.iterdir())
        return
    wanted = ending.lower() if ending.lower() in KINDS else ""
    assert sniff(target) in KINDS[wanted]


@pytest.mark.parametrize(
    ("ending", "ok"), [("", True), (".v2", True), (".ckpt", False), (".safetensors", False)]
)
def test_folders_of_whole_models(tmp_path: Path, ending: str, ok: bool) -> None:
    base, target = random_base("sd1"), tmp_path / f"m{ending}"
    if ok:
        save_folder(base, target, dtype=torch.float16)
        assert target.is_dir()
        return
    with pytest.raises(FileFormatError, match=r"written as a folder .* Leave the ending out"):
        save_folder(base, target, dtype=torch.float16)


@pytest.mark.parametrize("ending", ["", ".ckpt", ".pt"])
def test_a_whole_models_file_is_named_for_what_it_is(tmp_path: Path, ending: str) -> None:
    with pytest.raises(FileFormatError, match=r"ends in \.safetensors .* Name it m\.safetensors"):
        save_single_file(random_base("sd1"), tmp_path / f"m{ending}", dtype=torch.float16)


@pytest.mark.parametrize("name", ["x.pt", "x", "x.ckpt"])
def test_convert_writes_no_lora_under_another_kinds_name(tmp_path: Path, name: str) -> None:
    write_adapter(adapter(WRITERS[0]), tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match=r"ends in \.safetensors"):
        convert(tmp_path / "a.safetensors", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
