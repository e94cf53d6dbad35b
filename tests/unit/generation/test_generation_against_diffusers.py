"""Our latents against those of diffusers' pipelines on the same modules, noise and text."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from konomi.config.sections import TextConfig
from konomi.diffusion.samplers import SAMPLERS, make_sampler
from konomi.generation.job import TextCache, prepare, with_size
from konomi.generation.request import Request
from konomi.generation.sampling import sample_latents

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

EXACT = {"rtol": 1e-4, "atol": 1e-4}


def ours(base, request):
    with torch.no_grad():
        return sample_latents(base, [prepare(base, with_size(base, request), TextCache(base))])


def states(base, prompt):
    with torch.no_grad():
        return base.encode_captions([prompt], TextConfig())


def scheduler(base, request):
    return make_sampler(request.sampler, base.schedule, base.prediction, num_steps=request.steps).scheduler


def gradient(size=(32, 32)):
    return Image.linear_gradient("L").resize(size).convert("RGB")


def half_mask(size=(32, 32)):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_txt2img(small, oracle, sampler):
    request = Request(prompt="a dog", negative="bad", seed=3, steps=5, guidance=4.0, sampler=sampler)
    expected = oracle.text(small, scheduler(small, request))(
        prompt_embeds=states(small, "a dog").states, negative_prompt_embeds=states(small, "bad").states,
        num_inference_steps=5, guidance_scale=4.0, height=32, width=32, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    assert expected.std() > 0.01
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


def test_txt2img_without_guidance_is_one_pass(small, oracle):
    request = Request(prompt="a dog", steps=4, guidance=1.0, sampler="ddim", width=24, height=40)
    expected = oracle.text(small, scheduler(small, request))(
        prompt_embeds=states(small, "a dog").states, num_inference_steps=4, guidance_scale=1.0, height=40, width=24,
        output_type="latent", generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


@pytest.mark.parametrize("negative", ["bad", ""])
def test_sdxl(small_sdxl, oracle, negative):
    base = small_sdxl
    request = Request(prompt="a dog", negative=negative, seed=1, steps=4, guidance=5.0, sampler="euler")
    positive, unwanted = states(base, "a dog"), states(base, negative)
    factor = 0.0 if negative == "" else 1.0  # The published configuration zeroes the empty negative prompt.
    pipeline = oracle.sdxl(base, scheduler(base, request))
    pipeline.default_sample_size, pipeline.vae_scale_factor = 16, 2
    expected = pipeline(
        prompt_embeds=positive.states, pooled_prompt_embeds=positive.pooled,
        negative_prompt_embeds=unwanted.states * factor, negative_pooled_prompt_embeds=unwanted.pooled * factor,
        num_inference_steps=4, guidance_scale=5.0, height=32, width=32, output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(base, request), expected, **EXACT)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_img2img(small, oracle, sampler, strength):
    request = Request(
        prompt="a dog", negative="bad", seed=2, steps=6, guidance=3.0, sampler=sampler, init=gradient(),
        strength=strength,
    )  # fmt: skip
    from konomi.generation.picture_input import init_to_pixels

    with torch.no_grad():
        known = small.encode_images(init_to_pixels(gradient(), 32, 32)).mean
    expected = oracle.image(small, scheduler(small, request))(
        prompt_embeds=states(small, "a dog").states, negative_prompt_embeds=states(small, "bad").states, image=known,
        strength=strength, num_inference_steps=6, guidance_scale=3.0, output_type="latent",
        generator=torch.Generator().manual_seed(2),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(small, request), expected, **EXACT)


@pytest.fixture
def without_vae_noise(small, small_inpainting, monkeypatch):
    """diffusers samples the VAE's distribution; we take its mean."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)


@pytest.mark.usefixtures("without_vae_noise")
@pytest.mark.parametrize("base_name", ["small", "small_inpainting"])
@pytest.mark.parametrize(("sampler", "strength"), [("ddim", 1.0), ("ddim", 0.6), ("euler", 0.6), ("euler_a", 1.0)])
def test_inpaint(request, oracle, base_name, sampler, strength):
    base = request.getfixturevalue(base_name)
    wanted = Request(
        prompt="a dog", negative="bad", seed=4, steps=5, guidance=3.0, sampler=sampler, strength=strength,
        init=gradient(), mask=half_mask(),
    )  # fmt: skip
    expected = oracle.inpaint(base, scheduler(base, wanted))(
        prompt_embeds=states(base, "a dog").states, negative_prompt_embeds=states(base, "bad").states,
        image=gradient(), mask_image=half_mask(), strength=strength, num_inference_steps=5, guidance_scale=3.0,
        height=32, width=32, output_type="latent", generator=torch.Generator().manual_seed(4),
    ).images  # fmt: skip
    torch.testing.assert_close(ours(base, wanted), expected, **EXACT)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "pndm"])
def test_our_noise_process_is_stable_diffusions(small, sampler):
    """The scheduler from our schedule equals the one diffusers builds from Stable Diffusion's numbers."""
    made = make_sampler(sampler, small.schedule, "epsilon", num_steps=10).scheduler
    own = {name: value for name, value in made.config.items() if not name.startswith("_")}
    published = {"trained_betas": None, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    known = type(made)(**own | published)
    known.set_timesteps(10)
    torch.testing.assert_close(made.timesteps, known.timesteps)
    torch.testing.assert_close(made.alphas_cumprod, known.alphas_cumprod, rtol=1e-5, atol=1e-7)
    if hasattr(known, "sigmas"):
        torch.testing.assert_close(made.sigmas, known.sigmas, rtol=1e-4, atol=1e-6)


def test_a_scheduled_prompt_changes_only_its_steps(small):
    plain = Request(prompt="cat", steps=4, sampler="ddim")
    assert torch.equal(ours(small, replace(plain, prompt="[cat:dog:1.0]")), ours(small, plain))
    assert torch.equal(ours(small, replace(plain, prompt="[dog:cat:0]")), ours(small, plain))
    switched = ours(small, replace(plain, prompt="[cat:dog:0.5]"))
    assert not torch.allclose(switched, ours(small, plain), atol=1e-4)
    assert not torch.allclose(switched, ours(small, replace(plain, prompt="dog")), atol=1e-4)
