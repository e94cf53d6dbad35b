"""Is the suggested file as good as the best? On pictures of scenes that the rule did not see.

    python -m bench.suggestion --runs FOLDER

Reads the runs with class images that `python -m bench.evaluation --only runs --runs FOLDER` made:
eight saves each. The rule sees what a user with four images has: pictures compared with those
images. The judge is the likeness of pictures drawn for the captions of four other scenes, from
other noise, to these scenes.
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.short_runs import Save, ShortRun, read
from bench.tiny import Figure

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.encoders import load_encoders
from konomi.evaluation.encoders.encoder import Encoders
from konomi.evaluation.pictures import Material, Pictures, References
from konomi.evaluation.scorers import SCORERS
from konomi.evaluation.scorers.scorer import Scores
from konomi.evaluation.statistics import estimate
from konomi.evaluation.suggestion import suggest
from konomi.evaluation.summary import Candidate, Summary

CLOSE = 0.98
"""Of the best save's likeness."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One run: what was suggested, and how like the held-out scenes each save draws."""

    name: str
    suggested: int | None
    """Its step; None where every file breaks a limit."""
    refused: Mapping[str, str]
    by_step: Mapping[int, float]

    def share_of_best(self, step: int | None) -> float:
        return 0.0 if step is None else self.by_step[step] / max(self.by_step.values())

    @property
    def last(self) -> int:
        return max(self.by_step)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.suggestion", description=__doc__.split("\n", 1)[0]
    )
    parser.add_argument("--runs", type=Path, required=True, help="where short runs are kept")
    options = parser.parse_args()
    encoders, limits = load_encoders("tiny", "tiny"), SuggestionConfig()
    found = [judged(run, encoders, limits) for run in read(options.runs) if run.kind == "kept"]
    for one in found:
        curve = " ".join(f"{likeness:.2f}" for _, likeness in sorted(one.by_step.items()))
        print(f"  {one.name}: suggested {one.suggested}, held-out likeness by save {curve}")
        for id, why in one.refused.items():
            print(f"    {id} {why}")
    print(f"{'':66} {'measured':>8}   bar")
    print(*figures(found), sep="\n")


def judged(run: ShortRun, encoders: Encoders, limits: SuggestionConfig) -> Judged:
    own = References(run.training, False)

    def scored(pictures: Pictures) -> dict[str, Scores]:
        material = Material(pictures, run.base, own, run.training, encoders)
        ready = [one for one in SCORERS if getattr(one, "available", lambda: True)()]
        return {one.name: values for one in ready if (values := one.score(material))}

    base = scored(run.base)
    by_save = {str(save.step): scored(save.pictures) for save in run.saves}
    candidates = [
        Candidate(
            id=id, label=f"step {id}", method="base" if id == "base" else "lora", file=id,
            run="" if id == "base" else "run", step=0 if id == "base" else int(id), weight=1.0,
            bytes=1, pictures={},
            scores={
                name: estimate(values, None if id == "base" else base.get(name))
                for name, values in scores.items()
            },
        )
        for id, scores in (("base", base), *by_save.items())
    ]  # fmt: skip
    summary = Summary(
        "tiny", run.base.prompts, run.base.seeds, len(run.training), False, {}, (),
        tuple(candidates), None,
    )  # fmt: skip
    choice = suggest(summary, limits, scores=by_save)
    suggested = int(choice.id) if choice.id else None
    by_step = {save.step: _likeness(save, run, encoders) for save in run.saves}
    return Judged(run.name, suggested, choice.refused, by_step)


def _likeness(save: Save, run: ShortRun, encoders: Encoders) -> float:
    """Mean cosine of each picture of a scene's caption to that scene."""
    truth = encoders.image.features(list(run.held_out)).double()
    drawn = encoders.image.features(list(save.scenes.images.values())).double()
    pairs = zip(save.scenes.images, drawn, strict=True)
    return statistics.mean(float(features @ truth[place[0]]) for place, features in pairs)


def figures(found: list[Judged]) -> list[Figure]:
    shares = [one.share_of_best(one.suggested) for one in found]
    named = [one for one in found if one.suggested is not None]
    rises = [one.by_step[one.suggested or 0] - one.by_step[one.last] for one in named]
    return [
        Figure(
            f"{len(found)} runs: suggested within 2 % of the best of {len(found[0].by_step)}",
            statistics.mean(share >= CLOSE for share in shares), "{:.0%}", 0.9,
        ),
        Figure("  with a suggestion", len(named) / len(found), "{:.0%}"),
        Figure("  suggested / best, mean", statistics.mean(filter(None, shares)), "{:.3f}"),
        Figure(
            "  last / best, mean",
            statistics.mean(one.share_of_best(one.last) for one in found), "{:.3f}",
        ),
        Figure("  suggested minus last, mean", statistics.mean(rises), "{:+.3f}", 0.0),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
