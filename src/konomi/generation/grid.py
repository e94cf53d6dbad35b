"""Several pictures on one sheet."""

from collections.abc import Sequence
from math import ceil, sqrt

from PIL import Image, ImageDraw

from konomi.generation.fonts import Font, drawable, font_for

_MARGIN = 6
_INK, _PAPER = "black", "white"


def make_grid(
    images: Sequence[Image.Image],
    *,
    columns: int = 0,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> Image.Image:
    """Row by row; `columns` 0 makes it about square. Cells are as large as the largest image.

    Labels stand above the columns and left of the rows, captions under the images, wrapped to
    their room, in a font that has their characters (`fonts.unknown_characters` says which none
    has). Raises ValueError without images.
    """
    if not images:
        raise ValueError("a grid needs at least one image")
    columns = columns or ceil(sqrt(len(images)))
    rows = ceil(len(images) / columns)
    width, height = max(i.width for i in images), max(i.height for i in images)
    font = font_for([*column_labels, *row_labels, *captions], max(12, min(width, height) // 16))
    head = _Labels(column_labels[:columns], font, width)
    side = _Labels(row_labels[:rows], font, max(width // 2, 80))
    under = _Labels(captions[: len(images)], font, width)
    pitch = height + under.height
    sheet = Image.new("RGB", (side.width + columns * width, head.height + rows * pitch), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        x = side.width + index % columns * width + (width - image.width) // 2
        y = head.height + index // columns * pitch + (height - image.height) // 2
        sheet.paste(image, (x, y))
    for index, text in enumerate(under.texts):
        middle = side.width + index % columns * width + width // 2
        _write(
            draw,
            text,
            font,
            middle,
            head.height + index // columns * pitch + height + under.height // 2,
        )
    for column, text in enumerate(head.texts):
        _write(draw, text, font, side.width + column * width + width // 2, head.height // 2)
    for row, text in enumerate(side.texts):
        _write(draw, text, font, side.width // 2, head.height + row * pitch + height // 2)
    return sheet


def stacked(sheets: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Sheets below one another, each under its title. Raises ValueError without sheets."""
    if not sheets:
        raise ValueError("a stack needs at least one sheet")
    width = max(sheet.width for sheet in sheets)
    font = font_for(titles, max(14, min(width // 24, 32)))
    heads = [_Labels([title], font, width) for title in titles]
    height = sum(head.height + sheet.height for head, sheet in zip(heads, sheets, strict=True))
    stack = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(stack)
    top = 0
    for head, sheet in zip(heads, sheets, strict=True):
        _write(draw, head.texts[0], font, width // 2, top + head.height // 2)
        stack.paste(sheet, (0, top + head.height))
        top += head.height + sheet.height
    return stack


class _Labels:
    """Wrapped labels of one edge, and the room they take."""

    def __init__(self, labels: Sequence[str], font: Font, room: int) -> None:
        self.texts = [_wrap(drawable(label, font), font, room - 2 * _MARGIN) for label in labels]
        draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        boxes = [draw.multiline_textbbox((0, 0), text, font=font) for text in self.texts]
        self.width = max((ceil(box[2] - box[0]) + 2 * _MARGIN for box in boxes), default=0)
        self.height = max((ceil(box[3] - box[1]) + 2 * _MARGIN for box in boxes), default=0)


def _wrap(text: str, font: Font, room: int) -> str:
    """Lines of at most `room` pixels, broken at spaces, and within a word that is wider by
    itself.
    """
    lines = [""]
    # At small sizes the font's own space is a pixel or two wide, and words run together.
    size = font.getbbox("M")[3]
    gap = " " * max(1, ceil(0.4 * size / font.getlength(" ")))
    for word in text.split():
        candidate = f"{lines[-1]}{gap}{word}".strip()
        if font.getlength(candidate) <= room:
            lines[-1] = candidate
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > room:
                lines.append("")
            lines[-1] += character
    return "\n".join(lines)


def _write(draw: ImageDraw.ImageDraw, text: str, font: Font, x: int, y: int) -> None:
    draw.multiline_text((x, y), text, fill=_INK, font=font, anchor="mm", align="center")
