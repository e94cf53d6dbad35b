"""Our latents against those of diffusers' pipelines on the same modules, noise and text."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from konomi.config.sections import TextConfig
from konomi.diffusion.noise import zero_terminal_snr
from konomi.diffusion.samplers import SAMPLERS, make_sampler
from konomi.diffusion.variance_preserving import VariancePreserving
from konomi.generation.drawing import PromptEncoder, drawing_of, with_size
from konomi.generation.request import Request
from konomi.generation.sampling import rescale_guidance, sample_latents
from twins import diffusers_scheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXACT = {"rtol": 1e-4, "atol": 1e-4}


def ours(base, request):
    with torch.no_grad():
        return sample_latents(
            base, [drawing_of(base, with_size(base, request), PromptEncoder(base))]
        )


def states(base, prompt):
    with torch.no_grad():
        return base.encode_captions([prompt], TextConfig())


def scheduler(base, request):
    return diffusers_scheduler(request.sampler, base.process.prediction)


def gradient(size=(32, 32)):
    return Image.linear_gradient("L").resize(size).convert("RGB")


def half_mask(size=(32, 32)):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


IN_DIFFUSERS = [name for name in SAMPLERS if name != "lms"]
"""diffusers' LMS wants SciPy."""


@pytest.mark.parametrize("sampler", IN_DIFFUSERS)
@pytest.mark.kernels
def test_txt2img(small, oracle, sampler):
    request = Request(
        prompt="a dog", negative="bad", seed=3, steps=5, guidance=4.0, sampler=sampler
    )
    expected = oracle.text(small, scheduler(small, request))(
        prompt_embeds=states(small, "a dog").states,
        negative_prompt_embeds=states(small, "bad").states,
        num_inference_steps=5, guidance_scale=4.0, height=32, width=32, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


def test_txt2img_without_guidance_is_one_pass(small, oracle):
    request = Request(prompt="a dog", steps=4, guidance=1.0, sampler="ddim", width=24, height=40)
    expected = oracle.text(small, scheduler(small, request))(
        prompt_embeds=states(small, "a dog").states, num_inference_steps=4, guidance_scale=1.0,
        height=40, width=24,
        output_type="latent", generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


@pytest.mark.parametrize("negative", ["bad", ""])
@pytest.mark.kernels
def test_sdxl(small_sdxl, oracle, negative):
    base = small_sdxl
    request = Request(
        prompt="a dog", negative=negative, seed=1, steps=4, guidance=5.0, sampler="euler"
    )
    positive, unwanted = states(base, "a dog"), states(base, negative)
    factor = (
        0.0 if negative == "" else 1.0
    )  # The published configuration zeroes the empty negative prompt.
    pipeline = oracle.sdxl(base, scheduler(base, request))
    pipeline.default_sample_size, pipeline.vae_scale_factor = 16, 2
    expected = pipeline(
        prompt_embeds=positive.states, pooled_prompt_embeds=positive.pooled,
        negative_prompt_embeds=unwanted.states * factor,
        negative_pooled_prompt_embeds=unwanted.pooled * factor,
        num_inference_steps=4, guidance_scale=5.0, height=32, width=32, output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(base, request), expected, **EXACT)


@pytest.mark.parametrize("sampler", IN_DIFFUSERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.kernels
def test_img2img(small, oracle, sampler, strength):
    if sampler == "pndm" and strength < 1:
        pytest.skip("diffusers tells its denoiser the wrong level there")
    request = Request(
        prompt="a dog", negative="bad", seed=2, steps=6, guidance=3.0, sampler=sampler,
        init=gradient(),
        strength=strength,
    )  # fmt: skip
    from konomi.generation.picture_input import init_to_pixels

    with torch.no_grad():
        known = small.encode_images(init_to_pixels(gradient(), 32, 32)).mean
    expected = oracle.image(small, scheduler(small, request))(
        prompt_embeds=states(small, "a dog").states,
        negative_prompt_embeds=states(small, "bad").states, image=known,
        strength=strength, num_inference_steps=6, guidance_scale=3.0, output_type="latent",
        generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


@pytest.fixture
def without_vae_noise(small, small_inpainting, monkeypatch):
    """diffusers samples the VAE's distribution; we take its mean."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean
    )


@pytest.mark.usefixtures("without_vae_noise")
@pytest.mark.parametrize("base_name", ["small", "small_inpainting"])
@pytest.mark.parametrize(
    ("sampler", "strength"), [("ddim", 1.0), ("ddim", 0.6), ("euler", 0.6), ("euler_a", 1.0)]
)
@pytest.mark.kernels
def test_inpaint(request, oracle, base_name, sampler, strength):
    base = request.getfixturevalue(base_name)
    wanted = Request(
        prompt="a dog", negative="bad", seed=4, steps=5, guidance=3.0, sampler=sampler,
        strength=strength,
        init=gradient(), mask=half_mask(),
    )  # fmt: skip
    expected = oracle.inpaint(base, scheduler(base, wanted))(
        prompt_embeds=states(base, "a dog").states,
        negative_prompt_embeds=states(base, "bad").states,
        image=gradient(), mask_image=half_mask(), strength=strength, num_inference_steps=5,
        guidance_scale=3.0,
        height=32, width=32, output_type="latent", generator=torch.Generator().manual_seed(4),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(base, wanted), expected, **EXACT)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.kernels
def test_zero_terminal_snr_is_drawn_as_diffusers_does(small, oracle, monkeypatch, rescale):
    """Rescaled schedule, trailing timesteps, guidance rescale."""
    monkeypatch.setattr(
        small, "process", VariancePreserving(zero_terminal_snr(small.process.schedule), "v")
    )
    monkeypatch.setattr(small, "guidance_rescale", 0.7)
    chosen = None if rescale else 0.0
    request = Request(
        prompt="a dog",
        negative="bad",
        seed=3,
        steps=6,
        guidance=9.0,
        sampler="euler",
        guidance_rescale=chosen,
    )
    theirs = diffusers_scheduler("euler", "v", zero_terminal_snr=True)
    expected = oracle.text(small, theirs)(
        prompt_embeds=states(small, "a dog").states,
        negative_prompt_embeds=states(small, "bad").states,
        num_inference_steps=6, guidance_scale=9.0, guidance_rescale=rescale, height=32, width=32,
        output_type="latent", generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


def test_guidance_rescale_is_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    guided, with_prompt = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    expected = rescale_noise_cfg(guided, with_prompt, guidance_rescale=0.3)
    torch.testing.assert_close(rescale_guidance(guided, with_prompt, 0.3), expected, rtol=0, atol=0)


@pytest.mark.parametrize("sampler", ["heun", "pndm", "ddim"])
def test_a_prompt_switches_between_steps_not_between_evaluations(small, sampler):
    request = with_size(
        small, Request(prompt="[cat:dog:2]", steps=4, sampler=sampler, guidance=1.0)
    )
    with torch.no_grad():
        told = drawing_of(small, request, PromptEncoder(small)).positive
    steps = make_sampler(sampler, small.process.schedule, "epsilon", num_steps=4).steps
    assert [one is told[0] for one in told] == [step < 2 for step in steps]


def test_a_scheduled_prompt_changes_only_its_steps(small):
    plain = Request(prompt="cat", steps=4, sampler="ddim")
    assert torch.equal(ours(small, replace(plain, prompt="[cat:dog:1.0]")), ours(small, plain))
    assert torch.equal(ours(small, replace(plain, prompt="[dog:cat:0]")), ours(small, plain))
    switched = ours(small, replace(plain, prompt="[cat:dog:0.5]"))
    assert not torch.allclose(switched, ours(small, plain), atol=1e-4)
    assert not torch.allclose(switched, ours(small, replace(plain, prompt="dog")), atol=1e-4)
