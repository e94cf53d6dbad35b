"""`benchmark`: what published work measures, with the methods that are here."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from konomi.data.tree import IMAGE_SUFFIXES
from konomi.errors import KonomiError, RecipeError
from konomi.evaluation.dreambooth_benchmark import (
    PAPER,
    PICTURES_EACH,
    BenchmarkSubject,
    MethodRow,
    encoders_note,
    markdown_table,
    method_rows,
    read_benchmark,
)
from konomi.evaluation.store import read_summary
from konomi.evaluation.summary import Summary
from konomi.storage.atomic import write_text
from konomi.tasks.comparing import ComparisonEvent, compare
from konomi.tasks.data_split import ENOUGH
from konomi.tasks.planning import one_line
from konomi.training.events import Finished, Warned
from konomi.training.stop import Stop

TABLE, ROWS = "dreambooth.md", "dreambooth.json"


@dataclass(frozen=True, slots=True)
class SubjectBegun:
    """The next subject of the benchmark."""

    name: str
    number: int
    """1 for the first."""
    total: int


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """What the methods came to, over the subjects so far."""

    rows: tuple[MethodRow, ...]
    subjects: int
    """How many there are to be measured."""
    note: str = ""
    """Which networks measured, where they are not the paper's."""


BenchmarkEvent = ComparisonEvent | SubjectBegun | BenchmarkTable


def benchmark_dreambooth(
    methods: Sequence[str | Path],
    *,
    data: str | Path,
    base: str,
    trigger: str = "sks",
    subjects: Sequence[str] = (),
    seed: int | None = None,
    overrides: Sequence[str] = (),
    budget: str = "",
    jobs: int | None = None,
    on: str = "",
    output: str | Path = "benchmarks/dreambooth",
    stop: Stop | None = None,
) -> Iterator[BenchmarkEvent]:
    """The protocol of the DreamBooth paper: each method learns each subject alone, and 4 pictures
    of each of its 25 prompts are measured: likeness by DINO and CLIP, prompt following by CLIP.

    methods: names of methods, or recipe files.
    data: the folder of the data set, as https://github.com/google/dreambooth has it.
    base: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.
    trigger: the word that means the subject.
    subjects: names of some; by default all that the folder has.
    seed: of everything that is drawn by chance.
    overrides: settings for every method, each like `evaluation.seeds=1`.
    budget: as in `compare`.
    jobs, on: as in `compare`.
    output: the folder; `subjects/NAME` in it is a comparison. Asked again it goes on where it was.
    stop: asks the runs at hand to save and end.

    After each subject a `BenchmarkTable`; the last event is `Finished` with the path of the table,
    which has the paper's rows beside ours. A subject that cannot be measured is named and left out.
    Raises KonomiError for what is wrong with all of them.
    """
    benchmark = read_benchmark(Path(data))
    chosen = _chosen(benchmark.subjects, subjects)
    folder = Path(output)
    if benchmark.absent and not subjects:
        yield Warned(
            f"{len(benchmark.absent)} of {len(benchmark.absent) + len(chosen)} subjects have no "
            f"photos in {data} and are left out: {', '.join(benchmark.absent)}."
        )
    summaries: dict[str, Summary] = {}
    for number, subject in enumerate(chosen):
        yield SubjectBegun(subject.name, number + 1, len(chosen))
        place = folder / "subjects" / subject.name
        events = compare(
            methods,
            images=[subject.folder],
            base=base,
            trigger=trigger,
            class_noun=subject.noun,
            seed=seed,
            overrides=[*_protocol(subject), *overrides],
            budget=budget,
            saves=1,
            jobs=jobs,
            on=on,
            output=place,
            stop=stop,
        )
        try:
            for event in events:
                if isinstance(event, Finished) and event.interrupted:
                    yield event
                    return
                if not isinstance(event, Finished):
                    yield event
        except RecipeError:
            # Wrong settings are wrong for every subject.
            raise
        except KonomiError as error:
            yield Warned(f"{subject.name} is left out: {one_line(error)}")
            continue
        summaries[subject.name] = read_summary(place)
        table = BenchmarkTable(method_rows(summaries), len(chosen), encoders_note(summaries))
        _write(table, folder)
        yield table
    yield Finished(0, str(folder / TABLE))


def _chosen(
    there: Sequence[BenchmarkSubject], names: Sequence[str]
) -> tuple[BenchmarkSubject, ...]:
    known = {subject.name: subject for subject in there}
    for name in names:
        if name not in known:
            raise RecipeError(f"--subject {name}: is not there; there are {', '.join(known)}.")
    return tuple(known[name] for name in dict.fromkeys(names)) if names else tuple(there)


def _protocol(subject: BenchmarkSubject) -> tuple[str, ...]:
    """The paper's prompts and pictures; photos serve both for learning and for comparing. The class
    alone is drawn besides, for what it says of the prior."""
    prompts = [*subject.prompts, f"a {subject.noun}"]
    photos = sum(one.suffix.lower() in IMAGE_SUFFIXES for one in subject.folder.rglob("*"))
    # With fewer none is held out anyway, and the setting would be named as one without effect.
    kept = ["evaluation.hold_out=off"] if photos >= ENOUGH else []
    return (f"evaluation.prompts={json.dumps(prompts)}", f"evaluation.seeds={PICTURES_EACH}", *kept)


def _write(table: BenchmarkTable, folder: Path) -> None:
    write_text(folder / TABLE, markdown_table(table.rows, table.subjects, table.note))
    content = {
        "subjects": table.subjects,
        "rows": [asdict(row) for row in table.rows],
        "paper": [asdict(row) for row in PAPER],
        "note": table.note,
    }
    write_text(folder / ROWS, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
