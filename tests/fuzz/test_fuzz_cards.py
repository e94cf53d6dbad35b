"""Strangers' pictures that may carry a recipe."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from bounds import bounded, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from konomi.config.card import KEYWORD, read_card, recipe_for_others
from konomi.config.recipe import Recipe
from konomi.methods.lora import LoraConfig


def card() -> bytes:
    chunks, content = PngInfo(), io.BytesIO()
    chunks.add_itxt(KEYWORD, recipe_for_others(Recipe(base="tiny", method=LoraConfig())), zip=True)
    Image.new("RGB", (4, 4)).save(content, "PNG", pnginfo=chunks)
    return content.getvalue()


CARD = card()
edits = st.lists(
    st.tuples(st.integers(0, len(CARD)), st.integers(0, 40), st.binary(max_size=40)), max_size=4
)


@fuzzed
@given(edits)
def test_any_picture_is_read_or_refused(changes):
    content = CARD
    for start, length, put in changes:
        content = content[:start] + put + content[start + length :]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.png"
        path.write_bytes(content)
        with bounded():
            assert isinstance(read_card(path), dict)
