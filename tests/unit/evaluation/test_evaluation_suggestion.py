"""The rule: limits first, then the best trade-off, then the simplest of the equally good."""

from dataclasses import replace

import numpy as np
import pytest

from konomi.config.suggestion import SuggestionConfig
from konomi.evaluation.prompts import EvaluationPrompt
from konomi.evaluation.statistics import estimate
from konomi.evaluation.suggestion import suggest, trade_off
from konomi.evaluation.summary import Candidate, Estimate, Summary

PROMPTS = (
    EvaluationPrompt("a photo of sks dog", "subject", "a photo of a dog"),
    EvaluationPrompt("a photo of a dog", "class", "a photo of a dog"),
)
LIMITS = SuggestionConfig()


def known(mean: float, base: float | None = None, *, error: float = 0.01, count: int = 16):
    """An estimate of a standard error."""
    reach = 1.96 * error
    rise = None if base is None else (mean - base, mean - base - reach, mean - base + reach)
    return Estimate(mean, mean - reach, mean + reach, base, rise, count)


def file(step: int, likeness: float, *, weight: float = 1.0, run: str = "runs/dog", **scores):
    found = {"likeness": known(likeness, 0.3), "prompt_following": known(0.3, 0.3, error=0.0)}
    found |= {"drift": known(0.1), "leak": known(0.02), "copies": known(0.0)} | scores
    return Candidate(
        id=f"{run}-step{step}@{weight:g}",
        label=f"step {step} at weight {weight:g}",
        method="lora",
        file=f"{run}/dog-{step:06}.safetensors",
        run=run,
        step=step,
        weight=weight,
        bytes=1000,
        scores=found,
        pictures={},
    )


def summary(*candidates: Candidate) -> Summary:
    base = replace(
        file(0, 0.3), id="base", label="base", method="base", file="", run="",
        scores={"likeness": known(0.3), "diversity": known(0.4), "drift": known(0.0)},
    )  # fmt: skip
    return Summary("tiny", PROMPTS, (0, 1), 4, True, {}, (), (base, *candidates), None)


def test_the_earliest_of_the_equally_good_is_kept():
    found = suggest(summary(file(200, 0.5), file(400, 0.715), file(600, 0.72)), LIMITS)
    assert found.id == "runs/dog-step400@1"
    assert found.reason == (
        "step 400 at weight 1: as close to the subject as the last save (0.71 against 0.72), and a "
        "dog is still any dog."
    )
    assert "ステップ 400" in found.reason_ja and "0.72" in found.reason_ja
    assert found.command == (
        "konomi generate 'a photo of sks dog' --base tiny --add runs/dog/dog-000400.safetensors"
    )
    assert found.refused == {}


def test_with_no_tolerance_it_is_the_best():
    files = summary(file(200, 0.5), file(400, 0.715), file(600, 0.72))
    assert suggest(files, replace(LIMITS, tolerance=0)).id == "runs/dog-step600@1"
    assert suggest(files, replace(LIMITS, tolerance=100)).id == "runs/dog-step200@1"


def test_prompt_following_is_weighed_against_likeness():
    early = file(200, 0.6, prompt_following=known(0.32, 0.3))
    late = file(600, 0.65, prompt_following=known(0.24, 0.3))
    assert trade_off(early, LIMITS) == pytest.approx(0.6 * 0.32**0.5)
    assert suggest(summary(early, late), LIMITS).id == early.id
    assert suggest(summary(early, late), replace(LIMITS, prompt_weight=0)).id == late.id


@pytest.mark.parametrize(
    "scores, words",
    [
        ({"copies": known(0.125)}, "copies training pictures (2 of 16)"),
        ({"leak": known(0.3)}, "appear without being called (nearer by 0.30, at most 0.14)"),
        ({"preservation": known(0.6, 0.2)}, "appear without being called (nearer by 0.40"),
        ({"drift": known(0.45)}, "changes other pictures (0.45, at most 0.40)"),
        ({"likeness": known(0.28, 0.3)}, "nearer to the subject than the base"),
    ],
)
def test_a_file_that_breaks_a_limit_is_refused_however_good(scores, words):
    likeness = scores.pop("likeness", known(0.75, 0.3))
    bad = replace(file(600, 0.75), scores=file(600, 0.75, **scores).scores | {"likeness": likeness})
    found = suggest(summary(file(200, 0.5), bad), LIMITS)
    assert found.id == "runs/dog-step200@1"
    assert words in found.refused[bad.id]
    alone = suggest(summary(bad), LIMITS)
    assert alone.id == "" and alone.command == ""
    assert alone.reason.startswith("None can be recommended: ")
    assert ("Train for more steps" in alone.reason) == (likeness.mean < 0.3)
    assert words in alone.reason
    assert "推薦できるものがありません" in alone.reason_ja
    assert not any(word in alone.reason_ja for word in ("copies", "subject", "pictures"))


def test_a_file_that_has_hardly_learned_is_not_refused_for_noise():
    """0.05 is a tenth of what two of the base's pictures differ by, and more."""
    hardly = file(40, 0.31, leak=known(0.03))
    assert suggest(summary(hardly), LIMITS).id == hardly.id
    assert suggest(summary(file(40, 0.31, leak=known(0.05))), LIMITS).id == ""


def test_a_last_save_that_copies_is_named():
    copying = file(600, 0.75, copies=known(0.5))
    found = suggest(summary(file(200, 0.6), copying), LIMITS)
    assert "likeness 0.60; the last (0.75) copies training pictures (8 of 16)" in found.reason
    assert "最後の保存(0.75)は推薦できません(学習画像" in found.reason_ja


def test_the_least_bad_is_the_one_least_beyond_its_limit():
    some, more = file(200, 0.6, drift=known(0.5)), file(400, 0.6, drift=known(0.9))
    found = suggest(summary(more, some), LIMITS)
    assert "The least bad, step 200 at weight 1," in found.reason


def test_failed_files_are_no_choice():
    failed = replace(file(600, 0.9), failure="its file is damaged.", scores={})
    found = suggest(summary(file(200, 0.6), failed), LIMITS)
    assert found.id == "runs/dog-step200@1" and found.refused[failed.id] == "its file is damaged."
    nothing = suggest(summary(failed), LIMITS)
    assert "no file could be measured" in nothing.reason and nothing.id == ""
    assert suggest(summary(), LIMITS).id == ""


def test_between_runs_the_smallest_of_the_equally_good_is_kept():
    small = replace(file(900, 0.715, run="runs/embedding"), bytes=10)
    large = file(300, 0.72, run="runs/lora")
    assert suggest(summary(large, small), LIMITS).id == small.id
    assert suggest(summary(large, small), replace(LIMITS, prefer="earliest")).id == large.id


def test_the_lower_weight_of_the_equally_good_is_kept():
    strong, weak = file(400, 0.72, weight=1.0), file(400, 0.715, weight=0.7)
    found = suggest(summary(strong, weak), LIMITS)
    assert found.id == weak.id and found.command.endswith(".safetensors:0.7")


def test_pictures_at_hand_tell_files_apart_that_intervals_do_not():
    """Prompts differ by far more than the two files do, which are the same 0.02 apart on each."""
    of_prompts = np.random.default_rng(0).normal(size=(6, 1)) * 0.1 + 0.6
    tables = {"a": of_prompts + np.zeros((1, 4)), "b": of_prompts + 0.02 + np.zeros((1, 4))}
    tables["b"][0, 0] += 0.001
    scores = {
        name: {"likeness": {place: float(v) for place, v in np.ndenumerate(table)}}
        for name, table in tables.items()
    }
    files = [
        replace(file(step, 0.6), id=name, scores={"likeness": estimate(table["likeness"], None)})
        for step, (name, table) in zip((200, 600), scores.items())
    ]
    assert suggest(summary(*files), LIMITS).id == "a"
    assert suggest(summary(*files), LIMITS, scores=scores).id == "b"


def test_a_run_of_the_whole_model_is_used_as_a_base():
    found = suggest(summary(replace(file(200, 0.6), whole_model=True)), LIMITS)
    assert found.command == (
        "konomi generate 'a photo of sks dog' --base runs/dog/dog-000200.safetensors"
    )


def test_a_rise_that_may_be_chance_is_called_so():
    sure = file(400, 0.33, leak=known(0.0))
    uncertain = replace(sure, scores=sure.scores | {"likeness": known(0.33, 0.3, error=0.05)})
    found = suggest(summary(uncertain), LIMITS)
    assert found.id == uncertain.id and found.reason.count("may be chance") == 1
    assert "偶然" in found.reason_ja
    assert "chance" not in suggest(summary(sure), LIMITS).reason
    # 0.09 +- 0.098 reaches below 0; its limit to one side, 0.09 - 0.082, does not.
    nearly = replace(sure, scores=sure.scores | {"likeness": known(0.39, 0.3, error=0.05)})
    assert "chance" not in suggest(summary(nearly), LIMITS).reason


def test_what_knows_its_training_pictures_by_heart_is_ruled_out_and_said():
    sure, unsure = Estimate(0.98, 0.85, 1.0, 0.5, None, 24), Estimate(1.0, 0.6, 1.0, 0.5, None, 9)
    files = [
        file(200, 0.6, memorisation=unsure),
        file(400, 0.7, memorisation=sure),
        file(600, 0.8, copies=known(0.25), memorisation=sure),
        file(800, 0.8, drift=known(0.9)),
    ]
    found = suggest(summary(*files), LIMITS)
    assert found.id == files[0].id
    assert found.refused[files[1].id] == (
        "knows its training pictures from others by their loss (AUC 0.98)"
    )
    assert found.reason.endswith(
        "from step 400 on the run knows its training pictures from others by their loss (AUC 0.98)."
    )
    assert "ステップ 400 からは" in found.reason_ja and "AUC 0.98" in found.reason_ja
    # Of the last save all is said beside the likeness.
    assert suggest(summary(*files[:2]), LIMITS).reason.count("AUC") == 1
    allowed = suggest(summary(*files), replace(LIMITS, memorisation=1.0))
    assert allowed.id == files[1].id and "from step 600 on" in allowed.reason
