"""A VAE from elsewhere, in every form it is handed on in."""

import json
from pathlib import Path

import pytest
import torch

from konomi.errors import FileFormatError, ModelError, RecipeError
from konomi.formats.adapter_file import inspect_file
from konomi.models.hub import wanted_vae_files
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors
from konomi.tasks.files import convert

VAE = "first_stage_model."


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole` has another VAE than the one that `bare` lacks."""
    folder = tmp_path_factory.mktemp("vae")
    save_single_file(random_base("sd2", seed=1), folder / "whole.safetensors", dtype=torch.float32)
    save_folder(random_base("sd2", seed=1), folder / "folder", dtype=torch.float32)
    save_single_file(random_base("sd2"), folder / "own.safetensors", dtype=torch.float32)
    tensors, metadata = (
        read_tensors(folder / "own.safetensors"),
        read_header(folder / "own.safetensors").metadata,
    )
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith(VAE)}
    write_tensors(folder / "bare.safetensors", bare, metadata)
    alone = {
        n: t for n, t in read_tensors(folder / "whole.safetensors").items() if n.startswith(VAE)
    }
    stripped = {name.removeprefix(VAE): tensor for name, tensor in alone.items()}
    write_tensors(folder / "ldm.safetensors", stripped)
    torch.save({"state_dict": {**stripped, "loss.logvar": torch.zeros(1)}}, folder / "ldm.ckpt")
    theirs = folder / "folder" / "vae" / "diffusion_pytorch_model.safetensors"
    (folder / "diffusers.safetensors").write_bytes(theirs.read_bytes())
    return folder


FORMS = (
    "whole.safetensors",
    "ldm.safetensors",
    "ldm.ckpt",
    "diffusers.safetensors",
    "folder",
    "folder/vae",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_vae(form: str, files: Path, tmp_path: Path) -> None:
    expected = random_base("sd2", seed=1).state("vae")
    found = load_base(files / "bare.safetensors", vae=files / form)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state("vae").items())
    own = random_base("sd2").state("denoiser")
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.state("denoiser").items())
    assert bool(found.notes) == (form == "ldm.ckpt")
    # Saved again it is complete, with what the main file kept for other tools.
    save_single_file(found, tmp_path / "again.safetensors", dtype=torch.float32)
    assert (
        read_header(tmp_path / "again.safetensors").tensors.keys()
        == read_header(files / "own.safetensors").tensors.keys()
    )


def test_it_also_stands_in_for_a_vae_that_is_there(files: Path) -> None:
    found = load_base(files / "own.safetensors", vae=files / "ldm.safetensors")
    other = random_base("sd2", seed=1).state("vae")
    assert all(torch.equal(tensor, other[name]) for name, tensor in found.state("vae").items())
    assert found.fingerprint("vae") != load_base(files / "own.safetensors").fingerprint("vae")


def test_a_missing_vae_is_an_error_only_where_one_is_needed(files: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"bare\.safetensors: holds no VAE\. Give one with --vae FILE"
    ):
        load_base(files / "bare.safetensors")
    base = load_base(files / "bare.safetensors", needs_vae=False)
    assert base.select_layers("attention")
    with pytest.raises(ModelError, match="holds no VAE"):
        base.vae  # noqa: B018 (loads it)
    with pytest.raises(ModelError, match=r"nothing\.pt: there is no such VAE"):
        load_base(files / "bare.safetensors", vae=tmp_path / "nothing.pt")
    with pytest.raises(ModelError, match="its VAE is of a kind that konomi does not know"):
        load_base(files / "bare.safetensors", vae=files / "bare.safetensors")
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(FileFormatError, match=r"page\.safetensors"):
        load_base(files / "bare.safetensors", vae=tmp_path / "page.safetensors")


def test_a_vae_of_another_scale_is_spoken_of(files: Path, tmp_path: Path) -> None:
    config = json.loads((files / "folder" / "vae" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.13025}))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(
        (files / "diffusers.safetensors").read_bytes()
    )
    (note,) = load_base(files / "bare.safetensors", vae=tmp_path).notes
    assert "scaled by 0.13025, those of Stable Diffusion 2 by 0.18215" in note


def test_files_of_a_vae_on_the_hub() -> None:
    names = [
        "README.md",
        "config.json",
        "diffusion_pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
    ]
    assert wanted_vae_files(names) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert wanted_vae_files([f"vae/{name}" for name in names])[0] == "vae/config.json"
    assert wanted_vae_files(["model.safetensors"]) == []


@pytest.mark.parametrize(
    "form", ["ldm.safetensors", "ldm.ckpt", "diffusers.safetensors", "folder/vae"]
)
def test_convert_says_what_takes_a_vae_alone(form: str, files: Path, tmp_path: Path) -> None:
    assert inspect_file(files / form).kind == "vae"
    with pytest.raises(RecipeError, match=r"is a VAE alone, .*--vae"):
        convert(files / form, tmp_path / "out.safetensors")
    # What it says works, into either form.
    for target in ("out.safetensors", "folder"):
        convert(files / "bare.safetensors", tmp_path / target, vae=files / form)
        found, expected = (
            load_base(tmp_path / target).state("vae"),
            random_base("sd2", seed=1).state("vae"),
        )
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize(("part", "kind"), [("unet", "denoiser"), ("text_encoder", "text encoder")])
def test_convert_says_what_takes_another_part_alone(
    part: str, kind: str, files: Path, tmp_path: Path
) -> None:
    assert inspect_file(files / "folder" / part).kind == kind
    with pytest.raises(RecipeError, match=f"is a {kind} alone.*folder above it"):
        convert(files / "folder" / part, tmp_path / "out.safetensors")
