"""Fonts for what is written into pictures: the first on this machine that has every character."""

from collections.abc import Iterable
from functools import lru_cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FILES = (
    # The usual Linux packages, with the widest reach first.
    "NotoSansCJK-Regular.ttc", "NotoSansCJKjp-Regular.otf", "NotoSansJP-Regular.otf",
    "ipaexg.ttf", "ipag.ttf", "fonts-japanese-gothic.ttf", "TakaoGothic.ttf",
    "VL-Gothic-Regular.ttf", "SourceHanSans-Regular.ttc", "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "NanumGothic.ttf",
    # Windows, then macOS.
    "YuGothM.ttc", "meiryo.ttc", "msgothic.ttc", "msyh.ttc", "malgun.ttf", "arial.ttf",
    "ヒラギノ角ゴシック W3.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    # Other scripts than those of East Asia.
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "FreeSans.ttf", "LiberationSans-Regular.ttf",
    "unifont.otf", "unifont.ttf",
)  # fmt: skip
"""Names of files, looked for where the system keeps its fonts. Pillow's own font comes before
them all: it is everywhere, and draws a picture of English words the same on every machine."""
UNKNOWN = "?"
"""Stands for a character that no font has."""
_NO_CHARACTER = "\U0010ffff"
"""Unicode has promised never to give it a meaning, so that no font draws it."""


def font_for(texts: Iterable[str], size: int) -> Font:
    """A font of so many pixels that has all characters of the texts, or else the one that lacks
    the fewest of them.
    """
    wanted = _characters(texts)
    best = min(_names(), key=lambda name: len(_lacking(name, wanted)))
    font = _open(best, size)
    assert font is not None
    return font


def drawable(text: str, font: Font) -> str:
    """The text with `UNKNOWN` for each character that the font would draw as an empty box."""
    lacking = set(_lacking_of(font, _characters([text])))
    return "".join(UNKNOWN if character in lacking else character for character in text)


def unknown_characters(texts: Iterable[str]) -> str:
    """Those that `drawable` would replace, whatever the font's size; usually none."""
    wanted = _characters(texts)
    return min((_lacking(name, wanted) for name in _names()), key=len)


def unknown_note(texts: Iterable[str], picture: str) -> list[str]:
    """A line on the characters that no font has, where there are any.

    picture: what they are written into, for people: `grid.png`.
    """
    lacking = unknown_characters(texts)
    if not lacking:
        return []
    shown = " ".join(lacking[:8]) + (" ..." if len(lacking) > 8 else "")
    return [
        f"no font on this machine has {shown}: {picture} shows {UNKNOWN} in their place. Install "
        "a font for that script, such as Noto Sans CJK."
    ]


@lru_cache(maxsize=256)
def _lacking(name: str, wanted: str) -> str:
    font = _open(name, 16)
    return wanted if font is None else _lacking_of(font, wanted)


def _lacking_of(font: Font, wanted: str) -> str:
    def drawn(character: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(character)
        return mask.size, bytes(mask)

    box = drawn(_NO_CHARACTER)
    return "".join(character for character in wanted if drawn(character) == box)


def _names() -> Iterable[str]:
    """Of all fonts, one after another; "" is Pillow's own."""
    return ("", *FILES)


@lru_cache(maxsize=64)
def _open(name: str, size: int) -> Font | None:
    if not name:
        return ImageFont.load_default(size=size)
    try:
        return ImageFont.truetype(name, size)
    except (OSError, ValueError):
        return None


def _characters(texts: Iterable[str]) -> str:
    """Each once; spaces and line breaks need no font."""
    return "".join(sorted({c for text in texts for c in text if not c.isspace()}))
