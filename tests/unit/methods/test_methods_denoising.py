"""The loss and its options against formulas written out in float64, with a denoiser that answers a
known function.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from konomi.config.recipe import Recipe
from konomi.config.sections import ObjectiveConfig, TextConfig
from konomi.data.batch import Batch, Examples, Latents
from konomi.diffusion.conditioning import Conditioning
from konomi.diffusion.noise import scaled_linear_schedule, zero_terminal_snr
from konomi.diffusion.random import Rng
from konomi.diffusion.variance_preserving import VariancePreserving
from konomi.errors import RecipeError
from konomi.methods.denoising import DenoisingLoss, random_holes, subject_and_prior_loss
from konomi.methods.lora import LoraConfig
from konomi.methods.method import learning_rates

SCHEDULE = scaled_linear_schedule()


class FakeBase(SimpleNamespace):
    """Answers tanh(noisy) and remembers what it was asked."""

    def __init__(self, prediction="epsilon", **options):
        super().__init__(
            name="fake",
            process=VariancePreserving(SCHEDULE, prediction),
            device=torch.device("cpu"),
            inpainting=False,
            **options,
        )

    def predict(self, noisy_latents, timesteps, conditioning):
        self.asked = noisy_latents, timesteps, conditioning
        self.batches = [*getattr(self, "batches", ()), len(noisy_latents)]
        return torch.tanh(noisy_latents)

    def with_sizes(self, conditioning, sizes):
        return conditioning


def examples(count=3, mask=None):
    g = torch.Generator().manual_seed(1)
    return Examples(
        names=("a", "b", "c")[:count],
        sample_ids=torch.arange(count),
        captions=("",) * count,
        sizes=torch.zeros(count, 6, dtype=torch.int64),
        latents=Latents(
            torch.randn(count, 4, 6, 6, generator=g), torch.full((count, 4, 6, 6), 0.3)
        ),
        text=Conditioning(torch.zeros(count, 77, 8)),
        loss_mask=mask,
    )


def loss_of(base, objective, batch, step=0):
    recipe = Recipe(base="fake", method=LoraConfig(), objective=objective, text=TextConfig())
    return DenoisingLoss(base, recipe).per_example(batch, Rng.for_step(0, step))


def expected(base, objective, batch, step=0):
    """The definition, in float64, from the same draws."""
    rng = Rng.for_step(0, step).for_samples(batch.sample_ids)
    shape = batch.latents.mean.shape[1:]
    z0 = (batch.latents.mean + batch.latents.std * rng.fork("latents").normal(shape)).double()
    noise = rng.fork("noise").normal(shape).double()
    if objective.noise_offset:
        noise = noise + objective.noise_offset * rng.fork("offset").normal((4, 1, 1)).double()
    t = rng.fork("timestep").integers(objective.min_timestep, objective.max_timestep + 1)
    a2 = SCHEDULE.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
    a, s = a2.sqrt(), (1 - a2).sqrt()
    inputs = noise
    if objective.input_perturbation:
        inputs = (
            noise + objective.input_perturbation * rng.fork("perturbation").normal(shape).double()
        )
    noise_pred = torch.tanh(a * z0 + s * inputs)
    wanted = {"epsilon": noise, "v": a * noise - s * z0, "sample": z0}[base.process.prediction]
    difference = (noise_pred - wanted).abs()
    delta = objective.huber_delta
    loss = {
        "mse": difference**2,
        "l1": difference,
        "huber": torch.where(
            difference < delta, difference**2, 2 * delta * (difference - delta / 2)
        ),
    }[objective.loss]
    if batch.loss_mask is not None and objective.masked:
        loss = loss * batch.loss_mask
    loss = loss.flatten(1).mean(1)
    snr = (a2 / (1 - a2)).flatten()
    gamma = torch.full_like(snr, objective.snr_gamma)
    weights = {
        ("none", base.process.prediction): torch.ones_like(snr),
        ("min_snr", "epsilon"): torch.minimum(snr, gamma) / snr,
        ("min_snr", "v"): torch.minimum(snr, gamma) / (snr + 1),
        ("min_snr", "sample"): torch.minimum(snr, gamma),
        ("debiased", "epsilon"): snr.clamp(max=1000) ** -0.5,
        ("debiased", "v"): 1 / (snr.clamp(max=1000) + 1),
    }[objective.weighting, base.process.prediction]
    return loss * weights


OPTIONS = [
    {},
    {"loss": "huber", "huber_delta": 0.5},
    {"loss": "l1"},
    {"noise_offset": 0.1},
    {"input_perturbation": 0.2},
    {"weighting": "min_snr"},
    {"weighting": "min_snr", "snr_gamma": 1.0},
    {"weighting": "debiased"},
    {"min_timestep": 100, "max_timestep": 110},
]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())) or "plain"
)
def test_equals_its_definition(options, prediction):
    base, objective = FakeBase(prediction), ObjectiveConfig(**options)
    for step in range(4):
        torch.testing.assert_close(
            loss_of(base, objective, examples(), step).double(),
            expected(base, objective, examples(), step),
            rtol=1e-4,
            atol=1e-6,
        )


def test_mask_weighs_cells_and_can_be_ignored():
    mask = torch.zeros(3, 1, 6, 6)
    mask[:, :, :3] = 1.0
    mask[0] = 0.25
    base, batch = FakeBase(), examples(mask=mask)
    torch.testing.assert_close(
        loss_of(base, ObjectiveConfig(), batch).double(),
        expected(base, ObjectiveConfig(), batch),
        rtol=1e-4,
        atol=1e-6,
    )
    ignored = loss_of(base, ObjectiveConfig(masked=False), batch)
    torch.testing.assert_close(
        ignored, loss_of(base, ObjectiveConfig(), replace(batch, loss_mask=None))
    )


def test_a_sample_draws_the_same_alone_and_in_a_batch():
    base, batch = FakeBase(), examples()
    together = loss_of(base, ObjectiveConfig(noise_offset=0.1), batch)
    for i in range(3):
        one = Examples(
            names=batch.names[i : i + 1],
            sample_ids=batch.sample_ids[i : i + 1],
            captions=("",),
            sizes=batch.sizes[i : i + 1],
            latents=Latents(batch.latents.mean[i : i + 1], batch.latents.std[i : i + 1]),
            text=batch.text[i : i + 1],
        )
        assert torch.equal(
            loss_of(base, ObjectiveConfig(noise_offset=0.1), one), together[i : i + 1]
        )


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, [5]),
        ({"latents": Latents(torch.randn(2, 4, 6, 8), torch.full((2, 4, 6, 8), 0.3))}, [3, 2]),
        ({"text": Conditioning(torch.zeros(2, 154, 8))}, [3, 2]),
        ({"text": Conditioning(torch.zeros(2, 77, 8), pooled=torch.zeros(2, 4))}, [3, 2]),
    ],
    ids=["alike", "other-size", "longer-text", "with-pooled"],
)
def test_subjects_and_class_images_share_a_pass_where_they_can(change, passes):
    """Each loss is the one it has alone, from the same draws."""
    mask = torch.linspace(0, 1, 36).view(1, 1, 6, 6).expand(3, 1, 6, 6)
    base, objective = FakeBase(), ObjectiveConfig(weighting="min_snr", noise_offset=0.1)
    subject, prior = (
        examples(3, mask),
        replace(examples(2), sample_ids=torch.tensor([7, 8]), **change),
    )
    rng = Rng.for_step(0, 5)
    recipe = Recipe(base="fake", method=LoraConfig(), objective=objective, text=TextConfig())
    denoising = DenoisingLoss(base, recipe)
    alone = denoising(subject, rng), denoising(prior, rng.fork("prior"))
    base.batches = []
    loss = subject_and_prior_loss(denoising, Batch(subject, prior), rng, prior_weight=0.5)
    torch.testing.assert_close(loss, alone[0] + 0.5 * alone[1])
    assert base.batches == passes


def test_timesteps_stay_in_range_and_reach_both_ends():
    base, objective = FakeBase(), ObjectiveConfig(min_timestep=3, max_timestep=5)
    seen = set()
    for step in range(60):
        loss_of(base, objective, examples(), step)
        seen |= set(base.asked[1].tolist())
    assert seen == {3, 4, 5}


def test_an_inpainting_base_gets_a_hole_and_the_masked_image():
    def encode(pixels):
        return Latents(
            torch.nn.functional.avg_pool2d(pixels, 8)[:, :1].expand(-1, 4, -1, -1),
            torch.zeros(3, 4, 6, 6),
        )

    base = FakeBase(encode_images=encode)
    base.inpainting = True
    pixels = torch.full((3, 3, 48, 48), 0.5)
    loss_of(base, ObjectiveConfig(), replace(examples(), pixels=pixels))
    inpaint = base.asked[2].inpaint
    assert inpaint.shape == (3, 5, 6, 6)
    hole, masked = inpaint[:, :1], inpaint[:, 1:]
    assert set(hole.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(masked, (0.5 * (1 - hole)).expand(-1, 4, -1, -1))


def test_holes_are_rectangles_of_useful_size():
    holes = random_holes(Rng(torch.arange(400)), 16, 24)
    shares = holes.mean((1, 2, 3))
    assert (shares == 1).float().mean() == pytest.approx(0.25, abs=0.08)
    assert shares.min() > 0.02
    for hole in holes[:50, 0]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole.bool(), rows[:, None] & columns[None])


def test_combinations_that_cannot_work_are_refused():
    with pytest.raises(RecipeError, match="zero_terminal_snr"):
        loss_of(FakeBase(), ObjectiveConfig(zero_terminal_snr=True), examples())
    with pytest.raises(RecipeError, match="min_timestep"):
        loss_of(FakeBase(), ObjectiveConfig(min_timestep=9, max_timestep=3), examples())


def test_zero_terminal_snr_is_trained_on_and_leaves_the_base_its_schedule():
    ours, rescaled = FakeBase("v"), FakeBase("v")
    rescaled.process = VariancePreserving(zero_terminal_snr(SCHEDULE), "v")
    last = {"min_timestep": 999, "max_timestep": 999}
    loss = loss_of(ours, ObjectiveConfig(zero_terminal_snr=True, **last), examples())
    torch.testing.assert_close(loss, loss_of(rescaled, ObjectiveConfig(**last), examples()))
    assert not torch.allclose(
        loss, loss_of(FakeBase("v"), ObjectiveConfig(**last), examples()), rtol=1e-4
    )
    assert ours.process.schedule is SCHEDULE


def test_zero_terminal_snr_ends_in_pure_noise():
    schedule = zero_terminal_snr(SCHEDULE)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.alphas_cumprod[0] == pytest.approx(SCHEDULE.alphas_cumprod[0].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, (1e-4, 5e-5)),
        ({"learning_rate": 2e-3}, (2e-3, 1e-3)),
        ({"learning_rate": 2e-3, "text_learning_rate": 1e-6}, (2e-3, 1e-6)),
        ({"kind": "prodigy"}, (1.0, 1.0)),
        ({"kind": "lion"}, (2e-5, 1e-5)),
    ],
)
def test_learning_rates_left_open_suit_method_and_optimiser(options, rates):
    from konomi.config.sections import OptimizerConfig

    assert learning_rates(OptimizerConfig(**options), 1e-4) == pytest.approx(rates)
