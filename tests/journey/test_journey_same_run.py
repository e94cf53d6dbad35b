"""What a run learned from is said to have changed, whatever changed it; and a longer run says what
moves.
"""

import os
import shutil

import pytest
from PIL import Image

import konomi
from konomi.errors import RunError
from konomi.training.events import Step, Warned

SCHEDULE = ["optimizer.schedule=cosine"]


@pytest.fixture
def started(make_recipe, pictures, tmp_path):
    """A run of one step on pictures of its own, one of which has a mask; and the folder of the
    pictures.
    """
    own = shutil.copytree(pictures, tmp_path / "dog")
    Image.new("L", (64, 64), 200).save(own / "0-masklabel.png")
    (own / "1.txt").write_text("sks dog, one")
    list(
        konomi.train(
            make_recipe(tmp_path / "run", steps=1, overrides=[f'data.sources.0.path="{own}"'])
        )
    )
    return tmp_path / "run", own


def turned(own):
    """Another EXIF orientation in the same number of bytes at the same time."""
    path = own / "2.png"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "mask changed": (
        lambda own: Image.new("L", (64, 64), 100).save(own / "0-masklabel.png"),
        "the masks",
    ),
    "mask gone": (lambda own: (own / "0-masklabel.png").unlink(), "the masks"),
    "mask added": (
        lambda own: Image.new("L", (64, 64), 9).save(own / "1-masklabel.png"),
        "the masks",
    ),
    "caption": (lambda own: (own / "1.txt").write_text("sks dog, two"), "the captions"),
    "caption elsewhere": (
        lambda own: (own / "2.caption").write_text("sks dog, two"),
        "the captions",
    ),
    "picture": (turned, "the pictures"),
}


def test_whatever_changes_the_data_is_said(started, tmp_path):
    run, own = started
    kept = shutil.copytree(own, tmp_path / "kept")
    for change, words in CHANGES.values():
        change(own)
        with pytest.raises(RunError, match=rf"the images or captions changed \({words}, was"):
            list(konomi.resume(run, steps=2))
        shutil.rmtree(own)
        shutil.copytree(kept, own)
    assert list(konomi.resume(run, steps=2))[-1].step == 2


def test_validation_may_be_switched_on_with_pictures_of_its_own(started, tmp_path):
    run, _ = started
    (tmp_path / "val").mkdir()
    Image.new("RGB", (64, 64), "green").save(tmp_path / "val" / "0.png")
    recipe = run / "recipe.toml"
    text = recipe.read_text()
    assert "validate_every" not in text or "validate_every = 0" in text
    changed = text.replace("[run]", "[run]\nvalidate_every = 1").replace("validate_every = 0\n", "")
    recipe.write_text(changed)
    with pytest.raises(RunError, match="the images or captions changed"):
        # Held out of the training images: that is another run.
        list(konomi.resume(run, steps=2))


def test_settings_inside_a_dataset_file_are_said_to_have_changed(make_recipe, pictures, tmp_path):
    dataset = tmp_path / "dataset.toml"

    def write(repeats, batch):
        dataset.write_text(
            f"[[datasets]]\nbatch_size = {batch}\n[[datasets.subsets]]\nimage_dir = '{pictures}'\n"
            f"num_repeats = {repeats}\nclass_tokens = 'sks dog'\n"
        )

    write(1, 3)
    source = [
        f'data.sources.0.path="{dataset}"',
        "data.sources.0.trigger=",
        "data.sources.0.class_noun=",
    ]
    run = tmp_path / "run"
    list(konomi.train(make_recipe(run, steps=1, overrides=[*source, "run.batch_size=1"])))
    write(2, 3)
    with pytest.raises(RunError, match="single images"):
        list(konomi.resume(run, steps=2))
    write(1, 4)
    with pytest.raises(RunError, match=r"dataset\.toml said run\.batch_size = 3, says 4"):
        list(konomi.resume(run, steps=2))


def rates(events):
    return {event.step: event.learning_rate for event in events if isinstance(event, Step)}


def notes(events):
    return [
        event.message
        for event in events
        if isinstance(event, Warned) and "--keep-schedule" in event.message
    ]


def test_a_longer_run_says_that_its_schedule_moves_and_can_keep_it(make_recipe, tmp_path):
    first = list(konomi.train(make_recipe(tmp_path / "run", steps=4, overrides=SCHEDULE)))
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    moved = list(konomi.resume(tmp_path / "run", steps=8))
    (note,) = notes(moved)
    assert (
        "with 8 steps in place of 4 the cosine schedule moves: the learning rate of step 5 is 50 %"
        in note
    )
    assert "was to be 14.6 %, 3.41 times as much" in note
    kept = list(konomi.resume(tmp_path / "kept", steps=8, keep_schedule=True))
    assert notes(kept) == []
    assert set(rates(kept).values()) == {rates(first)[4]}
    # It is remembered: going on once more says nothing, and moves nothing.
    assert set(rates(konomi.resume(tmp_path / "kept", steps=9)).values()) == {rates(first)[4]}


@pytest.mark.slow
def test_a_longer_run_says_that_a_phase_moves_and_can_keep_it(make_recipe, tmp_path):
    """The word of pivotal tuning takes a share of the run."""
    options = {
        "method": "pivotal",
        "overrides": ["method.word_steps=0.5", "run.checkpoint_every=1", "run.preview_every=0"],
    }

    def stopped_at(step, folder):
        for event in (events := konomi.train(make_recipe(folder, steps=4, **options))):
            if isinstance(event, Step) and event.step == step:
                events.close()
                break

    stopped_at(
        2, tmp_path / "word"
    )  # Its checkpoint would come after the event: the newest is that of step 1.
    shutil.copytree(tmp_path / "word", tmp_path / "kept")
    (note,) = notes(list(konomi.resume(tmp_path / "word", steps=8)))
    assert note == (
        "with 8 steps in place of 4 the phase 'word' ends after step 4, and was to end after step "
        "2. --keep-schedule keeps it."
    )
    assert notes(list(konomi.resume(tmp_path / "kept", steps=8, keep_schedule=True))) == []
    # A phase that is over stays as it was.
    stopped_at(4, tmp_path / "lora")
    assert notes(list(konomi.resume(tmp_path / "lora", steps=8))) == []


def test_a_constant_rate_does_not_move(make_recipe, tmp_path):
    list(konomi.train(make_recipe(tmp_path / "run", steps=1)))
    assert notes(list(konomi.resume(tmp_path / "run", steps=2))) == []
