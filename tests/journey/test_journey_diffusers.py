"""What konomi writes, diffusers reads, and draws the same pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi

PROMPT, SEED, STEPS = "a sks dog", 5, 4


def pipeline_of(folder):
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(folder),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    config = dict(pipeline.scheduler.config) | {"timestep_spacing": "linspace", "steps_offset": 0}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(pipeline):
    generator = torch.Generator("cpu").manual_seed(SEED)
    picture = pipeline(
        PROMPT,
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=generator,
        width=64,
        height=64,
    ).images[0]
    return np.asarray(picture).astype(int)


def drawn_by_konomi(base, output, add=()):
    (path,) = konomi.generate(
        [PROMPT],
        base=str(base),
        add=[str(a) for a in add],
        seed=SEED,
        steps=STEPS,
        guidance=5.0,
        sampler="euler",
        size="64",
        output=output,
    )
    return np.asarray(Image.open(path)).astype(int)


def trained(recipe) -> Path:
    *_, finished = konomi.train(recipe)
    return Path(finished.path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text_rank", [0, 4])
@pytest.mark.kernels
def test_a_lora_saved_for_diffusers_draws_the_same_there(
    make_recipe, base_folder, tmp_path, text_rank
):
    overrides = [
        "save.format=diffusers",
        "optimizer.learning_rate=0.05",
        f"method.text_rank={text_rank}",
    ]
    file = trained(make_recipe(tmp_path / "run", steps=3, overrides=overrides))
    ours = drawn_by_konomi(base_folder, tmp_path / "a", add=[file])
    plain = drawn_by_konomi(base_folder, tmp_path / "b")
    pipeline = pipeline_of(base_folder)
    assert np.abs(drawn_by_diffusers(pipeline) - plain).max() <= 1
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    assert np.abs(drawn_by_diffusers(pipeline) - ours).max() <= 2
    assert np.abs(ours - plain).max() > 10


@pytest.mark.filterwarnings("ignore")
def test_a_kohya_lora_with_one_alpha_draws_the_same_in_diffusers(
    make_recipe, base_folder, tmp_path
):
    file = trained(
        make_recipe(
            tmp_path / "run", steps=3, overrides=["optimizer.learning_rate=0.05", "method.alpha=8"]
        )
    )
    pipeline = pipeline_of(base_folder)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    ours = drawn_by_konomi(base_folder, tmp_path / "a", add=[file])
    assert np.abs(drawn_by_diffusers(pipeline) - ours).max() <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.kernels
def test_a_fully_tuned_model_draws_the_same_in_diffusers(make_recipe, tmp_path):
    overrides = ["save.format=diffusers", "save.precision=fp32", "optimizer.learning_rate=0.01"]
    folder = trained(make_recipe(tmp_path / "run", method="full", steps=3, overrides=overrides))
    assert (
        json.loads((folder / "model_index.json").read_text())["_class_name"]
        == "StableDiffusionPipeline"
    )
    ours = drawn_by_konomi(folder, tmp_path / "a")
    assert np.abs(drawn_by_diffusers(pipeline_of(folder)) - ours).max() <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("train", ["model", "lora"])
def test_a_dreambooth_result_draws_the_same_in_diffusers(make_recipe, base_folder, tmp_path, train):
    rate = "0.01" if train == "model" else "0.05"
    options = [f"method.train={train}", "save.format=diffusers", f"optimizer.learning_rate={rate}"]
    options += ["prior.count=2", "prior.steps=2"]
    saved = trained(make_recipe(tmp_path / "run", method="dreambooth", steps=3, overrides=options))
    plain = drawn_by_konomi(base_folder, tmp_path / "plain")
    if train == "model":
        weights = "unet/diffusion_pytorch_model.safetensors"
        assert (saved / weights).stat().st_size < 0.6 * (base_folder / weights).stat().st_size, (
            "not in fp16"
        )
        ours = drawn_by_konomi(saved, tmp_path / "a")
        pipeline = pipeline_of(saved)
    else:
        ours = drawn_by_konomi(base_folder, tmp_path / "a", add=[saved])
        pipeline = pipeline_of(base_folder)
        pipeline.load_lora_weights(str(saved.parent), weight_name=saved.name)
    assert np.abs(drawn_by_diffusers(pipeline.to(torch.float32)) - ours).max() <= 2
    assert np.abs(ours - plain).max() > 10


def test_a_single_file_becomes_the_same_folder(make_recipe, tmp_path):
    file = trained(make_recipe(tmp_path / "run", method="full", steps=2))
    folder = konomi.convert(file, tmp_path / "folder", to="diffusers")
    back = konomi.convert(folder, tmp_path / "back.safetensors")
    a = drawn_by_konomi(file, tmp_path / "a")
    assert np.array_equal(a, drawn_by_konomi(folder, tmp_path / "b"))
    assert np.array_equal(a, drawn_by_konomi(back, tmp_path / "c"))
