"""How a recipe's words about its base reach the base, and the result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from konomi.errors import RecipeError
from konomi.methods.method import Weights
from konomi.models.load import load_base
from konomi.models.save import save_folder
from konomi.models.scratch import random_base
from konomi.storage.tensor_file import read_header
from konomi.tasks.preparing import Job, open_stream, prepare
from konomi.tasks.previewing import draw_previews
from konomi.tasks.recipes import recipe_from_flags
from konomi.tasks.saving import save_result


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (64, 64), "#405060").save(folder / "a.png")
    return folder


def prepared(base: Path, images: Path, *changes: str, method: str = "full") -> Job:
    flags: dict[str, Any] = {"images": [images], "base": str(base), "trigger": "sks"}
    cached = f"data.cache.folder={base.parent / 'cache'}"
    return prepare(recipe_from_flags(method, **flags, overrides=[cached, "run.device=cpu", *changes]))


def test_zero_snr_training_is_drawn_and_saved_as_such(images: Path, tmp_path: Path) -> None:
    save_folder(random_base("sd1", prediction="v"), tmp_path / "v", dtype=torch.float32)
    job = prepared(tmp_path / "v", images, "objective.zero_terminal_snr=true", "save.precision=fp32")
    assert job.base.zero_terminal_snr
    assert job.base.schedule.ends_in_pure_noise
    path = save_result(job, Weights({}), tmp_path, step=1, when="end")
    assert {"v_pred", "ztsnr"} <= read_header(path).tensors.keys()
    assert load_base(path).schedule.ends_in_pure_noise
    assert not prepared(tmp_path / "v", images).base.zero_terminal_snr
    save_folder(random_base("sd1"), tmp_path / "epsilon", dtype=torch.float32)
    with pytest.raises(RecipeError, match="zero_terminal_snr is on, but epsilon predicts noise"):
        prepared(tmp_path / "epsilon", images, "objective.zero_terminal_snr=true")


def test_offloaded_parts_go_again_after_a_preview(images: Path, tmp_path: Path) -> None:
    """Each time: the VAE and the text encoder come back for the picture, and for nothing else."""
    save_folder(random_base("sd1"), tmp_path / "a", dtype=torch.float32)
    for method, changes in (("lora", ()), ("full", ("method.text_encoder=false",))):
        job = prepared(tmp_path / "a", images, "preview.steps=1", "preview.prompts=['x']", *changes, method=method)
        for _ in open_stream(job):
            pass
        job.method.plan()
        loaded = job.base.loaded_parts()
        assert "vae" not in loaded
        for step in (1, 2):
            assert draw_previews(job, job.method.export(), tmp_path / method, step)
            assert job.base.loaded_parts() == loaded
        job.method.close()
