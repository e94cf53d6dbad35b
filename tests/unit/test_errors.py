"""What a message shows of names that come from files."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from konomi.cli.main import main
from konomi.cli.plain import json_text
from konomi.cli.progress import sentence
from konomi.errors import DataError, KonomiError, RecipeError, printable, shortened
from konomi.training.events import Warned

NASTY = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp.exe\u2066\r\nPASSED"


def test_what_a_terminal_obeys_becomes_visible() -> None:
    shown = printable(NASTY)
    assert shown.isprintable()
    assert shown == "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202egnp.exe\\u2066\\r\\nPASSED"


def test_a_value_is_shown_in_a_few_characters_whatever_it_is() -> None:
    deep: object = 0
    for _ in range(100_000):
        deep = [deep]
    assert shortened(deep) == "a list too long to be shown"
    assert shortened(10**5000) == "a int too long to be shown"
    assert shortened("x" * 500, 40) == "x" * 37 + "..."
    assert (shortened("5"), shortened("5", quoted=True), shortened(5, quoted=True)) == (
        "5",
        "'5'",
        "5",
    )
    while isinstance(deep, list):  # Else Python takes it apart by recursion.
        deep = deep.pop()


@pytest.mark.parametrize(
    "text", ["夏の\u3000浜辺 ♪", "👩\u200d🎨", "naïve\u00a0café", "עברית", "C:\\new\\x1b"]
)
def test_text_of_every_script_stays(text: str) -> None:
    assert printable(text) == text


def test_bytes_that_are_no_text_are_shown_as_bytes() -> None:
    assert printable(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    assert printable("\ud800") == "\\ud800"


@given(st.text(st.characters(codec=None)))
def test_shown_text_is_one_line_and_can_be_written_anywhere(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)


def test_errors_and_notes_pass_the_gate() -> None:
    assert str(DataError(f"{NASTY}: broken")) == f"{printable(NASTY)}: broken"
    assert str(RecipeError("one", f"two {NASTY}")).split("\n") == ["one", f"two {printable(NASTY)}"]
    assert isinstance(RecipeError("x"), KonomiError)
    assert sentence(Warned(NASTY)) == f"note: {printable(NASTY)}"


@given(
    st.dictionaries(
        st.text(st.characters(codec=None)), st.text(st.characters(codec=None)), max_size=4
    )
)
def test_json_says_the_same_and_commands_no_terminal(value: dict[str, str]) -> None:
    text = json_text(value)
    assert json.loads(text) == value
    assert all(c == "\n" or printable(c) == c for c in text)


def test_a_hostile_tensor_name_is_printed_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    save_file({f"lora_unet_{NASTY}.lora_down.weight": torch.zeros(4, 4)}, file)
    for command in (
        ["inspect", str(file)],
        ["inspect", "--json", str(file)],
        ["convert", str(file), "b.safetensors"],
    ):
        main(command)
        shown = "".join(capsys.readouterr())
        assert "owned" in shown
        assert all(c == "\n" or printable(c) == c for c in shown)
