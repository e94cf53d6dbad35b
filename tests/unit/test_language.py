"""Messages in Japanese: values kept, unknown messages untouched, and no entry for a message that
is not there.
"""

import ast
import itertools
import re
import time
from pathlib import Path

import pytest

from konomi.cli.japanese import AREAS, PAIRS
from konomi.cli.main import main
from konomi.language import language, translated, translated_sum

SOURCE = Path(__file__).parents[2] / "src" / "konomi"


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
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "{}"
                    for part in node.values
                )
                yield re.sub(r"\{\w+\}", "{}", text)


ELSEWHERE = (
    "positional arguments",
    "show this help",
    "the following arguments",
    "unrecognized",
    "argument {name}",
    "a lora",
)
"""Beginnings of what argparse says."""


def test_every_entry_is_a_message_of_the_source():
    # A message may be put together from several texts, so its words are looked for in pairs.
    known = {pair for text in templates() for pair in pairs(text)}
    gone = []
    for english in PAIRS:
        found = [pair in known for pair in pairs(english)]
        if len(found) > 1 and sum(found) < 0.5 * len(found) and not english.startswith(ELSEWHERE):
            gone.append(english)
    assert gone == []


def pairs(text):
    """Two words in a row, which no value stands between."""
    for piece in re.split(r"\{\w*\}", text):
        yield from itertools.pairwise(re.findall(r"[\w'-]+", piece))


def test_no_message_has_two_entries():
    assert len(PAIRS) == sum(map(len, AREAS))


def test_a_reason_and_a_subject_are_translated_too(japanese):
    line = "run.epochs = 3 does nothing in this run: run.steps = 500 decides."
    assert (
        translated(line)
        == "run.epochs = 3 はこの学習では効果がありません: run.steps = 500 が優先されます。"
    )
    line = "2 captions are longer than 75 tokens (up to 90), and what follows is cut off: a.txt. "
    line += "Set text.max_tokens = 150, or shorten them."
    assert translated(line).startswith("2 件のキャプションが 75 トークンより長く")


@pytest.mark.parametrize(
    ("english", "japanese_text"),
    [
        # A file in front, a name, and a value that is a message.
        (
            "/a/b.safetensors: x.lora_up.weight has rank 3; its lora_down has rank 4.",
            "/a/b.safetensors: x.lora_up.weight のランクは 3 ですが、lora_down のランクは 4 です。",
        ),
        (
            "x: a, b and 7 more not used: has no place in what konomi reads of this format.",
            "x: 使われません: a, b ほか 7 件(この形式で読み込む対象ではない)。",
        ),
        (
            "0 of 84 layers used by A1111: PEFT's folders are not read; convert with --to kohya",
            (
                "84 層中 0 層を A1111 が使用: PEFT のフォルダは読まれません。--to kohya "
                "で変換してください"
            ),
        ),
        # Reasons in brackets, after names that have brackets of their own.
        (
            "2 files are left out: b (x).png (the file is empty), c.png (a link; links are not "
            "followed). `konomi check` lists all of them.",
            "2 個のファイルを除外しました: b (x).png (ファイルが空です), c.png (リンクです。"
            "リンクはたどりません)。"
            "すべての一覧は `konomi check` で確認できます。",
        ),
        # Times, and several messages in one.
        (
            "previews: 4 pictures take 12 min each time, at the start and at the end. "
            "run.preview_every sets how often; 0 draws none.",
            (
                "プレビュー: 4 枚、毎回 12 分(開始時と終了時)。頻度は run.preview_every で変わり、"
                "0 にすると描きません。"
            ),
        ),
        (
            "  step 3: saved a.png\n  1 of 1 layer used by x",
            "  ステップ 3: a.png を保存しました\n  1 層中 1 層を x が使用",
        ),
        ("Something new. Reinstall konomi.", "Something new. konomi を入れ直してください。"),
    ],
)
def test_messages_within_messages_are_translated(english, japanese_text, japanese):
    assert translated(english) == japanese_text


@pytest.mark.parametrize(
    ("english", "japanese_text"),
    [
        (
            "1 image x 1 repeat x 2 epochs / batch 1 = 2 steps",
            "画像 1 枚 × 繰り返し 1 回 × 2 エポック ÷ バッチ 1 = 2 ステップ",
        ),
        (
            "5 images (9 with their repeats) / batch 2 = 6 steps an epoch (3 buckets; 1 short "
            "batch in each epoch); 20 steps = about 3.33 epochs; beside each image one of 40 prior "
            "images",
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
    english = (
        "runs/a {b}: is not a run folder (no recipe.toml in it). Name the folder that "
        "`train` wrote to."
    )
    target = "runs/a {b}: 学習のフォルダではありません(recipe.toml がありません)。"
    target += "`train` が書いたフォルダを指定してください。"
    assert translated(english) == target
    assert translated("something that has no entry") == "something that has no entry"
    assert translated("method.rnk: no such setting. Did you mean method.rank?") == (
        "method.rnk: そのような設定はありません。method.rank のことですか?"
    )


def test_the_most_literal_entry_wins(japanese):
    assert translated("Wrote r.toml. Next: konomi check r.toml").endswith(
        "次は: konomi check r.toml"
    )


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
