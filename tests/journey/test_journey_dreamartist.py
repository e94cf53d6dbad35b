"""One picture to a word and its counterpart, and back to pictures, as a user goes that way."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi
from konomi.adapters.adapter import Adapter
from konomi.cli.main import main
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.generation.infotext import read_infotext
from konomi.training.events import Previewed, Saved

BUILTIN = Path(konomi.__file__).parent / "builtin"
DRAW = {"seed": 0, "steps": 3, "guidance": 7.0, "sampler": "dpmpp_2m", "size": "64"}


def drawn(prompt, base, output, **options):
    (path,) = konomi.generate([prompt], base=str(base), output=output, **(DRAW | options))
    return np.asarray(Image.open(path)).astype(int), path


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="words"),
        pytest.param({"lora_rank": 2}, id="lora", marks=pytest.mark.slow),
    ],
)
@pytest.mark.kernels
def test_previews_are_what_generate_draws_with_both_files(
    make_recipe, base_folder, tmp_path, options
):
    folder = tmp_path / "run"
    overrides = [f"method.{name}={value}" for name, value in options.items()] + [
        "method.lora_rate=0.05",
        "method.negative_lora_rate=0.05",
        "run.preview_every=2",
        "run.save_every=2",
        "preview.steps=3",
        'preview.size="64"',
        'preview.prompts=["a photo of sks"]',
        "optimizer.learning_rate=0.5",
    ]
    events = list(
        konomi.train(make_recipe(folder, method="dreamartist", steps=4, overrides=overrides))
    )
    previews = {event.step: event.paths[0] for event in events if isinstance(event, Previewed)}
    saved = {event.step: Path(event.path) for event in events if isinstance(event, Saved)}
    for step, file in saved.items():
        beside = file.with_name(f"{file.stem}-neg.safetensors")
        assert beside.is_file()
        again, picture = drawn("a photo of sks", base_folder, tmp_path / str(step), add=[str(file)])
        assert np.array_equal(again, np.asarray(Image.open(previews[step])))
        assert read_infotext(picture).negative == "sks-neg"
        by_hand, _ = drawn(
            "a photo of sks", base_folder, tmp_path / "hand", add=[str(file)], negative="sks-neg"
        )
        assert np.array_equal(by_hand, again)
        # Without the file beside it, and at half strength, it is another picture; at strength 0
        # the base's own.
        alone = tmp_path / "alone" / file.name
        alone.parent.mkdir(exist_ok=True)
        shutil.copy(file, alone)
        one_half, _ = drawn("a photo of sks", base_folder, tmp_path / "one", add=[str(alone)])
        weaker, _ = drawn("a photo of sks", base_folder, tmp_path / "half", add=[f"{file}:0.5"])
        nothing, _ = drawn("a photo of sks", base_folder, tmp_path / "zero", add=[f"{file}:0"])
        plain, _ = drawn("a photo of sks", base_folder, tmp_path / "plain")
        assert not np.array_equal(again, one_half) and not np.array_equal(again, weaker)
        assert np.array_equal(nothing, plain)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="words"),
        pytest.param(["method.lora_rank=2"], id="lora", marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(make_recipe, tmp_path, same_tensors, options):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for _ in konomi.train(make_recipe(whole, method="dreamartist", steps=4, overrides=options)):
        pass
    recipe = make_recipe(
        parted, method="dreamartist", steps=4, overrides=[*options, "run.checkpoint_every=2"]
    )
    run = konomi.train(recipe)
    for event in run:
        if getattr(event, "step", 0) == 3:
            run.close()
            break
    for _ in konomi.resume(parted):
        pass
    for name in ("sks.safetensors", "sks-neg.safetensors"):
        assert same_tensors(whole / name, parted / name)


def test_masks_beside_the_picture_change_what_is_learned(make_recipe, pictures, tmp_path):
    """`x_att.png` is no second picture; it weighs the loss of `x.png`."""
    images = tmp_path / "one"
    images.mkdir()
    shutil.copy(pictures / "0.png", images / "x.png")
    losses = []
    for level in (None, 255, 0):
        if level is not None:
            Image.new("L", (64, 64), level).save(images / "x_att.png")
        recipe = make_recipe(
            tmp_path / f"run-{level}", method="dreamartist", steps=1, overrides=["run.batch_size=1"]
        )
        source = replace(recipe.data.sources[0], path=str(images))
        events = list(konomi.train(replace(recipe, data=replace(recipe.data, sources=(source,)))))
        losses.append(next(event.loss for event in events if hasattr(event, "loss")))
    assert losses[1] == pytest.approx(5 * losses[0], rel=1e-5)
    assert losses[2] == 0.0


def test_a_format_that_knows_no_branches_is_refused_before_training(make_recipe, tmp_path):
    for target in ("diffusers", "peft"):
        overrides = ["method.lora_rank=2", f"save.format={target}"]
        with pytest.raises(
            konomi.KonomiError, match="which cannot say that a LoRA is for one branch"
        ):
            list(
                konomi.train(
                    make_recipe(tmp_path / target, method="dreamartist", overrides=overrides)
                )
            )


def test_from_one_picture_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(BUILTIN / "mascot" / "mascot-1.png", images)
    command = [
        "train",
        "dreamartist",
        "--images",
        str(images),
        "--base",
        "tiny",
        "--trigger",
        "sks",
    ]
    assert main([*command, "--steps", "6", "--output", "run", 'data.cache.folder="cache"']) == 0
    assert (tmp_path / "run" / "sks.safetensors").is_file() and (
        tmp_path / "run" / "sks-neg.safetensors"
    ).is_file()
    words = read_adapter(tmp_path / "run" / "sks.safetensors").embeddings
    assert {word: len(parts["text_encoder"]) for word, parts in words.items()} == {
        "sks": 3,
        "sks-neg": 6,
    }
    draw = [
        "generate",
        "sks",
        "--base",
        "tiny",
        "--add",
        "run/sks.safetensors",
        "--steps",
        "2",
        "--seed",
        "1",
    ]
    assert main([*draw, "--output", "drawn"]) == 0
    (picture,) = (tmp_path / "drawn").iterdir()
    assert read_infotext(picture).negative == "sks-neg"
    assert main([*command, "--output", "other", "--steps", "1", "data.sources.0.trigger="]) == 1
    assert "--trigger WORD" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
@pytest.mark.kernels
def test_diffusers_draws_the_same_with_both_words(base_folder, tmp_path):
    """What the file holds, handed to diffusers' own pipeline as rows of its token table."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    generator = torch.Generator().manual_seed(3)
    words = {
        word: {"text_encoder": torch.randn(count, 32, generator=generator)}
        for word, count in (("sks", 3), ("sks-neg", 6))
    }
    file = tmp_path / "sks.safetensors"
    write_adapter(Adapter(embeddings=words, family="sd1"), file)
    ours, _ = drawn(
        "a photo of sks", base_folder, tmp_path / "ours", add=[str(file)], sampler="ddim"
    )
    pipeline = StableDiffusionPipeline.from_pretrained(base_folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, steps_offset=1, clip_sample=False
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(file, token="<positive>")
    pipeline.load_textual_inversion(tmp_path / "sks-neg.safetensors", token="<negative>")
    theirs = pipeline(
        "a photo of <positive>",
        negative_prompt="<negative>",
        num_inference_steps=3,
        guidance_scale=7.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert np.abs(np.asarray(theirs).astype(int) - ours).max() <= 1
