"""What an edit looks like from the picture to the target, and which eta to take: the end of a run
of Imagic.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image
from torch.nn import functional

from konomi.adapters.adapter import Adapter, Edit
from konomi.data.images import read_image
from konomi.evaluation.chosen_encoders import open_encoders
from konomi.evaluation.encoders.encoder import Encoders
from konomi.generation.generate import generate
from konomi.generation.grid import make_grid
from konomi.generation.request import Request
from konomi.models.memory import temporarily_loaded
from konomi.storage.atomic import write_file, write_text
from konomi.tasks.evaluation_prompts import is_small
from konomi.tasks.preparing import Job
from konomi.tasks.previewing import edit_guidance
from konomi.tasks.saving import as_read_back
from konomi.training.optional_work import optional_work

ETAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
SEEDS = 2


@dataclass(frozen=True, slots=True)
class EtaScore:
    """Means over the seeds."""

    eta: float
    likeness: float
    """Cosine of the features of the drawn and the given picture."""
    prompt: float
    """Cosine of the drawn picture and the target text."""


@dataclass(frozen=True, slots=True)
class Strip:
    """What was drawn, measured and suggested."""

    picture: str
    suggested: float
    scores: tuple[EtaScore, ...]

    @property
    def note(self) -> str:
        """The suggestion in a sentence."""
        best = next(score for score in self.scores if score.eta == self.suggested)
        first = self.scores[0]
        return (
            f"eta {best.eta:g} is suggested: likeness to the picture {best.likeness:.2f} (eta 0: "
            f"{first.likeness:.2f}), to the target text {best.prompt:.2f} (eta 0: "
            f"{first.prompt:.2f}); {self.picture} shows all."
        )


def strip_of_run(job: Job, folder: Path, notes: list[str]) -> Strip | None:
    """Draw and measure the etas of a finished edit: NAME.etas.png and NAME.etas.json. None where
    that fails, with a note."""
    with optional_work("the etas of the edit could not be drawn and measured", notes):
        return _strip(job, folder, notes)
    return None


def suggested(scores: Sequence[EtaScore]) -> float:
    """The eta where the lower of both is highest, each on a scale from its lowest to its highest
    value among the etas; of equals the one nearer to the picture."""

    def scaled(values: list[float]) -> list[float]:
        low, span = min(values), max(values) - min(values)
        return [(value - low) / span if span > 0 else 0.0 for value in values]

    likeness = scaled([score.likeness for score in scores])
    prompt = scaled([score.prompt for score in scores])
    lower = [min(pair) for pair in zip(likeness, prompt, strict=True)]
    return scores[lower.index(max(lower))].eta


def _edit_requests(job: Job, edit: Edit, etas: Sequence[float], seed: int) -> list[Request]:
    """The target at each eta, as previews are drawn."""
    width, height = edit.size
    return [
        Request.of(
            job.recipe.preview,
            prompt=edit.prompt,
            seed=seed,
            width=width,
            height=height,
            clip_skip=job.recipe.text.clip_skip,
            guidance=edit_guidance(job),
            edit=edit,
            eta=eta,
        )
        for eta in etas
    ]


def _strip(job: Job, folder: Path, notes: list[str]) -> Strip | None:
    result = as_read_back(job, job.method.export())
    if not isinstance(result, Adapter) or result.edit is None:
        return None
    first = job.recipe.preview.seed
    rows = []
    with temporarily_loaded(job.base, job.recipe.memory), job.method.as_loaded(result):
        for seed in range(first, first + SEEDS):
            requests = _edit_requests(job, result.edit, ETAS, seed)
            rows.append([picture.image for picture in generate(job.base, requests)])
    name = job.recipe.run.name
    path = folder / f"{name}.etas.png"
    labels = [f"eta {eta:g}" for eta in ETAS]
    seeds = [f"seed {seed}" for seed in range(first, first + SEEDS)]
    sheet = make_grid(
        [image for row in rows for image in row],
        columns=len(ETAS),
        column_labels=labels,
        row_labels=seeds,
    )
    with write_file(path) as temporary:
        sheet.save(temporary, "PNG")
    encoders, about = open_encoders(
        job.recipe.evaluation.encoders, small_base=is_small(job.base), device=job.base.device
    )
    notes += about
    (record, *_) = job.assignment.records
    photo = Image.fromarray(read_image(record.locator).pixels)
    scores = _scores(encoders, photo, result.edit.prompt, rows)
    strip = Strip(str(path), suggested(scores), scores)
    write_text(path.with_suffix(".json"), json.dumps(asdict(strip), indent=1))
    return strip


def _scores(
    encoders: Encoders, photo: Image.Image, prompt: str, rows: Sequence[Sequence[Image.Image]]
) -> tuple[EtaScore, ...]:
    images = [image for row in rows for image in row]
    own_D = encoders.image.features([photo])[0]
    text_D = functional.normalize(encoders.text.text_features([prompt])[0], dim=0)
    likeness = (encoders.image.features(images) @ own_D).view(len(rows), -1).mean(0)
    following = (encoders.text.features(images) @ text_D).view(len(rows), -1).mean(0)
    return tuple(
        EtaScore(eta, round(float(like), 4), round(float(follows), 4))
        for eta, like, follows in zip(ETAS, likeness, following, strict=True)
    )
