"""How a recipe's words about its base reach the base, and the result."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from konomi.cli.main import main
from konomi.errors import ModelError, RecipeError
from konomi.methods.method import Weights
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors
from konomi.tasks.preparing import Job, open_stream, prepare
from konomi.tasks.previewing import draw_previews
from konomi.tasks.recipes import read_recipe, recipe_from_flags
from konomi.tasks.saving import save_result


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (64, 64), "#405060").save(folder / "a.png")
    return folder


def prepared(base: Path, images: Path, *changes: str, method: str = "full") -> Job:
    flags: dict[str, Any] = {"images": [images], "base": str(base), "trigger": "sks"}
    cached = f"data.cache.folder={base.parent / 'cache'}"
    return prepare(
        recipe_from_flags(method, **flags, overrides=[cached, "run.device=cpu", *changes])
    )


def test_zero_snr_training_is_drawn_and_saved_as_such(images: Path, tmp_path: Path) -> None:
    save_folder(random_base("sd1", prediction="v"), tmp_path / "v", dtype=torch.float32)
    job = prepared(
        tmp_path / "v", images, "objective.zero_terminal_snr=true", "save.precision=fp32"
    )
    assert job.base.zero_terminal_snr
    assert job.base.process.schedule.ends_in_pure_noise
    path = save_result(job, Weights({}), tmp_path, step=1, when="end")
    assert {"v_pred", "ztsnr"} <= read_header(path).tensors.keys()
    assert load_base(path).process.schedule.ends_in_pure_noise
    assert not prepared(tmp_path / "v", images).base.zero_terminal_snr
    save_folder(random_base("sd1"), tmp_path / "epsilon", dtype=torch.float32)
    with pytest.raises(RecipeError, match="zero_terminal_snr is on, but epsilon predicts noise"):
        prepared(tmp_path / "epsilon", images, "objective.zero_terminal_snr=true")


def test_offloaded_parts_go_again_after_a_preview(images: Path, tmp_path: Path) -> None:
    """Each time: the VAE and the text encoder come back for the picture, and for nothing else."""
    save_folder(random_base("sd1"), tmp_path / "a", dtype=torch.float32)
    for method, changes in (("lora", ()), ("full", ("method.text_encoder=false",))):
        job = prepared(
            tmp_path / "a",
            images,
            "preview.steps=1",
            "preview.prompts=['x']",
            *changes,
            method=method,
        )
        for _ in open_stream(job):
            pass
        job.method.plan()
        loaded = job.base.loaded_parts()
        assert "vae" not in loaded
        for step in (1, 2):
            assert draw_previews(job, job.method.export(), tmp_path / method, step)
            assert job.base.loaded_parts() == loaded
        job.method.close()


def test_recipes_and_verbs_take_a_vae_and_a_prediction(
    images: Path, tmp_path: Path, capsys: Any
) -> None:
    whole, bare = tmp_path / "whole.safetensors", tmp_path / "bare.safetensors"
    save_single_file(random_base("sd1"), whole, dtype=torch.float32)
    kept = {
        name: t
        for name, t in read_tensors(whole).items()
        if not name.startswith("first_stage_model.")
    }
    extra = {"model_ema.x": torch.zeros(1)}
    write_tensors(bare, {**kept, **extra}, read_header(whole).metadata)
    with pytest.raises(ModelError, match="holds no VAE"):
        prepared(bare, images)
    job = prepared(bare, images, f"vae={whole}", "prediction=v_prediction")
    assert job.base.process.prediction == "v"
    assert torch.equal(
        job.base.encode_images(torch.zeros(1, 3, 64, 64)).mean,
        random_base("sd1").encode_images(torch.zeros(1, 3, 64, 64)).mean,
    )
    assert any("1 tensors are not used: 1 of running averages" in note for note in job.notes)
    common = ["--vae", str(whole), "--prediction", "v_prediction"]
    flags = ["--images", str(images), "--trigger", "sks", f"data.cache.folder={tmp_path}"]
    assert main(["check", "lora", "--base", str(bare), *flags, "--json"]) == 1
    assert main(["check", "lora", "--base", str(bare), *common, *flags, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert any("are not used" in problem for problem in said["problems"])
    drawn = [
        "a",
        "--steps",
        "1",
        "--size",
        "64x64",
        "--seed",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["generate", *drawn, "--base", str(bare), *common]) == 0
    assert "are not used" in capsys.readouterr().err
    assert main(["convert", str(bare), str(tmp_path / "converted"), *common]) == 0
    assert load_base(tmp_path / "converted").process.prediction == "v"
    assert "are not used" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["inspect", str(bare), "--json"]) == 0
    assert any(
        "running averages" in note for note in json.loads(capsys.readouterr().out)[0]["notes"]
    )


def test_a_vae_in_a_recipe_lies_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "recipe.toml").write_text(
        'base = "tiny"\nvae = "x.safetensors"\n[method]\nkind = "lora"\n'
    )
    assert read_recipe(tmp_path / "recipe.toml").vae == str(tmp_path / "x.safetensors")
