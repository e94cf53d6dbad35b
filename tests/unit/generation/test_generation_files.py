"""Prompt files, adapter requests and grids."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont

from konomi.errors import DataError, RecipeError
from konomi.generation import fonts
from konomi.generation.adapter_request import (
    AdapterRequest,
    adapters_of_prompt,
    find_adapter,
    format_tag,
    parse_add,
)
from konomi.generation.grid import _wrap, make_grid
from konomi.generation.prompt_file import parse_prompt_line, read_prompt_file
from konomi.generation.request import Request, UsedAdapter

DEFAULT = Request(prompt="", negative="ugly", seed=1, steps=30, guidance=6.0)


def test_kohya_lines():
    line = (
        "a dog -- running, best-quality --n low quality, bad --w 512 --h 768 --d 7 --s 28 --l 7.5"
    )
    request = parse_prompt_line(line, DEFAULT)
    assert request == Request(
        prompt="a dog -- running, best-quality", negative="low quality, bad", width=512, height=768,
        seed=7, steps=28,
        guidance=7.5,
    )  # fmt: skip
    assert parse_prompt_line("  a cat ", DEFAULT) == Request(
        prompt="a cat", negative="ugly", seed=1, steps=30, guidance=6.0
    )
    assert parse_prompt_line("a cat --n", DEFAULT).negative == ""


def test_a_prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff# kohya's\r\na dog --d 3\r\n\r\n  # no\r\n犬\r\n".encode())
    assert [(r.prompt, r.seed) for r in read_prompt_file(path, DEFAULT)] == [
        ("a dog", 3),
        ("犬", 1),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a dog\na cat --d x", r"prompts.txt, line 2: --d 'x' is not a number"),
        (b"a --q 3", r"line 1: --q is not known; the options are --n --w"),
        (b"a --s 0", r"line 1: steps is 0"),
        (b"# nothing\n", r"holds no prompt"),
        (b"a \xff\xfd", r"prompts.txt: byte 2 \(0xff\) is neither UTF-8 nor text in Shift-JIS"),
    ],
)
def test_mistakes_in_prompt_files_name_the_line(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompt_file(path, DEFAULT)


@given(st.text())
def test_any_line_is_read_or_refused_clearly(line):
    try:
        parse_prompt_line(line, DEFAULT)
    except (DataError, RecipeError) as error:
        assert str(error)


@pytest.mark.parametrize(
    ("argument", "denoiser", "text"),
    [
        ("{}", 1.0, 1.0),
        ("{}:0.8", 0.8, 0.8),
        ("{}:-1", -1.0, -1.0),
        ("{}:unet=0.8:text=0.5", 0.8, 0.5),
        ("{}:te=.5:denoiser=2", 2.0, 0.5),
        ("{}:text=0", 1.0, 0.0),
    ],
)
def test_add(tmp_path, argument, denoiser, text):
    path = tmp_path / "my dog.safetensors"
    path.touch()
    assert parse_add(argument.format(path)) == AdapterRequest(path, denoiser, text)


def test_a_name_that_ends_like_a_weight_is_a_name_where_it_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dog:0.8").touch()
    assert parse_add("dog:0.8") == AdapterRequest(Path("dog:0.8"))
    assert parse_add("dog:0.8:0.5") == AdapterRequest(Path("dog:0.8"), 0.5, 0.5)
    for argument in ("cat", "cat:0.5", "dog:0.8:unet=x", ":0.5", ""):
        if argument:
            with pytest.raises(RecipeError, match="there is no file"):
                parse_add(argument)


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "b" / "peft").mkdir(parents=True)
    for name in ("a/dog.safetensors", "a/deep/cat.safetensors", "b/cat.pt", "b/notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "b/peft/adapter_config.json").touch()
    return [tmp_path / "a", tmp_path / "b", tmp_path / "missing"]


def test_names_are_found_in_the_folders(folders):
    a, b, _ = folders
    assert find_adapter("dog", folders) == a / "dog.safetensors"
    assert find_adapter("dog.safetensors", folders) == a / "dog.safetensors"
    assert find_adapter("cat", folders) == a / "deep" / "cat.safetensors"
    assert find_adapter("cat.pt", folders) == b / "cat.pt"
    assert find_adapter("peft", folders) == b / "peft"
    for name in ("notes", "../b/cat", "/etc/passwd", "deep/cat"):
        with pytest.raises(RecipeError, match="there is cat, dog, peft"):
            find_adapter(name, folders)


def test_tags_of_a_prompt(folders):
    a, b, _ = folders
    prompt = (
        "x <lora:dog> <lora:cat.pt:0.8> <lora:dog:0.5:0.9> <lora:dog:te=0:unet=0.7> "
        "<hypernet:cat:2>"
    )
    assert adapters_of_prompt(prompt, folders) == (
        AdapterRequest(a / "dog.safetensors", 1.0, 1.0, "lora"),
        AdapterRequest(b / "cat.pt", 0.8, 0.8, "lora"),
        AdapterRequest(a / "dog.safetensors", denoiser_weight=0.9, text_weight=0.5, kind="lora"),
        AdapterRequest(a / "dog.safetensors", denoiser_weight=0.7, text_weight=0.0, kind="lora"),
        AdapterRequest(a / "deep" / "cat.safetensors", 2.0, 2.0, "hypernet"),
    )
    assert adapters_of_prompt("plain <s1>", folders) == ()
    with pytest.raises(RecipeError, match="weight 'much' is not a number"):
        adapters_of_prompt("<lora:dog:much>", folders)


def test_a_written_tag_is_read_back(folders):
    for weights in ((1.0, 1.0), (0.7, 0.7), (0.9, 0.25)):
        tag = format_tag(UsedAdapter("dog", *weights))
        (request,) = adapters_of_prompt(tag, folders)
        assert (request.denoiser_weight, request.text_weight) == weights


def test_a_grid_places_every_picture():
    colours = ["red", "green", "blue", "yellow", "black"]
    sheet = make_grid([Image.new("RGB", (20, 10), colour) for colour in colours], columns=2)
    assert sheet.size == (40, 30)
    for index, colour in enumerate(colours):
        expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert sheet.getpixel((index % 2 * 20 + 10, index // 2 * 10 + 5)) == expected
    assert sheet.getpixel((30, 25)) == (255, 255, 255)
    assert make_grid([Image.new("RGB", (8, 8))] * 5).size == (24, 16)
    with pytest.raises(ValueError, match="at least one"):
        make_grid([])


def test_words_of_a_label_do_not_run_together():
    """The gap between two words is wider than any within one."""
    for size in (12, 16, 32):
        font = ImageFont.load_default(size=size)
        text = _wrap("photo of a dog", font, 1000)
        assert font.getlength(text) - font.getlength(text.replace(" ", "")) >= 3 * 0.3 * size


def test_captions_stand_under_their_pictures():
    sheet = make_grid(
        [Image.new("RGB", (64, 64), "red")] * 4, columns=2, captions=["seed 1", "seed 2", "3", "4"]
    )
    under = (sheet.height - 128) // 2
    assert sheet.width == 128 and under > 10
    assert sheet.crop((0, 0, 128, 64)).getcolors() == [(128 * 64, (255, 0, 0))]
    for top in (64, 128 + under):
        for left in (0, 64):
            assert (
                sheet.crop((left, top, left + 64, top + under)).convert("L").getextrema()[0] < 128
            )


def test_labels_have_their_own_room():
    images = [Image.new("RGB", (64, 64), "red")] * 4
    labelled = make_grid(
        images,
        columns=2,
        column_labels=["before", "a very long label that has to be wrapped"],
        row_labels=["0", "100"],
    )
    left, top = labelled.width - 128, labelled.height - 128
    assert left > 0
    assert top > 0
    assert labelled.crop((left, top, left + 128, top + 128)).getcolors() == [
        (128 * 128, (255, 0, 0))
    ]
    for edge in ((left, 0, labelled.width, top), (0, top, left, labelled.height)):
        darkest = labelled.crop(edge).convert("L").getextrema()[0]
        assert darkest < 128


def test_no_label_becomes_a_row_of_boxes(monkeypatch):
    assert fonts.unknown_characters(["a dog"]) == ""
    default = fonts.font_for(["a dog"], 16)
    assert fonts.drawable("a dog", default) == "a dog"
    # Pillow's own font has no such letters; where another has them, it is taken, else it is said.
    monkeypatch.setattr(fonts, "FILES", ())
    assert fonts.unknown_characters(["犬 a", "浜辺"]) == "浜犬辺"
    assert fonts.drawable("浜辺 a", default) == "?? a"
    (told,) = fonts.unknown_note(["浜辺の a"], "grid.png")
    assert "の 浜 辺" in told and "grid.png" in told
    monkeypatch.undo()
    found = fonts.font_for(["犬 é"], 16)
    lacking = set(fonts.unknown_characters(["犬 é"]))
    assert fonts.drawable("犬 é", found) == "".join("?" if c in lacking else c for c in "犬 é")
    labelled = [make_grid([Image.new("RGB", (64, 64))], captions=[text]) for text in ("?", "é")]
    if "é" not in lacking:
        assert labelled[0].tobytes() != labelled[1].tobytes()
