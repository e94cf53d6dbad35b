import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from konomi.diffusion.samplers import SAMPLERS
from konomi.errors import DataError, RunError
from konomi.generation.infotext import parse_infotext, read_infotext, save_png, write_infotext
from konomi.generation.request import Origin, Picture, Request, UsedAdapter

REQUEST = Request(
    prompt="a (dog:1.2), BREAK\nsecond line", negative="bad, worse", seed=42, steps=25,
    guidance=7.5,
    sampler="dpmpp_2m_karras", width=512, height=768, clip_skip=2,
)  # fmt: skip
ORIGIN = Origin(
    model="my model, v1", model_hash="0123456789",
    adapters=(UsedAdapter("dog", 0.8, 0.8, "abcdef123456"),
    UsedAdapter("cat", 1.0, 0.5, "fedcba654321")),
)  # fmt: skip


def picture(request=REQUEST, origin=ORIGIN):
    return Picture(Image.new("RGB", (8, 8), "red"), request, write_infotext(request, origin))


def test_the_text_is_a_web_uis():
    lines = write_infotext(REQUEST, ORIGIN).split("\n")
    assert lines[0] == "a (dog:1.2), BREAK"
    assert lines[1] == "second line <lora:dog:0.8> <lora:cat:0.5:1>"
    assert lines[2] == "Negative prompt: bad, worse"
    assert lines[3].startswith(
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: "
        "512x768, "
        'Model hash: 0123456789, Model: "my model, v1", Clip skip: 2, '
        'Lora hashes: "dog: abcdef123456, cat: fedcba654321", Version: konomi '
    )
    assert len(lines) == 4


def test_read_back_it_draws_the_same_picture():
    text = write_infotext(REQUEST, Origin(model="m"))
    assert parse_infotext(text).request() == REQUEST
    assert parse_infotext(text).settings["Model"] == "m"
    for sampler in ("ddim", "euler", "euler_a", "dpmpp_2m", "unipc", "pndm"):
        request = replace(REQUEST, sampler=sampler, negative="")
        assert parse_infotext(write_infotext(request, Origin())).request() == request


def test_a_tag_in_the_prompt_is_not_written_twice():
    request = replace(REQUEST, prompt="a <lora:dog:0.8>")
    assert write_infotext(request, ORIGIN).startswith("a <lora:dog:0.8> <lora:cat:0.5:1>\n")


def test_a_web_uis_own_text_is_read():
    """As web UIs wrote it in 2023 (sampler and schedule in one word) with an extension's quoted
    entry.
    """
    text = (
        "masterpiece, 1girl: smiling\nNegative prompt: lowres\nbad hands\nSteps: 28, Sampler: "
        "DPM++ 2M Karras, "
        "CFG scale: 11, Seed: 1328687449, Size: 512x640, Model hash: 84d76a0328, Model: "
        "anything-v4.5, "
        'Denoising strength: 0.45, Clip skip: 2, ENSD: 31337, Hires upscale: 2, Lora hashes: "a: '
        '1, b: 2"'
    )
    info = parse_infotext(text)
    assert info.prompt == "masterpiece, 1girl: smiling"
    assert info.negative == "lowres\nbad hands"
    assert info.settings["Lora hashes"] == "a: 1, b: 2"
    request = info.request()
    assert (request.sampler, request.seed, request.height) == ("dpmpp_2m_karras", 1328687449, 640)
    assert request.strength == 1, "it belongs to a picture to start from, and there is none"
    assert parse_infotext("only words: here, and: there").prompt == "only words: here, and: there"
    assert (
        parse_infotext(text.replace("DPM++ 2M Karras", "Restart")).request().sampler == "dpmpp_2m"
    )
    with pytest.raises(DataError, match="infotext"):
        parse_infotext(text.replace("Seed: 1328687449", "Seed: many")).request()


@given(st.text(), st.text(st.characters(exclude_categories=["Cs"])))
def test_parsing_refuses_nothing_and_values_survive(text, value):
    parse_infotext(text)
    value = value.strip()
    origin = Origin(model=value, extra={"Note": value})
    settings = parse_infotext(write_infotext(replace(REQUEST, prompt="x"), origin)).settings
    if value and not any(separator in value for separator in "\x1c\x1d\x1e\x85\u2028\u2029"):
        assert settings["Note"] == value


def test_the_png_holds_it_also_in_japanese(tmp_path):
    request = replace(REQUEST, prompt="犬 好み")
    path = save_png(picture(request), tmp_path / "new" / "folder")
    assert path.name == "0000-42.png"
    info = read_infotext(path)
    assert info is not None
    assert info.prompt.startswith("犬 好み")
    with Image.open(path) as image:
        assert image.text["parameters"].endswith(
            parse_infotext(picture().infotext).settings["Version"]
        )
        assert image.getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", (1, 1)).save(tmp_path / "bare.png")
    assert read_infotext(tmp_path / "bare.png") is None
    (tmp_path / "text.png").write_text("x")
    with pytest.raises(DataError, match=r"text\.png"):
        read_infotext(tmp_path / "text.png")


def test_numbers_go_on_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "0007-1.png").write_bytes(b"mine")
    (tmp_path / "12345-1.txt").write_bytes(b"mine")
    assert save_png(picture(), tmp_path).name == "12346-42.png"
    (tmp_path / "12345-1.txt").unlink()
    (tmp_path / "12346-42.png").unlink()
    assert save_png(picture(), tmp_path).name == "0008-42.png"
    assert (tmp_path / "0007-1.png").read_bytes() == b"mine"
    threads = [threading.Thread(target=save_png, args=(picture(), tmp_path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = sorted(path.name for path in tmp_path.glob("*-42.png"))
    assert len(files) == 9
    for name in files:
        assert read_infotext(tmp_path / name) is not None


def test_a_folder_that_is_a_file_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((RunError, DataError), match="file"):
        save_png(picture(), tmp_path / "file" / "inside")


def test_quotes_are_json():
    text = write_infotext(REQUEST, Origin(model='say "hi": a\\b'))
    assert json.dumps('say "hi": a\\b') in text
    assert parse_infotext(text).settings["Model"] == 'say "hi": a\\b'


@pytest.mark.parametrize(
    ("sampler", "schedule", "ours"),
    [
        ("DPM++ 2M", "Automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Uniform", "dpmpp_2m"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("Euler a", "Automatic", "euler_a"),
        ("DPM++ 2M SDE", "Automatic", "dpmpp_2m_sde_karras"),
        ("DDIM", "", "ddim"),
    ],
)
def test_a_schedule_left_to_the_web_ui_is_the_one_it_takes(sampler, schedule, ours):
    entry = f"Schedule type: {schedule}, " if schedule else ""
    text = f"a dog\nSteps: 20, Sampler: {sampler}, {entry}CFG scale: 7, Seed: 5, Size: 64x64"
    assert parse_infotext(text).request().sampler == ours


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_written_leaves_no_schedule_to_chance(sampler):
    text = write_infotext(replace(REQUEST, sampler=sampler), Origin())
    assert "Automatic" not in text and "Denoising strength" not in text
    known = sampler not in ("ddim", "pndm", "unipc")
    assert ("Schedule type: " in text) == known, "the others have no choice of schedule there"
    begun = write_infotext(replace(REQUEST, init=Image.new("RGB", (8, 8)), strength=0.6), Origin())
    assert "Denoising strength: 0.6" in begun


def test_any_seed_becomes_one():
    text = "a dog\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: -1, Size: 64x64"
    request = parse_infotext(text).request()
    request.check()
    assert "Seed: -1" not in write_infotext(request, Origin())
