"""sd-scripts' dataset TOML: settings inherited, adopted, or named as missing."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from konomi.config.sections import CaptionConfig, DataConfig, SourceConfig
from konomi.data.captions import final_caption
from konomi.data.kohya_dataset import read_dataset_toml
from konomi.data.sources import scan
from konomi.errors import DataError

# The example of sd-scripts' own documentation, with paths of this machine's shape.
EXAMPLE = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'hoge'
  class_tokens = 'hoge girl'
  num_repeats = 5

  [[datasets.subsets]]
  image_dir = 'fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'reg'
  class_tokens = 'human'
  keep_tokens = 1

[[datasets]]
resolution = [768, 768]
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'piyo'
  metadata_file = 'piyo_md.json'
"""


def picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(stream, "PNG")
    path.write_bytes(stream.getvalue())


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "set.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def example(tmp_path: Path) -> Path:
    for number, name in enumerate(
        ("hoge/5_cat/no.png", "hoge/a.png", "hoge/b.png", "fuga/a.png", "reg/a.png")
    ):
        picture(tmp_path / name, number)
    for number, name in enumerate(("p.png", "q.png", "r.png"), start=10):
        picture(tmp_path / "piyo" / name, number)
    (tmp_path / "hoge" / "b.txt").write_text("x, y, z, w", encoding="utf-8")
    (tmp_path / "hoge" / "a.caption").write_text("not read", encoding="utf-8")
    rows = {
        "p": {"caption": "a p", "tags": "t1, t2"},
        str(tmp_path / "piyo" / "q.png"): {"tags": "t3"},
        "gone": {},
    }
    (tmp_path / "piyo_md.json").write_text(json.dumps(rows), encoding="utf-8")
    return toml(tmp_path, EXAMPLE)


def test_the_documented_example(example: Path) -> None:
    manifest = scan(DataConfig(sources=(SourceConfig(path=str(example), repeats=2),)))
    seen = [
        (r.name, r.role, r.repeats, r.captions, r.keep_tokens, r.shuffle) for r in manifest.records
    ]
    assert seen == [
        ("a.png", "train", 10, ("hoge girl",), 2, True),
        ("b.png", "train", 10, ("x, y, z, w",), 2, True),
        ("a.png", "train", 2, ("fuga boy",), 3, True),
        ("a.png", "prior", 2, ("human",), 1, True),
        ("p.png", "train", 2, ("a p, t1, t2",), 1, True),
        ("q.png", "train", 2, ("t3",), 1, True),
    ]
    assert {bad.name for bad in manifest.excluded} == {"gone", "r.png"}
    problems = " | ".join(manifest.problems)
    assert "resolution differs between subsets; 512 is used for all" in problems
    assert "batch_size differs" in problems
    varied = {final_caption(manifest.records[1], CaptionConfig(), key) for key in range(50)}
    assert varied == {"x, y, z, w", "x, y, w, z"}


def test_what_the_recipe_adopts(tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [general]
        enable_bucket = true
        bucket_no_upscale = true
        min_bucket_reso = 256
        max_bucket_reso = 1024
        bucket_reso_steps = 64
        flip_aug = true
        random_crop = true
        alpha_mask = true
        caption_dropout_rate = 0.05
        caption_tag_dropout_rate = 0.1
        caption_separator = ";"
        color_aug = true
        cache_info = false
        [[datasets]]
        resolution = [768, 512]
        batch_size = 3
        [[datasets.subsets]]
        image_dir = "x"
        caption_prefix = "masterpiece,"
        caption_suffix = ", from side"
        """,
    )
    read = read_dataset_toml(path)
    assert dict(read.recipe_values) == {
        "run.batch_size": 3,
        "data.resolution": "768x512",
        "data.buckets.kind": "area",
        "data.buckets.step": 64,
        "data.buckets.min_side": 256,
        "data.buckets.max_side": 1024,
        "data.buckets.upscale": False,
        "data.images.flip": True,
        "data.images.crop": "random",
        "data.images.alpha": "mask",
        "data.captions.separator": ";",
        "data.captions.dropout": 0.05,
        "data.captions.tag_dropout": 0.1,
    }
    (problem,) = read.problems
    assert "general.color_aug has no equivalent" in problem
    picture(tmp_path / "x" / "a.png", 1)
    (tmp_path / "x" / "a.txt").write_text("a dog", encoding="utf-8")
    (record,) = scan(DataConfig(sources=(SourceConfig(path=str(path)),))).records
    assert record.captions == ("masterpiece, a dog , from side",)


def test_without_buckets_one_size_is_trained(tmp_path: Path) -> None:
    path = toml(tmp_path, '[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = "x"')
    assert dict(read_dataset_toml(path).recipe_values) == {
        "data.resolution": "512",
        "data.buckets.kind": "fixed",
    }


SUBSET = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "x"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            SUBSET + "num_repeat = 5",
            r"datasets\[0\]\.subsets\[0\]\.num_repeat is not a setting "
            r".*did you mean num_repeats\?",
        ),
        (SUBSET + "resolution = 512", r"subsets\[0\]\.resolution does not belong in this section"),
        (
            '[general]\nimage_dir = "x"\n' + SUBSET,
            r"general\.image_dir does not belong in this section",
        ),
        (SUBSET + 'num_repeats = "5"', r"num_repeats is '5': wrong kind"),
        (SUBSET + "num_repeats = true", "num_repeats is True: wrong kind"),
        (SUBSET + "num_repeats = 0", "num_repeats is 0; at least 1"),
        ("[[datasets]]\n[[datasets.subsets]]\nkeep_tokens = 1", "has no image_dir"),
        ("[general]\nkeep_tokens = 1", r"no \[\[datasets.subsets\]\]"),
        ("[generals]", "generals: unknown section"),
        ("[datasets]\nx = 1", r"datasets must be written \[\[datasets\]\]"),
        (
            "[[datasets]]\nresolution = [1, 2, 3]\n" + SUBSET.replace("[[datasets]]\n", ""),
            "resolution is .*write 512",
        ),
        ("a = ", "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"set\.toml: .*{words}|set\.toml: {words}"):
        read_dataset_toml(toml(tmp_path, text))


def test_images_one_level_lower(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "deep" / "a.png", 1)
    with pytest.raises(DataError, match=r"they lie one level lower, as in deep/"):
        scan(DataConfig(sources=(SourceConfig(path=str(toml(tmp_path, SUBSET))),)))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="x: no such file or folder"):
        scan(DataConfig(sources=(SourceConfig(path=str(toml(tmp_path, SUBSET))),)))
