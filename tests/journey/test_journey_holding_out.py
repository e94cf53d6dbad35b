"""Images that are kept for the evaluation: chosen by content, with their copies, said before
training; runs of versions without that go on as they were.
"""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import konomi
from konomi.tasks.preparing import prepare
from konomi.tasks.run_folder import recipe_of_run
from konomi.training.events import Finished, Warned


@pytest.fixture
def many(tmp_path):
    """Seventeen different pictures, and a copy of each under another name."""
    folder = tmp_path / "dog"
    folder.mkdir()
    for index in range(17):
        Image.new("RGB", (64, 64), (14 * index, 90, 200)).save(folder / f"{index:02d}.png")
        shutil.copy(folder / f"{index:02d}.png", folder / f"copy of {index:02d}.png")
    return folder


@pytest.fixture
def recipe(make_recipe, many, tmp_path):
    def made(*overrides, folder=many, **options):
        where = f'data.sources.0.path="{folder}"'
        return make_recipe(tmp_path / "run", overrides=[where, *overrides], **options)

    return made


def held_out(job):
    return {record.content for record in job.references}


def test_one_in_eight_is_kept_with_all_copies(recipe):
    job = prepare(recipe())
    assert len(job.references) == 2
    assert len(job.assignment.records) == 2 * 15
    assert not held_out(job) & {record.content for record in job.assignment.records}
    assert not job.held_out.records
    (told,) = [note for note in job.notes if "not trained on" in note]
    assert "2 of 17 different images" in told and "hold_out" in told
    assert all(record.name in told for record in job.references)
    assert told in konomi.check(recipe()).problems


def test_the_choice_is_by_content_and_not_by_name(recipe, many, tmp_path):
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for index, path in enumerate(sorted(many.glob("*.png"), reverse=True)):
        shutil.copy(path, renamed / f"{index}.png")
    assert held_out(prepare(recipe())) == held_out(prepare(recipe(folder=renamed)))


@pytest.mark.parametrize("overrides", [["evaluation.hold_out=off"], []])
def test_all_are_trained_on_where_that_is_asked_or_they_are_few(recipe, many, overrides):
    if not overrides:
        for path in sorted(many.glob("*.png"))[14:]:
            path.unlink()
        for path in sorted(many.glob("*.png"))[7:]:
            path.unlink()
    job = prepare(recipe(*overrides))
    assert not job.references
    assert len(job.assignment.records) == len(list(many.glob("*.png")))
    assert not [note for note in job.notes if "not trained on" in note]


def test_what_is_validated_on_serves_and_nothing_more_is_held_out(recipe):
    job = prepare(recipe("run.validate_every=2", "validation.fraction=0.3"))
    assert len(job.references) == 5
    assert job.references == job.held_out.records
    # The first of the same order: switching one on moves no picture needlessly.
    assert held_out(prepare(recipe())) < held_out(job)


def test_each_subject_counts_its_own(make_recipe, many, tmp_path):
    few = tmp_path / "cat"
    few.mkdir()
    for index in range(7):
        Image.new("RGB", (64, 64), (9, 9, 30 * index)).save(few / f"{index}.png")
    second = [
        f'data.sources.1.path="{few}"',
        "data.sources.1.trigger=zwx",
        f'data.sources.0.path="{many}"',
    ]
    job = prepare(make_recipe(tmp_path / "run", overrides=second))
    assert {record.trigger for record in job.references} == {"sks"}
    assert len(job.references) == 2


def test_a_run_of_a_version_without_the_section_goes_on_with_all_images(recipe, tmp_path):
    folder = tmp_path / "run"
    straight = tmp_path / "straight"
    off = ["evaluation.hold_out=off", "run.checkpoint_every=2"]
    for _ in konomi.train(recipe(*off, steps=4)):
        pass
    shutil.move(folder, straight)
    for _ in konomi.train(recipe(*off, steps=2)):
        pass
    file = folder / "recipe.toml"
    text = file.read_text(encoding="utf-8")
    head, _, rest = text.partition("[evaluation]")
    tail = rest.partition("\n[save]")[2]
    file.write_text(f"{head}[save]{tail}", encoding="utf-8")
    assert recipe_of_run(folder).evaluation.hold_out == "off"
    events = list(konomi.resume(folder, steps=4))
    assert isinstance(events[-1], Finished)
    assert not [event for event in events if isinstance(event, Warned) and "changed" in str(event)]
    ours, theirs = (load_file(place / "sks.safetensors") for place in (folder, straight))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
