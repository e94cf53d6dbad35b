"""The loss on held-out pictures says something: the words that are learned take part, and nothing
is on both sides.
"""

import json
import shutil

import pytest
from PIL import Image

import konomi
from konomi.errors import DataError
from konomi.tasks.preparing import held_out_stream, prepare
from konomi.training.events import Validated

EVERY = ["run.validate_every=2", "validation.fraction=0.4", "validation.timesteps=2"]


@pytest.fixture
def own_pictures(pictures, tmp_path):
    return shutil.copytree(pictures, tmp_path / "dog")


def seen(job):
    """Captions of what is measured."""
    stream = held_out_stream(job)
    return [passes[0].subject.captions[0] for passes in stream.iterate(0, stream.steps_per_epoch)]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("textual_inversion", []),
        pytest.param("pivotal", ["method.word_steps=2"], marks=pytest.mark.slow),
        pytest.param("dreamartist", ["method.lora_rank=2"], marks=pytest.mark.slow),
        pytest.param("custom_diffusion", ["prior.source=none"], marks=pytest.mark.slow),
    ],
)
def test_what_a_method_learns_shows_in_the_validation(make_recipe, tmp_path, method, more):
    rate = "optimizer.learning_rate=0.05"
    events = list(
        konomi.train(
            make_recipe(tmp_path / "run", method=method, steps=4, overrides=[*EVERY, *more, rate])
        )
    )
    measured = [event.loss for event in events if isinstance(event, Validated)]
    assert len(set(measured)) == 3


def test_both_branches_are_measured_as_they_are_trained(make_recipe, tmp_path):
    """At the start both LoRAs change nothing, so the guided loss is that without them."""
    losses = []
    for rank in (0, 2):
        overrides = [*EVERY, f"method.lora_rank={rank}"]
        events = konomi.train(
            make_recipe(tmp_path / str(rank), method="dreamartist", steps=2, overrides=overrides)
        )
        losses.append([event.loss for event in events if isinstance(event, Validated)])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][1] != losses[1][1]


def test_captions_are_whole_and_in_order_when_measured(make_recipe, own_pictures, tmp_path):
    for path in own_pictures.glob("*.png"):
        path.with_suffix(".txt").write_text("sks, one, two, three")
    varied = [
        "data.captions.dropout=1.0",
        "data.captions.shuffle=true",
        "data.captions.tag_dropout=0.9",
    ]
    where = f'data.sources.0.path="{own_pictures}"'
    job = prepare(
        make_recipe(tmp_path / "run", overrides=[*EVERY, *varied, where, "data.images.flip=true"])
    )
    assert set(seen(job)) == {"sks, one, two, three"}


def test_given_pictures_are_worded_as_training_words_its_own(make_recipe, own_pictures, tmp_path):
    given = tmp_path / "val"
    given.mkdir()
    Image.new("RGB", (64, 64), "green").save(given / "new.png")
    shutil.copy(own_pictures / "0.png", given / "copy.png")
    paths = [f'data.sources.0.path="{own_pictures}"', f'validation.path="{given}"']
    recipe = make_recipe(tmp_path / "run", overrides=[*EVERY, *paths])
    job = prepare(recipe)
    assert seen(job) == ["sks dog"]
    assert any(
        "1 of 2 images" in note and "among the training images" in note for note in job.notes
    )
    (given / "new.png").unlink()
    with pytest.raises(DataError, match="every image in it is among the training images"):
        prepare(recipe)


def test_copies_of_what_is_held_out_are_not_trained_on(make_recipe, own_pictures, tmp_path):
    names = sorted(path.name for path in own_pictures.glob("*.png"))
    for name in names:
        shutil.copy(own_pictures / name, own_pictures / f"copy of {name}")
    job = prepare(
        make_recipe(tmp_path / "run", overrides=[*EVERY, f'data.sources.0.path="{own_pictures}"'])
    )
    held_out = {record.content for record in job.held_out.records}
    trained = {record.content for record in job.assignment.records}
    assert (len(held_out), len(job.held_out.records), len(job.assignment.records)) == (2, 2, 6)
    assert not held_out & trained
    assert any("2 of 5 images are held out" in note and "2 copies" in note for note in job.notes)
    for name in names[1:]:
        (own_pictures / name).unlink()
        (own_pictures / f"copy of {name}").unlink()
    with pytest.raises(DataError, match="1 different images are too few"):
        prepare(
            make_recipe(
                tmp_path / "run", overrides=[*EVERY, f'data.sources.0.path="{own_pictures}"']
            )
        )


def test_the_measured_base_is_remembered(make_recipe, tmp_path):
    folder = tmp_path / "run"
    first = [
        e
        for e in konomi.train(make_recipe(folder, steps=2, overrides=EVERY))
        if isinstance(e, Validated)
    ]
    state = json.loads((folder / "checkpoints" / "step-000002" / "state.json").read_text())
    assert state["run"]["validation_base"] == first[0].base_loss
