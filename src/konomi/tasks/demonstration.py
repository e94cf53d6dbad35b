"""`demo`: the whole way on the built-in base and pictures, ending with a page to look at."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from konomi.adapters.apply import Strengths, attach
from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, OptimizerConfig, RunConfig, SourceConfig
from konomi.errors import RunError
from konomi.evaluation.report import Grid, Report, Row, write_report
from konomi.formats import read_adapter
from konomi.generation.generate import count_on
from konomi.generation.generate import generate as draw
from konomi.generation.request import Request
from konomi.methods.lora import LoraConfig
from konomi.models.base import BaseModel
from konomi.tasks.generating import load_base
from konomi.tasks.training import train
from konomi.training.events import Event, Finished, Prepared, Step

MASCOT = Path(__file__).parent.parent / "builtin" / "mascot"
TRIGGER, NOUN = "sks", "creature"
PANEL = (
    (f"a {TRIGGER} {NOUN}", "the trigger word"),
    (f"a {TRIGGER} {NOUN} on a blue background", "the trigger in a new place"),
    (f"a {NOUN}", "the class alone: should change little"),
    ("a fox on a green background", "something unrelated: should not change"),
)
PICTURES_EACH = 3
SEED, GUIDANCE = 7, 5.0


def demo_recipe(output: Path, steps: int) -> Recipe:
    """LoRA on five pictures of the mascot.

    Everything learns (convolutions and text too), in larger steps than usual: `tiny` is small and knows little.
    """
    return Recipe(
        base="tiny",
        method=LoraConfig(rank=16, conv_rank=16, text_rank=8),
        data=DataConfig(sources=(SourceConfig(path=str(MASCOT), trigger=TRIGGER, class_noun=NOUN),)),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup=0.05),
        run=RunConfig(output=str(output), name="mascot", steps=steps, batch_size=5, checkpoint_every=0),
    )


def demo(output: Path, *, steps: int = 200) -> Iterator[Event]:
    """Train a LoRA on the mascot, draw the same seeds before and after, write `report.html`.

    The last event is `Finished` with the report's path. Raises RunError if the folder holds something else.
    """
    if output.exists() and any(output.iterdir()) and not (output / "recipe.toml").exists():
        raise RunError(f"{output}: is not empty and not an earlier demo. Name another folder with --output.")
    losses: list[float] = []
    seconds = 0.0
    result = ""
    for event in train(demo_recipe(output, steps), overwrite=True):
        if isinstance(event, Step):
            losses.append(event.loss)
            seconds += event.seconds
        if isinstance(event, Finished):
            if event.interrupted:
                yield event
                return
            result = event.path
            continue
        yield event
    base = load_base("tiny", device="cpu")
    adapter = read_adapter(result)
    total = 2 * len(PANEL) * PICTURES_EACH
    columns: list[list[tuple[Image.Image, ...]]] = []
    for strength in (0.0, 1.0):
        column = []
        with attach(base, [(adapter, Strengths(strength, strength))]):
            for index, (prompt, _) in enumerate(PANEL):
                yield Prepared("pictures", len(columns) * len(PANEL) * PICTURES_EACH + index * PICTURES_EACH, total)
                column.append(_pictures(base, prompt))
        columns.append(column)
    yield Prepared("pictures", total, total)
    page = output / "report.html"
    write_report(_report(columns, losses, seconds, Path(result), base), page)
    yield Finished(len(losses), str(page))


def _pictures(base: BaseModel, prompt: str) -> tuple[Image.Image, ...]:
    request = Request(prompt=prompt, seed=SEED, steps=25, guidance=GUIDANCE)
    return tuple(picture.image for picture in draw(base, count_on(request, PICTURES_EACH), batch=PICTURES_EACH))


def _report(
    columns: list[list[tuple[Image.Image, ...]]], losses: list[float], seconds: float, result: Path, base: BaseModel
) -> Report:
    rows = tuple(
        Row(prompt, note, (columns[0][index], columns[1][index])) for index, (prompt, note) in enumerate(PANEL)
    )
    samples = tuple(Image.open(path).convert("RGB").resize((136, 136)) for path in sorted(MASCOT.glob("*.png")))
    command = f"konomi generate 'a {TRIGGER} {NOUN} on a blue background' --base tiny --add {result}"
    return Report(
        title="konomi: a mascot learned from five pictures",
        summary=(
            f"A LoRA was trained on the pictures below in {len(losses)} steps ({seconds:.0f} s). Each row shows the "
            "same prompt and seeds, drawn by the base and by the base with the LoRA."
        ),
        samples=samples,
        grids=(Grid("Before and after", ("base", "with the LoRA"), rows),),
        losses=tuple(losses),
        facts=(
            ("base", f"{base.name} ({base.family})"),
            ("method", "LoRA: rank 16 on linear layers and convolutions, rank 8 on the text encoder"),
            ("result", f"{result.name}, {result.stat().st_size / 2**20:.1f} MiB, kohya format"),
        ),
        next_steps=(
            ("Draw with it:", command),
            ("Use your own pictures:", "konomi train lora --images YOUR_FOLDER --base MODEL.safetensors --trigger sks"),
        ),
    )
