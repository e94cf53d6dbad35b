"""Images that hurt: the curve against what it was made from, the chance of a false alarm, and runs
with a picture that does not belong.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from konomi.data.loader import image_number
from konomi.data.manifest import Manifest, Record, write_manifest
from konomi.errors import RunError
from konomi.evaluation.images_that_hurt import (
    image_losses,
    judge,
    lowess,
    outliers,
    residuals,
)
from konomi.evaluation.page.texts import Words
from konomi.evaluation.page.training_part import training_page
from konomi.storage.tensor_file import write_tensors
from konomi.training.parentage import Change, Origin, write_origins


def curve(t):
    """As the logarithm of a loss falls with the timestep."""
    return -4.0 + 4.2 * np.exp(-t / 250.0) + 0.3 * np.sin(t / 200.0)


def test_the_curve_is_found_under_noise_and_gross_errors():
    random = np.random.default_rng(1)
    t = random.uniform(0, 999, 2000)
    y = curve(t) + random.normal(0, 0.1, len(t))
    y[::10] += 2.0
    inside = (t > 30) & (t < 970)
    error = np.abs(lowess(t, y, robust=3) - curve(t))[inside]
    assert error.max() < 0.12 and error.mean() < 0.05
    # Without robustness a tenth of gross errors of 2 lifts it by 0.2.
    assert np.mean(lowess(t, y, robust=0) - curve(t)) == pytest.approx(0.2, abs=0.05)


def test_a_straight_line_is_kept_exactly():
    t = np.linspace(0, 1, 200)
    assert np.allclose(lowess(t, 3 * t - 1, robust=2), 3 * t - 1, atol=1e-9)


def test_residuals_are_the_images_own_part_with_its_error():
    random = np.random.default_rng(2)
    images = np.tile(np.arange(8), 100)
    own = np.linspace(-0.3, 0.3, 8)
    t = random.uniform(0, 999, len(images))
    found = residuals(t, curve(t) + own[images] + random.normal(0, 0.2, len(t)), images)
    means = np.array([found[k][0] for k in range(8)])
    errors = np.array([found[k][1] for k in range(8)])
    assert np.all(np.abs(means - own) < 4 * errors)
    assert errors == pytest.approx(np.hypot(0.2, own.std()) / 10, rel=0.35)
    assert [found[k][2] for k in range(8)] == [100] * 8


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, 15])
def test_false_alarms_are_as_rare_as_promised(count):
    random = np.random.default_rng(3)
    rounds, alarms = 150, 0
    for number in range(rounds):
        details = random.normal(0, 0.4, count)
        means = 0.8 * details + random.normal(0, 0.15, count)
        alarms += any(chance <= 0.02 for _, chance in judge(means, details, seed=number))
    # 2 %: 3 of 150 expected, 9 or more in one of 300 such tests.
    assert alarms < 9


def test_a_picture_that_does_not_belong_stands_out_and_a_detailed_one_does_not():
    random = np.random.default_rng(4)
    details = np.append(random.normal(0, 0.3, 15), 3.0)
    means = 0.8 * details + random.normal(0, 0.08, 16)
    assert min(chance for _, chance in judge(means, details)) > 0.02
    means[4] += 0.8
    judged = judge(means, details)
    assert [k for k, (_, chance) in enumerate(judged) if chance <= 0.02] == [4]
    assert judged[4][0] == pytest.approx(0.8, abs=0.25)


@pytest.fixture
def make_run(tmp_path):
    def make(extra):
        """A run of twelve alike pictures; the loss of the fifth is higher by exp(extra)."""
        random = np.random.default_rng(5)
        records = []
        for number in range(12):
            path = tmp_path / f"{number}.png"
            pixels = random.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            records.append(
                Record(
                    locator=str(path), name=path.name, role="train", repeats=1, width=32,
                    height=32, content=f"{number:064x}", captions=(f"picture {number}",),
                )
            )  # fmt: skip
        numbers = np.array([image_number(record) for record in records])
        which = np.tile(np.arange(12), 40)
        t = random.uniform(0, 999, len(which))
        own = random.normal(0, 0.05, 12)
        own[4] += extra
        loss = np.exp(curve(t) + own[which] + random.normal(0, 0.2, len(which)))
        columns = {
            "step": torch.arange(len(which), dtype=torch.int32),
            "image": torch.tensor(numbers[which]),
            "timestep": torch.tensor(t, dtype=torch.float32),
            "loss": torch.tensor(loss, dtype=torch.float32),
        }
        run = tmp_path / "run"
        (run / "checkpoints" / "step-000480").mkdir(parents=True)
        write_tensors(run / "checkpoints" / "step-000480" / "losses.safetensors", columns)
        write_manifest(Manifest(tuple(records)), run / "manifest.jsonl")
        return run

    return make


def test_a_run_names_its_outliers_with_path_caption_and_excess(make_run):
    (found,) = outliers(make_run(0.7))
    assert (found.name, found.caption, found.sightings) == ("4.png", "picture 4", 40)
    assert found.path.endswith("4.png")
    assert found.excess == pytest.approx(np.expm1(0.7), rel=0.2) and 0 < found.error < 0.1


def test_the_page_of_a_run_shows_it_and_the_tree(make_run):
    run = make_run(0.7)
    write_origins(run, [Origin("../first", 100, (Change("run.seed", 0, 7),))])
    page = training_page(run, Words("en"))
    (shown,) = page.hurting
    assert shown.name == "4.png" and shown.picture is not None and "picture 4" in shown.text
    assert [(row.label, row.depth, row.here) for row in page.tree] == [
        ("first", 0, False), ("run", 1, True),
    ]  # fmt: skip
    assert page.tree[0].text == "no longer there"
    assert page.tree[1].text == "from step 100 on, run.seed = 7, step 480 reached"


def test_an_ordinary_run_lists_nothing_and_judges_all(make_run):
    run = make_run(0.0)
    assert outliers(run) == () and len(image_losses(run)) == 12


def test_a_run_without_losses_is_told(tmp_path):
    with pytest.raises(RunError, match="noted no losses"):
        outliers(tmp_path)
