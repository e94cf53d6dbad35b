"""DreamBooth from a folder of pictures on: class images, captions, what is said before training,
resuming.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import konomi
from konomi.config.sections import SourceConfig
from konomi.errors import DataError, KonomiError, RecipeError
from konomi.tasks.class_images import class_image_folder, draw_class_images
from konomi.tasks.preparing import prepare
from konomi.training.events import Prepared, Step, Warned

PRIOR = ["prior.count=3", "prior.steps=2", "prior.guidance=3"]


@pytest.fixture
def make(make_recipe, tmp_path):
    """A recipe with a cache of its own: nothing has been drawn."""

    def recipe(name="run", *, steps=4, method="dreambooth", cache="own", overrides=(), **options):
        fixed = [*PRIOR, f'data.cache.folder="{tmp_path / cache}"', "method.text_encoder=true"]
        fixed = fixed if method == "dreambooth" else fixed[:-1]
        return make_recipe(
            tmp_path / name, method=method, steps=steps, overrides=[*fixed, *overrides], **options
        )

    return recipe


def class_files(tmp_path, cache="own"):
    return sorted((tmp_path / cache / "class-images").rglob("*.png"))


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def prepared(events):
    return [
        (e.done, e.total) for e in events if isinstance(e, Prepared) and e.what == "class images"
    ]


def changed(recipe, *overrides):
    from konomi.config.load import change_recipe

    return change_recipe(recipe, overrides)


def with_sources(recipe, *sources):
    sources = tuple(SourceConfig(**source) for source in sources)
    return replace(recipe, data=replace(recipe.data, sources=sources))


@pytest.mark.kernels
def test_one_line_draws_class_images_with_the_untouched_base_and_trains(
    make, base_folder, tmp_path
):
    recipe = make(steps=3)
    events = list(konomi.train(recipe))
    assert prepared(events) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [e.step for e in events if isinstance(e, Step)] == [1, 2, 3]
    rows = manifest(tmp_path / "run")
    assert [row["role"] for row in rows] == ["train"] * 5 + ["prior"] * 3
    files = class_files(tmp_path)
    assert [row["locator"] for row in rows[5:]] == [str(file) for file in files]
    settings = {"base": str(base_folder), "seed": 0, "steps": 2, "guidance": 3.0, "size": "64"}
    # The same batch gives the same bits; pictures drawn one by one may round differently, as the
    # processor likes.
    for count, batch, within in ((4, 4, 0), (3, 1, 1)):
        plain = konomi.generate(
            ["a dog"], count=count, batch=batch, output=tmp_path / f"plain-{batch}", **settings
        )
        for ours, theirs in zip(files, plain, strict=False):
            assert np.abs(pixels(ours) - pixels(theirs)).max() <= within


def test_captions_are_identifier_and_class_where_images_have_none(make, tmp_path):
    report = konomi.check(make())
    assert {row.caption for row in report.rows} == {"a sks dog"}
    list(konomi.train(make(steps=1)))
    assert {
        tuple(row["captions"]) for row in manifest(tmp_path / "run") if row["role"] == "prior"
    } == {("a dog",)}


def test_check_counts_what_is_not_drawn_yet_and_its_steps_are_the_steps(make):
    recipe = changed(make(), "run.steps=0", "run.epochs=2")
    report = konomi.check(recipe)
    assert "one of 3 prior images" in report.sentence
    steps = [e for e in konomi.train(recipe) if isinstance(e, Step)]
    assert len(steps) == report.steps
    again = konomi.check(changed(recipe, 'run.output=""'))
    assert (again.sentence, again.steps) == (report.sentence, report.steps)


def drawn_for(recipe):
    """What is told while the class images of a recipe are made, without training."""
    return prepared(draw_class_images(prepare(recipe)))


def test_class_images_are_reused_and_extended(make, tmp_path):
    list(konomi.train(make("a", steps=1)))
    before = {path: path.stat().st_mtime_ns for path in class_files(tmp_path)}
    again = list(konomi.train(make("b", steps=1, overrides=["run.seed=4", "method.train=lora"])))
    assert prepared(again) == [(3, 3)]
    assert drawn_for(make("c", overrides=["prior.count=5"])) == [(3, 5), (4, 5), (5, 5)]
    after = {path: path.stat().st_mtime_ns for path in class_files(tmp_path)}
    assert len(after) == 5 and before.items() <= after.items()
    list(konomi.train(make("d", steps=1, overrides=["prior.count=2"])))
    assert sum(row["role"] == "prior" for row in manifest(tmp_path / "d")) == 2


@pytest.mark.kernels
def test_a_class_image_does_not_depend_on_how_many_were_wanted(make, tmp_path):
    drawn_for(make(overrides=["prior.count=3"]))
    drawn_for(make(overrides=["prior.count=6"]))
    drawn_for(changed(make(overrides=["prior.count=6"]), f"data.cache.folder={tmp_path / 'other'}"))
    grown, at_once = class_files(tmp_path), class_files(tmp_path, "other")
    assert (
        [path.name for path in grown]
        == [path.name for path in at_once]
        == [f"{i:05d}.png" for i in range(6)]
    )
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(grown, at_once, strict=True))


def test_a_damaged_class_image_is_drawn_again(make, tmp_path):
    drawn_for(make())
    second = class_files(tmp_path)[1]
    whole = second.read_bytes()
    second.write_bytes(b"")
    assert drawn_for(make()) == [(2, 3), (3, 3)]
    assert second.read_bytes() == whole


@pytest.mark.parametrize(
    "change", ["prior.steps=3", "prior.seed=9", "prior.prompt=one [class]", "prior.guidance=4"]
)
def test_other_class_images_for_other_settings(make, tmp_path, change):
    one, other = (prepare(make(overrides=more)) for more in ([], [change]))
    folders = {
        class_image_folder(job.recipe, job.base, job.class_images.prompts[0][1], (64, 64))
        for job in (one, other)
    }
    assert len(folders) == 2


@pytest.mark.kernels
def test_an_interrupted_drawing_goes_on_and_leaves_whole_files(make, tmp_path):
    whole = list(konomi.train(make("a", cache="first", steps=2)))
    events = konomi.train(make("b", steps=2))
    assert isinstance(next(events), Prepared)
    assert next(events).done == 1
    events.close()
    assert len(class_files(tmp_path)) == 1
    assert [path.name for path in (tmp_path / "own" / "class-images").rglob("*.partial*")] == []
    gone_on = list(konomi.train(make("b", steps=2)))
    assert prepared(gone_on) == [(1, 3), (2, 3), (3, 3)]
    pairs = zip(class_files(tmp_path, "first"), class_files(tmp_path), strict=True)
    assert all(a.read_bytes() == b.read_bytes() for a, b in pairs)
    assert [e.loss for e in whole if isinstance(e, Step)] == [
        e.loss for e in gone_on if isinstance(e, Step)
    ]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["method.train=model"], marks=pytest.mark.slow),
        ["method.train=lora"],
        pytest.param(["prior.source=prediction"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.kernels
def test_resumed_equals_uninterrupted_with_class_images_drawn_again(
    make, tmp_path, same_tensors, options
):
    """The cache is emptied in between: what is drawn anew is still the untouched base's."""
    list(konomi.train(make("whole", steps=4, overrides=options)))
    drawn = [path.read_bytes() for path in class_files(tmp_path)]
    stopped = konomi.train(make("cut", steps=4, overrides=[*options, "run.checkpoint_every=2"]))
    for event in stopped:
        if isinstance(event, Step) and event.step == 3:
            break
    stopped.close()
    for path in class_files(tmp_path):
        path.unlink()
    list(konomi.resume(tmp_path / "cut"))
    assert [path.read_bytes() for path in class_files(tmp_path)] == drawn
    assert bool(drawn) == (options != ["prior.source=prediction"])
    assert same_tensors(
        tmp_path / "whole" / "sks.safetensors", tmp_path / "cut" / "sks.safetensors"
    )


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_method_can_have_class_images_and_has_none_unasked(make, tmp_path, method):
    assert prepared(list(konomi.train(make("plain", method=method, steps=1)))) == []
    asked = make("asked", method=method, steps=1, overrides=["prior.source=generate"])
    assert len(prepared(list(konomi.train(asked)))) == 4


def test_a_folder_of_class_images_takes_the_place_of_drawn_ones(make, pictures, tmp_path):
    subject = {"path": str(pictures), "trigger": "sks"}
    prior = {"path": str(pictures), "role": "prior", "class_noun": "dog"}
    assert prepared(list(konomi.train(with_sources(make(steps=1), subject, prior)))) == []
    rows = manifest(tmp_path / "run")
    assert [row["role"] for row in rows] == ["train"] * 5 + ["prior"] * 5


def test_kohya_folders_name_the_subject_and_its_class(make, pictures, tmp_path):
    folder = tmp_path / "4_zwx cat"
    folder.mkdir()
    (folder / "1.png").write_bytes((pictures / "0.png").read_bytes())
    recipe = with_sources(make(steps=1), {"path": str(folder)})
    assert [(row.caption, row.repeats) for row in konomi.check(recipe).rows] == [("a zwx cat", 4)]
    list(konomi.train(recipe))
    assert {
        tuple(row["captions"]) for row in manifest(tmp_path / "run") if row["role"] == "prior"
    } == {("a cat",)}


def test_transparent_class_images_are_the_background(make, tmp_path):
    recipe = make(steps=2, overrides=["prior.source=transparent", "data.images.background=#3366cc"])
    list(konomi.train(recipe))
    (file,) = class_files(tmp_path)
    image = Image.open(file)
    assert (image.size, image.mode, image.getextrema()[3]) == ((64, 64), "RGBA", (0, 0))
    from konomi.data.images import read_image

    seen = read_image(str(file), background="#3366cc").pixels
    assert (seen == np.array([0x33, 0x66, 0xCC])).all()
    with pytest.raises(RecipeError, match="no weight"):
        konomi.check(changed(recipe, "data.images.alpha=mask"))


def test_the_prediction_prior_draws_nothing_and_changes_the_loss(make, tmp_path):
    losses = {}
    for source in ("none", "prediction"):
        events = list(konomi.train(make(source, steps=3, overrides=[f"prior.source={source}"])))
        assert prepared(events) == [] and class_files(tmp_path) == []
        losses[source] = [e.loss for e in events if isinstance(e, Step)]
    # At the first step the base still answers as it always did.
    assert losses["none"][0] == pytest.approx(losses["prediction"][0], abs=1e-6)
    assert losses["none"][1:] != losses["prediction"][1:]


@pytest.mark.parametrize(
    ("trigger", "said"),
    [("sks", None), ("qzqzqz", "tokens"), ("walnut", "ordinary word"), ("sks puppy", "2 tokens")],
)
def test_an_identifier_that_is_no_rare_single_token_gets_a_line(make, trigger, said):
    recipe = changed(make(steps=1), f"data.sources.0.trigger={trigger}")
    told = [e.message for e in konomi.train(recipe) if isinstance(e, Warned)]
    assert told == [
        note
        for note in konomi.check(changed(recipe, 'run.output=""')).problems
        if "identifier" in note
    ]
    assert (said is None and told == []) or (
        len(told) == 1 and said in told[0] and "konomi identifiers" in told[0]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources.0.trigger="], "needs an identifier.*--trigger.*konomi identifiers"),
        (["data.sources.0.class_noun="], "needs a class noun.*--clip.*--class NOUN"),
        (["prior.clip=/nowhere", "data.sources.0.class_noun="], "/nowhere: no folder of a CLIP"),
    ],
)
def test_what_is_missing_gets_its_one_line(make, overrides, message):
    with pytest.raises(KonomiError, match=message) as error:
        next(konomi.train(changed(make(), *overrides)))
    assert "\n" not in str(error.value)


def test_an_empty_class_folder_gets_its_one_line(make, pictures, tmp_path):
    (tmp_path / "none here").mkdir()
    sources = (
        {"path": str(pictures), "trigger": "sks"},
        {"path": str(tmp_path / "none here"), "role": "prior"},
    )
    with pytest.raises(DataError, match=r"none here: empty\. Put images there") as error:
        konomi.check(with_sources(make(), *sources))
    assert "\n" not in str(error.value)


def test_a_method_that_cannot_ask_the_base_says_so(make):
    recipe = konomi.recipe_from_flags("textual_inversion", images=["x"], base="tiny", trigger="sks")
    plain = make()
    recipe = konomi.Recipe(
        base=plain.base,
        method=recipe.method,
        data=plain.data,
        run=plain.run,
        prior=changed(plain).prior,
    )
    with pytest.raises(
        RecipeError, match=r'prior\.source is "prediction", which textual_inversion cannot do'
    ):
        konomi.check(changed(recipe, "prior.source=prediction"))
