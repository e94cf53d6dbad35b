"""The command line as a user meets it: exit codes, one line for each mistake, and what reaches the
verbs.
"""

import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import konomi.tasks
from konomi.cli import main as cli
from konomi.cli.main import COMMANDS, main
from konomi.cli.plain import tell
from konomi.config.generation import GenerationConfig
from konomi.config.schema import flatten
from konomi.diffusion import samplers
from konomi.errors import FileFormatError
from konomi.formats.readers import Reading
from konomi.formats.report import FileReport, Health
from konomi.tasks.checking import CheckReport, CheckRow
from konomi.tasks.machine import DoctorReport, DoctorRow
from konomi.training.events import Checkpointed, Finished, Started, Step

LORA = ["train", "lora", "--images", "photos", "--base", "tiny"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def fake(monkeypatch, name, result):
    """Put a verb in place of the real one; returns the list of calls it gets."""
    calls = []

    def verb(*arguments, **options):
        calls.append((arguments, options))
        return result

    monkeypatch.setattr(konomi.tasks, name, verb, raising=False)
    return calls


def run_of(steps, *, interrupted=False):
    yield Started(0, steps, steps, 10, "cpu", "float32")
    for step in range(1, steps + 1):
        yield Step(step, 0, 0.5, 1e-4, 0.1, step, 100.0)
    yield Checkpointed(steps, "runs/my dog/checkpoints/step-000003")
    yield Finished(steps, "" if interrupted else "runs/my dog/dog.safetensors", interrupted)


def test_help_names_every_command_and_none_that_is_not_there(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command, _, _ in COMMANDS)
    assert not any(word in text.split() for word in ("train-all", "ui"))


@pytest.mark.parametrize("command", [command for command, _, _ in COMMANDS])
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"konomi {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["generate"],
        ["generate", "--base", "tiny"],
        ["new"],
        ["check"],
        ["train", "--nope"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out or output.err


def test_near_command_is_suggested(capsys):
    main(["trian"])
    assert capsys.readouterr().err == "konomi trian: no such command. Did you mean train?\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["train", "lora", "--images", "photoz", "--base", "tiny"],
            "--images photoz: no such file or folder. Did you mean photos?",
        ),
        (
            ["train", "lorra", "--images", "photos", "--base", "tiny"],
            'method.kind is "lorra"; it takes one of',
        ),
        (["train", "lora", "--base", "tiny"], "data.sources: no images."),
        (["train", "lora", "--images", "photos"], "base: must be set. Name it with --base"),
        (
            ["train", "lora", "--images", "photos", "--base", "tiny", "method.rank=5000"],
            "method.rank is 5000; at most 1024.",
        ),
        (
            [*LORA, "run.stepz=1"],
            "run.stepz: no such setting. Did you mean run.steps?",
        ),
        (["train", "no.toml"], "no.toml: no such recipe."),
        (
            ["train", "away/no.toml"],
            "away/no.toml: no such recipe. There is no folder away either.",
        ),
        (["check", "no.toml"], "no.toml: no such recipe."),
        (["new", "lorra"], 'method.kind is "lorra"'),
        (["new", "lora", "-o", "away/r.toml"], "away: no such folder."),
    ],
)
def test_each_mistake_is_one_line_and_1(photos, capsys, arguments, line):
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.err.startswith(line)
    assert output.err.count("\n") == 1
    assert "Traceback" not in output.err


class Unsayable(Exception):
    def __str__(self):
        raise ValueError


@pytest.mark.parametrize(
    "error",
    [TypeError("a\nb"), RecursionError("deep"), MemoryError(), OSError(5, "odd"), Unsayable()],
)
def test_an_unexpected_error_is_one_line_and_a_file(monkeypatch, capsys, tmp_path, error):
    def broken(arguments):
        raise error

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("konomi.cli.machine.doctor", broken)
    assert main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (details,) = (tmp_path / "konomi").iterdir()
    assert type(error).__name__ in line
    assert str(details) in line
    assert "Traceback" in details.read_text()
    monkeypatch.setenv("KONOMI_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["doctor"])


def test_an_unexpected_error_with_nowhere_to_write_is_still_one_line(monkeypatch, capsys, tmp_path):
    def broken(arguments):
        raise TypeError("odd")

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("konomi.cli.failure.tempfile.gettempdir", lambda: str(tmp_path / "file"))
    monkeypatch.setattr("konomi.cli.machine.doctor", broken)
    assert main(["doctor"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "KONOMI_DEBUG" in line


def test_debug_keeps_the_traceback(photos, monkeypatch):
    monkeypatch.setenv("KONOMI_DEBUG", "1")
    with pytest.raises(Exception, match="no such recipe"):
        main(["train", "no.toml"])


def test_flags_and_recipe_file_are_the_same_run(photos, monkeypatch, capsys):
    calls = fake(monkeypatch, "train", iter(()))
    flags = [
        "--images",
        "photos",
        "--base",
        "tiny",
        "--trigger",
        "sks",
        "--class",
        "dog",
        "--output",
        "out",
    ]
    assert (
        main(
            [
                "train",
                "lora",
                *flags,
                "--steps",
                "20",
                "method.rank=8",
                "--seed",
                "3",
                "run.batch_size=2",
            ]
        )
        == 0
    )
    Path("r.toml").write_text(
        'base = "tiny"\n[method]\nkind = "lora"\n[run]\nsteps = 9\nbatch_size = 2\noutput = "out"\n'
        '[[data.sources]]\npath = "photos"\ntrigger = "sks"\nclass_noun = "dog"\n'
    )
    assert (
        main(["train", "r.toml", "method.rank=8", "--steps", "20", "--seed", "3", "--overwrite"])
        == 0
    )
    (by_flags,), options = calls[0]
    (by_file,), overwriting = calls[1]
    assert by_flags == by_file
    assert (by_flags.method.rank, by_flags.run.steps, by_flags.run.seed) == (8, 20, 3)
    assert (options, overwriting) == ({"overwrite": False}, {"overwrite": True})


def test_images_with_a_recipe_are_refused(photos, capsys):
    Path("r.toml").write_text('base = "tiny"\n[method]\nkind = "lora"\n')
    assert main(["train", "r.toml", "--images", "photos"]) == 1
    assert capsys.readouterr().err.startswith("--images: goes with a method")


def test_new_writes_a_recipe_that_checks(photos, monkeypatch, capsys):
    assert main(["new", "lora", "-o", "r.toml", "--images", "photos"]) == 0
    assert main(["new", "lora", "-o", "r.toml"]) == 1
    assert "exists already" in capsys.readouterr().err
    calls = fake(monkeypatch, "check", CheckReport((), "0 steps", 1, (), ()))
    assert main(["check", "r.toml"]) == 0
    assert calls[0][0][0].data.sources[0].path == "photos"


def test_finished_and_interrupted_runs(photos, monkeypatch, capsys):
    fake(monkeypatch, "train", run_of(3))
    assert main(LORA) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Wrote runs/my dog/dog.safetensors"
    fake(monkeypatch, "train", run_of(3, interrupted=True))
    assert main(LORA) == 130
    assert "konomi resume 'runs/my dog'" in capsys.readouterr().err


def test_resume_and_convert_pass_everything_on(monkeypatch, capsys):
    calls = fake(monkeypatch, "resume", iter(()))
    assert main(["resume", "runs/x", "--steps", "9", "--allow-changes"]) == 0
    assert calls[0] == (
        (Path("runs/x"),),
        {"steps": 9, "epochs": None, "keep_schedule": False, "allow_changes": True},
    )
    fake(monkeypatch, "where_it_works", ("9 of 9 layers used by ComfyUI",))
    calls = fake(monkeypatch, "convert", Path("b"))
    assert main(["convert", "a", "b", "--to", "peft"]) == 0
    unsaid = {"base": None, "vae": None, "prediction": None, "compress": None}
    assert calls == [((Path("a"), Path("b")), {"to": "peft", **unsaid, "tell": tell})]
    assert main(["convert", "a", "b", "--base", "tiny", "--compress", "0.6"]) == 0
    assert calls[1][1] == {**unsaid, "to": None, "base": "tiny", "compress": 0.6, "tell": tell}
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Wrote b",
        "  9 of 9 layers used by ComfyUI",
    ]


def test_merge_passes_everything_on(monkeypatch, capsys):
    from konomi.tasks import CustomMerge

    calls = fake(
        monkeypatch, "merge_custom", CustomMerge(Path("o"), ("<a>",), ("a <a>",), 240, 1e-7)
    )
    assert (
        main(
            [
                "merge",
                "custom",
                "x",
                "y",
                "--base",
                "tiny",
                "-o",
                "o",
                "--prompt",
                "a <a>",
                "--to",
                "custom",
            ]
        )
        == 0
    )
    options = {"base": "tiny", "prompts": ["a <a>"], "captions": None, "to": "custom", "tell": tell}
    assert calls == [((["x", "y"], Path("o")), options)]
    assert capsys.readouterr().out.splitlines()[-1] == "Wrote o"
    assert main(["merge", "custom", "x", "y", "--base", "tiny", "-o", "o", "--to", "peft"]) == 1
    assert main(["merge", "x"]) == 2


def test_generate_passes_everything_on(monkeypatch, capsys):
    calls = fake(monkeypatch, "generate", iter([Path("images/a.png")]))
    words = [
        "generate",
        "a dog",
        "--base",
        "tiny",
        "--add",
        "x:0.5",
        "--add",
        "y",
        "--size",
        "64x96",
        "a cat",
        "--grid",
    ]
    assert main(words) == 0
    ((prompts,), options) = calls[0]
    assert prompts == ["a dog", "a cat"]
    assert (options["add"], options["size"], options["grid"], options["seed"]) == (
        ["x:0.5", "y"],
        "64x96",
        True,
        None,
    )
    assert capsys.readouterr().out == "images/a.png\n"


def test_generate_has_a_flag_for_each_setting_of_a_picture(capsys):
    assert main(["generate", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for setting in flatten(GenerationConfig):
        assert f"--{setting.name.replace('_', '-')} " in told
    assert ", ".join(samplers.SAMPLERS) in told
    assert f"(default: {GenerationConfig().steps})" in told


@dataclass(frozen=True)
class Report:
    kind: str
    loss: float
    ranks: dict
    zero: tuple


def test_inspect_goes_on_after_a_bad_file(monkeypatch, capsys):
    def look(path):
        if path.name == "bad":
            raise FileFormatError("bad: is damaged.")
        return Report("lora", float("nan"), {"16": 84}, tuple(f"layer{n}" for n in range(9)))

    monkeypatch.setattr(konomi.tasks, "inspect", look, raising=False)
    assert main(["inspect", "bad", "good", "--json"]) == 1
    output = capsys.readouterr()
    assert output.err == "bad: is damaged.\n"
    first, second = json.loads(output.out)
    assert first == {"path": "bad", "error": "bad: is damaged."}
    assert (second["loss"], second["ranks"], len(second["zero"])) == (None, {"16": 84}, 9)


def test_inspect_says_the_verdict_first_and_the_rest_on_request(monkeypatch, capsys):
    works = (
        Reading("ComfyUI", 2, 2, place="models/loras"),
        Reading("A1111", 1, 2, ignored=("x: why",)),
    )
    report = FileReport(
        "good", "lora", "kohya", "sdxl", "good", 10, layer_kinds={"lora": 2}, ranks={"16": 2},
        layers={"denoiser": 2},
        metadata={"modelspec.trigger_phrase": "sks", "modelspec.prediction_type": "v",
        "ss_x": "kept back"},
        health=Health(True, zero=tuple(f"layer{n}" for n in range(9))), notes=("a note",),
        readers=works,
    )  # fmt: skip
    monkeypatch.setattr(konomi.tasks, "inspect", lambda path: report, raising=False)
    assert main(["inspect", "good"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:5] == [
        "good",
        "what LoRA for Stable Diffusion XL, rank 16, layers: 2 in denoiser (kohya)",
        "trigger sks",
        "predicts v (velocity), not noise",
        "works 2 of 2 layers used by ComfyUI",
    ]
    text = "\n".join(lines)
    assert (
        "1 of 2 layers used by A1111: x: why" in text and "9 tensors are all zero (layer0" in text
    )
    assert "ComfyUI: models/loras" in text and "a note" in text and "kept back" not in text
    assert main(["inspect", "good", "--all"]) == 0
    text = capsys.readouterr().out
    assert (
        "kept back" in text
        and "layer4" in text
        and "layer5" not in text
        and "4 more (9 in all)" in text
    )


@pytest.mark.parametrize("ok", [True, False])
def test_doctor_says_by_its_exit_code_whether_all_is_well(monkeypatch, capsys, ok):
    fake(monkeypatch, "doctor", DoctorReport((DoctorRow("disk", "1 GiB", ok, "Free some space."),)))
    assert main(["doctor"]) == (0 if ok else 1)
    assert "disk" in capsys.readouterr().out
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["ok"] is ok


def report(count, bad=()):
    rows = tuple(
        CheckRow(
            f"画像{n:03}.png" if n % 2 else f"photo{n:03}.png",
            "train",
            "[name] a dog",
            "9x9",
            "64x64",
            "0,0,9,9",
            1,
            "damaged" if n in bad else "",
        )
        for n in range(count)
    )
    return CheckReport(rows, "the sentence", 5, (("x.gif", "too small"),), ("a note",))


def test_check_lines_up_and_cuts_long_tables(photos, monkeypatch, capsys):
    from rich.cells import cell_len

    fake(monkeypatch, "check", report(100, bad=(90,)))
    assert main(["check", "--images", "photos"]) == 0
    text = capsys.readouterr().out
    rows = [line for line in text.splitlines() if "64x64" in line]
    assert len(rows) == 40
    assert len({cell_len(line[: line.index("[name]")]) for line in rows}) == 1
    assert "photo090.png" in text and "damaged" in text and "... and 60 more images" in text
    assert all(
        part in text for part in ("left out: x.gif: too small", "note: a note", "the sentence")
    )
    main(["check", "--images", "photos", "--all"])
    assert capsys.readouterr().out.count("64x64") == 100
    main(["check", "--images", "photos", "--json"])
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 100


def test_ctrl_c_outside_a_run_is_130(monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        cli,
        "importlib",
        types.SimpleNamespace(import_module=lambda _: types.SimpleNamespace(doctor=stop)),
    )
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_a_reader_that_leaves_is_no_error_to_see():
    command = [sys.executable, "-m", "konomi", "new", "lora"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert b"Traceback" not in errors and b"BrokenPipe" not in errors


@pytest.mark.parametrize(
    "command", ["demo", "new", "check", "train", "resume", "generate", "convert", "doctor"]
)
def test_a_misspelt_option_is_answered_with_the_nearest(command, capsys):
    words = {"demo": [], "doctor": [], "convert": ["a", "b"]}.get(command, ["lora"])
    slips = {
        "doctor": ("--jsn", "--json"),
        "resume": ("--stpes", "--steps"),
        "convert": ("--too", "--to"),
    }
    slip, meant = slips.get(command, ("--outptu", "--output"))
    assert main([command, *words, slip, "1"]) == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err
