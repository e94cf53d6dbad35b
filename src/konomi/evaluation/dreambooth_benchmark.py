"""The benchmark of the DreamBooth paper (Ruiz et al. 2023, section 4.1): 30 subjects, 25 prompts
each, 4 pictures of a prompt; and what the paper found.

The data set is https://github.com/google/dreambooth: a folder of photos for each subject, and
`prompts_and_classes.txt`, which is read as it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from konomi.data.encodings import decode_text
from konomi.errors import DataError, FileFormatError
from konomi.evaluation.summary import Candidate, Summary
from konomi.storage.regular import read_small

PROMPTS_FILE = "prompts_and_classes.txt"
PICTURES_EACH = 4
LIVE = ("cat", "dog")
"""Classes of the nine live subjects, which have prompts of their own."""
MEASURES = {"likeness": "DINO", "clip_likeness": "CLIP-I", "prompt_following": "CLIP-T"}
"""konomi's name of a score -> the paper's. Likeness is CLIP-I where one CLIP compares pictures and
reads texts."""
PAPER_ENCODERS = {"image": "facebook/dino-vits16", "text": "openai/clip-vit-base-patch32"}
"""The networks of section 4.1: DINO ViT-S/16 and CLIP ViT-B/32."""
_PROMPT = re.compile(r"""^\s*['"](.+?)['"]\.format\(unique_token, class_token\),?\s*$""")
_MOST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A line of the paper's table 1, with means over all subjects."""

    name: str
    values: Mapping[str, float]


PAPER = (
    PaperRow("Real images", {"DINO": 0.774, "CLIP-I": 0.885}),
    PaperRow("DreamBooth (Stable Diffusion)", {"DINO": 0.668, "CLIP-I": 0.803, "CLIP-T": 0.305}),
    PaperRow(
        "Textual Inversion (Stable Diffusion)", {"DINO": 0.569, "CLIP-I": 0.780, "CLIP-T": 0.255}
    ),
)


@dataclass(frozen=True, slots=True)
class BenchmarkSubject:
    """One subject of the data set."""

    name: str
    noun: str
    """Its class."""
    folder: Path
    prompts: tuple[str, ...]
    """`{}` stands for the identifier and the class."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The data set as it lies in a folder."""

    subjects: tuple[BenchmarkSubject, ...]
    absent: tuple[str, ...]
    """Named in the list, and without a folder of photos."""


def read_benchmark(folder: Path) -> Benchmark:
    """The subjects whose photos are there, in the order of the list.

    Raises DataError for a folder that is not the data set.
    """
    path = folder / PROMPTS_FILE
    try:
        data = read_small(path, _MOST_BYTES, "list of classes and prompts")
    except FileFormatError as error:
        raise DataError(
            f"{folder}: is not the DreamBooth data set ({error}) Its folder holds {PROMPTS_FILE} "
            "and a folder of photos for each subject."
        ) from error
    classes, objects, lives = _read(decode_text(data, str(path)))
    if not classes or not objects or not lives:
        raise DataError(
            f"{path}: has no list of subjects with classes, or none of prompts for objects and for "
            "live subjects. Take the file of the data set as it is."
        )
    subjects = tuple(
        BenchmarkSubject(name, noun, folder / name, lives if noun in LIVE else objects)
        for name, noun in classes.items()
        if (folder / name).is_dir()
    )
    if not subjects:
        raise DataError(f"{folder}: holds no folder of photos of any subject in {PROMPTS_FILE}.")
    here = {subject.name for subject in subjects}
    return Benchmark(subjects, tuple(name for name in classes if name not in here))


def _read(text: str) -> tuple[dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """Classes by subject, and the prompts of objects and of live subjects."""
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"object": [], "live": []}
    heading = ""
    for line in text.splitlines():
        words = line.strip().casefold()
        match = _PROMPT.match(line)
        if match is not None:
            kind = "live" if heading.startswith("live") else "object"
            prompts[kind].append(match[1].replace("{0} {1}", "{}"))
        elif words.endswith("prompts") or words == "classes":
            heading = words
        elif heading == "classes" and words.count(",") == 1 and words != "subject_name,class":
            name, _, noun = line.strip().partition(",")
            if re.fullmatch(r"[\w-]{1,100}", name):
                classes[name] = noun.strip()
    return classes, tuple(prompts["object"]), tuple(prompts["live"])


@dataclass(frozen=True, slots=True)
class MethodRow:
    """What one method came to, over the subjects that it was measured on."""

    id: str
    values: dict[str, float]
    """By the paper's name: the mean over subjects of the mean over pictures."""
    subjects: int
    failures: dict[str, str]
    """Subject -> why it has no score."""


def method_rows(summaries: Mapping[str, Summary]) -> tuple[MethodRow, ...]:
    """A row for each method from the summaries of all subjects, and first the untouched base."""
    order = dict.fromkeys(_key(one) for s in summaries.values() for one in s.candidates)
    return tuple(_row(key, summaries) for key in order)


def _key(candidate: Candidate) -> str:
    """The same for every subject: the run's name, or `base`."""
    return Path(candidate.run).name if candidate.run else candidate.id


def _row(key: str, summaries: Mapping[str, Summary]) -> MethodRow:
    found: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    count = 0
    for subject, summary in summaries.items():
        last = [one for one in summary.candidates if _key(one) == key][-1:]
        for candidate in last:
            if candidate.failure:
                failures[subject] = candidate.failure
                continue
            count += 1
            for name in MEASURES:
                if name in candidate.scores:
                    title = _title(name, summary)
                    found.setdefault(title, []).append(candidate.scores[name].mean)
    values = {title: fmean(found[title]) for title in MEASURES.values() if title in found}
    return MethodRow(key, values, count, failures)


def _title(name: str, summary: Summary) -> str:
    image, text = (summary.encoders.get(kind, "") for kind in ("image", "text"))
    return "CLIP-I" if name == "likeness" and image and image == text else MEASURES[name]


def encoders_note(summaries: Mapping[str, Summary]) -> str:
    """One line where not all was measured with the paper's networks; otherwise empty."""
    used = {
        kind: sorted({s.encoders[kind] for s in summaries.values() if kind in s.encoders})
        for kind in PAPER_ENCODERS
    }
    if all(
        Path(name).name == Path(PAPER_ENCODERS[kind]).name for kind in used for name in used[kind]
    ):
        return ""
    return (
        f"Measured with {' and '.join(used['image'])} (likeness) and {' and '.join(used['text'])} "
        "(prompt following): only figures of the same networks can be compared, and the paper's "
        f"are of evaluation.encoders.image={PAPER_ENCODERS['image']} and "
        f"evaluation.encoders.text={PAPER_ENCODERS['text']}."
    )


def markdown_table(rows: Sequence[MethodRow], benchmark_size: int, note: str = "") -> str:
    """Ours and the paper's, one under the other. `benchmark_size`: subjects to be measured.
    `note`: what is said under it.
    """
    titles = list(MEASURES.values())
    lines = [f"| | {' | '.join(titles)} | subjects |", "|---" * (len(titles) + 2) + "|"]
    for row in rows:
        cells = [f"{row.values[title]:.3f}" if title in row.values else "" for title in titles]
        lines.append(f"| {row.id} | {' | '.join(cells)} | {row.subjects} of {benchmark_size} |")
    for paper in PAPER:
        cells = [f"{paper.values[t]:.3f}" if t in paper.values else "" for t in titles]
        lines.append(f"| {paper.name}, paper | {' | '.join(cells)} | 30 of 30 |")
    lines += ["", note] if note else []
    return "\n".join(lines) + "\n"
