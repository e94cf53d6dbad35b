"""Pictures as a user asks for them: adapters at weights, tags, pictures to start from, seeds,
wrong words.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import konomi
from konomi.errors import KonomiError, RecipeError
from konomi.generation.infotext import read_infotext


@pytest.fixture(scope="module")
def loras(base_folder, pictures, cache, tmp_path_factory):
    """Two LoRA files of large effect."""
    folder = tmp_path_factory.mktemp("loras")
    for name, seed in (("first", 1), ("second", 2)):
        recipe = konomi.recipe_from_flags(
            "lora",
            images=[pictures],
            base=str(base_folder),
            trigger="sks",
            class_noun="dog",
            steps=2,
            seed=seed,
            output=str(folder / f"run-{name}"),
            overrides=[
                f'data.cache.folder="{cache}"',
                'data.resolution="64"',
                "optimizer.learning_rate=0.05",
                "method.text_rank=4",
                f"run.name={name}",
            ],
        )
        *_, finished = konomi.train(recipe)
        Path(finished.path).rename(folder / f"{name}.safetensors")
    return folder


@pytest.mark.kernels
def test_same_seed_same_picture_and_counting_on(draw):
    (one,), _ = draw("a dog")
    (again,), _ = draw("a dog")
    (other,), _ = draw("a dog", seed=4)
    (first, second), _ = draw("a dog", count=2)
    assert np.array_equal(one, again)
    assert np.array_equal(one, first)
    assert np.array_equal(other, second)
    assert not np.array_equal(one, other)


def test_adapters_at_weights_and_by_part(draw, loras):
    file = loras / "first.safetensors"
    (plain,), _ = draw("a dog")
    (full,), _ = draw("a dog", add=[str(file)])
    (none,), _ = draw("a dog", add=[f"{file}:0"])
    (tag,), paths = draw("a dog <lora:first:1>", add=[f"{loras / 'second.safetensors'}:0"])
    (text_only,), _ = draw("a dog", add=[f"{file}:unet=0:text=1"])
    assert np.array_equal(plain, none)
    assert np.array_equal(full, tag)
    assert not np.array_equal(plain, full)
    assert not np.array_equal(plain, text_only)
    assert not np.array_equal(full, text_only)
    infotext = read_infotext(paths[0])
    assert "<lora:first:1>" in infotext.prompt
    assert infotext.settings["Seed"] == "3"


def test_prompts_of_one_call_may_ask_for_different_adapters(draw, loras, monkeypatch):
    monkeypatch.chdir(loras)
    together, _ = draw("a dog", "a dog <lora:first:0.7>", "a dog <lora:second:0.7>", "a dog")
    (first,), _ = draw("a dog <lora:first:0.7>")
    (second,), _ = draw("a dog <lora:second:0.7>")
    assert np.array_equal(together[0], together[3])
    assert np.array_equal(together[1], first)
    assert np.array_equal(together[2], second)


@pytest.mark.kernels
def test_two_adapters_do_not_depend_on_their_order(draw, loras):
    a, b = (f"{loras / name}.safetensors:0.5" for name in ("first", "second"))
    (one,), _ = draw("a dog", add=[a, b])
    (other,), _ = draw("a dog", add=[b, a])
    assert np.abs(one - other).max() <= 1


@pytest.mark.kernels
def test_a_picture_to_start_from_and_a_mask(draw, tmp_path):
    start = tmp_path / "start.png"
    Image.new("RGB", (64, 64), (200, 40, 40)).save(start)
    mask = tmp_path / "mask.png"
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (32, 0, 64, 64))
    half.save(mask)
    (little,), _ = draw("a dog", init=start, strength=0.1, size=None, steps=10)
    (much,), _ = draw("a dog", init=start, strength=1.0, size=None, steps=10)
    (partly,), _ = draw("a dog", init=start, mask=mask, strength=1.0, size=None, steps=4)
    red = np.array([200, 40, 40])
    assert np.abs(partly[:, :32] - red).max() == 0
    assert not np.array_equal(little, much)


def test_prompt_files_and_grids(draw, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# mine\na dog --d 5\na cat --w 96 --h 64 --d 6\n", encoding="utf-8")
    pictures, paths = draw(prompt_file=file, grid=True)
    assert [p.shape[:2] for p in pictures[:2]] == [(64, 64), (64, 96)]
    assert len(paths) == 3
    assert paths[0].name.endswith("-5.png")
    assert paths[2].name == "grid-0000.png", "a sheet is not named like a picture"
    with Image.open(paths[2]) as sheet:
        assert "Sheet of: 2 pictures" in sheet.info["parameters"]
        assert sheet.height > 64, "captions need their room"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"size": "65"}, "multiple of 8"),
        ({"add": ["nothing.safetensors"]}, "nothing.safetensors"),
        ({"sampler": "ddmi"}, "ddmi"),
        ({"init": Path("nowhere.png")}, "nowhere.png"),
        ({"steps": 0}, "steps"),
    ],
)
def test_wrong_words_get_one_line(draw, options, named):
    with pytest.raises(KonomiError, match=named) as error:
        draw("a dog", **options)
    assert "\n" not in str(error.value)


def test_no_prompt_is_said(draw):
    with pytest.raises(RecipeError, match="no prompt"):
        draw()


def test_an_adapter_of_another_family_is_refused_by_name(draw, tmp_path):
    import torch

    from konomi.adapters.adapter import Adapter
    from konomi.adapters.kinds import LowRank
    from konomi.formats.adapter_file import write_adapter

    key = "denoiser.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    wide = LowRank(down=torch.ones(2, 2048), up=torch.ones(640, 2), alpha=2.0)
    write_adapter(Adapter(layers={key: wide}, family="sdxl"), tmp_path / "xl.safetensors")
    with pytest.raises(KonomiError, match="attn2"):
        draw("a dog", add=[str(tmp_path / "xl.safetensors")])
