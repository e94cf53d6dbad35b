"""What `check` finds is what `train` says: the same objects, before the first step."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from konomi.config.recipe import Recipe
from konomi.data.captions import final_caption
from konomi.tasks.checking import CheckReport, check
from konomi.tasks.preparing import prepare
from konomi.tasks.recipes import recipe_from_flags
from konomi.tasks.training import train
from konomi.training.events import Started, Warned

LONG = ", ".join(f"tag number {n}" for n in range(60))


def images(folder: Path, captions: dict[str, str], size: tuple[int, int] = (64, 64)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for name, caption in captions.items():
        Image.fromarray(draws.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(
            folder / f"{name}.png"
        )
        if caption:
            (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def recipe_for(folder: Path, *changes: str, method: str = "lora", trigger: str = "sks") -> Recipe:
    return recipe_from_flags(
        method,
        images=[folder],
        base="tiny",
        trigger=trigger,
        class_noun="",
        output="",
        steps=1,
        seed=0,
        prior_images=None,
        overrides=["data.resolution=64", f"data.cache.folder={folder.parent / 'cache'}", *changes],
    )


def first_notes(recipe: Recipe) -> list[str]:
    """What `train` says before its first step."""
    notes = []
    events = train(recipe)
    for event in events:
        if isinstance(event, Warned):
            notes.append(event.message)
        if isinstance(event, Started):
            break
    events.close()  # type: ignore[attr-defined]
    return notes


def test_train_says_what_check_finds(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"p": "sks fox", "q": "sks fox on grass\nand snow"})
    images(folder, {"panorama": "sks"}, size=(800, 64))
    (folder / "stray.txt").write_text("of no image", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"no picture")
    recipe = recipe_for(folder, f"run.output={tmp_path / 'run'}")
    report = check(recipe)
    assert not report.stops
    assert {"stray.txt", "q.txt"} <= {name for finding in report.findings for name in finding.names}
    notes = first_notes(recipe)
    assert [finding.message for finding in report.findings] == notes[1 : 1 + len(report.findings)]
    assert (
        "2 files are left out" in notes[0]
        and "broken.png" in notes[0]
        and "panorama.png" in notes[0]
    )
    rows = (tmp_path / "run" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum('"reason"' in row for row in rows) == 2
    assert [row for row in rows if '"panorama.png"' in row and "width / height" in row]
    assert not [row for row in rows if '"panorama.png"' in row and '"content"' in row]


def test_a_trigger_beyond_the_last_token_comes_to_the_front(tmp_path: Path) -> None:
    folder = images(
        tmp_path / "set", {"p": f"{LONG}, sks fox", "q": f"sks fox, {LONG}", "r": "sks fox"}
    )
    job = prepare(recipe_for(folder))
    first = {r.name: final_caption(r, job.recipe.data.captions, None) for r in job.manifest.records}
    assert first["p.png"] == f"sks, {LONG}, sks fox"
    assert first["q.png"].startswith("sks fox, tag number 0") and first["r.png"] == "sks fox"
    (pieces,) = job.base.tokens(first["p.png"]).values()
    assert "sks</w>" in [piece.lower() for piece in pieces[:75]] or "sks" in "".join(pieces[:75])
    long, moved = (finding for finding in job.findings if "token" in finding.message)
    assert long.names == ("p.png", "q.png") and "text.max_tokens = " in long.message
    assert moved.names == ("p.png",) and "in front" in moved.message


def test_enough_tokens_leave_captions_as_they_are(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"p": f"{LONG}, sks fox"})
    job = prepare(recipe_for(folder, "text.max_tokens=450"))
    assert not job.manifest.records[0].trigger_first
    assert not any("tokens" in finding.message for finding in job.findings)


def test_a_shuffled_trigger_never_leaves_the_reach(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"p": f"sks, {LONG}"})
    job = prepare(recipe_for(folder, "data.captions.shuffle=true"))
    (record,) = job.manifest.records
    for key in range(20):
        assert final_caption(record, job.recipe.data.captions, key).startswith("sks, ")


def test_a_learned_word_of_many_vectors_needs_more_room(tmp_path: Path) -> None:
    near_the_end = ", ".join(["a"] * 36) + ", sks"
    folder = images(tmp_path / "set", {"p": near_the_end})
    few = prepare(recipe_for(folder, "method.vectors=1", method="textual_inversion"))
    many = prepare(recipe_for(folder, "method.vectors=8", method="textual_inversion"))
    assert [job.manifest.records[0].trigger_first for job in (few, many)] == [False, True]


def stopped(report: CheckReport, words: str) -> bool:
    return (
        any(words in problem for problem in report.stops)
        and report.stops == report.problems[: len(report.stops)]
    )


def test_check_tells_what_would_stop_the_run(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"p": "sks", "q": "sks"})
    whole = (folder / "p.png").read_bytes()
    (folder / "p.png").write_bytes(whole[: len(whole) // 2])
    assert stopped(check(recipe_for(folder)), "1 images cannot be read")
    (folder / "p.png").write_bytes(whole)
    recipe = recipe_for(folder, f"run.output={tmp_path / 'run'}")
    assert not check(recipe).stops
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    assert stopped(check(recipe), "is not a folder")
    (tmp_path / "run").unlink()
    (tmp_path / "run" / "checkpoints" / "step-000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-000001" / "manifest.json").write_text(
        "{}", encoding="utf-8"
    )
    assert stopped(check(recipe), "holds a run already")
    narrow = images(tmp_path / "narrow", {"p": "sks"}, size=(1600, 16))
    assert stopped(check(recipe_for(narrow)), "no image to train on")


def test_an_assumed_base_is_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"p": "sks"})
    recipe = recipe_for(folder)
    (told,) = [p for p in check(recipe, assumed_base=True).problems if "no base was named" in p]
    assert "'tiny'" in told and "--base" in told
    assert not any("no base" in problem for problem in check(recipe).problems)


def test_held_out_images_of_an_odd_shape_are_left_out_aloud(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"p": "sks", "q": "sks", "r": "sks"})
    outside = images(tmp_path / "val", {"v": "sks"}, size=(1600, 16))
    recipe = recipe_for(folder, f"validation.path={outside}")
    recipe = replace(recipe, run=replace(recipe.run, validate_every=1))
    assert [bad.name for bad in prepare(recipe).manifest.excluded] == ["v.png"]


def test_images_enlarged_for_training_are_named(tmp_path: Path) -> None:
    folder = images(tmp_path / "set", {"fine": "sks fox"}, size=(60, 60))
    images(folder, {"small": "sks fox"}, size=(30, 30))
    said = [
        finding for finding in check(recipe_for(folder)).findings if "enlarged" in finding.message
    ]
    assert [finding.names for finding in said] == [("small.png",)]
    assert any(
        "1 image is enlarged more than 1.5 times" in note
        for note in first_notes(recipe_for(folder))
    )
