"""Recipe cards: the recipe comes back, nothing private goes out, no picture harms its reader."""

import io
import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from PIL import Image, PngImagePlugin

from konomi.cli.main import main
from konomi.config.card import KEYWORD, MAX_RECIPE, SIGNATURE, read_card, recipe_for_others
from konomi.config.evaluation import EncodersConfig
from konomi.config.load import parse_recipe, read_recipe, recipe_data
from konomi.config.recipe import Recipe
from konomi.config.sections import PreviewConfig, SourceConfig
from konomi.errors import RecipeError
from konomi.methods.dreambooth import DreamboothConfig
from konomi.methods.lora import LoraConfig
from konomi.tasks.recipes import METHOD_CONFIGS, recipe_from_card, recipe_of_card

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUv"


def recipe(**changes) -> Recipe:
    data = Recipe(base="tiny", method=LoraConfig()).data
    source = SourceConfig(path="/home/jane/clients/acme/dog", trigger="sks", class_noun="犬")
    return replace(
        Recipe(base="tiny", method=LoraConfig(rank=3), data=replace(data, sources=(source,))),
        **changes,
    )


def card(path, text, *, zipped=False):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(KEYWORD, text, zip=zipped)
    Image.new("RGB", (4, 4)).save(path, "PNG", pnginfo=chunks)
    return path


def chunk(kind, content, *, length=None, check=None):
    length = len(content) if length is None else length
    check = zlib.crc32(kind + content) if check is None else check
    return struct.pack(">I", length) + kind + content + struct.pack(">I", check)


def itxt(text, compressed=0, method=0, keyword=KEYWORD):
    return keyword.encode() + bytes([0, compressed, method]) + b"\0\0" + text


def test_the_recipe_comes_back_from_its_picture(tmp_path):
    for zipped in (False, True):
        path = card(tmp_path / "a.card.png", recipe_for_others(recipe()), zipped=zipped)
        found = read_card(path)
        assert found["data"]["sources"][0]["path"] == "dog"
        found["data"]["sources"][0]["path"] = "/home/jane/clients/acme/dog"
        assert parse_recipe(found, METHOD_CONFIGS) == recipe()
        # As a file beside which the images lie, it is a recipe like any other.
        read = read_recipe(path, ["method.rank=5"], METHOD_CONFIGS)
        assert read.method.rank == 5 and read.data.sources[0].path == str(tmp_path / "dog")
    text = tmp_path / "back.toml"
    text.write_text(recipe_of_card(path), encoding="utf-8")
    assert read_recipe(text, (), METHOD_CONFIGS) == read_recipe(path, (), METHOD_CONFIGS)


def test_nothing_private_is_in_it(tmp_path):
    there = tmp_path / "models" / "mine.safetensors"
    there.parent.mkdir()
    there.touch()
    private = recipe(
        base=str(there),
        vae="C:\\Users\\jane\\vae.ckpt",
        method=DreamboothConfig(),
        evaluation=replace(recipe().evaluation, encoders=EncodersConfig(image="../jane/dino")),
        preview=PreviewConfig(
            prompts=(
                "a cat / a dog, w/o hat",
                f"like ~/jane/x.png at https://jane.example/?k {SECRET}",
            )
        ),
    )
    cache = replace(private.data.cache, folder="/home/jane/cache")
    private = replace(
        private,
        run=replace(private.run, output="/home/jane/runs/1", device="cuda:3"),
        data=replace(private.data, cache=cache),
    )
    text = recipe_for_others(private)
    for word in ("jane", "acme", "models", "cuda:3", SECRET, "https", "C:", str(tmp_path)):
        assert word not in text, word
    found = read_card(card(tmp_path / "b.card.png", text))
    assert found["base"] == "mine.safetensors" and found["vae"] == "vae.ckpt"
    assert found["preview"]["prompts"] == ["a cat / a dog, w/o hat", "like x.png at  "]
    assert found["evaluation"]["encoders"]["image"] == "dino"
    # A hub id is no path, and all else is as it was.
    assert 'base = "some/model"' in recipe_for_others(replace(private, base="some/model"))
    assert found["optimizer"] == recipe_data(private)["optimizer"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SIGNATURE, "a picture without a recipe"),
        (b"\xff\xd8\xff\xe0....", "is a JPEG picture"),
        (SIGNATURE + chunk(b"tEXt", b"parameters\0a") + chunk(b"IEND", b""), "without a recipe"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"x = 1", keyword="other")), "without a recipe"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"base = \"x\""))[:-9], "damaged (its checksum"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"base = 1"), check=0), "damaged (its checksum"),
        (SIGNATURE + chunk(b"iTXt", itxt(b""), length=2**32 - 1), "4294967295 bytes long"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"base = ")), "damaged (Invalid value"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"\xff\xfe")), "damaged (it is not UTF-8 text)"),
        (SIGNATURE + chunk(b"iTXt", KEYWORD.encode() + b"\0"), "damaged (index out of range)"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"x", 1, 7)), "damaged (its compression is unknown)"),
        (SIGNATURE + chunk(b"iTXt", itxt(b"none", 1)), "damaged (Error -3"),
        (
            SIGNATURE + chunk(b"iTXt", itxt(zlib.compress(b"#" * (200 * MAX_RECIPE), 9), 1)),
            "damaged (it is far too long for a recipe)",
        ),
        (SIGNATURE + chunk(b"iTXt", itxt(b"a=" + b"[" * 999 + b"]" * 999)), "nested too deeply"),
        (SIGNATURE + chunk(b"aaAa", b"") * 21_000, "a picture without a recipe"),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_bad_picture_is_one_line_and_little_memory(content, said, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(RecipeError) as refused:
        read_card(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ") and peak < 16 * MAX_RECIPE


def test_a_recipe_that_cannot_be_is_named_setting_by_setting(tmp_path, capsys):
    path = card(tmp_path / "c.png", 'base = "tiny"\n[method]\nkind = "lora"\nrank = "\\u001b[2J"\n')
    assert main(["new", "--from", str(path)]) == 1
    told = capsys.readouterr()
    assert "method.rank" in told.err and "\x1b" not in told.err + told.out


def test_the_command_line_brings_other_images_and_another_base(tmp_path, capsys):
    text = recipe_for_others(recipe(base="/models/mine.safetensors"))
    path, photos = card(tmp_path / "a.card.png", text), tmp_path / "cat"
    photos.mkdir()
    with pytest.raises(RecipeError) as missing:
        recipe_from_card(path)
    assert "the base 'mine.safetensors', which is not here" in str(missing.value)
    assert f"images in {tmp_path / 'dog'}, which are not here" in str(missing.value)
    found = recipe_from_card(
        path,
        images=[photos, tmp_path],
        base="tiny",
        class_noun="cat",
        prior_images=tmp_path,
        overrides=["method.rank=7"],
    )
    assert (found.base, found.method.rank) == ("tiny", 7)
    own = SourceConfig(path=str(photos), trigger="sks", class_noun="cat")
    assert found.data.sources == (
        own,
        replace(own, path=str(tmp_path)),
        SourceConfig(path=str(tmp_path), role="prior", class_noun="cat"),
    )
    Image.new("RGB", (64, 64)).save(photos / "1.png")
    assert main(["check", str(path), "--images", str(photos), "--base", "tiny", "--json"]) == 0
    capsys.readouterr()
    # Written out for an editor, what --from leaves without effect is named.
    out = tmp_path / "r.toml"
    assert main(["new", "--from", str(path), "--base", "x", "-o", str(out)]) == 0
    assert "--base has no effect with --from" in capsys.readouterr().err
    assert 'path = "dog"' in out.read_text(encoding="utf-8")
    plain = io.BytesIO()
    Image.new("RGB", (4, 4)).save(plain, "PNG")
    path.write_bytes(plain.getvalue())
    assert main(["train", str(path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
