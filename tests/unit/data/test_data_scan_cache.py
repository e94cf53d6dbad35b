"""An unchanged data set is known without a look into any file; whatever changes is noticed."""

import json
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from konomi.config.sections import CaptionConfig, DataConfig, SourceConfig
from konomi.data import images, scan_cache
from konomi.data.images import unreadable
from konomi.data.manifest import Manifest, Record, write_manifest
from konomi.data.scan_cache import CachedResult, VerifiedImages, cached_scan
from konomi.data.sources import scan


def picture(path: Path, colour: tuple[int, int, int] = (9, 9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)


def data_of(*paths: Path, **source: object) -> DataConfig:
    return DataConfig(
        sources=tuple(SourceConfig(path=str(path), trigger="sks", **source) for path in paths)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        picture(tmp_path / "set" / f"{number}.png", (number, 0, 0))
    picture(tmp_path / "set" / "deep" / "0-masklabel.png")
    picture(tmp_path / "set" / "deep" / "0.png")
    (tmp_path / "set" / "0.txt").write_text("a fox, red\nand wet", encoding="utf-8")
    (tmp_path / "set" / "stray.txt").write_text("x", encoding="utf-8")
    (tmp_path / "set" / "bad.jpg").write_bytes(b"no image")
    return tmp_path / "set"


def never_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> Manifest:
        raise AssertionError("scanned again")

    monkeypatch.setattr(scan_cache, "scan", forbidden)


def test_an_unchanged_set_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.write(folder / "1.png", "z.png")
    data, cache = data_of(folder, archive), tmp_path / "cache"
    cold = cached_scan(data, cache)
    assert cold == scan(data) and len(cold.records) == 5 and cold.excluded and cold.findings
    never_scans(monkeypatch)
    opened: list[str] = []
    really_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: opened.append(str(path)) or really_open(path, *rest)
    )
    warm = cached_scan(data, cache)
    assert warm == cold and warm.cache_key == cold.cache_key
    assert all(isinstance(record.captions, tuple) for record in warm.records)
    assert not [path for path in opened if str(folder) in path]


def rewrite_caption(folder: Path) -> None:
    status = (folder / "0.txt").stat()
    (folder / "0.txt").write_text("a cat, red\nand wet", encoding="utf-8")
    os.utime(folder / "0.txt", ns=(status.st_atime_ns, status.st_mtime_ns))


def add_caption_folder_next_door(folder: Path) -> None:
    (folder.parent / "captions").mkdir()
    (folder.parent / "captions" / "1.txt").write_text("x", encoding="utf-8")


def swap_images(folder: Path) -> None:
    (folder / "1.png").rename(folder / "x")
    (folder / "2.png").rename(folder / "1.png")
    (folder / "x").rename(folder / "2.png")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a caption of the same size and time": rewrite_caption,
    "a new image": lambda folder: picture(folder / "new.png"),
    "an image in a folder below": lambda folder: picture(folder / "deep" / "deeper" / "new.png"),
    "an image less": lambda folder: (folder / "2.png").unlink(),
    "another mask": lambda folder: picture(folder / "deep" / "0-masklabel.png", (200, 200, 200)),
    "two images that change places": swap_images,
    "a folder called otherwise": lambda folder: (folder / "deep").rename(folder / "7_deep"),
    "captions next door": add_caption_folder_next_door,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_is_noticed(
    folder: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    data, cache = data_of(folder), tmp_path / "cache"
    before = cached_scan(data, cache)
    time.sleep(0.01)  # The clock of the file system has steps of some milliseconds.
    change(folder)
    after = cached_scan(data, cache)
    assert after == scan(data) and after.cache_key != before.cache_key
    assert cached_scan(data, cache).cache_key == after.cache_key


def test_settings_that_change_what_is_read(folder: Path, tmp_path: Path) -> None:
    data, cache = data_of(folder), tmp_path / "cache"
    joined = cached_scan(data, cache)
    lines = cached_scan(replace(data, captions=CaptionConfig(lines="alternatives")), cache)
    assert [len(manifest.records[0].captions) for manifest in (joined, lines)] == [1, 2]
    assert cached_scan(data_of(folder, repeats=3), cache).records[0].repeats == 3


def test_what_a_dataset_toml_names_is_watched(folder: Path, tmp_path: Path) -> None:
    toml = tmp_path / "d.toml"
    toml.write_text(
        f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{folder.as_posix()}"\n', encoding="utf-8"
    )
    data, cache = data_of(toml), tmp_path / "cache"
    assert len(cached_scan(data, cache).records) == 3
    picture(folder / "new.png")
    assert len(cached_scan(data, cache).records) == 4
    toml.write_text(toml.read_text(encoding="utf-8") + "num_repeats = 2\n", encoding="utf-8")
    assert cached_scan(data, cache).records[0].repeats == 2


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"{}"])
def test_damaged_memory_counts_as_none(folder: Path, tmp_path: Path, damage: bytes) -> None:
    data, cache = data_of(folder), tmp_path / "cache"
    cold = cached_scan(data, cache)
    (path,) = (cache / "scans").iterdir()
    good = path.read_bytes()
    for bad in (
        damage,
        good.replace(b'"fox', b'"cat', 1),
        good[:-1],
        good.replace(b"fox", b"cat", 1),
    ):
        path.write_bytes(bad)
        assert cached_scan(data, cache) == cold
    assert path.read_bytes() == good


def test_a_disk_that_refuses_costs_the_memory_only(folder: Path, tmp_path: Path) -> None:
    data, cache = data_of(folder), tmp_path / "cache"
    cache.mkdir()
    (cache / "scans").write_text("in the way", encoding="utf-8")
    assert cached_scan(data, cache) == scan(data)


def test_old_memory_goes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for repeats in range(1, scan_cache._KEPT + 6):
        cached_scan(data_of(folder, repeats=repeats), cache)
    assert len(list((cache / "scans").iterdir())) == scan_cache._KEPT


def test_what_was_worked_out_belongs_to_its_scan_and_facts(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    manifest = cached_scan(data_of(folder), cache)
    CachedResult(cache, manifest, "reach", (1, "a")).put({"x": [1, 2]})
    assert CachedResult(cache, manifest, "reach", (1, "a")).get() == {"x": [1, 2]}
    assert CachedResult(cache, manifest, "reach", (2, "a")).get() is None
    picture(folder / "new.png")
    assert CachedResult(cache, cached_scan(data_of(folder), cache), "reach", (1, "a")).get() is None
    unknown = CachedResult(cache, scan(data_of(folder)), "reach", (1, "a"))
    unknown.put({"x": 1})
    assert unknown.get() is None


def test_whole_images_are_decoded_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = scan(data_of(folder)).records
    cut = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(cut[:-30])
    decoded: list[str] = []
    really = images.read_image
    monkeypatch.setattr(
        images,
        "read_image",
        lambda locator, **rest: decoded.append(Path(locator).name) or really(locator, **rest),
    )
    records = scan(data_of(folder)).records
    for wanted in (["0.png", "1.png", "2.png", "0.png"], ["1.png"]):
        decoded.clear()
        bad = unreadable(records, verified=VerifiedImages(tmp_path / "cache"))
        assert sorted(decoded) == sorted(wanted) and [one.name for one in bad] == ["1.png"]
    time.sleep(0.01)
    picture(folder / "deep" / "0-masklabel.png", (3, 3, 3))
    decoded.clear()
    unreadable(records, verified=VerifiedImages(tmp_path / "cache"))
    assert sorted(decoded) == ["0.png", "1.png"]
    path = tmp_path / "cache" / "whole-images"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    decoded.clear()
    unreadable(records, verified=VerifiedImages(tmp_path / "cache"))
    assert len(decoded) == 4


def test_the_manifest_file_has_every_field(folder: Path, tmp_path: Path) -> None:
    manifest = scan(data_of(folder))
    write_manifest(manifest, tmp_path / "manifest.jsonl")
    rows = [
        json.loads(line)
        for line in (tmp_path / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    text = (tmp_path / "manifest.jsonl").read_text(encoding="utf-8")
    assert text == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    back = [
        Record(**row | {"captions": tuple(row["captions"])}) for row in rows if "content" in row
    ]
    assert tuple(back) == manifest.records
    assert [row["name"] for row in rows if "reason" in row] == ["bad.jpg"]


def test_what_killed_processes_left_in_the_memory_goes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    left = [place / ".partial-00000000-1-1-00000000-x.json" for place in (cache, cache / "scans")]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        # Of another host, as its name says: swept when it is a day old.
        os.utime(path, (0, 0))
    manifest = cached_scan(data_of(folder), cache)
    assert not any(path.exists() for path in left)
    left[0].touch()
    os.utime(left[0], (0, 0))
    unreadable(manifest.records, verified=VerifiedImages(cache))
    assert not left[0].exists()
    assert sorted(path.name for path in cache.iterdir()) == [
        "images.jsonl",
        "scans",
        "whole-images",
    ]
