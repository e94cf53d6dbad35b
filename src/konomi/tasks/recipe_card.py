"""The recipe card that a run ends with: base beside tuned in one picture, and in its file the
recipe, so that whoever has the picture can do the same with other images.
"""

from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from konomi.config.card import KEYWORD, last_name, recipe_for_others
from konomi.config.overrides import method_title
from konomi.config.recipe import Recipe
from konomi.errors import DataError
from konomi.generation.fonts import unknown_note
from konomi.generation.grid import make_grid, stacked
from konomi.generation.infotext import read_infotext
from konomi.generation.request import Request
from konomi.storage.atomic import write_file
from konomi.tasks.preparing import Job
from konomi.tasks.previewing import preview_paths, preview_prompts
from konomi.training.optional_work import optional_work

SUFFIX = ".card.png"
_COLUMNS = 4
"""Prompts that are shown."""
_SIDE = 288
"""Pixels of a picture's longest side: four of them can be read on a telephone."""


def card_path(recipe: Recipe, folder: Path) -> Path:
    """Where the card of a run lies."""
    return folder / f"{recipe.run.name}{SUFFIX}"


def card_of_run(job: Job, folder: Path, step: int, notes: list[str]) -> str:
    """The path of the card that a run ends with. Empty where it cannot be made, without which the
    run is whole: `notes` then says why.
    """
    with optional_work("the recipe card could not be written", notes):
        path = card_path(job.recipe, folder)
        # That of an earlier step would say the wrong thing.
        path.unlink(missing_ok=True)
        encoded = _encoded(_picture(job, folder / "previews", step), job.recipe)
        with write_file(path) as temporary:
            temporary.write_bytes(encoded)
        notes += unknown_note([_title(job, step), *preview_prompts(job)], "the recipe card")
        return str(path)
    return ""


def _encoded(picture: Image.Image, recipe: Recipe) -> bytes:
    chunks = PngInfo()
    chunks.add_itxt(KEYWORD, recipe_for_others(recipe))
    content = BytesIO()
    picture.save(content, "PNG", pnginfo=chunks)
    return content.getvalue()


def _picture(job: Job, previews: Path, step: int) -> Image.Image:
    """What the last previews show, the base's own above them, and under which settings."""
    title = _title(job, step)
    tuned = _drawn(job, previews, step)
    if not tuned:
        empty = Image.new("RGB", (3 * _SIDE, 8), "white")
        return stacked([empty], [f"{title}\nno previews were drawn"])
    before = _drawn(job, previews, 0)
    # Only what the base drew from the very same words and noise may stand beside it.
    before = {n: one for n, one in before.items() if n in tuned and one[0] == tuned[n][0]}
    shown = [n for n in tuned if n in before or not before][:_COLUMNS]
    rows = [("base", before), ("tuned", tuned)] if before else [("tuned", tuned)]
    sheet = make_grid(
        [pictures[number][1] for _, pictures in rows for number in shown],
        columns=len(shown),
        column_labels=[tuned[number][0].prompt for number in shown],
        row_labels=[label for label, _ in rows],
    )
    return stacked([sheet], [title])


def _title(job: Job, step: int) -> str:
    recipe = job.recipe
    source = next((one for one in recipe.data.sources if one.role == "train"), None)
    words = [source.trigger, source.class_noun] if source is not None else []
    called = " ".join(filter(None, words)) or recipe.run.name
    return f"{called}: {method_title(recipe.method)}, {step} steps, on {last_name(job.base.name)}"


def _drawn(job: Job, previews: Path, step: int) -> dict[int, tuple[Request, Image.Image]]:
    """Number of the prompt -> what was drawn and the picture, at one size."""
    found = {}
    for number, path in enumerate(preview_paths(job, previews, step)):
        try:
            text = read_infotext(path)
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (DataError, OSError, ValueError):
            continue
        if text is not None:
            scale = _SIDE / max(picture.size)
            size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
            found[number] = (text.request(), picture.resize(size, Image.Resampling.LANCZOS))
    return found
