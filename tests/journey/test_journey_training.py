"""Whole runs through the Python interface: what lies in the folder, previews, resuming,
refusals.
"""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import konomi
from konomi.errors import RunError
from konomi.storage.tensor_file import read_tensors
from konomi.tasks import previewing
from konomi.training.checkpoint import checkpoint_paths
from konomi.training.events import Checkpointed, Finished, Previewed, Saved, Step, Validated, Warned

EXPECTED_LORA = {
    "checkpoints",
    "log.jsonl",
    "manifest.jsonl",
    "recipe.toml",
    "sks.safetensors",
    "tensorboard",
}


def run(recipe, **options):
    return list(konomi.train(recipe, **options))


def losses(folder: Path):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "kind" not in line]


def test_a_lora_run_leaves_what_is_promised(make_recipe, tmp_path):
    folder = tmp_path / "run"
    events = run(make_recipe(folder))
    assert isinstance(events[-1], Finished)
    assert {path.name for path in folder.iterdir()} == EXPECTED_LORA
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 3, 4, 5, 6]
    entry = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "seconds",
        "samples_seen",
        "memory",
    } <= entry.keys()
    report = konomi.inspect(folder / "sks.safetensors")
    assert (report.kind, report.family) == ("lora", "sd1")
    assert str(tmp_path) not in json.dumps(report.metadata)
    assert report.metadata["modelspec.trigger_phrase"] == "sks"


@pytest.mark.kernels
def test_the_folders_recipe_makes_the_same_run(make_recipe, tmp_path, same_tensors):
    run(make_recipe(tmp_path / "a"))
    again = konomi.read_recipe(tmp_path / "a" / "recipe.toml", [f'run.output="{tmp_path / "b"}"'])
    run(again)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert same_tensors(tmp_path / "a" / "sks.safetensors", tmp_path / "b" / "sks.safetensors")


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.kernels
def test_previews_are_what_generate_draws_with_the_saved_file(
    make_recipe, base_folder, tmp_path, method
):
    folder = tmp_path / "run"
    overrides = [
        "run.preview_every=2",
        "run.save_every=2",
        "preview.steps=3",
        'preview.size="64"',
        'preview.prompts=["a sks dog"]',
    ]
    events = run(make_recipe(folder, method=method, steps=4, overrides=overrides))
    previews = {e.step: e.paths for e in events if isinstance(e, Previewed)}
    assert sorted(previews) == [0, 2, 4]
    saved = {e.step: Path(e.path) for e in events if isinstance(e, Saved)}
    for step in (2, 4):
        source = (
            {"base": str(saved[step])}
            if method == "full"
            else {"base": str(base_folder), "add": [str(saved[step])]}
        )
        (drawn,) = konomi.generate(
            ["a sks dog"], seed=0, steps=3, size="64", output=tmp_path / f"{step}", **source
        )
        assert np.array_equal(
            np.asarray(Image.open(drawn)), np.asarray(Image.open(previews[step][0]))
        )
    first, last = (np.asarray(Image.open(previews[step][0])) for step in (0, 4))
    assert not np.array_equal(first, last)


@pytest.mark.parametrize(
    ("workers", "method"),
    [
        (2, "lora"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((0, "lora"), (0, "full"), (2, "full"))
        ),
    ],
)
@pytest.mark.kernels
def test_stopped_and_resumed_equals_uninterrupted(
    make_recipe, tmp_path, same_tensors, method, workers
):
    options = {
        "method": method,
        "steps": 7,
        "overrides": [f"data.workers={workers}", "optimizer.ema_decay=0.9"],
    }
    run(make_recipe(tmp_path / "whole", **options))
    folder = tmp_path / "halting"
    stopped_at = []
    events = konomi.train(
        make_recipe(
            folder, **options | {"overrides": [*options["overrides"], "run.checkpoint_every=1"]}
        )
    )
    for event in events:
        if isinstance(event, Step) and event.step == 4:
            events.close()
            break
    for until in (6, 7):
        resumed = list(konomi.resume(folder, steps=until))
        stopped_at.append(resumed[-1].step)
    assert stopped_at == [6, 7]
    assert losses(folder) == losses(tmp_path / "whole")
    assert same_tensors(folder / "sks.safetensors", tmp_path / "whole" / "sks.safetensors")
    a = checkpoint_paths(folder / "checkpoints")[-1]
    b = checkpoint_paths(tmp_path / "whole" / "checkpoints")[-1]
    for name in ("weights", "optimizer", "average"):
        assert same_tensors(a / f"{name}.safetensors", b / f"{name}.safetensors")


def test_a_request_to_stop_saves_and_can_be_resumed(make_recipe, tmp_path, same_tensors):
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    run(make_recipe(whole, steps=4))
    stop = konomi.Stop()
    seen = []
    for event in konomi.train(make_recipe(folder, steps=4), stop=stop):
        seen.append(event)
        if isinstance(event, Step) and event.step == 1:
            asking = threading.Thread(target=stop.request)
            asking.start()
            asking.join()
    steps = [event.step for event in seen if isinstance(event, Step)]
    assert steps in ([1], [1, 2])
    checkpoint, finished = seen[-2:]
    assert isinstance(checkpoint, Checkpointed)
    assert (finished.step, finished.path, finished.interrupted) == (steps[-1], "", True)
    assert checkpoint.path == str(checkpoint_paths(folder / "checkpoints")[-1])
    assert not (folder / "sks.safetensors").exists()
    again = list(konomi.resume(folder, stop=konomi.Stop()))
    assert isinstance(again[-1], Finished)
    assert not again[-1].interrupted
    assert losses(folder) == losses(whole)
    assert same_tensors(folder / "sks.safetensors", whole / "sks.safetensors")


def test_a_request_to_stop_before_the_first_step_ends_without_an_error(make_recipe, tmp_path):
    stop = konomi.Stop()
    stop.request()
    events = list(konomi.train(make_recipe(tmp_path / "run", steps=4), stop=stop))
    assert not any(isinstance(event, Step) for event in events)
    assert (events[-1].step, events[-1].interrupted) == (0, True)
    assert not checkpoint_paths(tmp_path / "run" / "checkpoints")
    run(make_recipe(tmp_path / "other", steps=2))
    stop = konomi.Stop()
    stop.request()
    events = list(konomi.resume(tmp_path / "other", steps=3, stop=stop))
    assert (events[-1].step, events[-1].interrupted) == (2, True)


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.kernels
def test_8_bit_moments_resume_bit_for_bit(make_recipe, tmp_path, same_tensors, method):
    pytest.importorskip(
        "bitsandbytes",
        minversion="0.50",
        reason="needs bitsandbytes 0.50 (pip install 'konomi[test]')",
    )
    options = {"method": method, "overrides": ["optimizer.kind=adamw8bit"]}
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(make_recipe(whole, steps=6, **options))
    run(make_recipe(halves, steps=3, **options))
    list(konomi.resume(halves, steps=6))
    assert losses(halves) == losses(whole)
    assert same_tensors(halves / "sks.safetensors", whole / "sks.safetensors")
    a, b = (
        checkpoint_paths(folder / "checkpoints")[-1] / "optimizer.safetensors"
        for folder in (halves, whole)
    )
    assert same_tensors(a, b)
    # Small tensors keep four bytes a value; each of the two methods has tensors of both kinds.
    kept = {tensor.dtype for name, tensor in read_tensors(a).items() if name.endswith("/state1")}
    assert kept == {torch.float32, torch.uint8}


def test_a_finished_run_says_so_and_can_be_extended(make_recipe, tmp_path):
    folder = tmp_path / "run"
    run(make_recipe(folder, steps=2))
    with pytest.raises(RunError, match=r"all 2 steps are done.*--steps"):
        list(konomi.resume(folder))
    assert list(konomi.resume(folder, steps=3))[-1].step == 3


def test_a_used_folder_is_not_trained_over(make_recipe, tmp_path):
    folder = tmp_path / "run"
    run(make_recipe(folder, steps=2))
    before = (folder / "sks.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds a run already"):
        run(make_recipe(folder, steps=2))
    assert (folder / "sks.safetensors").read_bytes() == before
    run(make_recipe(folder, steps=3), overwrite=True)
    assert len(losses(folder)) == 3


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("learning_rate = 0.01", "learning_rate = 0.02", "optimizer.learning_rate"),
        ("rank = 16", "rank = 8", "method.rank"),
        ("seed = 11", "seed = 12", "run.seed"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_difference(make_recipe, tmp_path, old, new, named):
    folder = tmp_path / "run"
    run(make_recipe(folder, steps=2))
    text = (folder / "recipe.toml").read_text()
    assert old in text
    (folder / "recipe.toml").write_text(text.replace(old, new))
    with pytest.raises(RunError, match=named):
        list(konomi.resume(folder, steps=4))


def test_changed_images_are_refused_or_allowed_aloud(make_recipe, pictures, tmp_path):
    import shutil

    own = tmp_path / "dog"
    shutil.copytree(pictures, own)
    recipe = make_recipe(tmp_path / "run", steps=2, overrides=[f'data.sources.0.path="{own}"'])
    run(recipe)
    Image.new("RGB", (64, 64), "green").save(own / "0.png")
    with pytest.raises(RunError, match="images or captions changed"):
        list(konomi.resume(tmp_path / "run", steps=4))
    events = list(konomi.resume(tmp_path / "run", steps=4, allow_changes=True))
    assert any(isinstance(e, Warned) and "changed" in e.message for e in events)
    assert events[-1].step == 4


def test_a_failing_preview_costs_nothing(make_recipe, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("konomi.tasks.run_previews.draw_previews", fail)
    assert previewing.draw_previews is not fail
    events = run(
        make_recipe(
            tmp_path / "run", steps=4, overrides=["run.preview_every=2", "run.save_every=2"]
        )
    )
    assert len([e for e in events if isinstance(e, Step)]) == 4
    assert len([e for e in events if isinstance(e, Saved)]) == 2
    kinds = [type(e).__name__ for e in events]
    assert kinds.index("Saved") < kinds.index("Warned", kinds.index("Step"))


def test_validation_measures_held_out_images_for_model_and_base(make_recipe, tmp_path):
    overrides = ["run.validate_every=3", "validation.fraction=0.4", "optimizer.learning_rate=0.02"]
    events = run(make_recipe(tmp_path / "run", steps=9, overrides=overrides))
    measured = [e for e in events if isinstance(e, Validated)]
    assert [e.step for e in measured] == [0, 3, 6, 9]
    assert measured[0].loss == measured[0].base_loss
    assert len({e.base_loss for e in measured}) == 1
    assert measured[-1].loss != measured[0].loss


def test_prior_images_take_part(make_recipe, pictures, tmp_path):
    prior = [
        f'data.sources.1.path="{pictures}"',
        "data.sources.1.role=prior",
        "data.sources.1.class_noun=dog",
    ]
    run(make_recipe(tmp_path / "plain"))
    run(make_recipe(tmp_path / "prior", overrides=prior))
    with_prior, without = losses(tmp_path / "prior"), losses(tmp_path / "plain")
    assert len(with_prior) == len(without)
    # Weight 1: about twice the loss of the subject alone at the first step, where nothing has been
    # learned.
    assert with_prior[0] > 1.5 * without[0]


@pytest.mark.kernels
def test_accumulation_changes_nothing(make_recipe, tmp_path):
    run(make_recipe(tmp_path / "one", overrides=["run.batch_size=3"]))
    run(make_recipe(tmp_path / "three", overrides=["run.batch_size=3", "memory.accumulation=3"]))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "three"), rel=1e-4)


def test_steps_are_as_predicted(make_recipe, tmp_path):
    recipe = make_recipe(
        tmp_path / "run", steps=None, overrides=["run.epochs=2", "data.sources.0.repeats=3"]
    )
    report = konomi.check(recipe)
    events = run(recipe)
    assert events[-1].step == report.steps
    assert str(report.steps) in report.sentence


def test_output_that_cannot_be_made_is_an_error_before_step_1(make_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        run(make_recipe(tmp_path / "file" / "run"))


def test_nan_weights_are_never_published(make_recipe, tmp_path, monkeypatch):
    from dataclasses import replace

    from konomi.errors import KonomiError
    from konomi.methods.lora import Lora

    honest = Lora.export

    def broken(self):
        adapter = honest(self)
        key, update = next(iter(adapter.layers.items()))
        poisoned = replace(update, up=torch.full_like(update.up, float("nan")))
        return replace(adapter, layers=adapter.layers | {key: poisoned})

    monkeypatch.setattr(Lora, "export", broken)
    with pytest.raises(KonomiError, match="NaN"):
        run(make_recipe(tmp_path / "run", steps=2))
    assert not (tmp_path / "run" / "sks.safetensors").exists()
    assert checkpoint_paths(tmp_path / "run" / "checkpoints")


def test_two_runs_cannot_share_a_folder(make_recipe, tmp_path):
    folder = tmp_path / "run"
    first = konomi.train(make_recipe(folder, steps=4))
    for event in first:
        if isinstance(event, Step):
            break
    with pytest.raises(RunError, match="another run is using this folder"):
        list(konomi.resume(folder))
    first.close()
    assert not (folder / "run.lock").exists()


def test_check_measures_how_long_a_run_takes(make_recipe, tmp_path):
    report = konomi.check(make_recipe(tmp_path / "run", steps=1000), measure=True)
    assert 1 < report.seconds < 10_000
    assert not (tmp_path / "run").exists()


def test_values_of_a_dataset_toml_are_adopted_where_the_recipe_is_silent(
    base_folder, pictures, cache, tmp_path
):
    dataset = tmp_path / "dataset.toml"
    dataset.write_text(
        "[general]\nresolution = 64\n[[datasets]]\nbatch_size = "
        f"3\n[[datasets.subsets]]\nimage_dir = '{pictures}'\n"
        "num_repeats = 2\nclass_tokens = 'sks dog'\n"
    )
    fixed = [f'data.cache.folder="{cache}"']
    silent = konomi.recipe_from_flags(
        "lora", images=[dataset], base=str(base_folder), steps=1, overrides=fixed
    )
    report = konomi.check(silent)
    assert "5 images x 2 repeats" in report.sentence
    assert "batch 3" in report.sentence
    assert {row.caption for row in report.rows} == {"sks dog"}
    spoken = konomi.recipe_from_flags(
        "lora",
        images=[dataset],
        base=str(base_folder),
        steps=1,
        overrides=[*fixed, "run.batch_size=5"],
    )
    assert "batch 5" in konomi.check(spoken).sentence


def test_all_unreadable_images_are_named_before_the_first_step(make_recipe, pictures, tmp_path):
    import shutil

    from konomi.errors import DataError

    own = tmp_path / "dog"
    shutil.copytree(pictures, own)
    for index in (1, 3):
        data = (own / f"{index}.png").read_bytes()
        (own / f"{index}.png").write_bytes(data[: len(data) // 2])
    for latents in ("disk", "off"):
        recipe = make_recipe(
            tmp_path / latents,
            overrides=[f'data.sources.0.path="{own}"', f"data.cache.latents={latents}"],
        )
        with pytest.raises(DataError) as error:
            run(recipe)
        assert "1.png" in str(error.value)
        assert "3.png" in str(error.value)


def test_uncached_training_takes_fresh_crops_and_resumes(make_recipe, tmp_path, same_tensors):
    options = {
        "overrides": [
            "data.cache.latents=off",
            "data.cache.text=off",
            "data.images.crop=random",
            "data.workers=2",
        ]
    }
    run(make_recipe(tmp_path / "whole", **options))
    run(make_recipe(tmp_path / "halves", steps=3, **options))
    list(konomi.resume(tmp_path / "halves", steps=6))
    assert losses(tmp_path / "halves") == losses(tmp_path / "whole")
    assert same_tensors(
        tmp_path / "halves" / "sks.safetensors", tmp_path / "whole" / "sks.safetensors"
    )


@pytest.mark.parametrize(
    "option", ["memory.gradient_checkpointing=true", "memory.channels_last=true"]
)
def test_memory_options_train(make_recipe, tmp_path, option):
    run(make_recipe(tmp_path / "run", steps=2, overrides=[option]))
    run(make_recipe(tmp_path / "plain", steps=2))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_another_denoiser_behind_the_same_name_is_noticed(make_recipe, base_folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    own = tmp_path / "base"
    shutil.copytree(base_folder, own)
    run(make_recipe(tmp_path / "run", steps=2, overrides=[f'base="{own}"']))
    (file,) = (own / "unet").glob("*.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(RunError, match="the base model changed"):
        list(konomi.resume(tmp_path / "run", steps=4))


@pytest.mark.parametrize(
    "method",
    [
        "lora",
        *(
            pytest.param(method, marks=pytest.mark.slow)
            for method in (
                "custom_diffusion",
                "dreamartist",
                "hypernetwork",
                "pivotal",
                "textual_inversion",
            )
        ),
    ],
)
def test_frozen_weights_in_half_the_memory_change_nothing_where_the_file_is_fp16(
    make_recipe, tmp_path, method
):
    from konomi.models.random_base import random_base
    from konomi.models.save import save_folder

    save_folder(random_base("sd1"), tmp_path / "base", dtype=torch.float16)
    options = [f'base="{tmp_path / "base"}"', "run.precision=fp32"]
    options += ["method.conv_rank=2", "method.module_dropout=0.2"] if method == "lora" else []
    for storage in ("auto", "fp16"):
        overrides = [*options, f"memory.storage_dtype={storage}"]
        run(make_recipe(tmp_path / storage, method=method, steps=3, overrides=overrides))
    assert losses(tmp_path / "fp16") == losses(tmp_path / "auto")
