"""Messages in Japanese: values kept, unknown messages untouched, and no entry for a message that is not there."""

import ast
import re
import time
from pathlib import Path

import pytest

from konomi.cli.japanese import AREAS, PAIRS
from konomi.cli.language import language, translated, translated_sum
from konomi.cli.main import main

SOURCE = Path(__file__).parents[3] / "src" / "konomi"


@pytest.fixture
def japanese(monkeypatch):
    monkeypatch.setenv("KONOMI_LANGUAGE", "ja")


def templates():
    """Every text of the source with `{}` for what is put in."""
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "japanese":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"\{\w+\}", "{}", node.value)
            elif isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                yield re.sub(r"\{\w+\}", "{}", text)


def test_every_entry_is_a_message_of_the_source():
    known = "\n".join(templates())
    # What comes first may be put in front of a message that stands elsewhere.
    texts = {english: re.sub(r"\{\w+\}", "{}", english).removeprefix("{}: ").rstrip("{}") for english in PAIRS}
    gone = [english for english, text in texts.items() if text not in known]
    assert gone == []


def test_no_message_has_two_entries():
    assert len(PAIRS) == sum(map(len, AREAS))


def test_a_reason_and_a_subject_are_translated_too(japanese):
    line = "run.epochs = 3 does nothing in this run: run.steps = 500 decides."
    assert translated(line) == "run.epochs = 3 はこの学習では効果がありません: run.steps = 500 が優先されます。"
    line = "2 captions are longer than 75 tokens (up to 90), and what follows is cut off: a.txt. "
    line += "Set text.max_tokens = 150, or shorten them."
    assert translated(line).startswith("2 件のキャプションが 75 トークンより長く")


@pytest.mark.parametrize(
    ("english", "japanese_text"),
    [
        (
            "1 image x 1 repeat x 2 epochs / batch 1 = 2 steps",
            "画像 1 枚 × 繰り返し 1 回 × 2 エポック ÷ バッチ 1 = 2 ステップ",
        ),
        (
            "5 images (9 with their repeats) / batch 2 = 6 steps an epoch (3 buckets; 1 short batch in each epoch); "
            "20 steps = about 3.33 epochs; beside each image one of 40 prior images",
            "画像 5 枚(繰り返しを含めて 9 枚) ÷ バッチ 2 = 1 エポック 6 ステップ"
            "(バケット 3 個、端数のバッチがエポックごとに 1 個)、"
            "20 ステップ = 約 3.33 エポック、画像 1 枚につき、40 枚のクラス画像から 1 枚",
        ),
        ("No image to train on = 0 steps", "学習する画像がありません(0 ステップ)"),
    ],
)
def test_the_sum_of_a_run_is_told_in_japanese(english, japanese_text, japanese):
    assert translated_sum(english) == japanese_text


def test_every_value_is_kept():
    for english, target in PAIRS.items():
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", target)), english


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"KONOMI_LANGUAGE": "ja"}, "ja"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "KONOMI_LANGUAGE": "en"}, "en"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
    ],
)
def test_the_language_is_asked_for_or_the_locales(variables, expected, monkeypatch):
    for name in ("KONOMI_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language() == expected


def test_values_stay_and_unknown_messages_pass(japanese):
    english = "runs/a {b}: is not a run folder (no recipe.toml in it). Name the folder that `train` wrote to."
    target = "runs/a {b}: 学習のフォルダではありません(recipe.toml がありません)。"
    target += "`train` が書いたフォルダを指定してください。"
    assert translated(english) == target
    assert translated("something that has no entry") == "something that has no entry"
    assert translated("method.rnk: no such setting. Did you mean method.rank?") == (
        "method.rnk: そのような設定はありません。method.rank のことですか?"
    )


def test_the_most_literal_entry_wins(japanese):
    assert translated("Wrote r.toml. Next: konomi check r.toml").endswith("次は: konomi check r.toml")


def test_a_hostile_text_takes_no_time(japanese):
    text = "Stopped after step " + "; saved. Go on with: " * 20_000 + "x"
    started = time.perf_counter()
    translated(text)
    translated("{}: " * 50_000)
    assert time.perf_counter() - started < 2


def test_the_command_line_speaks_japanese(japanese, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "nowhere"]) == 1
    assert "学習のフォルダではありません" in capsys.readouterr().err
    assert main(["check", "lora", "--images", "none"]) == 1
    assert "ファイルもフォルダもありません" in capsys.readouterr().err


MAIN_JOB = ("cli/recipes.py", "config/load.py", "config/overrides.py", "config/flags.py", "tasks/run_folder.py")
"""Where the errors of a first hour are raised."""


def test_most_errors_of_a_first_hour_have_an_entry():
    known = {re.sub(r"\{\w+\}", "{}", english) for english in PAIRS}
    raised = []
    for name in MAIN_JOB:
        for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                for part in node.args:
                    if isinstance(part, ast.JoinedStr):
                        raised.append("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in part.values))
                    elif isinstance(part, ast.Constant):
                        raised.append(str(part.value))
    without = [text for text in raised if text not in known]
    assert len(without) <= 0.5 * len(raised), without
