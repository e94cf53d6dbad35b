"""Against what files are measured: the base, the words of the subject, pictures to compare with.
Read from runs, or from what the command line says of bare files.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from konomi.config.evaluation import EvaluationConfig
from konomi.config.overrides import method_title
from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.captions import final_caption
from konomi.data.images import read_image
from konomi.data.manifest import Record, first_names, read_manifest
from konomi.data.scan_cache import cached_scan
from konomi.errors import DataError, FileFormatError, RecipeError, RunError
from konomi.evaluation.candidates import SavedFile, saved_files
from konomi.evaluation.fixed_noise import Captioned, LossPictures
from konomi.evaluation.pictures import References
from konomi.evaluation.prompts import Subject
from konomi.methods.lora import LoraConfig
from konomi.storage.home import shown
from konomi.tasks.data_split import split_records
from konomi.tasks.preparing import cache_folder
from konomi.tasks.run_folder import recipe_of_run
from konomi.training.log import read_log

MOST_IMAGES = 1000
"""Pictures that were trained on and are looked at for copies."""
_LONGEST_SIDE = 1024
"""Larger pictures are made smaller: no encoder sees more."""


@dataclass(frozen=True, slots=True)
class EvaluationSetup:
    """What all candidates have in common, before anything is loaded."""

    base: str
    vae: str = ""
    prediction: str = "auto"
    adapters: tuple[str, ...] = ()
    """What stays attached to the base, `FILE` or `FILE:0.8`."""
    zero_terminal_snr: bool = False
    """The base was trained to end in pure noise, and is drawn with so."""
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    resolution: str = ""
    """Of training; empty: the base's own."""
    clip_skip: int = 0
    subject: Subject = field(default_factory=Subject)
    captions: tuple[str, ...] = ()
    """Different ones of the subject's training pictures; drawn where no word calls what was
    learned."""
    references: tuple[Record, ...] = ()
    held_out: bool = False
    training: tuple[Record, ...] = ()
    background: str = "#ffffff"
    """Behind transparent pictures."""
    memory: Path = Path()
    """The cache folder."""
    recipe: Recipe | None = None
    """Of the run, or the first of several: how its loss is computed, and its captions read."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Run:
    """A run folder that was read."""

    path: Path
    recipe: Recipe
    training: tuple[Record, ...]
    references: tuple[Record, ...]
    notes: tuple[str, ...]


def is_run(path: Path) -> bool:
    """Whether a folder is one that `train` wrote to."""
    return (path / "recipe.toml").is_file()


def files_of_run(run: Path, recipe: Recipe | None = None) -> list[SavedFile]:
    """What a run saved so far, by step. Raises RunError where that is nothing."""
    recipe = recipe or recipe_of_run(run)
    files = saved_files(
        run,
        recipe.run.name,
        method=method_title(recipe.method),
        steps=_steps_of_epochs(run, recipe),
    )
    if not files:
        raise RunError(
            f"{run}: has saved no file yet. `konomi resume {run}` goes on with it; run.save_every "
            "saves files on the way."
        )
    return files


def setup_of_runs(runs: Sequence[Path], *, base: str = "") -> EvaluationSetup:
    """What runs say: they must share a base (or one is given). Settings are the first run's;
    pictures to compare with are those that none of them trained on.

    Raises KonomiError.
    """
    found = [_read(run) for run in runs]
    first = found[0].recipe
    other = next((run for run in found if run.recipe.base != first.base), None)
    if other is not None and not base:
        raise RecipeError(
            f"base: {shown(found[0].path)} was trained on {first.base}, {shown(other.path)} on "
            f"{other.recipe.base}. Say with --base which one to draw with."
        )
    mixed = next((run for run in found if run.recipe.adapters != first.adapters), None)
    if mixed is not None:
        raise RecipeError(
            f"adapters: {shown(found[0].path)} was trained with "
            f"{', '.join(first.adapters) or 'none'} attached, {shown(mixed.path)} with "
            f"{', '.join(mixed.recipe.adapters) or 'none'}. Evaluate them one by one."
        )
    training = _unique(record for run in found for record in run.training)
    trained = {record.content for record in training}
    references = _unique(
        record for run in found for record in run.references if record.content not in trained
    )
    subject, notes = _subject((*training, *references), first)
    notes += [note for run in found for note in run.notes]
    if any(run.recipe.evaluation != first.evaluation for run in found):
        notes.append(f"the evaluation settings of {shown(found[0].path)} count for all runs.")
    return EvaluationSetup(
        base=base or first.base,
        vae=first.vae,
        prediction=first.prediction,
        adapters=first.adapters,
        zero_terminal_snr=any(run.recipe.objective.zero_terminal_snr for run in found),
        config=first.evaluation,
        resolution=first.data.resolution or "",
        clip_skip=first.text.clip_skip,
        subject=subject,
        captions=_captions(_of_subject(training, subject), first),
        references=_of_subject(references, subject) or _of_subject(training, subject),
        held_out=bool(_of_subject(references, subject)),
        training=training,
        background=first.data.images.background,
        memory=cache_folder(first),
        recipe=first,
        notes=tuple(dict.fromkeys(notes)),
    )


def with_images(setup: EvaluationSetup, images: Sequence[Path]) -> EvaluationSetup:
    """Compared with the pictures of these folders instead. Raises DataError where there are none,
    or all were trained on.
    """
    if not images:
        return setup
    sources = tuple(SourceConfig(path=str(folder.resolve())) for folder in images)
    manifest = cached_scan(DataConfig(sources=sources), setup.memory)
    trained = {record.content for record in setup.training}
    given = _unique(manifest.records)
    new = tuple(record for record in given if record.content not in trained)
    where = ", ".join(shown(folder) for folder in images)
    notes = []
    if setup.training and not new:
        notes.append(f"{where}: all of these pictures were trained on, which flatters.")
    elif setup.training and len(new) < len(given):
        notes.append(
            f"{where}: {len(given) - len(new)} of {len(given)} pictures were trained on, and are "
            "not compared with."
        )
    elif not setup.training:
        notes.append(
            f"{where}: whether these pictures were trained on is not known; if they were, that "
            "flatters."
        )
    return replace(
        setup,
        references=new or given,
        held_out=bool(setup.training and new),
        notes=(*setup.notes, *notes),
    )


def references_of(setup: EvaluationSetup) -> tuple[References, tuple[str, ...]]:
    """The pictures to compare with, read; and a line on those that are not there any more."""
    images, records, notes = _load(setup.references, setup.background)
    wording = DataConfig().captions
    captions = tuple(final_caption(record, wording, None) for record in records)
    complete = captions if all(captions) else ()
    return References(images, setup.held_out and bool(images), complete), notes


def training_of(
    setup: EvaluationSetup,
) -> tuple[tuple[Image.Image, ...], tuple[str, ...], tuple[str, ...]]:
    """The pictures that were trained on, read, and their names; and a line on those that are left
    out.
    """
    images, records, notes = _load(setup.training[:MOST_IMAGES], setup.background)
    if len(setup.training) > MOST_IMAGES:
        notes += (
            f"copies are looked for among the first {MOST_IMAGES} of {len(setup.training)} "
            "pictures that were trained on.",
        )
    return images, tuple(record.name for record in records), notes


def loss_pictures(setup: EvaluationSetup) -> LossPictures:
    """Pictures whose loss is measured: some that were trained on and some that were not, chosen
    by content, each with the caption that it has in training.
    """
    recipe = setup.recipe or Recipe(base=setup.base, method=LoraConfig())
    count = setup.config.losses

    def captioned(records: Sequence[Record]) -> Captioned:
        chosen = sorted(records, key=lambda record: record.content)[:count]
        images, there, _ = _load(chosen, setup.background)
        return Captioned(images, tuple(_caption(record, setup.subject, recipe) for record in there))

    training = captioned(setup.training) if count else Captioned()
    held_out = captioned(setup.references) if count and setup.held_out else Captioned()
    return LossPictures(recipe, count, training, held_out)


def training_captioned(
    setup: EvaluationSetup, most: int
) -> tuple[Captioned, list[Record], tuple[str, ...]]:
    """At most so many of the pictures that were trained on, with their captions and records; and
    a line on those that cannot be read.
    """
    recipe = setup.recipe or Recipe(base=setup.base, method=LoraConfig())
    images, there, notes = _load(setup.training[:most], setup.background)
    captions = tuple(_caption(record, setup.subject, recipe) for record in there)
    return Captioned(images, captions), there, notes


def _caption(record: Record, subject: Subject, recipe: Recipe) -> str:
    """A picture that no source of the run names is called as those of the run are."""
    if not record.trigger and not record.class_noun:
        record = replace(record, trigger=subject.trigger, class_noun=subject.noun)
    return final_caption(record, recipe.data.captions, None)


def _read(path: Path) -> _Run:
    recipe = recipe_of_run(path)
    notes: tuple[str, ...] = ()
    try:
        records = read_manifest(path / "manifest.jsonl")
        split = split_records(records, recipe, cache_folder(recipe))
    except (DataError, FileFormatError) as error:
        return _Run(path, recipe, (), (), (f"what was trained on is not known: {error}",))
    training = tuple(record for record in split.training if record.role == "train")
    return _Run(path, recipe, _unique(training), _unique(split.references), notes)


def _unique(records: Iterable[Record]) -> tuple[Record, ...]:
    kept: dict[str, Record] = {}
    for record in records:
        if record.role == "train":
            kept.setdefault(record.content, record)
    return tuple(kept.values())


def _subject(records: Sequence[Record], recipe: Recipe) -> tuple[Subject, list[str]]:
    """Trigger and class of most pictures, and a line where there are several."""
    found = Counter((record.trigger, record.class_noun) for record in records)
    if not found:
        source = next((s for s in recipe.data.sources if s.role == "train"), None)
        return (Subject(source.trigger, source.class_noun) if source else Subject()), []
    subject = Subject(*found.most_common(1)[0][0])
    others = [" ".join(filter(None, pair)) for pair in found if Subject(*pair) != subject]
    if not any(others):
        return subject, []
    return subject, [
        f"only {subject.words!r} is drawn and measured; {first_names(sorted(filter(None, others)))}"
        " were learned besides. --trigger and --class name another."
    ]


def _of_subject(records: Sequence[Record], subject: Subject) -> tuple[Record, ...]:
    return tuple(
        record for record in records if Subject(record.trigger, record.class_noun) == subject
    )


def _captions(records: Sequence[Record], recipe: Recipe) -> tuple[str, ...]:
    wording = replace(recipe.data.captions, shuffle=False, tag_dropout=0.0, dropout=0.0)
    found = (final_caption(record, wording, None) for record in records)
    return tuple(dict.fromkeys(caption for caption in found if caption))


def _load(
    records: Sequence[Record], background: str
) -> tuple[tuple[Image.Image, ...], list[Record], tuple[str, ...]]:
    images, there, gone = [], [], []
    for record in records:
        try:
            image = Image.fromarray(read_image(record.locator, background=background).pixels)
        except (DataError, OSError):
            gone.append(record.name)
            continue
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        images.append(image)
        there.append(record)
    notes = (
        (f"{len(gone)} pictures that the run names cannot be read: {first_names(gone)}.",)
        if gone
        else ()
    )
    return tuple(images), there, notes


def _steps_of_epochs(run: Path, recipe: Recipe) -> dict[str, int]:
    """The step after which each epoch was over, by the name of its file, and the last step."""
    try:
        log = read_log(run)
    except OSError:
        return {}
    name = recipe.run.name
    steps: dict[str, int] = {}
    for entry in log:
        step, epoch = entry["step"], entry.get("epoch")
        if "loss" not in entry or type(epoch) is not int:
            continue
        steps[f"{name}-{epoch + 1:06d}"] = max(step, steps.get(f"{name}-{epoch + 1:06d}", 0))
        steps[name] = max(step, steps.get(name, 0))
    return steps
