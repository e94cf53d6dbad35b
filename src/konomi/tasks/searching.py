"""A guided search over the values of a sweep, by Optuna: which settings to try next follows from
what was measured, and runs that lag behind are stopped early.

Settings are chosen by the tree-structured Parzen estimator (Bergstra et al. 2011), and runs end
early by the median rule (Golovin et al. 2017, "Google Vizier", section 3.2.2): whoever is worse at
a save than the middle one of the earlier runs at theirs. Nothing of it is kept but the runs: asked
again with the same answers the search asks the same questions, so one that was cut off goes on by
itself.
"""

import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from konomi.errors import MissingExtraError, RecipeError
from konomi.evaluation.plan import PlannedRun
from konomi.tasks.candidates import Wanted, swept_values, with_changes
from konomi.training.stop import Stop

NEW_TRIES = 50
"""How often settings are asked for that were not tried yet."""
FIRST = 2
"""Runs that are never stopped early: there is nothing yet to be worse than."""
_RANGE = re.compile(r"([+-]?[\d.]+(?:e[+-]?\d+)?)\.\.([+-]?[\d.]+(?:e[+-]?\d+)?)", re.IGNORECASE)

Values = Mapping[tuple[str, int], float]
"""(run, step of its save) -> how good it is."""


@dataclass(slots=True)
class Tried:
    """One run of the search."""

    wanted: Wanted
    run: PlannedRun
    trial: Any
    """Optuna's."""
    stopped: int = 0
    """The step after which it was stopped for lagging behind; 0: it was not."""


@dataclass(slots=True)
class Search:
    """The search among the settings of one candidate."""

    first: Wanted
    """The candidate as it is without the sweep."""
    planned: PlannedRun
    sweep: Sequence[str]
    seed: int
    study: Any = None
    """Optuna's."""
    tried: list[Tried] = field(default_factory=list)
    _space: dict[str, Any] = field(default_factory=dict)
    _known: dict[str, Tried] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises MissingExtraError without the package, RecipeError for a range that is none."""
        try:
            import optuna
        except ImportError as missing:
            raise MissingExtraError("optuna", "search", "--search") from missing
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {key: _distribution(optuna, key, text) for key, text in self._texts()}
        self.study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=self.seed, n_startup_trials=4),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST),
        )

    def next(self, count: int, planned: Callable[[Wanted], PlannedRun]) -> list[Tried]:
        """Up to so many runs with settings that were not tried yet; none where all were."""
        found: list[Tried] = []
        for _ in range(NEW_TRIES):
            if len(found) == count:
                break
            trial = self.study.ask(self._space)
            changes = {key: f"{value:.6g}" if isinstance(value, float) else str(value)
                       for key, value in trial.params.items()}  # fmt: skip
            wanted = with_changes(self.first.id, self.first.recipe, changes)
            if wanted.id in self._known:
                self._tell_again(trial, self._known[wanted.id])
                continue
            one = Tried(wanted, planned(wanted), trial)
            self._known[wanted.id] = one
            self.tried.append(one)
            found.append(one)
        return found

    def report(self, one: Tried, number: int, value: float | None, *, last: bool) -> bool:
        """Take in how good a run is at its save of that number. Whether it goes on."""
        import optuna

        if value is None:
            self.study.tell(one.trial, state=optuna.trial.TrialState.FAIL)
            return False
        one.trial.report(value, number)
        if last:
            self.study.tell(one.trial, value)
            return False
        if one.trial.should_prune():
            self.study.tell(one.trial, state=optuna.trial.TrialState.PRUNED)
            one.stopped = rungs_of(one.run)[number]
            return False
        return True

    def _tell_again(self, trial: Any, before: Tried) -> None:
        """The same settings give the same run."""
        import optuna

        kept = next(t for t in self.study.trials if t.number == before.trial.number)
        if kept.state == optuna.trial.TrialState.COMPLETE:
            self.study.tell(trial, kept.value)
        else:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _texts(self) -> Generator[tuple[str, str], None, None]:
        for text in self.sweep:
            key, _, values = text.partition("=")
            yield key.strip(), values.strip()


def search_waves(
    search: Search,
    count: int,
    *,
    together: int,
    planned: Callable[[Wanted], PlannedRun],
    train: Callable[[Sequence[PlannedRun], Mapping[str, int]], Iterator[Any]],
    measure: Callable[[], Generator[Any, None, Values]],
    stop: Stop,
) -> Generator[Any, None, None]:
    """Try up to `count` settings, `together` at a time, each trained from save to save.

    planned: the run of settings, with its recipe written.
    train: runs up to a step each.
    measure: all runs so far; returns how good each is at each of its saves.
    stop: ends the search after what is at hand.
    """
    left = count
    while left > 0 and (wave := search.next(min(together, left), planned)):
        left -= len(wave)
        rungs = {one.run.id: rungs_of(one.run) for one in wave}
        for number in range(max(map(len, rungs.values()))):
            # Runs of other lengths may have a save more.
            at = {id: steps[min(number, len(steps) - 1)] for id, steps in rungs.items()}
            yield from train([one.run for one in wave], at)
            if stop.requested:
                return
            values = yield from measure()
            wave = [
                one
                for one in wave
                if search.report(
                    one,
                    number,
                    values.get((one.run.id, at[one.run.id])),
                    last=at[one.run.id] == one.run.steps,
                )
            ]
            if not wave:
                break


def rungs_of(run: PlannedRun) -> tuple[int, ...]:
    """The steps at which its files are saved, the last included."""
    every = run.save_every or run.steps
    return (*range(every, run.steps, every), run.steps)


def _distribution(optuna: Any, key: str, text: str) -> Any:
    """`4,8,16`: one of these; `1e-5..1e-3`: between these, by their logarithm where they differ by
    tenfold or more."""
    if ".." not in text:
        return optuna.distributions.CategoricalDistribution(swept_values(f"{key}={text}")[1])
    match = _RANGE.fullmatch(text)
    if match is None or not float(match[1]) < float(match[2]):
        raise RecipeError(f"--sweep {key}={text}: a range is LOW..HIGH, for example 1e-5..1e-3.")
    low, high = float(match[1]), float(match[2])
    by_logarithm = low > 0 and high >= 10 * low
    if match[1].isdecimal() and match[2].isdecimal():
        return optuna.distributions.IntDistribution(int(low), int(high), log=by_logarithm)
    return optuna.distributions.FloatDistribution(low, high, log=by_logarithm)
