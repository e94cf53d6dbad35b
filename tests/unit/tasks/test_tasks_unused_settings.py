"""A setting without effect in a run is named before it; one with an effect is not."""

import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from konomi import recipe_from_flags
from konomi.config.recipe import Recipe
from konomi.config.schema import generic, recipe_settings
from konomi.config.sections import ObjectiveConfig
from konomi.methods import METHODS
from konomi.methods.lora import LoraConfig
from konomi.methods.method import Needs
from konomi.tasks import preparing
from konomi.tasks.preparing import prepare
from konomi.tasks.unused_settings import Situation, reasons, unused_settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small base, three square pictures without captions and two wide ones with tags."""
    from konomi.models.random_base import random_base
    from konomi.models.save import save_folder

    folder = tmp_path_factory.mktemp("unused")
    save_folder(random_base("sd1"), folder / "base", dtype=torch.float32)
    for name, count, size in (("plain", 3, (64, 64)), ("tagged", 2, (100, 64))):
        (folder / name).mkdir()
        for index in range(count):
            Image.new("RGB", size, (80 * index, 9, 9)).save(folder / name / f"{index}.png")
            if name == "tagged":
                (folder / name / f"{index}.txt").write_text(
                    "a dog, outside, (wet:1.2)", encoding="utf-8"
                )
    return folder


@pytest.fixture
def notes(place):
    def found(
        method, *overrides, images="plain", trigger="sks", class_noun="dog", steps=50, **flags
    ):
        sources = [place / images]
        if method == "imagic":  # One picture, and what becomes of it.
            sources = sorted(sources[0].rglob("*.png"))[:1]
            overrides = ("method.prompt=a cat", *overrides)
        recipe = recipe_from_flags(
            method,
            images=sources,
            base=str(place / "base"),
            trigger=trigger,
            class_noun=class_noun,
            steps=steps,
            overrides=[
                f'data.cache.folder="{place / "cache"}"',
                'data.resolution="64"',
                *overrides,
            ],
            **flags,
        )
        return [note for note in prepare(recipe).notes if "identifier" not in note]

    return found


UNUSED = [
    # Of methods.
    ("lora", "method.conv_alpha=4", "method.conv_rank"),
    ("lora", "method.text_alpha=4", "method.text_rank"),
    ("lora", "optimizer.text_learning_rate=1e-4", "method.text_rank"),
    ("lora", "method.rank=1 method.scaling=sqrt_rank", "root"),
    ("lora", "method.targets=[] method.conv_rank=2 method.rank=4", "method.targets"),
    ("full", "optimizer.text_learning_rate=1e-6", "text_encoder"),
    ("dreambooth", "method.rank=4", "method.train"),
    ("dreambooth", "method.text_encoder=false optimizer.text_learning_rate=1e-6", "text_encoder"),
    ("hypernetwork", "optimizer.text_learning_rate=1e-4", "text encoder"),
    ("hypernetwork", "method.structure=1,1 method.activation=mish", "activate_output"),
    ("hypernetwork", "method.dropout=0,0,0", "every rate is 0"),
    ("textual_inversion", 'method.word="ohwx"', "sks"),
    ("textual_inversion", "optimizer.weight_decay=0.1", "zero"),
    (
        "textual_inversion",
        "optimizer.text_learning_rate=1e-3 optimizer.learning_rate=1e-2",
        "text_learning_rate",
    ),
    ("dreamartist", "method.lora_rate=1e-3", "method.lora_rank"),
    ("dreamartist", "method.negative_lora_rate=1e-3", "method.lora_rank"),
    ("dreamartist", "optimizer.text_learning_rate=1e-3", "optimizer.learning_rate"),
    ("dreamartist", "method.targets=attention", "method.lora_rank"),
    ("pivotal", "method.lora.text_alpha=2", "method.lora.text_rank"),
    ("pivotal", 'method.words.word="ohwx"', "sks"),
    ("pivotal", "optimizer.text_learning_rate=1e-4", "method.lora.text_rank"),
    # Of captions and pictures.
    ("lora", "data.captions.keep_tokens=1", "neither shuffled nor dropped"),
    ("lora", "data.captions.shuffle=true", "more than one tag"),
    ("lora", "data.captions.keep_tokens=1 data.captions.tag_dropout=0.1", "a tag to leave out"),
    ("lora", 'data.captions.separator=";"', "no caption holds it"),
    ("lora", "data.captions.lines=alternatives", "several lines"),
    ("lora", 'data.buckets.kind="fixed" data.buckets.min_side=32', "fixed"),
    ("lora", 'data.buckets.kind="novelai" data.buckets.upscale=false', "area"),
    ("lora", 'data.images.crop="random"', "shape of its bucket"),
    ("lora", "data.images.crops=4", "center"),
    (
        "lora",
        'data.images.crop="random" data.cache.latents="off" data.images.crops=4',
        "not cached",
    ),
    ("lora", 'objective.masked=false data.images.alpha="mask"', "objective.masked"),
    ("textual_inversion", 'data.cache.text="memory"', "encoded in every step"),
    ("lora", "data.sources.0.repeats=10", "counted in steps"),
    # Of the objective and the class.
    ("lora", "objective.huber_delta=0.5", "huber"),
    ("lora", "objective.snr_gamma=2", "min_snr"),
    ("lora", "objective.masked=false", "no image has a mask"),
    ("lora", "objective.prior_weight=0.5", "no prior"),
    ("lora", "prior.count=7", "no class image is drawn"),
    ("lora", 'prior.source="prediction" prior.steps=7', "no class image is drawn"),
    ("lora", '"prior.prompt=one [class]"', "prior.source"),
    ("lora", 'prior.clip="tiny"', "no class noun is missing"),
    # Of the optimiser.
    ("lora", "optimizer.cycles=3", "cosine_restarts"),
    ("lora", "optimizer.power=2", "polynomial"),
    ("lora", 'optimizer.kind="adafactor" optimizer.betas=[0.8,0.9]', "adafactor"),
    # Of the run, memory and text.
    ("lora", "run.epochs=3", "run.steps"),
    ("lora", "run.save_every=50", "at its end"),
    ("lora", "run.checkpoint_every=60", "at its end"),
    ("lora", "run.keep_checkpoints=5", "the run writes 1"),
    ("lora", "memory.accumulation=4", "run.batch_size = 4"),
    ("custom_diffusion", "memory.offload=false", "in every step"),
    ("full", "run.precision=fp32 memory.storage_dtype=fp16", "are trained"),
    ("lora", "run.precision=bf16 memory.storage_dtype=bf16", "computes in bf16"),
    ("lora", 'text.chunking="sd_scripts"', "one chunk"),
    ("lora", "text.emphasis=true", "no caption has brackets"),
    ("lora", "text.clip_skip=1", "the base's own"),
    # Of previews and validation.
    ("lora", "preview.steps=9", "KONOMI_PREVIEWS=off"),
    ("lora", "run.preview_every=0 preview.steps=9", "run.preview_every"),
    ("lora", 'run.preview_every=10 preview.guidance=1 preview.negative="bad"', "preview.guidance"),
    (
        "lora",
        "run.preview_every=10 preview.guidance=1 preview.guidance_rescale=0.5",
        "preview.guidance",
    ),
    ("lora", "run.preview_every=10 preview.guidance_rescale=0", "pure noise"),
    ("lora", "validation.fraction=0.3", "run.validate_every"),
    ("lora", "run.validate_every=10 evaluation.hold_out=off", "run.validate_every"),
]


@pytest.mark.parametrize(
    ("method", "overrides", "reason"), UNUSED, ids=lambda value: str(value)[:60]
)
def test_a_setting_without_effect_is_named_with_the_reason(notes, method, overrides, reason):
    written = shlex.split(overrides)
    path = written[-1].split("=")[0]
    told = [note for note in notes(method, *written) if note.startswith(f"{path} = ")]
    assert len(told) == 1
    assert "does nothing in this run" in told[0]
    assert reason in told[0]
    assert told[0].endswith(".")
    assert "\n" not in told[0]


USED = [
    (
        "lora",
        "plain",
        "method.conv_rank=2 method.conv_alpha=1 method.text_rank=2 method.text_alpha=1",
    ),
    (
        "lora",
        "plain",
        (
            "method.text_rank=2 optimizer.text_learning_rate=1e-4 method.rank=8 "
            "method.scaling=sqrt_rank"
        ),
    ),
    (
        "lora",
        "tagged",
        "data.captions.shuffle=true data.captions.keep_tokens=1 data.captions.tag_dropout=0.1",
    ),
    ("lora", "tagged", 'data.images.crop="random" data.images.crops=4 text.emphasis=true'),
    ("lora", "plain", 'objective.loss="huber" objective.huber_delta=0.2'),
    ("lora", "plain", 'objective.weighting="min_snr" objective.snr_gamma=1'),
    (
        "lora",
        "plain",
        'prior.source="generate" prior.count=3 prior.steps=2 objective.prior_weight=0.5',
    ),
    ("lora", "plain", 'optimizer.schedule="cosine_restarts" optimizer.cycles=2'),
    (
        "lora",
        "plain",
        "run.batch_size=3 memory.accumulation=3 run.save_every=10 run.checkpoint_every=10",
    ),
    (
        "lora",
        "plain",
        (
            'run.preview_every=10 preview.guidance=0.5 preview.negative="x" '
            "preview.guidance_rescale=0.5"
        ),
    ),
    (
        "lora",
        "plain",
        "run.preview_every=10 preview.steps=3 run.validate_every=10 validation.fraction=0.5",
    ),
    ("lora", "plain", "run.precision=fp32 memory.storage_dtype=fp16"),
    ("dreambooth", "plain", 'method.train="lora" method.rank=4 optimizer.text_learning_rate=1e-4'),
    ("dreamartist", "plain", "method.lora_rank=2 method.lora_rate=1e-3 optimizer.weight_decay=0.2"),
    ("custom_diffusion", "plain", "optimizer.text_learning_rate=1e-3 optimizer.weight_decay=0.2"),
    ("hypernetwork", "plain", "method.activation=mish method.dropout=0,0.1,0"),
    (
        "pivotal",
        "plain",
        "method.lora.text_rank=2 method.lora.text_alpha=1 optimizer.weight_decay=0.1",
    ),
]


@pytest.mark.parametrize(("method", "images", "overrides"), USED, ids=lambda value: str(value)[:60])
def test_settings_that_do_something_are_not_named(notes, method, images, overrides):
    assert not [
        note
        for note in notes(method, *shlex.split(overrides), images=images)
        if "does nothing" in note
    ]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.config_type().kind)
def test_defaults_are_never_named_and_every_reason_is_a_settings(notes, method, monkeypatch):
    seen = []

    def watched(run):
        seen.append(run)
        return unused_settings(run)

    monkeypatch.setattr(preparing, "unused_settings", watched)
    assert notes(method.config_type().kind, steps=0) == []
    known = {setting.path for setting in recipe_settings(method.config_type)}
    assert {generic(path) for path in reasons(seen[0])} <= known


MISTAKES = [
    ("lora", 'optimizer.kind="prodigy" optimizer.learning_rate=1e-4', "prodigy multiplies"),
    ("lora", "optimizer.learning_rate=0", "are not trained"),
    ("lora", "optimizer.warmup=80", "never reaches"),
    ("lora", 'optimizer.kind="schedule_free" optimizer.ema_decay=0.9', "schedule_free"),
    (
        "lora",
        'optimizer.kind="schedule_free" optimizer.schedule="cosine"',
        "without optimizer.schedule",
    ),
    ("lora", "run.batch_size=8", "an epoch has 3 image"),
    ("lora", "run.steps=1200", "seen 400 times"),
    ("textual_inversion", "data.captions.dropout=0.1", "does not hold the word"),
    ("lora", 'prior.source="generate" objective.prior_weight=0', "has no effect"),
]


@pytest.mark.parametrize(
    ("method", "overrides", "said"), MISTAKES, ids=lambda value: str(value)[:60]
)
def test_what_is_most_likely_a_mistake_is_said(notes, method, overrides, said):
    assert [note for note in notes(method, *shlex.split(overrides)) if said in note]


def test_one_random_crop_for_the_whole_run_is_said(notes):
    told = notes("lora", "data.images.crop=random", images="tagged")
    assert any("one crop is cached" in note for note in told)


def test_a_template_that_no_image_needs_and_the_class_of_words(notes, place):
    """Pictures with captions of their own have no use for a template without [filewords]."""
    told = notes("lora", 'data.sources.0.template="a photo of [name]"', images="tagged")
    assert any(
        note.startswith("data.sources.0.template = ") and "caption of its own" in note
        for note in told
    )
    told = notes("lora", 'data.sources.0.template="[name], [filewords]"', images="tagged")
    assert not any("template" in note for note in told)


@pytest.mark.parametrize(
    ("method", "section"), [("textual_inversion", "method"), ("pivotal", "method.words")]
)
def test_templates_of_words_are_for_images_without_captions(notes, method, section):
    told = notes(method, f"{section}.templates=style", images="tagged")
    assert any(note.startswith(f"{section}.templates = ") for note in told)
    assert not any("templates" in note for note in notes(method, f"{section}.templates=style"))


def test_check_shows_them_and_json_has_them(place, capsys):
    from konomi.cli.main import main

    line = [
        "--images",
        str(place / "plain"),
        "--base",
        str(place / "base"),
        "--trigger",
        "sks",
        "--class",
        "dog",
    ]
    code = main(["check", "lora", *line, "--json", "memory.accumulation=4", "data.resolution=64"])
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert code == 0
    assert any("memory.accumulation = 4 does nothing" in str(problem) for problem in problems)


@pytest.mark.parametrize("marked", [True, False])
def test_zero_terminal_snr_asked_of_a_base_that_has_it_is_named(marked):
    recipe = Recipe(
        base="x", method=LoraConfig(), objective=ObjectiveConfig(zero_terminal_snr=True)
    )
    run = Situation(
        requested=recipe,
        recipe=recipe,
        needs=Needs(),
        records=(),
        summary=SimpleNamespace(),
        precision=torch.float32,
        casts_weights=False,
        zero_terminal_snr=marked,
    )
    told = [
        line
        for line in unused_settings(run)
        if line.startswith("objective.zero_terminal_snr = true does nothing")
    ]
    assert len(told) == marked


def test_previews_that_come_out_otherwise_than_written_are_said(notes):
    prompts = "preview.prompts=['a <lora:x:0.5> dog', '__color__ dog', 'a dog']"
    requested = ("preview.size='67x64'", prompts, "preview.negative='a AND b'")
    told = [
        note
        for note in notes("lora", "run.preview_every=10", *requested)
        if note.startswith("preview.")
    ]
    assert [note.split(" ")[0] for note in told] == [
        "preview.size", "preview.prompts.0:", "preview.prompts.1:", "preview.negative:",
    ]  # fmt: skip
    assert "64x64" in told[0]
    assert "<lora:x>" in told[1]
    assert not [note for note in notes("lora", *requested) if note.startswith("preview.prompts.0:")]
