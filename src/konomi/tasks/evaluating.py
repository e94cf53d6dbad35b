"""`evaluate`: saved files drawn beside the base, measured, and the one to keep."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from konomi.config.evaluation import EvaluationConfig
from konomi.config.load import change_recipe
from konomi.config.recipe import Recipe
from konomi.data.buckets import parse_size
from konomi.errors import KonomiError, RecipeError, RunError
from konomi.evaluation.candidates import (
    CandidateFile,
    Opened,
    SavedFile,
    candidates,
    check,
    one_line,
    open_saved,
)
from konomi.evaluation.chosen_encoders import open_encoders
from konomi.evaluation.drawing import DrawingPlan
from konomi.evaluation.job import Evaluation
from konomi.evaluation.measure import measure
from konomi.evaluation.prompts import EvaluationPrompt, Subject
from konomi.evaluation.scorers.preference import preference_scorers
from konomi.evaluation.store import SUMMARY
from konomi.generation.adapter_request import AdapterRequest
from konomi.generation.unused import trained_otherwise, unused_in_adapter
from konomi.methods.lora import LoraConfig
from konomi.models.base import BaseModel
from konomi.storage.atomic import sweep_temporaries
from konomi.storage.home import shown
from konomi.storage.lock import RunLock
from konomi.tasks.attached import Attached, keep_attached, without_what_it_was_trained_with
from konomi.tasks.evaluation_prompts import chosen_prompts, is_small, prompt_lines
from konomi.tasks.evaluation_setup import (
    EvaluationSetup,
    files_of_run,
    is_run,
    loss_pictures,
    references_of,
    setup_of_runs,
    training_of,
    with_images,
)
from konomi.tasks.generating import load_base
from konomi.tasks.preparing import cache_folder
from konomi.tasks.reporting import ends_with_page, page_of_run
from konomi.training.events import Event, Finished, Warned


def evaluate(
    sources: Sequence[str | Path],
    *,
    base: str = "",
    adapters: Sequence[str] = (),
    images: Sequence[str | Path] = (),
    prompts: str | Path | Sequence[str] | None = None,
    weights: Sequence[float] = (),
    seeds: int | None = None,
    trigger: str = "",
    class_noun: str = "",
    output: str | Path | None = None,
    settings: Sequence[str] = (),
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Event]:
    """Draw saved files beside the untouched base, measure them, and say which one to keep.

    sources: run folders, of which every saved file is measured, or adapters, embeddings and whole
        models.
    base: `tiny`, a diffusers folder, a .safetensors or .ckpt file, or a hub id; by default the one
        that the runs were trained on.
    adapters: what stays attached to the base, each `FILE` or `FILE:0.8`; by default what the runs
        were trained with.
    images: folders of pictures to compare with; by default those that the runs held out of
        training, or trained on where they held none out.
    prompts: a file with one prompt a line, or the prompts; `{}` stands for trigger and class.
    weights: strengths to draw each file at.
    seeds: pictures of each prompt.
    trigger: the word that means the subject; by default what runs or files say.
    class_noun: what the subject is in plain words, `dog`.
    output: the folder; by default `evaluation` in the run, or `evaluations/NAME`. Asked again with
        the same, what is there is not made again.
    settings: further settings of the recipe's section, each like `evaluation.steps=30`.
    device: auto, cpu, cuda, mps, ...
    precision: number format of the base: auto, fp32, fp16, bf16.

    The last event is `Finished` with the page's path. A file that cannot be drawn is a row of the
    result with its reason. Raises KonomiError for what is wrong with all of them.
    """
    if not sources:
        raise RecipeError("name a run, or files: konomi evaluate RUN")
    paths = [Path(source) for source in sources]
    runs = [path for path in paths if is_run(path)]
    files = [file for path in paths for file in _files(path, several=len(runs) > 1)]
    setup = setup_of_runs(runs, base=base) if runs else _of_files(base)
    setup = replace(setup, adapters=tuple(adapters) or setup.adapters)
    setup = _with_words(setup, trigger, class_noun)
    setup = replace(setup, config=_changed(setup.config, weights, seeds, settings))
    setup = with_images(setup, [Path(folder) for folder in images])
    if prompts is not None:
        lines, notes = prompt_lines(prompts)
        setup = replace(
            setup,
            config=replace(setup.config, prompts=lines),
            notes=(*setup.notes, *notes),
        )
    folder = Path(output) if output is not None else _usual_folder(paths)
    yield from evaluate_files(files, setup, folder, device=device, precision=precision)


def evaluate_files(
    files: Sequence[SavedFile],
    setup: EvaluationSetup,
    folder: Path,
    *,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Event]:
    """Measure files in a common setup, at the weights of its settings.

    The last event is `Finished` with the page's path. Raises KonomiError.
    """
    with RunLock(folder):
        for place in (folder, *sorted((folder / "pictures").glob("*"))):
            sweep_temporaries(place)
        loaded = load_base(
            setup.base,
            vae=setup.vae or None,
            prediction=setup.prediction,
            device=device,
            precision=precision,
        )
        attached = keep_attached(loaded, setup.adapters)
        if setup.zero_terminal_snr and not loaded.zero_terminal_snr:
            loaded.use_zero_terminal_snr()
        wanted = candidates(files, setup.config.weights or (1.0,))
        opened = _opened(wanted, loaded)
        prompts, notes = chosen_prompts(setup, opened.values(), loaded)
        plan = _plan(setup, prompts, loaded)
        encoders, about_encoders = open_encoders(
            setup.config.encoders, small_base=is_small(loaded), device=loaded.device
        )
        references, gone = references_of(setup)
        training, names, left_out = training_of(setup)
        notes += _file_notes(opened, plan, loaded, attached)
        notes = [*setup.notes, *notes, *about_encoders, *gone, *left_out]
        if references.images and not references.held_out:
            notes.append(
                f"likeness compares with {len(references.images)} pictures that were trained on, "
                "which flatters: none were held out."
            )
        yield from map(Warned, [*loaded.notes, *dict.fromkeys(notes)])
        evaluation = Evaluation(
            base=shown(Path(setup.base)) if Path(setup.base).exists() else setup.base,
            plan=plan,
            candidates=wanted,
            references=references,
            training=training,
            training_names=names,
            limits=setup.config.suggestion,
            losses=loss_pictures(setup),
            preference=preference_scorers(
                setup.config.encoders.preference, encoders.text, device=loaded.device
            ),
            notes=tuple(dict.fromkeys(notes)),
            adapters=setup.adapters,
            attached=attached.used,
        )
        yield from measure(evaluation, loaded, encoders, folder, memory=setup.memory / "evaluation")
        about_page: list[str] = []
        page = page_of_run(folder, about_page) if ends_with_page() else ""
        yield from map(Warned, about_page)
        yield Finished(0, page or str(folder / SUMMARY))


def _files(path: Path, *, several: bool) -> list[SavedFile]:
    """What a source holds; of several runs each file has its run's name as well."""
    if is_run(path):
        found = files_of_run(path)
        name = f"{path.resolve().name}, "
        return [replace(one, label=name + one.label) for one in found] if several else found
    if not path.exists():
        raise RecipeError(f"{path}: there is no such run or file.")
    return [SavedFile(path, path.stem if path.is_file() else path.name)]


def _of_files(base: str) -> EvaluationSetup:
    if not base:
        raise RecipeError(
            "base: must be set. Name the model that the files were trained on with --base: tiny "
            "(built in), a folder, a .safetensors or .ckpt file, a hub id."
        )
    return EvaluationSetup(base, memory=cache_folder(_recipe(EvaluationConfig())))


def _recipe(config: EvaluationConfig) -> Recipe:
    """Any recipe with that section."""
    return Recipe(base="tiny", method=LoraConfig(), evaluation=config)


def _with_words(setup: EvaluationSetup, trigger: str, noun: str) -> EvaluationSetup:
    subject = Subject(trigger or setup.subject.trigger, noun or setup.subject.noun)
    return replace(setup, subject=subject)


def _changed(
    config: EvaluationConfig, weights: Sequence[float], seeds: int | None, settings: Sequence[str]
) -> EvaluationConfig:
    """The section with what the command line says. Raises RecipeError."""
    stray = next((one for one in settings if not one.startswith("evaluation.")), None)
    if stray is not None:
        raise RecipeError(
            f"{stray}: only settings of the section evaluation can be changed here, such as "
            "evaluation.steps=30."
        )
    changes = list(settings)
    if weights:
        changes.append(f"evaluation.weights={','.join(map(repr, map(float, weights)))}")
    if seeds is not None:
        changes.append(f"evaluation.seeds={seeds}")
    return change_recipe(_recipe(config), changes).evaluation


def _usual_folder(paths: Sequence[Path]) -> Path:
    if len(paths) == 1 and is_run(paths[0]):
        return paths[0] / "evaluation"
    return Path("evaluations") / (paths[0].stem or "files")


def _opened(wanted: Sequence[CandidateFile], base: BaseModel) -> dict[Path, Opened]:
    """The files that can be drawn, before anything is. Raises KonomiError where none can."""
    opened: dict[Path, Opened] = {}
    reasons: dict[Path, str] = {}
    for candidate in wanted:
        file = candidate.file
        if file.path in opened or file.path in reasons:
            continue
        try:
            if file.failure:
                raise RunError(file.failure)
            found = open_saved(file.path)
            check(found, base, candidate.weight)
            opened[file.path] = found
        except KonomiError as error:
            reasons[file.path] = one_line(error)
    if not opened:
        raise RunError(*dict.fromkeys(reasons.values()))
    return opened


def _plan(
    setup: EvaluationSetup, prompts: tuple[EvaluationPrompt, ...], base: BaseModel
) -> DrawingPlan:
    config, step = setup.config, base.size_step
    width, height = parse_size(config.size or setup.resolution or str(base.resolution))
    plan = DrawingPlan(
        prompts,
        config,
        config.seeds,
        (max(width // step, 1) * step, max(height // step, 1) * step),
        setup.clip_skip,
        config.batch,
    )
    for place in plan.places()[:: plan.count]:
        plan.request(place).check()
    return plan


def _file_notes(
    opened: dict[Path, Opened], plan: DrawingPlan, base: BaseModel, attached: Attached
) -> list[str]:
    """What of the files has no effect, said of the first that says it."""
    there = f"the base is drawn with {attached.shown} attached, and every adapter on top of it."
    about_base = [*attached.notes, *([there] if attached.files else [])]
    requests = [plan.request(place) for place in plan.places()]
    notes: dict[str, str] = {}
    for path, file in opened.items():
        if file.adapter is None:
            continue
        found = [
            *file.notes,
            *trained_otherwise(path.name, file.adapter, base),
            *without_what_it_was_trained_with(
                [AdapterRequest(path)], {path: file.adapter}, attached.files
            ),
            *unused_in_adapter(AdapterRequest(path), file.adapter, requests),
        ]
        for note in found:
            notes.setdefault(note.replace(str(path), "").replace(path.name, ""), note)
    return [*about_base, *notes.values()]
