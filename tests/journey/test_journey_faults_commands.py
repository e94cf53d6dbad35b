"""What users type wrongly or have in the way: one clear line, exit code 1, and nothing of theirs
is touched.
"""

import json
import shutil

import pytest

import konomi
from konomi.cli.main import main
from konomi.errors import RecipeError, RunError


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command line that must be refused with a single line; returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--size", "abc"), "size is 'abc'"),
        (("--size", "99992"), "9999 pixels"),
        (("--clip-skip", "-1"), "clip_skip is -1"),
        (("--precision", "int4"), "precision is 'int4'"),
        (("--count", "0"), "--count is 0"),
        (("--batch", "0"), "--batch 0"),
        (("--steps", "1001"), "at most 1000"),
        (("--output", "note.txt"), "note.txt"),
        (("--prompt-file", "/dev/zero"), "/dev/zero: not a text file"),
        (("--prompt-file", "absent.txt"), "absent.txt: cannot be read"),
        (("--prompt-file", "bytes.txt"), "bytes.txt: byte 0"),
    ],
)
def test_generate_names_the_value_that_is_wrong(refused, tmp_path, base_folder, arguments, named):
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "bytes.txt").write_bytes(b"\xff" * 300)
    assert named in refused("generate", "a dog", "--base", base_folder, "--steps", 1, *arguments)
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_prompt_files_are_read_in_the_encodings_of_captions(tmp_path):
    from konomi.generation.prompt_file import read_prompt_file
    from konomi.generation.request import Request

    for name, encoding in (("a", "cp932"), ("b", "utf-16"), ("c", "utf-8-sig")):
        (tmp_path / name).write_text("猫の写真 --s 3\n", encoding=encoding)
        (request,) = read_prompt_file(tmp_path / name, Request(prompt=""))
        assert (request.prompt, request.steps) == ("猫の写真", 3)


@pytest.mark.parametrize("target", ["/proc/x.toml", "note.txt/x.toml"])
def test_new_says_where_it_cannot_write(refused, tmp_path, target):
    (tmp_path / "note.txt").write_text("mine")
    assert target.rpartition("/")[0] in refused("new", "lora", "-o", target)


def test_new_writes_to_the_screen_for_a_dash(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "lora", "-o", "-"]) == 0
    assert 'kind = "lora"' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_convert_writes_over_nothing(refused, make_recipe, tmp_path):
    list(konomi.train(make_recipe(tmp_path / "run", steps=1)))
    source = tmp_path / "run" / "sks.safetensors"
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    assert "exists already" in refused("convert", source, "mine.safetensors")
    assert (tmp_path / "mine.safetensors").read_bytes() == b"mine"
    assert "exists already" in refused("convert", source, "run")
    assert "in the way" in refused("convert", source, "mine.safetensors/x.safetensors")
    assert "too long" in refused("convert", source, "x" * 300 + ".safetensors")


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("wrong", ["kohya", "checkpoint", "peft"])
def test_a_format_that_does_not_fit_is_known_before_the_first_step(
    make_recipe, tmp_path, method, wrong
):
    if (method == "lora") == (wrong != "checkpoint"):
        pytest.skip("this one fits")
    with pytest.raises(RecipeError, match=f"save.format is '{wrong}'"):
        list(
            konomi.train(
                make_recipe(tmp_path / "run", method=method, overrides=[f"save.format={wrong}"])
            )
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "chosen"), [("lora", "peft"), ("full", "diffusers")])
def test_results_that_are_folders_are_saved_again_after_resuming(
    make_recipe, tmp_path, method, chosen
):
    folder = tmp_path / "run"
    recipe = make_recipe(
        folder,
        method=method,
        steps=3,
        overrides=[f"save.format={chosen}", "run.save_every=1", "run.checkpoint_every=2"],
    )
    list(konomi.train(recipe))
    # As a crash after the save of step 3 leaves it: step 3 is done and saved once more.
    shutil.rmtree(folder / "checkpoints" / "step-000003")
    before = {
        path.name: path.stat().st_mtime_ns for path in (folder / "sks").rglob("*.safetensors")
    }
    assert list(konomi.resume(folder, steps=4))[-1].step == 4
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "sks").rglob("*.safetensors")}
    assert before.keys() == after.keys()
    assert all(before[name] != after[name] for name in before)


def test_a_result_never_takes_the_place_of_other_files(make_recipe, pictures, tmp_path):
    """`--output .` beside a folder of pictures that the result would be named after."""
    mine = tmp_path / "sks"
    shutil.copytree(pictures, mine)
    recipe = make_recipe(tmp_path, method="full", steps=1, overrides=["save.format=diffusers"])
    with pytest.raises(RunError, match="a folder stands where the result"):
        list(konomi.train(recipe))
    assert sorted(path.name for path in mine.iterdir()) == sorted(
        path.name for path in pictures.iterdir()
    )

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "sks.safetensors").write_bytes(b"an earlier result")
    with pytest.raises(RunError, match=r"exists already.*--overwrite"):
        list(konomi.train(make_recipe(tmp_path / "run", steps=1)))
    assert (tmp_path / "run" / "sks.safetensors").read_bytes() == b"an earlier result"
    list(konomi.train(make_recipe(tmp_path / "run", steps=1), overwrite=True))


def test_the_log_of_a_run_that_died_before_its_first_checkpoint_is_not_gone_on_with(
    make_recipe, tmp_path
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 9}\n{"step": 2, "lo')
    list(konomi.train(make_recipe(folder, steps=2)))
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert entries[0]["loss"] != 9


def test_resume_refuses_a_total_that_is_none(make_recipe, tmp_path, refused):
    list(konomi.train(make_recipe(tmp_path / "run", steps=1)))
    assert "--steps is -1" in refused("resume", tmp_path / "run", "--steps", "-1")
    assert "--steps is 0" in refused("resume", tmp_path / "run", "--steps", "0")


def test_a_run_folder_with_the_wrong_things_in_it(make_recipe, tmp_path, refused):
    list(konomi.train(make_recipe(tmp_path / "run", steps=2, overrides=["run.checkpoint_every=1"])))

    def damaged(name):
        return shutil.copytree(tmp_path / "run", tmp_path / name)

    (damaged("binary") / "log.jsonl").write_bytes(b"\xff" * 100)
    assert main(["resume", str(tmp_path / "binary"), "--steps", "3"]) == 0
    (damaged("empty") / "checkpoints" / "step-000002" / "manifest.json").write_text("{}")
    assert list(konomi.resume(tmp_path / "empty", steps=3))[-1].step == 3
    log = damaged("folder") / "log.jsonl"
    log.unlink()
    log.mkdir()
    (damaged("lock") / "run.lock").mkdir()
    with pytest.raises(RunError, match=r"log\.jsonl"):
        list(konomi.resume(tmp_path / "folder", steps=3))
    with pytest.raises(RunError, match=r"run\.lock"):
        list(konomi.resume(tmp_path / "lock", steps=3))


@pytest.mark.parametrize("named", ["note.txt", "x" * 300])
def test_an_output_that_cannot_be_a_folder(make_recipe, tmp_path, named):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunError, match=r"note\.txt is not a folder|too long"):
        list(konomi.train(make_recipe(tmp_path / named, steps=1)))


@pytest.mark.parametrize("override", ["optimizer.betas=[1.0, 0.9]", 'data.resolution="99999"'])
def test_values_no_run_could_use_are_refused(make_recipe, tmp_path, override):
    with pytest.raises(RecipeError, match=override.partition("=")[0]):
        make_recipe(tmp_path / "run", overrides=[override])


def test_a_caption_without_separator_is_one_tag(make_recipe, tmp_path):
    list(
        konomi.train(
            make_recipe(tmp_path / "run", steps=1, overrides=['data.captions.separator=""'])
        )
    )
