"""JSON and TOML of unknown origin."""

import json
import subprocess
import sys
import tomllib

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from konomi.config.parse import MAX_DEPTH, parse_json, parse_toml

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_json_that_is_sound_is_read_as_it_is(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode("utf-16")) == value


def test_toml_that_is_sound_is_read_as_it_is():
    text = tomlkit.dumps({"a": {"b": [1, 2.5, "夏 🎨"]}, "c": [[["x"]]]})
    assert parse_toml(text) == tomllib.loads(text)


def test_commas_between_tags_are_no_values():
    tags = {f"{number}.png": "1girl, " * 1000 + '"quoted", {x} [y]' for number in range(5000)}
    assert parse_json(json.dumps(tags)) == tags


DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[" * DEEP, "nested"),
        ("[" * DEEP + "]" * DEEP, "nested"),
        ('{"a":' * (MAX_DEPTH + 2) + "1" + "}" * (MAX_DEPTH + 2), "nested"),
        ("9" * 400, "300 digits"),
        ("9" * 5000, "digits"),
        ('{"file_name": "\\ud800.png"}', "surrogate"),
        ('{"\\udfff": 1}', "surrogate"),
        ("{", "Expecting"),
        ("", "Expecting"),
        (b"\xff\xfe\x00", "codec"),
        (b"{\xff}", "codec"),
    ],
)
def test_json_that_is_not_says_why(text, word):
    with pytest.raises(ValueError, match=word):
        parse_json(text)


def test_surrogate_pairs_are_characters():
    assert parse_json('"\\ud83c\\udfa8"') == "🎨"


def test_a_key_that_stands_twice_is_told_where_that_matters():
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="a stands twice"):
        parse_json('{"b": 0, "a": 1, "a": 2}', unique_keys=True)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x = " + "[" * DEEP, "nested"),
        ("x = " + "[" * 200 + "]" * 200, "nested"),
        (".".join("a" * 150) + " = 1", "nested"),
        (".".join("a" * DEEP) + " = 1", "parts"),
        ("x = {" + ".".join("a" * DEEP) + " = 1}", "parts"),
        ("x = " + "9" * 400, "300 digits"),
        ("x = ", "value"),
    ],
)
def test_toml_that_is_not_says_why(text, word):
    with pytest.raises(ValueError, match=word):
        parse_toml(text)


@pytest.mark.parametrize("piece", ["[],", "{},", "1,"])
def test_millions_of_values_stay_below_a_gigabyte(piece):
    code = (
        "import resource, sys\n"
        "from konomi.config.parse import parse_json\n"
        "from konomi.errors import KonomiError\n"
        f"text = '[' + {piece!r} * (90_000_000 // {len(piece)}) + '0]'\n"
        "try:\n    parse_json(text)\nexcept ValueError as error:\n    print(error)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        # Linux hands the peak of the process that started this one down to it; its own is in /proc.
        "if sys.platform == 'linux':\n"
        "    peak = next(line for line in open('/proc/self/status') if "
        "line.startswith('VmHWM')).split()[1]\n"
        "print(peak)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, peak = done.stdout.splitlines()
    assert "values" in said
    assert int(peak) / (2**20 if sys.platform == "darwin" else 2**10) < 500
