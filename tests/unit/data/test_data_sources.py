"""From folders, zips, tables and shards to a manifest: what is found, in which order, what is said
of the rest.
"""

import io
import json
import os
import socket
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from konomi.config.sections import CaptionConfig, DataConfig, SourceConfig
from konomi.data import sources
from konomi.data.captions import final_caption
from konomi.data.file_index import Measured
from konomi.data.images import read_image, read_size, verify
from konomi.data.manifest import Manifest
from konomi.data.sources import scan
from konomi.errors import DataError, MissingExtraError

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test images are not here")


def png(colour: int = 0, size: tuple[int, int] = (16, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (colour % 256, colour // 256, 7)).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def zipped(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def scanned(path: Path | str, **source: object) -> Manifest:
    return scan(DataConfig(sources=(SourceConfig(path=str(path), **source),)))


def table(manifest: Manifest) -> dict[str, tuple[str, int, tuple[str, ...]]]:
    return {
        record.name: (record.role, record.repeats, record.captions) for record in manifest.records
    }


def both(tmp_path: Path, files: dict[str, str | bytes]) -> list[Path]:
    """The same files as a folder and as a zip."""
    folder = write(tmp_path / "as folder" / "set", files)
    return [folder, zipped(tmp_path / "set.zip", files)]


def test_plain_folder_and_zip(tmp_path: Path) -> None:
    files = {
        "10.png": png(1),
        "9.png": png(2, (30, 20)),
        "9.TXT": "a dog\na hat",
        "sub/9.png": png(3),
        "sub/9.caption": "below",
        "é ☂ 日本.jpg": png(4),
        "notes.md": "x",
        ".hidden.png": png(),
        "__MACOSX/._9.png": b"junk",
        "Thumbs.db": b"junk",
        "sub/.DS_Store": b"junk",
    }
    for path in both(tmp_path, files):
        manifest = scanned(path, repeats=3)
        assert table(manifest) == {
            "9.png": ("train", 3, ("a dog a hat",)),
            "10.png": ("train", 3, ()),
            "sub/9.png": ("train", 3, ("below",)),
            "é ☂ 日本.jpg": ("train", 3, ()),
        }
        assert list(table(manifest)) == ["9.png", "10.png", "sub/9.png", "é ☂ 日本.jpg"]
        assert (manifest.records[0].width, manifest.records[0].height) == (30, 20)
        assert not manifest.excluded
        for record in manifest.records:
            assert (
                read_size(record.locator)
                == read_image(record.locator).size
                == (record.width, record.height)
            )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["as folder", "set.zip"]


def test_contents_key_the_cache(tmp_path: Path) -> None:
    first, second = (scanned(path) for path in both(tmp_path, {"a.png": png(1), "b.png": png(2)}))
    assert [r.content for r in first.records] == [r.content for r in second.records]
    assert len({r.content for r in first.records}) == 2


def test_kohya_folders(tmp_path: Path) -> None:
    files = {
        "10_sks dog/1.png": png(1),
        "10_sks dog/2.png": png(2),
        "10_sks dog/2.txt": "sks dog on grass",
        "3_abc hat/1.png": png(3),
        "plain/1.png": png(4),
        "2023_holiday/1.png": png(5),
        "0_off/1.png": png(6),
    }
    for path in both(tmp_path, files):
        manifest = scanned(path, repeats=2)
        assert table(manifest) == {
            "3_abc hat/1.png": ("train", 6, ("abc hat",)),
            "10_sks dog/1.png": ("train", 20, ("sks dog",)),
            "10_sks dog/2.png": ("train", 20, ("sks dog on grass",)),
            "2023_holiday/1.png": ("train", 2, ()),
            "plain/1.png": ("train", 2, ()),
        }
        assert [(bad.name, bad.reason) for bad in manifest.excluded] == [
            ("0_off/1.png", "its folder 0_off says 0 repeats")
        ]
    leaf = scanned(tmp_path / "as folder" / "set" / "10_sks dog")
    assert table(leaf)["1.png"] == ("train", 10, ("sks dog",))


def test_kohya_project(tmp_path: Path) -> None:
    files = {
        "img/10_sks dog/1.png": png(1),
        "reg/2_dog/1.png": png(2),
        "model/sample/1.png": png(3),
        "cover.png": png(4),
    }
    for path in both(tmp_path, files):
        manifest = scanned(path, trigger="sks")
        assert table(manifest) == {
            "img/10_sks dog/1.png": ("train", 10, ("sks dog",)),
            "reg/2_dog/1.png": ("prior", 2, ("dog",)),
        }
        assert [record.trigger for record in manifest.records] == ["sks", ""]
        assert {bad.name for bad in manifest.excluded} == {"model/sample/1.png", "cover.png"}


def test_kohya_names_beside_own_words(tmp_path: Path) -> None:
    write(tmp_path, {"5_sks dog/1.png": png(1)})
    config = CaptionConfig()
    own = scanned(tmp_path, trigger="ohwx", class_noun="cat").records[0]
    assert final_caption(own, config, None) == "ohwx cat"
    template = scanned(tmp_path, template="a photo of [name]").records[0]
    assert final_caption(template, config, None) == "a photo of sks dog"


def test_metadata_jsonl(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "text": "one"},
        {"file_name": "sub/b.png", "captions": ["two", "three"]},
        {"file_name": "c.png", "additional_feature": "four"},
        {"file_name": "gone.png", "text": "five"},
        {"file_name": "../out.png", "text": "six"},
    ]
    files = {
        "a.png": png(1),
        "a.txt": "not this",
        "sub/b.png": png(2),
        "c.png": png(3),
        "d.png": png(4),
        "d.txt": "by file",
        "metadata.jsonl": "\ufeff" + "\r\n".join(json.dumps(row) for row in rows) + "\r\n",
    }
    write(tmp_path, {"as folder/out.png": png(9)})
    for path in both(tmp_path, files):
        manifest = scanned(path)
        assert {name: row[2] for name, row in table(manifest).items()} == {
            "a.png": ("one",),
            "c.png": ("four",),
            "d.png": ("by file",),
            "sub/b.png": ("two", "three"),
        }
        assert {bad.name for bad in manifest.excluded} == {"gone.png", "../out.png"}
        assert any("1 images are in no metadata table" in problem for problem in manifest.problems)
    chosen = scanned(tmp_path / "as folder" / "set" / "metadata.jsonl")
    assert "d.png" not in table(chosen)
    assert any(bad.name == "d.png" and "not listed" in bad.reason for bad in chosen.excluded)


def test_metadata_csv_in_subfolders(tmp_path: Path) -> None:
    files = {
        "train/metadata.csv": 'file_name,text\n1.png,"a dog, on\ngrass"\n',
        "train/1.png": png(1),
        "test/metadata.csv": "file_name,caption\n1.png,犬\n".encode("cp932"),
        "test/1.png": png(2),
    }
    for path in both(tmp_path, files):
        assert {name: row[2] for name, row in table(scanned(path)).items()} == {
            "test/1.png": ("犬",),
            "train/1.png": ("a dog, on grass",),
        }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{not json", "line 2: not valid JSON"),
        ("[1]", "line 2: expected an object"),
        ('{"text": "x"}', "line 2: no `file_name`"),
        ('{"file_name": "a.png", "text": 5}', "line 2: the caption is 5"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "line 2: .*half a character"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: str, words: str) -> None:
    write(
        tmp_path, {"a.png": png(), "metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n' + row}
    )
    with pytest.raises(DataError, match=rf"metadata\.jsonl, {words}"):
        scanned(tmp_path)


def test_masks_belong_to_their_images(tmp_path: Path) -> None:
    files = {
        "a.png": png(1),
        "a-masklabel.png": png(2),
        "a_att.png": png(3),
        "b.png": png(6),
        "b_att.jpg": png(7),
        "lost-masklabel.png": png(4),
        "cat_att.png": png(5),
    }
    for path in both(tmp_path, files):
        manifest = scanned(path)
        assert [(r.name, r.mask.endswith("a-masklabel.png")) for r in manifest.records] == [
            ("a.png", True),
            ("b.png", False),
            ("cat_att.png", False),
        ]
        assert [bool(r.attention) for r in manifest.records] == [True, False, False]
        assert {bad.name for bad in manifest.excluded} == {"b_att.jpg", "lost-masklabel.png"}
        assert (
            read_image(manifest.records[0].locator, mask=manifest.records[0].mask).mask is not None
        )


def test_every_file_trains_or_is_listed(tmp_path: Path) -> None:
    files = {
        "good.png": png(),
        "noend": png(1),
        "empty.jpg": b"",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\n",
        "phone.heic": b"\0\0\0\x18ftypheic",
        "readme": b"words",
    }
    for path in both(tmp_path, files):
        manifest = scanned(path)
        assert list(table(manifest)) == ["good.png", "noend"]
        assert [bad.name for bad in manifest.excluded] == ["empty.jpg", "phone.heic", "pointer.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_sockets_devices_and_links(tmp_path: Path) -> None:
    root = write(tmp_path / "set", {"a.png": png(1), "deep/b.png": png(2)})
    write(tmp_path / "other", {"secret.png": png(3), "secret.txt": "secret"})
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "a.txt")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "outside.png").symlink_to(tmp_path / "other" / "secret.png")
    (root / "deep" / "b.txt").symlink_to(tmp_path / "other" / "secret.txt")
    (root / "inside.png").symlink_to(root / "deep" / "b.png")
    (root / "loop").symlink_to(root, target_is_directory=True)
    (root / "self.png").symlink_to(root / "self.png")
    (root / "elsewhere").symlink_to(tmp_path / "other", target_is_directory=True)
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root)
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
        manifest = scanned(root)
    assert {name: row[2] for name, row in table(manifest).items()} == {
        "a.png": (),
        "deep/b.png": (),
        "inside.png": (),
    }
    reasons = {bad.name: bad.reason for bad in manifest.excluded}
    assert set(reasons) == {
        "pipe.png", "a.txt", "zero.png", "outside.png", "deep/b.txt", "loop", "self.png",
        "elsewhere", "socket.png",
    }  # fmt: skip
    assert "leads out" in reasons["outside.png"] and "leads out" in reasons["zero.png"]
    with pytest.raises(DataError, match="not a regular file"):
        read_image(str(root / "pipe.png"))


def test_odd_names(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "new\nline.png",
        "☂️.png",
        "x" * 200 + ".png",
        "a::b.png",
        "quote'\".png",
        "[0].png",
    ]
    write(tmp_path, {name: png(number) for number, name in enumerate(names)})
    raw = os.fsencode(tmp_path) + b"/bad\xff\xfename.png"
    Path(os.fsdecode(raw)).write_bytes(png(99))
    manifest = scanned(tmp_path)
    assert len(manifest.records) == len(names) + 1
    for record in manifest.records:
        assert record.name.isprintable() and record.name.encode()
        assert read_image(record.locator).size == (16, 8)


def test_natural_order_whatever_the_locale(tmp_path: Path) -> None:
    names = [
        "B.png",
        "a.png",
        "a1.png",
        "a02.png",
        "a2.png",
        "a10.png",
        "é.png",
        "d-1/a.png",
        "d/a.png",
        "d/a/x.png",
    ]
    write(tmp_path, {name: png(number) for number, name in enumerate(reversed(names))})
    got = [record.name for record in scanned(tmp_path).records]
    assert got == [
        "B.png",
        "a.png",
        "a1.png",
        "a02.png",
        "a2.png",
        "a10.png",
        "d/a.png",
        "d/a/x.png",
        "d-1/a.png",
        "é.png",
    ]


def test_several_sources(tmp_path: Path) -> None:
    write(tmp_path, {"dog/1.png": png(1), "class/1.png": png(2), "hat/1.png": png(3)})
    manifest = scan(
        DataConfig(
            sources=(
                SourceConfig(path=str(tmp_path / "hat"), trigger="abc", repeats=4),
                SourceConfig(
                    path=str(tmp_path / "class"), role="prior", class_noun="dog", trigger="sks"
                ),
                SourceConfig(path=str(tmp_path / "dog"), trigger="sks", class_noun="dog"),
            )
        )
    )
    seen = [(r.role, r.repeats, final_caption(r, CaptionConfig(), None)) for r in manifest.records]
    assert seen == [("train", 4, "abc"), ("prior", 1, "dog"), ("train", 1, "sks dog")]


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    captions = {f"img/{n}.txt": f"a hat {n}" for n in range(3)}
    write(
        tmp_path, captions | {f"img/{n}.png": png(n) for n in range(4)} | {"img/copy.png": png(1)}
    )
    problems = " | ".join(scanned(tmp_path / "img").problems)
    assert (
        "2 of 5 images have no caption and would train on empty text: 3.png, copy.png" in problems
    )
    assert "1 images are byte-identical" in problems and "1.png = copy.png" in problems
    problems = " | ".join(scanned(tmp_path / "img", trigger="sks").problems)
    assert "'sks' is in none of the 3 captions; it is put in front of each" in problems
    assert "2 of 5 images have no caption file and use the trigger" in problems
    assert (
        scanned(tmp_path / "img", trigger="hat")
        .problems[-1]
        .startswith("1 images are byte-identical")
    )


def test_a_kohya_trigger_that_no_caption_holds(tmp_path: Path) -> None:
    write(tmp_path, {"5_sks dog/1.png": png(1), "5_sks dog/1.txt": "a dog"})
    assert any(
        "'sks' is in none of its 1 captions" in problem for problem in scanned(tmp_path).problems
    )
    assert not any(
        "in none of its" in problem for problem in scanned(tmp_path, trigger="sks").problems
    )


def test_one_level_too_high_or_low(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"dogs/rex/1.png": png(1), "dogs/bello/1.png": png(2), "dogs/rex/captions/2.txt": "x"},
    )
    stray, problem = scanned(tmp_path / "dogs", trigger="sks").problems
    assert "1 caption file belongs to no image and is not read: rex/captions/2.txt" in stray
    assert (
        "2 folders (bello, rex)" in problem
        and f"give that folder: {tmp_path / 'dogs'}/bello" in problem
    )
    with pytest.raises(
        DataError, match=r"captions: no images here; they lie one folder higher\. Give .*rex$"
    ):
        scanned(tmp_path / "dogs" / "rex" / "captions")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "empty"),
        ({"deep/notes.txt": "x"}, "1 files, none of them an image"),
        ({"set.zip": b"PK"}, r"no images, but \.zip files"),
        (
            {"a.png": b"", "b.jpg": b"<html>"},
            r"no image can be read.*a\.png: the file is empty.*b\.jpg: a web page",
        ),
    ],
)
def test_nothing_found(tmp_path: Path, files: dict[str, str | bytes], words: str) -> None:
    root = tmp_path / "box" / "set"
    root.mkdir(parents=True)
    with pytest.raises(DataError, match=words):
        scanned(write(root, files))


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"Did you mean .*photos"):
        scanned(tmp_path / "phtos")
    with pytest.raises(DataError, match="is the part of it that exists"):
        scanned(tmp_path / "photos" / "x" / "y")
    with pytest.raises(DataError, match=r"data\.sources is empty"):
        scan(DataConfig())


def test_bad_captions_are_named_together(tmp_path: Path) -> None:
    bad = "crée".encode("cp1252")
    write(
        tmp_path,
        {
            "a.png": png(1),
            "a.txt": bad,
            "b.png": png(2),
            "b.txt": bad,
            "c.png": png(3),
            "c.txt": "fine",
        },
    )
    with pytest.raises(DataError, match=r"a\.txt: byte 2 .*b\.txt: byte 2 "):
        scanned(tmp_path)


def declare_size(path: Path, size: int) -> None:
    """Let the directory of a zip claim another unpacked size for its last member."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 24 : place + 28] = size.to_bytes(4, "little")
    path.write_bytes(data)


def test_hostile_zips(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "set.zip", {"good.png": png(1), "../../evil.png": png(2), "/abs.png": png(3)}
    )
    with zipfile.ZipFile(path, "a") as target:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        target.writestr(link, "/etc/passwd")
        target.writestr(zipfile.ZipInfo(""), b"a member without a name")
        target.writestr("big.bmp", b"BM")
    declare_size(path, 3 * 10**8)
    manifest = scanned(path)
    assert list(table(manifest)) == ["good.png"]
    reasons = {bad.name: bad.reason for bad in manifest.excluded}
    assert set(reasons) == {"../../evil.png", "/abs.png", "link.png", "big.bmp"}
    assert "larger than 256 MiB" in reasons["big.bmp"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["set.zip"]


def test_zip_bombs_and_damage(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("0.png", bytes(10**6))
    declare_size(bomb, 2**32 - 2)
    with pytest.raises(DataError, match="zip bomb"):
        scanned(bomb)
    broken = zipped(tmp_path / "broken.zip", {"a.png": png(1), "b.png": png(2)})
    data = bytearray(broken.read_bytes())
    data[data.index(b"IHDR") if b"IHDR" in data else 45] ^= 0xFF
    broken.write_bytes(data)
    manifest = scanned(broken)
    assert len(manifest.records) + len(manifest.excluded) == 2 and len(manifest.excluded) == 1
    (tmp_path / "cut.zip").write_bytes(broken.read_bytes()[:60])
    with pytest.raises(DataError, match=r"cut\.zip: not a readable zip"):
        scanned(tmp_path / "cut.zip")


def test_zip_names_in_cp932(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"NN/AA.png": png(1), "NN/AA.txt": "x"})
    data = path.read_bytes()
    # Same lengths, so that offsets stay: two ASCII letters become one kanji.
    path.write_bytes(
        data.replace(b"NN/", "犬".encode("cp932") + b"/").replace(
            b"AA.", "猫".encode("cp932") + b"."
        )
    )
    assert table(scanned(path)) == {"犬/猫.png": ("train", 1, ("x",))}


def shard(path: Path, files: dict[str, str | bytes]) -> Path:
    with tarfile.open(path, "w") as target:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def test_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    shard(
        tmp_path / "s-000.tar",
        {"b.jpg": png(1), "b.txt": "one", "a.png": png(2, (9, 5)), "a.json": '{"caption": "2"}'},
    )
    shard(
        tmp_path / "s-001.tar",
        {
            "a.png": png(3),
            "a.cls": "7",
            "x.txt": "no image",
            "c.left.png": png(4),
            "c.mask.png": png(5),
        },
    )
    manifest = scanned(tmp_path / "s-{000..001}.tar", repeats=2)
    assert table(manifest) == {
        "s-000.tar/a.png": ("train", 2, ("2",)),
        "s-000.tar/b.jpg": ("train", 2, ("one",)),
        "s-001.tar/a.png": ("train", 2, ()),
        "s-001.tar/c.left.png": ("train", 2, ()),
    }
    for record, colour in zip(manifest.records, (2, 1, 3, 4), strict=True):
        assert (read_image(record.locator).pixels[0, 0] == (colour, 0, 7)).all()
    assert manifest.records[3].mask and not manifest.records[2].mask
    verify(manifest)


def test_shards_agree_with_the_library_that_writes_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "s.tar"), encoder=False) as writer:
        for number in range(20):
            writer.write(
                {"__key__": f"{number:04}", "png": png(number), "txt": f"caption {number}".encode()}
            )
    manifest = scanned(tmp_path / "s.tar")
    assert [record.captions for record in manifest.records] == [
        (f"caption {n}",) for n in range(20)
    ]


def test_damaged_and_remote_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    path = shard(tmp_path / "s.tar", {f"{n}.png": png(n) for n in range(5)})
    data = bytearray(path.read_bytes())
    data[1024 + 148] ^= 0xFF
    (tmp_path / "flipped.tar").write_bytes(data)
    with pytest.raises(
        DataError, match=r"flipped\.tar: not a readable \.tar .damaged at byte 1024"
    ):
        scanned(tmp_path / "flipped.tar")
    (tmp_path / "cut.tar").write_bytes(path.read_bytes()[: 3 * 1024 + 540])
    with pytest.raises(DataError, match=r"cut\.tar: not a readable \.tar"):
        scanned(tmp_path / "cut.tar")
    for remote in ("https://example.org/{0..1}.tar", "pipe:cat x.tar"):
        with pytest.raises(DataError, match=r"only \.tar files on this machine"):
            scanned(remote)
    with pytest.raises(DataError, match=r"s-9\.tar: cannot be read"):
        scanned(tmp_path / "s-{9..10}.tar")
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(MissingExtraError, match="webdataset"):
        scanned(path)


def test_the_second_scan_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(
        tmp_path / "set",
        {f"{n}.png": png(n) for n in range(50)} | {"7.txt": "x", "bad.jpg": b"no", "what": b"?"},
    )
    archive = zipped(tmp_path / "set.zip", {"a.png": png(200)})
    data = DataConfig(sources=(SourceConfig(path=str(root)), SourceConfig(path=str(archive))))
    index = tmp_path / "cache" / "files.jsonl"
    first = scan(data, index=index)
    opened: list[str] = []
    monkeypatch.setattr(sources, "read_bytes", lambda locator: opened.append(locator))
    really_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: opened.append(str(path)) or really_open(path, *rest)
    )
    assert scan(data, index=index) == first
    assert [Path(path).name for path in opened] == ["7.txt"]
    monkeypatch.undo()
    (root / "3.png").write_bytes(png(70, (64, 64)))
    changed = scan(data, index=index)
    assert changed.records[3].width == 64 and changed.records[3].content != first.records[3].content
    assert [path.name for path in index.parent.iterdir()] == ["files.jsonl"]


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage", "empty"])
def test_a_damaged_index_is_rebuilt_aloud(tmp_path: Path, damage: str) -> None:
    root = write(tmp_path / "set", {f"{n}.png": png(n) for n in range(5)})
    index = tmp_path / "files.jsonl"
    data = DataConfig(sources=(SourceConfig(path=str(root), trigger="sks"),))
    first = scan(data, index=index)
    good = index.read_bytes()
    bad = {
        "cut": good[:-40],
        "flip": good.replace(b", 16, 8", b", 32, 8", 1),
        "garbage": b"\xff\0",
        "empty": b"",
    }[damage]
    assert bad != good
    index.write_bytes(bad)
    second = scan(data, index=index)
    assert second.records == first.records
    assert any("index is damaged" in problem for problem in second.problems)
    assert not scan(data, index=index).problems and index.read_bytes() == good


@needs_shared
def test_real_photos() -> None:
    manifest = scanned(SHARED / "dreambooth" / "dog", trigger="sks", class_noun="dog")
    assert [record.name for record in manifest.records] == [f"0{n}.jpg" for n in range(5)]
    assert not manifest.problems and not manifest.excluded
    verify(manifest)


@needs_shared
def test_real_zip() -> None:
    manifest = scanned(SHARED / "emoji-novel.zip")
    assert len(manifest.records) == 119 or len(manifest.records) == 120
    assert {(record.width, record.height) for record in manifest.records} == {(128, 128)}
    assert all(record.captions for record in manifest.records)
    loaded = read_image(manifest.records[0].locator, alpha="mask")
    assert loaded.mask is not None and 0 < loaded.mask.mean() < 1


def test_memory_grows_with_the_images_and_slowly(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 4000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").touch()
        data = DataConfig(sources=(SourceConfig(path=str(folder)),))
        tracemalloc.start()
        scan(data, measure=lambda entry: Measured(entry.name * 8, 8, 8))
        peaks.append(tracemalloc.get_traced_memory()[1] / count)
        tracemalloc.stop()
    # 100,000 images stay under 500 MB; the second folder may cost no more for each image than the
    # first.
    assert peaks[1] < 4000 and peaks[1] < 1.3 * peaks[0]


def test_numbers_of_any_length_sort(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", {"9" * 5000 + ".png": png(1), "8" * 5001 + ".png": png(2)})
    assert [len(record.name) for record in scanned(path).records] == [5004, 5005]


def lzma_zip_with_a_broken_stream(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as target:
        target.writestr("a.png", png(1))
    data = bytearray(path.read_bytes())
    start = data.index(b"a.png") + 5
    data[start + 4 : start + 9] = b"\xff" * 5
    path.write_bytes(data)


def zip_with_a_name_that_is_no_text(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("é.png", png(1))
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))


@pytest.mark.parametrize("make", [lzma_zip_with_a_broken_stream, zip_with_a_name_that_is_no_text])
def test_damage_inside_a_zip_is_one_line_that_names_it(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "set.zip"
    make(path)
    with pytest.raises(DataError, match=r"set\.zip"):
        scanned(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "m.json",
            '{"a.png": {"caption": ' + "[" * 100_000,
            r"m\.json: not valid JSON \(nested too deeply\)",
        ),
        (
            "metadata.jsonl",
            '{"file_name": ' + "[" * 100_000,
            r"jsonl, line 1: not valid JSON \(nested too deeply\)",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "text": 1' + "0" * 400 + "}",
            r"line 1: .*more than 300 digits",
        ),
        ("d.toml", "x = " + "[" * 100_000, r"d\.toml: not valid TOML \(nested too deeply\)"),
        ("d.toml", "x = 1" + "0" * 5_000, r"d\.toml: not valid TOML"),
        ("d.toml", "[general]\nkeep_tokens = 1" + "0" * 400, r"d\.toml: .*more than 300 digits"),
        (
            "d.toml",
            '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "~nosuchuser/x"',
            r"~nosuchuser/x: no such file",
        ),
    ],
)
def test_absurd_values_are_one_line_that_names_the_file(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    write(tmp_path, {"a.png": png(1), name: content})
    with pytest.raises(DataError, match=words) as error:
        scanned(tmp_path / name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_name_that_no_file_can_have_is_a_row_without_image(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.png": png(1),
            "metadata.jsonl": '{"file_name": "\\ud800.png"}\n{"file_name": "a.png", "text": "x"}',
        },
    )
    manifest = scanned(tmp_path)
    assert [bad.name for bad in manifest.excluded] == ["\\ud800.png"]
    assert manifest.records[0].captions == ("x",)


def test_no_such_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="~nosuchuser/x: no such file or folder"):
        scanned("~nosuchuser/x")
