"""What a model says of its prediction and its noise process, and what other programs make of what
konomi writes.
"""

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from konomi.errors import ModelError
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.save import save_folder, save_single_file
from konomi.storage.tensor_file import read_header, read_tensors, write_tensors


def marked_as(names: Collection[str]) -> tuple[str, bool]:
    """The rule by which ComfyUI takes an SDXL file for a v model and for one of zero terminal SNR,
    as NoobAI documents
    it: the keys `v_pred` and, beside it, `ztsnr` are in the table of tensors.
    """
    return ("v_prediction", "ztsnr" in names) if "v_pred" in names else ("epsilon", False)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    ("prediction", "zero_snr"), [("epsilon", False), ("v", False), ("v", True)]
)
def test_files_say_what_they_predict(
    family: str, prediction: Any, zero_snr: bool, tmp_path: Path
) -> None:
    base = random_base(family, prediction=prediction)
    if zero_snr:
        base.use_zero_terminal_snr()
    file, folder = tmp_path / "a.safetensors", tmp_path / "a"
    save_single_file(base, file, dtype=torch.float16)
    save_folder(base, folder, dtype=torch.float16)
    header = read_header(file)
    assert marked_as(header.tensors) == (
        {"v": "v_prediction"}.get(prediction, prediction),
        zero_snr,
    )
    assert all(
        tensor.numel() == 0
        for tensor in read_tensors(
            file, [n for n in ("v_pred", "ztsnr") if n in header.tensors]
        ).values()
    )
    assert header.metadata["modelspec.prediction_type"] == prediction
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == {"v": "v_prediction"}.get(prediction, prediction)
    assert bool(scheduler.get("rescale_betas_zero_snr")) is zero_snr
    assert (scheduler.get("timestep_spacing") == "trailing") is zero_snr
    # And without konomi's own metadata: what other tools see is what konomi sees.
    bare = tmp_path / "bare.safetensors"
    told = json.loads(header.metadata["konomi.configs"])
    told.pop("scheduler", None)
    write_tensors(bare, read_tensors(file), {"konomi.configs": json.dumps(told)})
    for path in (file, folder, *((bare,) if prediction == "v" else ())):
        found = load_base(path)
        assert (found.process.prediction, found.zero_terminal_snr) == (prediction, zero_snr)
        assert torch.equal(
            found.process.schedule.alphas_cumprod, base.process.schedule.alphas_cumprod
        )
        assert found.guidance_rescale == (0.7 if zero_snr else 0.0)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_diffusers_takes_the_folder_for_what_it_is(family: str, tmp_path: Path) -> None:
    import diffusers

    base = random_base(family, prediction="v")
    base.use_zero_terminal_snr()
    save_folder(base, tmp_path / "a", dtype=torch.float32)
    index = json.loads((tmp_path / "a" / "model_index.json").read_text())
    name = index["scheduler"][1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = getattr(diffusers, name).from_pretrained(tmp_path / "a", subfolder="scheduler")
    assert type(scheduler).__name__ == name == scheduler.config["_class_name"]
    assert scheduler.config.prediction_type == "v_prediction"
    # diffusers' Euler puts 2^-24 for zero, which an infinite noise level stands for.
    torch.testing.assert_close(
        scheduler.alphas_cumprod, base.process.schedule.alphas_cumprod, rtol=0, atol=2e-6
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about numpy 2
        scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[0]) == 999


@pytest.mark.slow
def test_diffusers_reads_the_single_file_beside_the_markers(tmp_path: Path) -> None:
    import diffusers

    base = random_base("sdxl", prediction="v")
    base.use_zero_terminal_snr()
    save_folder(base, tmp_path / "a", dtype=torch.float32)
    save_single_file(base, tmp_path / "a.safetensors", dtype=torch.float32)
    kind: Any = diffusers.StableDiffusionXLPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = kind.from_single_file(
            str(tmp_path / "a.safetensors"), config=str(tmp_path / "a"), local_files_only=True
        )
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.scheduler.config.rescale_betas_zero_snr
    theirs = loaded.unet.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in base.state("denoiser").items())


def test_zero_terminal_snr_is_lin_et_als_algorithm(tmp_path: Path) -> None:
    base = random_base("sdxl", prediction="v")
    before = base.process.schedule.alphas_cumprod.double()
    base.use_zero_terminal_snr()
    root = before.sqrt()
    shifted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    torch.testing.assert_close(
        base.process.schedule.alphas_cumprod.double(), shifted.square(), rtol=1e-5, atol=1e-9
    )
    assert base.process.schedule.snr(torch.tensor([999])) == 0
    assert base.process.schedule.alphas_cumprod[0].item() == pytest.approx(
        before[0].item(), rel=1e-6
    )
    betas = 1 - before / torch.cat([torch.ones(1, dtype=before.dtype), before[:-1]])
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    torch.testing.assert_close(
        base.process.schedule.alphas_cumprod.double(), theirs, rtol=1e-4, atol=1e-7
    )
    again = base.process.schedule.alphas_cumprod.clone()
    base.use_zero_terminal_snr()
    assert torch.equal(base.process.schedule.alphas_cumprod, again)


def test_a_marker_is_stronger_than_metadata_and_nothing_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_single_file(random_base("sdxl"), path, dtype=torch.float32)
    tensors, metadata = read_tensors(path), read_header(path).metadata
    assert metadata["modelspec.prediction_type"] == "epsilon"
    write_tensors(path, {**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, metadata)
    found = load_base(path)
    assert (found.process.prediction, found.zero_terminal_snr) == ("v", True)
    found = load_base(path, prediction="epsilon")
    assert (found.process.prediction, found.zero_terminal_snr) == ("epsilon", False)
    write_tensors(path, {**tensors, "ztsnr": torch.zeros(0)}, metadata)
    found = load_base(path)
    assert (found.process.prediction, found.zero_terminal_snr) == ("epsilon", False)


def test_epsilon_cannot_end_in_pure_noise() -> None:
    with pytest.raises(ModelError, match="needs a v-prediction base"):
        random_base("sd1").use_zero_terminal_snr()
