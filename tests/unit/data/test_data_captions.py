"""Captions: encodings, and the text each step sees."""

import codecs
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from konomi.config.sections import CaptionConfig
from konomi.data.captions import (
    caption_varies,
    captions_in,
    file_words,
    final_caption,
    has_trigger,
)
from konomi.data.encodings import decode_text, decoded
from konomi.data.manifest import Record
from konomi.errors import DataError

BARE = Record(locator="x.png", name="x.png", role="train", repeats=1, width=8, height=8, content="")
PLAIN = CaptionConfig()
JAPANESE = "1girl、赤い帽子の少女, sksの写真 ﾈｺ"

tags = st.lists(
    st.sampled_from(["red hat", "blue sky", "dog", "犬", "a b c", "solo"]), unique=True, min_size=1
)
keys = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    "data",
    [
        JAPANESE.encode(),
        codecs.BOM_UTF8 + JAPANESE.encode(),
        codecs.BOM_UTF16_LE + JAPANESE.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + JAPANESE.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + JAPANESE.encode("utf-32-le"),
        JAPANESE.encode("cp932"),
    ],
    ids=["utf-8", "utf-8 marked", "utf-16-le", "utf-16-be", "utf-32", "cp932"],
)
def test_encodings(data: bytes) -> None:
    assert decode_text(data, "x.txt") == JAPANESE


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_ascii_in_utf16_without_a_mark(encoding: str) -> None:
    assert decode_text("a red hat".encode(encoding), "x.txt") == "a red hat"


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        ("crée".encode("cp1252"), 2),
        ("Straße".encode("cp1252"), 4),
        ("a café, red".encode("cp1252"), 5),
        ("don’t".encode("cp1252"), 3),
        ("Ångström".encode("cp1252"), 0),
        (b"abc\xff\xfe\xfd", 3),
        (codecs.BOM_UTF8 + b"ok \xff", 6),
        (codecs.BOM_UTF16_LE + b"a\0\x00\xd8", 4),
        (b"ab\0cd", 2),
    ],
)
def test_what_is_neither_is_an_error_with_the_offset(data: bytes, offset: int) -> None:
    with pytest.raises(DataError, match=rf"folder/x\.txt: byte {offset} "):
        decode_text(data, "folder/x.txt")


CHINESE = "一个女孩，红色帽子，蓝天白云，站在草地上"
KANJI_AND_KANA = "赤い帽子をかぶった女の子、青空と花"
KOREAN = "빨간 모자를 쓴 여자 아이, 파란 하늘"


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (CHINESE, "gbk", "GBK"),
        ("sks, 女孩, 长发, 微笑, 白色裙子", "gbk", "GBK"),
        ("黑猫坐在窗前", "gb18030", "GBK"),
        (KANJI_AND_KANA, "euc_jp", "EUC-JP"),
        ("sks、メイド服、笑顔", "euc_jp", "EUC-JP"),
        (KANJI_AND_KANA, "cp932", "Shift-JIS"),
        ("1girl、赤い帽子", "cp932", "Shift-JIS"),
        ("ﾊﾟﾝﾀﾞ", "cp932", "Shift-JIS"),
        (KOREAN, "euc_kr", "EUC-KR"),
        (CHINESE, "utf-8", "UTF-8"),
        ("\ufeff" + CHINESE, "utf-16-le", "UTF-16"),
    ],
)
def test_the_encoding_is_the_one_that_makes_sense(text: str, codec: str, name: str) -> None:
    found = decoded(text.encode(codec), "x.txt")
    assert (found.text, found.encoding) == (text.removeprefix("\ufeff"), name)


@pytest.mark.parametrize(
    "data",
    [
        "女孩".encode("big5"),
        "красная шапка".encode("cp1251"),
        "šedá kočka".encode("cp1250"),
        "γάτα".encode("iso8859_7"),
        # Rare in every reading.
        "懿犟".encode("gbk"),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"x\.txt: byte \d+ .*Save the file as UTF-8"):
        decode_text(data, "x.txt")


@given(
    st.sampled_from(["euc_jp", "gbk", "cp932"]),
    st.lists(st.sampled_from("赤青白黒花女子猫犬空海帽子服"), min_size=2),
)
def test_short_captions_are_right_or_refused(codec: str, characters: list[str]) -> None:
    text = "".join(characters)
    try:
        data = text.encode(codec)
        found = decode_text(data, "x.txt")
    except (UnicodeEncodeError, DataError):
        return
    # Two bytes or four can be UTF-8 by chance, which comes first.
    assert found in (text, data.decode("utf-8", "ignore"))


# Half-width kana in a row are what Chinese and Korean bytes look like; they are read as those
# where that makes sense.
@given(
    st.text(
        st.characters(
            codec="cp932", exclude_characters="\0¢£¬‖−〜" + "".join(map(chr, range(0xFF61, 0xFFA0)))
        ),
        max_size=40,
    )
)
def test_cp932_is_read_right_or_refused(text: str) -> None:
    data = text.encode("cp932")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        try:
            got = decode_text(data, "x.txt")
        except DataError:
            return
        assert got == data.decode("cp932")


@given(st.text(max_size=60))
def test_utf8_is_never_taken_for_anything_else(text: str) -> None:
    if "\0" not in text and not text.startswith("\ufeff"):
        assert decode_text(text.encode(), "x.txt") == text


def test_lines_are_captions() -> None:
    assert captions_in("a dog\r\n\r\n  a  hat \rthird\n") == ("a dog", "a hat", "third")


def test_trigger_is_a_whole_word() -> None:
    assert has_trigger("a Sks dog", "sks")
    assert has_trigger("sksの写真", "sks")
    assert has_trigger("woman, <s1>, hat", "<s1>")
    assert not has_trigger("asks", "sks")
    assert not has_trigger("sks_2", "sks")
    assert not has_trigger("", "sks")


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({}, ""),
        ({"trigger": "sks", "class_noun": "dog"}, "sks dog"),
        ({"class_noun": "dog"}, "dog"),
        ({"captions": ("on grass",), "trigger": "sks", "class_noun": "dog"}, "sks dog, on grass"),
        (
            {"captions": ("a dog on grass",), "trigger": "sks", "class_noun": "dog"},
            "sks, a dog on grass",
        ),
        ({"captions": ("a SKS dog",), "trigger": "sks", "class_noun": "dog"}, "a SKS dog"),
        (
            {"template": "a photo of [name]", "trigger": "sks", "class_noun": "dog"},
            "a photo of sks dog",
        ),
        (
            {"template": "a photo of [name]", "trigger": "sks", "captions": ("sks sits",)},
            "sks sits",
        ),
        (
            {"template": "[name] as [filewords]", "trigger": "sks", "captions": ("it sits",)},
            "sks as it sits",
        ),
        ({"template": "[filewords]", "captions": ("a [name] b",)}, "a [name] b"),
        (
            {"template": "a photo of [filewords]", "name": "x/05_red-panda (2).png"},
            "a photo of red panda",
        ),
        ({"template": "a photo of the sea", "trigger": "sks"}, "sks, a photo of the sea"),
    ],
)
def test_wording(record: dict[str, object], wanted: str) -> None:
    filled = replace(BARE, **record)
    assert final_caption(filled, PLAIN, 1) == final_caption(filled, PLAIN, None) == wanted
    assert not caption_varies(filled, PLAIN)


def test_file_words() -> None:
    assert file_words("a/b.c/0012_it's_a-Big.dog.webp") == "it's a Big dog"
    assert file_words("赤い帽子.png") == "赤い帽子"
    assert file_words("0001.png") == ""


@given(tags, keys, st.integers(0, 4), st.floats(0, 1), st.booleans())
def test_variation_keeps_what_it_must(
    words: list[str], key: int, keep: int, drop: float, shuffle: bool
) -> None:
    record = replace(BARE, captions=(", ".join(words),), trigger="sks", keep_tokens=keep)
    config = CaptionConfig(shuffle=shuffle, tag_dropout=drop, keep_tokens=1)
    caption = final_caption(record, config, key)
    assert caption == final_caption(record, config, key)
    assert has_trigger(caption, "sks")
    rest = caption.split(", ")[1:] if caption.startswith("sks") else caption.split(", ")
    assert rest[: min(keep, len(words))] == words[:keep]
    assert not Counter(rest) - Counter(words)
    if drop == 0:
        assert Counter(rest) == Counter(words)
    if not shuffle:
        assert rest == [word for word in words if word in rest]
    if drop == 1:
        assert rest == words[:keep]


@given(tags, keys, st.floats(0.01, 0.99))
def test_each_variation_draws_for_itself(words: list[str], key: int, drop: float) -> None:
    record = replace(BARE, captions=(", ".join(words),))
    alone = final_caption(record, CaptionConfig(shuffle=True), key).split(", ")
    whole = final_caption(record, CaptionConfig(shuffle=True, dropout=drop), key)
    assert whole in ("", ", ".join(alone))


def test_frequencies() -> None:
    record = replace(BARE, captions=("a", "b", "c"), trigger="sks")
    seen = Counter(final_caption(record, CaptionConfig(dropout=0.25), key) for key in range(8000))
    assert seen[""] == pytest.approx(2000, abs=160)
    for caption in ("sks, a", "sks, b", "sks, c"):
        assert seen[caption] == pytest.approx(2000, abs=160)
    tagged = replace(BARE, captions=("a, b, c",))
    orders = Counter(final_caption(tagged, CaptionConfig(shuffle=True), key) for key in range(6000))
    assert len(orders) == 6 and all(
        count == pytest.approx(1000, abs=130) for count in orders.values()
    )
    kept = Counter(
        final_caption(tagged, CaptionConfig(tag_dropout=0.3), key).count("b") for key in range(6000)
    )
    assert kept[1] == pytest.approx(4200, abs=150)
    assert (
        len(
            {
                final_caption(tagged, CaptionConfig(shuffle=True), key)
                for key in (5, -5, 2**62, -(2**62))
            }
        )
        > 1
    )


def test_draws_never_change_between_versions() -> None:
    """Fixed values: a resumed run must see what the first one would have."""
    record = replace(BARE, captions=("a, b, c, d, e",))
    config = CaptionConfig(shuffle=True, tag_dropout=0.2)
    assert [final_caption(record, config, key) for key in range(4)] == [
        "a, d, e",
        "a, d, b, c",
        "e, d, b",
        "b, e, c, a",
    ]


def test_whether_a_caption_varies() -> None:
    record = replace(BARE, captions=("a, b",))
    assert caption_varies(record, CaptionConfig(shuffle=True))
    assert caption_varies(record, CaptionConfig(dropout=0.1))
    assert caption_varies(replace(record, captions=("a", "b")), PLAIN)
    assert not caption_varies(record, CaptionConfig(shuffle=True, keep_tokens=1))
    assert caption_varies(record, CaptionConfig(tag_dropout=0.5, keep_tokens=1))
    assert not caption_varies(replace(record, shuffle=False), CaptionConfig(shuffle=True))


def test_other_separators() -> None:
    record = replace(BARE, captions=("a b|c|d",))
    caption = final_caption(record, CaptionConfig(separator="|", shuffle=True), 3)
    assert sorted(caption.split("| ")) == ["a b", "c", "d"]
    assert final_caption(record, CaptionConfig(separator="", shuffle=True), 3) == "a b|c|d"
