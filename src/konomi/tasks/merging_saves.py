"""`merge saves`: the average of what a run saved, with a memory that is chosen afterwards."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from konomi.adapters.apply import Strengths
from konomi.errors import RecipeError
from konomi.evaluation.candidates import SavedFile, is_whole_model
from konomi.formats.adapter_file import read_adapter, write_adapter
from konomi.formats.writer import Target
from konomi.hardware.precision import precision_of_flag
from konomi.merging.adapters import reduce_ranks, summable
from konomi.merging.formulas import Knobs
from konomi.merging.low_rank import RankChoice
from konomi.merging.model_file import open_model
from konomi.merging.plan import plan_merge
from konomi.merging.provenance import Hashes, merge_metadata
from konomi.merging.saves import average_adapters, average_method, save_weights
from konomi.merging.stream import write_merged
from konomi.merging.weights import Weights
from konomi.models.load import load_base
from konomi.tasks.evaluation_setup import files_of_run
from konomi.tasks.extracting import rank_choice
from konomi.tasks.files import check_new
from konomi.tasks.merging_adapters import finest
from konomi.tasks.merging_models import checked_output
from konomi.tasks.run_folder import recipe_of_run


@dataclass(frozen=True, slots=True)
class SavesMerge:
    """What `merge_saves` did."""

    path: Path
    weights: dict[int, float]
    """Step of each save -> how much it counts."""
    error: float
    """The largest error of a layer whose rank was reduced; 0 where nothing was."""
    notes: tuple[str, ...]


def merge_saves(
    run: str | Path,
    output: str | Path,
    *,
    ema: float = 0.1,
    until: int | None = None,
    rank: int | None = None,
    energy: float | None = None,
    max_mib: float | None = None,
    base: str | None = None,
    precision: str | None = None,
    to: Target | None = None,
    tell: Callable[[str], object] = lambda _: None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> SavesMerge:
    """Average the files that a run saved, as if a moving average of the weights had been kept in
    training.

    run: the run folder; `run.save_every` made the files.
    output: the new file.
    ema: how long the average remembers: the standard deviation of its profile in shares of the
        training, 0.05 to 0.25.
    until: the step that counts as the last; by default the last that was saved.
    rank, energy, max_mib: how far each layer of an adapter is reduced; by default to the rank that
        the saves have.
    base: the model that was trained, where an update depends on its weights (OFT, DoRA, (IA)^3).
    precision: of the file (fp32, fp16, bf16); by default that of the saves.
    to: the format of an adapter (kohya, diffusers, peft); by default what most programs read.
    tell: is handed a line on what a person should know.
    progress: is handed the bytes read so far, and in all, of whole models.

    Raises KonomiError.
    """
    output, folder = Path(output), Path(run)
    check_new(output)
    choice = rank_choice(rank, energy, max_mib, required=False)
    recipe = recipe_of_run(folder)
    found = {file.step: file for file in files_of_run(folder, recipe) if file.step}
    saves = [file for step, file in sorted(found.items()) if until is None or step <= until]
    if len(saves) < 2:
        before = "" if until is None else f" up to step {until}"
        raise RecipeError(
            f"{folder}: has {len(saves)} saved files{before}, and an average needs two. "
            "run.save_every saves more of them."
        )
    weights = save_weights([file.step for file in saves], ema)
    notes = []
    if recipe.optimizer.ema_decay:
        notes.append(
            "the saves are moving averages themselves (optimizer.ema_decay), so the result "
            "remembers longer than --ema says."
        )
    if weights[-1] > 0.9:
        notes.append(
            f"the saves are too far apart for --ema {ema:g}: {weights[-1]:.0%} of the result is "
            "the last one. Take a larger one, or a smaller run.save_every."
        )
    whole = is_whole_model(saves[0].path)
    if whole and (choice is not None or to is not None or base is not None):
        notes.append("--rank, --energy, --max-mib, --to, --base: without effect on whole models.")
    for note in notes:
        tell(note)
    if whole:
        error = 0.0
        _models(saves, weights, output, ema, precision, progress)
    else:
        error = _adapters(saves, weights, output, choice, base, precision, to)
    by_step = {file.step: w for file, w in zip(saves, weights, strict=True)}
    return SavesMerge(output, by_step, error, tuple(notes))


def _adapters(
    saves: Sequence[SavedFile],
    weights: Sequence[float],
    output: Path,
    choice: RankChoice | None,
    base: str | None,
    precision: str | None,
    to: Target | None,
) -> float:
    loaded = None if base is None else load_base(base, needs_vae=False)
    read = [read_adapter(file.path) for file in saves]
    ranks = [update.rank or 0 for update in read[-1].layers.values()]
    dtype = finest(read) if precision is None else precision_of_flag(precision)
    read = [summable(adapter, Strengths(), loaded)[0] for adapter in read]
    merged = average_adapters(read, weights, output.stem)
    if choice is None and max(ranks, default=0):
        choice = RankChoice(max(ranks))
    error = 0.0
    if choice is not None and merged.layers:
        layers, report = reduce_ranks(merged, choice, dtype)
        merged = replace(merged, layers=layers)
        error = max((layer.error for layer in report), default=0.0)
    write_adapter(merged, output, to, dtype=dtype)
    return error


def _models(
    saves: Sequence[SavedFile],
    weights: Sequence[float],
    output: Path,
    ema: float,
    precision: str | None,
    progress: Callable[[int, int], object],
) -> None:
    dtype = checked_output(output, precision)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_model(file.path)) for file in saves]
        method = average_method(weights)
        plan = plan_merge(opened, method, Knobs(), Weights(0.0), dtype=dtype, merge_vae=False)
        settings = {"how": "saves", "ema": ema, "steps": [file.step for file in saves]}
        describe = partial(merge_metadata, opened, output, settings, dtype=dtype, vae="")
        with closing(Hashes([one.path for one in opened])) as hashes:
            finish = partial(describe, hashes=hashes)
            write_merged(output, plan.jobs, describe(), finish=finish, progress=progress)
