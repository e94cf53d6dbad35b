"""Custom Diffusion from pictures to other programs and back: trained, read by diffusers,
converted, merged.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi
from konomi.cli.main import main
from konomi.formats.adapter_file import read_adapter

PROMPT, SEED, STEPS = "a photo of a <new1> dog", 5, 4


@pytest.fixture(scope="module")
def trained(base_folder, pictures, cache, tmp_path_factory):
    """A function: word -> diffusers' folder of a short training on it."""
    made = {}

    def train(word="<new1>", **changes) -> Path:
        if word not in made or changes:
            overrides = [
                f'data.cache.folder="{cache}"',
                'data.resolution="64"',
                "run.batch_size=2",
                "run.seed=11",
                "run.name=result",
                "optimizer.learning_rate=0.05",
                "save.precision=fp32",
                *(f"{name.replace('__', '.')}={value}" for name, value in changes.items()),
            ]
            recipe = konomi.recipe_from_flags(
                "custom_diffusion",
                images=[pictures],
                base=str(base_folder),
                trigger=word,
                class_noun="dog",
                output=str(tmp_path_factory.mktemp("run") / "run"),
                steps=3,
                overrides=overrides,
            )
            *_, finished = konomi.train(recipe)
            made[word] = Path(finished.path)
        return made[word]

    return train


def drawn_by_konomi(base, output, *add):
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


def drawn_by_diffusers(base, folder):
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        str(base),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        local_files_only=True,
    )
    config = dict(pipeline.scheduler.config) | {"timestep_spacing": "linspace", "steps_offset": 0}
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    weights = "pytorch_custom_diffusion_weights.safetensors"
    # Without the pipeline diffusers reads the file and does nothing with it.
    pipeline.unet.load_attn_procs(str(folder), weight_name=weights, _pipeline=pipeline)
    pipeline.load_textual_inversion(str(folder), weight_name="new1.safetensors")
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


@pytest.mark.filterwarnings("ignore")
def test_diffusers_draws_the_same_picture_with_the_saved_folder(trained, base_folder, tmp_path):
    folder = trained()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["new1.safetensors", "pytorch_custom_diffusion_weights.safetensors"]
    ours = drawn_by_konomi(base_folder, tmp_path / "a", folder)
    plain = drawn_by_konomi(base_folder, tmp_path / "b")
    assert np.abs(drawn_by_diffusers(base_folder, folder) - ours).max() <= 2
    assert np.abs(ours - plain).max() > 10


@pytest.mark.kernels
def test_every_form_draws_the_same(trained, base_folder, tmp_path):
    folder = trained()
    ours = drawn_by_konomi(base_folder, tmp_path / "a", folder)
    delta = konomi.convert(folder, tmp_path / "delta.bin")
    webui = konomi.convert(folder, tmp_path / "web.safetensors", base=str(base_folder))
    again = konomi.convert(webui, tmp_path / "again", base=str(base_folder))
    assert set(torch.load(delta, weights_only=True)) == {"unet", "modifier_token"}
    assert (
        konomi.inspect(webui).kind
        == konomi.inspect(delta).kind
        == konomi.inspect(again).kind
        == "custom diffusion"
    )
    for index, file in enumerate((delta, webui, again)):
        assert np.abs(drawn_by_konomi(base_folder, tmp_path / f"o{index}", file) - ours).max() <= 1


def test_compressed_it_is_a_lora_or_a_small_delta(trained, base_folder, tmp_path, capsys):
    folder = trained()
    small = konomi.convert(
        folder, tmp_path / "small.safetensors", base=str(base_folder), compress=0.6
    )
    delta = konomi.convert(folder, tmp_path / "small.bin", base=str(base_folder), compress=0.6)
    assert konomi.inspect(small).kind == "lora"
    assert delta.stat().st_size < konomi.convert(folder, tmp_path / "whole.bin").stat().st_size
    a, b = read_adapter(small), read_adapter(delta)
    assert a.layers.keys() == b.layers.keys() and list(a.embeddings) == list(b.embeddings) == [
        "<new1>"
    ]
    assert main(["convert", str(folder), str(tmp_path / "x.bin"), "--compress", "0.6"]) == 1
    assert "--base" in capsys.readouterr().err
    assert (
        main(
            [
                "convert",
                str(folder),
                str(tmp_path / "x.bin"),
                "--compress",
                "1.5",
                "--base",
                str(base_folder),
            ]
        )
        == 1
    )
    assert "--compress is 1.5" in capsys.readouterr().err


def test_two_are_merged_and_the_constraint_holds(trained, base_folder, tmp_path, capsys):
    one, two = trained(), trained("<new2>", run__seed=12)
    arguments = [str(one), str(two), "--base", str(base_folder), "-o", str(tmp_path / "both")]
    assert main(["merge", "custom", *arguments]) == 0
    told = capsys.readouterr().out
    assert "<new1>" in told and "<new2>" in told and "both" in told
    merged = read_adapter(tmp_path / "both")
    assert set(merged.embeddings) == {"<new1>", "<new2>"}
    assert konomi.inspect(tmp_path / "both").kind == "custom diffusion"
    drawn_by_konomi(base_folder, tmp_path / "a", tmp_path / "both")


def test_a_tag_in_a_prompt_finds_the_folder(trained, base_folder, tmp_path):
    folder = trained()
    ours = drawn_by_konomi(base_folder, tmp_path / "a", folder)
    (path,) = konomi.generate(
        [f"{PROMPT} <lora:result:1>"], base=str(base_folder), seed=SEED, steps=STEPS, guidance=5.0,
        sampler="euler",
        size="64", output=folder.parent,
    )  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(path)).astype(int), ours)


def test_the_same_word_twice_is_one_clear_line(trained, base_folder, tmp_path, capsys):
    folder = str(trained())
    assert (
        main(
            [
                "merge",
                "custom",
                folder,
                folder,
                "--base",
                str(base_folder),
                "-o",
                str(tmp_path / "x"),
            ]
        )
        == 1
    )
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "<new1>" in line and not (tmp_path / "x").exists()


@pytest.mark.kernels
def test_previews_are_what_generate_draws_with_the_file(trained, base_folder, tmp_path):
    folder = trained(
        "<new3>", run__preview_every=3, preview__prompts='["a <new3> dog"]', preview__steps=2
    )
    previews = sorted((folder.parent / "previews").glob("step-000003-*.png"))
    (path,) = konomi.generate(
        ["a <new3> dog"],
        base=str(base_folder),
        add=[str(folder)],
        seed=0,
        steps=2,
        size="64",
        output=tmp_path,
    )
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(previews[0])))


def test_a_source_without_a_word_is_refused_before_anything_is_loaded(
    pictures, base_folder, tmp_path, capsys
):
    arguments = ["train", "custom_diffusion", "--images", str(pictures), "--base", str(base_folder)]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 1
    assert "--trigger" in capsys.readouterr().err
    assert (
        main(
            [
                *arguments,
                "--trigger",
                "x",
                "--output",
                str(tmp_path / "run"),
                'method.initial=["a b"]',
            ]
        )
        == 1
    )
    assert "more than one token" in capsys.readouterr().err
    assert (
        main([*arguments, "--trigger", "x", "--output", str(tmp_path / "run"), "save.format=peft"])
        == 1
    )
    assert "custom" in capsys.readouterr().err


def test_the_folder_says_which_files_belong_to_it(trained):
    from konomi.storage.tensor_file import read_header

    header = read_header(trained() / "pytorch_custom_diffusion_weights.safetensors")
    assert json.loads(header.metadata["konomi_words"]) == ["new1.safetensors"]
    assert header.metadata["modelspec.trigger_phrase"] == "<new1>"
