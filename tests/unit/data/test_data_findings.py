"""What is noticed about data: files that nobody reads, names that mean something elsewhere,
unusual pictures.
"""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from konomi.config.sections import CaptionConfig, DataConfig, SourceConfig
from konomi.data.images import read_image
from konomi.data.manifest import Excluded, Finding, Manifest
from konomi.data.pixels import heif_format
from konomi.data.preflight import MAX_LINES, summary_lines
from konomi.data.sources import scan
from konomi.errors import DataError


def picture(number: int = 0, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 20 % 256, 90, 30)).save(stream, kind, **options)
    return stream.getvalue()


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def scanned(path: Path, *, captions: CaptionConfig | None = None, **source: object) -> Manifest:
    config = DataConfig(
        sources=(SourceConfig(path=str(path), **source),), captions=captions or CaptionConfig()
    )
    return scan(config)


def captions_of(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    return {record.name: record.captions for record in manifest.records}


def the_finding(manifest: Manifest, words: str) -> Finding:
    (finding,) = [finding for finding in manifest.findings if words in finding.message]
    return finding


@pytest.mark.parametrize(
    "caption",
    [
        "p.txt",
        "p.TXT",
        "p.caption",
        "p.text",
        "p.tags",
        "p.png.txt",
        "P.txt",
        "captions/p.txt",
        "captions/p.png.txt",
    ],
)
def test_a_caption_is_found_wherever_tools_put_it(tmp_path: Path, caption: str) -> None:
    manifest = scanned(write(tmp_path / "set", {"p.png": picture(), caption: "sks fox"}))
    assert captions_of(manifest) == {"p.png": ("sks fox",)}
    assert not manifest.findings


def test_captions_in_a_folder_beside_that_of_the_images(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "images/p.png": picture(1),
        "captions/p.txt": "one",
        "images/deep/p.png": picture(2),
        "captions/deep/p.txt": "two",
    }
    write(tmp_path / "set", files)
    manifest = scanned(tmp_path / "set")
    assert captions_of(manifest) == {"images/p.png": ("one",), "images/deep/p.png": ("two",)}
    assert not manifest.findings
    told = the_finding(scanned(tmp_path / "set" / "images"), "the neighbouring folder").message
    assert str(tmp_path / "set" / "captions") in told and told.endswith(str(tmp_path / "set"))


@pytest.mark.parametrize("packed", [False, True])
def test_text_files_that_nobody_reads_are_named(tmp_path: Path, packed: bool) -> None:
    files: dict[str, str | bytes] = {
        "p.png": picture(),
        "p.txt": "sks fox",
        "p.caption": "another",
        "q.txt": "of no image",
        "p.json": "{}",
        "clip.mp4": b"x",
        "README.txt": "about",
        "more.zip": b"PK",
    }
    path = write(tmp_path / "set", files)
    if packed:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as target:
            for name, content in files.items():
                target.writestr(name, content)
    manifest = scanned(path)
    assert captions_of(manifest) == {"p.png": ("sks fox",)}
    assert the_finding(manifest, "belongs to no image").names == ("q.txt",)
    assert the_finding(manifest, "comes from another file").names == ("p.caption",)
    for suffix, name in ((".json", "p.json"), (".mp4", "clip.mp4"), (".zip", "more.zip")):
        assert the_finding(manifest, f"1 {suffix} file is not read").names == (name,)
    assert not any("README" in finding.message for finding in manifest.findings)


def test_a_file_that_a_table_replaces_is_named(tmp_path: Path) -> None:
    row = json.dumps({"file_name": "p.png", "text": "from the table"})
    manifest = scanned(
        write(tmp_path, {"p.png": picture(), "p.txt": "from the file", "metadata.jsonl": row})
    )
    assert captions_of(manifest) == {"p.png": ("from the table",)}
    assert "comes from metadata.jsonl: p.txt" in the_finding(manifest, "not read").message


def test_all_names_are_kept_and_the_line_is_short(tmp_path: Path) -> None:
    write(tmp_path, {"p.png": picture(), **{f"stray {n}.txt": "x" for n in range(300)}})
    finding = the_finding(scanned(tmp_path), "belong to no image")
    assert (
        len(finding.names) == 300
        and "and 290 more" in finding.message
        and len(finding.message) < 600
    )


def test_a_wrapped_sentence_is_one_caption(tmp_path: Path) -> None:
    text = "sks fox, grass\n\nThe picture shows a fox that\r\nsits in high grass.\n"
    write(tmp_path, {"p.png": picture(), "p.txt": text})
    manifest = scanned(tmp_path)
    assert captions_of(manifest) == {
        "p.png": ("sks fox, grass The picture shows a fox that sits in high grass.",)
    }
    assert 'data.captions.lines = "alternatives"' in the_finding(manifest, "several lines").message
    manifest = scanned(tmp_path, captions=CaptionConfig(lines="alternatives"))
    assert len(captions_of(manifest)["p.png"]) == 3
    assert "one is taken each time" in the_finding(manifest, "several lines").message


def test_a_dataset_toml_with_wildcards_takes_a_line_each_time(tmp_path: Path) -> None:
    write(tmp_path, {"set/p.png": picture(), "set/p.txt": "one\ntwo"})
    for value, wanted in (("true", ("one", "two")), ("false", ("one two",))):
        toml = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "set"\nenable_wildcard = {value}\n'
        write(tmp_path, {"d.toml": toml})
        assert captions_of(scanned(tmp_path / "d.toml")) == {"p.png": wanted}


def test_an_encoding_is_told(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{n}.png": picture(n) for n in range(3)}
    files |= {
        "0.txt": "一个女孩".encode("gbk"),
        "1.txt": "赤い帽子".encode("euc_jp"),
        "2.txt": "plain",
    }
    manifest = scanned(write(tmp_path, files))
    assert captions_of(manifest) == {
        "0.png": ("一个女孩",),
        "1.png": ("赤い帽子",),
        "2.png": ("plain",),
    }
    assert the_finding(manifest, "read as GBK").names == ("0.txt",)
    assert the_finding(manifest, "read as EUC-JP").names == ("1.txt",)


def test_a_thousand_repeats_are_a_name(tmp_path: Path) -> None:
    write(tmp_path, {"1000_sks dog/p.png": picture(1), "2023_holiday/p.png": picture(2)})
    manifest = scanned(tmp_path, trigger="sks")
    assert {record.repeats for record in manifest.records} == {1}
    assert "set repeats = 1000" in the_finding(manifest, "1000_sks dog counts as a name").message
    assert not any("2023_holiday counts" in finding.message for finding in manifest.findings)
    assert "set repeats = 1000" in " ".join(
        scanned(tmp_path / "1000_sks dog", trigger="sks").problems
    )


def test_class_images_that_would_be_trained_as_the_subject(tmp_path: Path) -> None:
    write(tmp_path, {"photos/p.png": picture(1), "reg/q.png": picture(2)})
    told = the_finding(scanned(tmp_path, trigger="sks"), "--prior")
    assert told.names == ("reg/q.png",) and "trained like the others" in told.message
    told = the_finding(scanned(tmp_path / "photos", trigger="sks"), "--prior")
    assert f"{tmp_path / 'reg'} lies beside it and is not used" in told.message
    # Inside a kohya project the name has its meaning.
    write(
        tmp_path / "other" / "project",
        {"img/5_sks dog/p.png": picture(1), "reg/1_dog/q.png": picture(2)},
    )
    assert not any(
        "--prior" in problem for problem in scanned(tmp_path / "other" / "project").problems
    )


def test_own_pictures_as_training_data(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("parameters", "a fox\nSteps: 20, Sampler: DDIM, Seed: 1, Version: konomi 0.1.0")
    other = PngInfo()
    other.add_text("parameters", "a fox\nSteps: 20, Sampler: DDIM, Seed: 1, Version: v1.10")
    write(tmp_path, {"own.png": picture(1, pnginfo=text), "other.png": picture(2, pnginfo=other)})
    told = the_finding(scanned(tmp_path, trigger="sks"), "drawn by konomi")
    assert told.names == ("own.png",)
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path)),))
    index = tmp_path.with_suffix(".index")
    cold, warm = scan(config, index=index), scan(config, index=index)
    assert warm == cold and [record.drawn for record in warm.records] == [False, True]


@pytest.mark.parametrize("kind", ["PPM", "QOI", "JPEG2000", "TGA"])
def test_less_common_pictures_are_read(tmp_path: Path, kind: str) -> None:
    suffix = {"JPEG2000": "jp2"}.get(kind, kind.lower())
    options = {"footer": True} if kind == "TGA" else {}
    data = picture(3, kind, **options)
    if kind == "TGA" and not data.endswith(b"TRUEVISION-XFILE.\0"):
        data += bytes(8) + b"TRUEVISION-XFILE.\0"
    write(tmp_path, {f"p.{suffix}": data})
    (record,) = scanned(tmp_path, trigger="sks").records
    assert read_image(record.locator).pixels[0, 0].tolist() == [60, 90, 30]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        ("art.psd", b"8BPS\0\1", "Photoshop"),
        ("old.tga", bytes([0, 0, 2]) + bytes(9) + b"\x01\0\x01\0\x18\0abc", "not a readable image"),
        ("new.jxl", b"\xff\x0a\0\0", "JPEG XL"),
        ("cut.jp2", picture(0, "JPEG2000")[:60], "not a readable image|cut off"),
        ("photo.cr3", b"\0\0\0\x18ftypcrx ", "media file"),
        ("art.kra", b"PK\x03\x04", "not a readable image"),
    ],
)
def test_pictures_of_other_kinds_are_named(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    write(tmp_path, {"good.png": picture(), name: data})
    manifest = scanned(tmp_path, trigger="sks")
    assert [record.name for record in manifest.records] == ["good.png"]
    ((left_out, reason),) = [(bad.name, bad.reason) for bad in manifest.excluded]
    assert left_out == name and any(word in reason for word in words.split("|"))


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("konomi.data.pixels.heif_format", lambda: "")


def test_heic_is_read_where_its_package_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    assert heif_format() == "HEIF"
    data = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48), (200, 40, 30))).save(data, quality=95)
    write(tmp_path, {"phone.HEIC": data.getvalue(), "cut.heic": data.getvalue()[:400]})
    manifest = scanned(tmp_path, trigger="sks")
    assert [(r.name, r.width, r.height) for r in manifest.records] == [("phone.HEIC", 64, 48)]
    pixels = read_image(manifest.records[0].locator).pixels
    assert abs(pixels.astype(int) - [200, 40, 30]).max() < 8
    assert "HEIC" in manifest.excluded[0].reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phones_heic_is_turned_once(tmp_path: Path, orientation: int) -> None:
    """Phones write the rotation twice, in EXIF and as the container's own (irot, imir), which the
    reader applies.
    """
    pytest.importorskip("pillow_heif")
    assert heif_format() == "HEIF"
    lying = Image.new("RGB", (64, 32), "white")
    lying.paste((255, 0, 0), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data, upright = io.BytesIO(), io.BytesIO()
    lying.save(data, "HEIF", exif=exif.tobytes(), quality=95)
    lying.save(upright, "PNG", exif=exif)
    content = data.getvalue()
    tiff = content[content.rindex(b"Exif\0\0") + 6 :]
    written = int.from_bytes(tiff[18:20], "big" if tiff.startswith(b"MM") else "little")
    assert (b"irot" in content or b"imir" in content) == (
        orientation > 1
    ) and written == orientation
    write(tmp_path, {"phone.heic": content})
    (record,) = scanned(tmp_path, trigger="sks").records
    pixels = read_image(record.locator).pixels
    expected = np.asarray(ImageOps.exif_transpose(Image.open(upright)))
    assert (record.width, record.height) == (expected.shape[1], expected.shape[0])
    assert abs(pixels.astype(int) - expected).mean() < 6


def test_without_the_package_the_message_names_the_extra(
    tmp_path: Path, without_heif: None
) -> None:
    write(tmp_path, {"good.png": picture(), "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0"})
    (bad,) = scanned(tmp_path, trigger="sks").excluded
    assert "pip install 'konomi[heif]'" in bad.reason


def test_an_image_refused_by_other_readers_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heif = pytest.importorskip("pillow_heif")
    data = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 48))).save(data)
    write(tmp_path / "set", {"good.png": picture(), "phone.heic": data.getvalue()})
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path / "set")),))
    with monkeypatch.context() as patched:
        patched.setattr("konomi.data.pixels.heif_format", lambda: "")
        assert len(scan(config, index=tmp_path / "i.jsonl").excluded) == 1
    assert len(scan(config, index=tmp_path / "i.jsonl").records) == 2


def swap(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])


def replace_by_a_copy(path: Path) -> None:
    data = picture(7, "BMP")
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("change", [swap, replace_by_a_copy])
def test_a_changed_file_of_the_same_size_and_time_is_noticed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    import os

    path = tmp_path / "set" / "p.bmp"
    write(tmp_path / "set", {"p.bmp": picture(1, "BMP")})
    config = DataConfig(sources=(SourceConfig(path=str(tmp_path / "set")),))
    before = scan(config, index=tmp_path / "i.jsonl").records[0].content
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    assert scan(config, index=tmp_path / "i.jsonl").records[0].content != before


def test_train_says_a_bounded_number_of_lines() -> None:
    assert summary_lines((), ()) == []
    findings = [Finding(f"number {n}") for n in range(MAX_LINES + 5)]
    excluded = [Excluded(name=f"{n}.png", reason="damaged") for n in range(9)]
    lines = summary_lines(findings, excluded)
    assert lines[0].startswith(
        "9 files are left out: 0.png (damaged), 1.png (damaged), 2.png (damaged) and 6 more"
    )
    assert lines[-1].startswith("and 5 more notes") and len(lines) == MAX_LINES + 2


def test_a_caption_too_large_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"p.png": picture(), "p.txt": "a" * (2**20 + 1)})
    with pytest.raises(DataError, match=r"p\.txt: 1048577 bytes, too large"):
        scanned(tmp_path)
