"""The small bases against diffusers' and transformers' own modules on the same weights."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from konomi.config.sections import MemoryConfig, TextConfig
from konomi.diffusion.conditioning import Conditioning
from konomi.errors import ModelError
from konomi.models.base import BaseModel, Part
from konomi.models.latent_diffusion import LatentDiffusion
from konomi.models.memory import apply_memory_options, temporarily_loaded
from konomi.models.random_base import random_base
from konomi.models.tokenizer import build_tokenizer
from twins import transformers_text

FAMILIES = ("sd1", "sd2", "sdxl")


def conditioning_for(base: LatentDiffusion, batch: int = 2) -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    width = base.source.configs["unet"]["cross_attention_dim"]
    states = torch.randn(batch, 77, width, generator=generator)
    pooled = sizes = inpaint = None
    if base.spec.denoiser.reads_sizes:
        pooled = torch.randn(
            batch, base.source.configs["text_encoder_2"]["projection_dim"], generator=generator
        )
        sizes = torch.tensor([[64, 48, 3, 5, 64, 64]] * batch)
    if base.inpainting:
        inpaint = torch.randn(batch, 5, 8, 8, generator=generator)
    return Conditioning(states, pooled, sizes, inpaint)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("inpainting", [False, True])
def test_predict_equals_diffusers(family: str, inpainting: bool) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    base = random_base(family, inpainting=inpainting)
    oracle = UNet2DConditionModel.from_config(dict(base.source.configs["unet"]))
    oracle.load_state_dict(base.state("denoiser"))
    conditioning = conditioning_for(base)
    noisy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    timesteps = torch.tensor([3, 977])
    inputs = (
        noisy if conditioning.inpaint is None else torch.cat([noisy, conditioning.inpaint], dim=1)
    )
    added: dict[str, Any] | None = None
    if family == "sdxl":
        assert conditioning.sizes is not None
        added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes.float()}
    with torch.no_grad():
        ours = base.predict(noisy, timesteps, conditioning)
        theirs = oracle(
            inputs, timesteps, encoder_hidden_states=conditioning.states, added_cond_kwargs=added
        ).sample
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_equal_transformers(family: str) -> None:
    base = random_base(family)
    # No exclamation mark: what transformers makes of it where it pads is not what other programs
    # do.
    captions = ["a photo of a cat", "", "東京 café, it's 1999."]
    with torch.no_grad():
        ours = base.encode_captions(captions, TextConfig())
        states, pooled = [], None
        for loaded_encoder in base.loaded_encoders():
            stored = base.source.tokenizer(loaded_encoder.part.replace("text_encoder", "tokenizer"))
            tokenizer = build_tokenizer(stored.vocabulary, pad_token=stored.pad_token)
            ids = tokenizer(
                captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            )
            theirs = transformers_text(
                loaded_encoder.module, base.source.configs[loaded_encoder.part]
            )
            output = theirs(ids.input_ids, output_hidden_states=True)
            if family == "sdxl":
                states.append(output.hidden_states[-2])
            else:
                states.append(output.last_hidden_state)
            pooled = output.text_embeds if loaded_encoder.part == "text_encoder_2" else None
    torch.testing.assert_close(ours.states, torch.cat(states, dim=-1), rtol=0, atol=2e-6)
    assert (ours.pooled is None) == (family != "sdxl")
    if pooled is not None:
        torch.testing.assert_close(ours.pooled, pooled, rtol=0, atol=2e-6)


def test_images_equal_diffusers() -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    base = random_base("sdxl")
    pixels = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    theirs: Any = AutoencoderKL.from_config(base.source.configs["vae"])
    theirs.eval().load_state_dict(base.vae.state_dict())
    with torch.no_grad():
        latents = base.encode_images(pixels)
        distribution = theirs.encode(pixels).latent_dist
        assert torch.equal(latents.mean, distribution.mean * 0.13025)
        assert torch.equal(latents.std, distribution.std * 0.13025)
        assert torch.equal(
            base.decode_latents(latents.mean), theirs.decode(latents.mean / 0.13025).sample
        )
    assert latents.mean.shape == (2, 4, 8, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_vae_keeps_its_precision_inside_autocast(dtype: torch.dtype) -> None:
    """A whole model is trained inside autocast, which would take SDXL's float32 VAE back to half
    precision.
    """
    base = random_base("sdxl")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    alone = base.encode_images(pixels)
    drawn = base.decode_latents(alone.mean)
    with torch.autocast("cpu", dtype=dtype):
        inside = base.encode_images(pixels)
        assert torch.equal(inside.mean, alone.mean)
        assert torch.equal(inside.std, alone.std)
        assert torch.equal(base.decode_latents(alone.mean), drawn)


def test_a_sound_vae_that_overflows_in_half_precision_is_not_called_damaged() -> None:
    base = random_base("sdxl")
    # Activations beyond 65504: float32 holds them, float16 does not.
    base.vae.encoder.conv_in.weight.data.mul_(1e6)  # type: ignore[union-attr, operator]
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.autocast("cpu", dtype=torch.float16):
        assert bool(torch.isfinite(base.encode_images(pixels).mean).all())


def test_what_is_loaded_for_now_goes_again() -> None:
    base = random_base("sd1")
    base.select_layers("attention")
    with temporarily_loaded(base, MemoryConfig()):
        base.encode_captions(["a"], TextConfig())
        assert "text_encoder" in base.loaded_parts()
    assert base.loaded_parts() == ("denoiser",)
    with temporarily_loaded(base, MemoryConfig(offload=False)):
        base.encode_captions(["a"], TextConfig())
    assert "text_encoder" in base.loaded_parts()


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_load_when_first_used(family: str) -> None:
    base = random_base(family)
    assert base.loaded_parts() == ()
    assert "text_encoder" in list(base.text_encoders)
    assert base.loaded_parts() == ()
    base.select_layers("attention")
    assert base.loaded_parts() == ("denoiser",)
    before = base.state("denoiser")["conv_in.weight"].clone()
    base.unload("denoiser")
    assert base.loaded_parts() == ()
    assert torch.equal(base.state("denoiser")["conv_in.weight"], before)


def test_random_bases_repeat_and_leave_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (random_base("sd1", seed=seed).state("denoiser") for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first["conv_in.weight"], second["conv_in.weight"])
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def counts(base: BaseModel) -> dict[str, int]:
    tokens = (
        "attention",
        "attention.kv",
        "cross_attention",
        "cross_attention.kv",
        "feed_forward",
        "projection",
        "text",
    )
    return {word: len(base.select_layers(word)) for word in (*tokens, "transformer", "conv")}


def test_target_words_count_what_the_architecture_has() -> None:
    # 7 transformers: 2 down levels x 1, the middle, 2 up levels x 2; with one block each.
    transformers = 2 * 1 + 1 + 2 * 2
    resnets = 3 + 2 + 3 * 2
    found = counts(random_base("sd1"))
    assert found["attention"] == transformers * 8
    assert found["attention.kv"] == transformers * 4
    assert found["cross_attention"] == transformers * 4
    assert found["cross_attention.kv"] == transformers * 2
    assert found["feed_forward"] == found["projection"] == transformers * 2
    assert found["transformer"] == transformers * (8 + 2 + 2)
    shortcuts = (
        1 + 3 * 2
    )  # one where a down block widens, and every block of an up path takes a skip
    assert found["conv"] == resnets * 3 + shortcuts + 2 + 2
    assert found["text"] == 3 * 6
    assert counts(random_base("sdxl"))["text"] == 2 * 3 * 6


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_and_module_agree(family: str) -> None:
    base = random_base(family)
    for word in ("transformer", "conv", "text"):
        for key, module in base.select_layers(word).items():
            assert base.module(key) is module
    assert all(".text_model.encoder." in key for key in base.select_layers("text"))
    state = base.state("text_encoder")
    assert all(name.startswith("text_model.") for name in state)


def test_full_size_targets_are_kohyas_counts() -> None:
    # sd-scripts trains 192 modules of SD1's transformers and 722 of SDXL's.
    from konomi.models.parts import empty_part

    for family, expected in (("sd1", 192), ("sd2", 192), ("sdxl", 722)):
        base = random_base(family, size="full")
        config = base.source.configs["unet"]
        module = empty_part(base.architecture, base.spec.denoiser, config, where="test")
        pattern = base.spec.denoiser.selectors["transformer"]
        linear = [
            path
            for path, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        ]
        assert sum(pattern.fullmatch(path) is not None for path in linear) == expected


def test_unknown_words_and_keys_are_refused() -> None:
    base = random_base("sd1")
    with pytest.raises(ModelError, match=r"'attn'.*cross_attention\.kv"):
        base.select_layers("attn")
    with pytest.raises(ModelError, match=r"has no layer denoiser\.down_blocks\.9"):
        base.module("denoiser.down_blocks.9.conv")
    with pytest.raises(ModelError, match="has no part 'text_encoder_2'"):
        base.module("text_encoder_2.text_model.x")
    with pytest.raises(ModelError, match="no model family 'sd4'"):
        random_base("sd4")
    with pytest.raises(ModelError, match="needs a mask"):
        random_base("sd1", inpainting=True).predict(
            torch.zeros(1, 4, 8, 8), torch.tensor([1]), Conditioning(torch.zeros(1, 77, 32))
        )


def test_place_keeps_sdxls_vae_and_trained_parts_in_float32() -> None:
    base = random_base("sdxl")
    base.denoiser  # noqa: B018 (loads it: `place` must move what is there)
    base.place("cpu", torch.bfloat16, float32_parts=("text_encoder",))
    dtypes: dict[Part, torch.dtype] = {
        part: next(iter(base.state(part).values())).dtype
        for part in ("denoiser", "vae", "text_encoder", "text_encoder_2")
    }
    assert dtypes == {
        "denoiser": torch.bfloat16,
        "vae": torch.float32,
        "text_encoder": torch.float32,
        "text_encoder_2": torch.bfloat16,
    }
    assert (
        base.predict(torch.zeros(2, 4, 8, 8), torch.tensor([1, 2]), conditioning_for(base)).dtype
        == torch.bfloat16
    )
    assert not any(parameter.requires_grad for parameter in base.denoiser.parameters())


def test_nan_latents_are_computed_again_in_float32() -> None:
    base = random_base("sd1")
    base.place("cpu", torch.float16)
    vae: Any = base.vae
    # conv_in's activations overflow float16, not float32; the next norm brings them back.
    vae.encoder.conv_in.weight.data.fill_(60000.0)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    latents = base.encode_images(pixels)
    assert torch.isfinite(latents.mean).all()
    assert base.vae_dtype == torch.float32
    assert next(vae.parameters()).dtype == torch.float32


def test_nan_latents_in_float32_are_an_error() -> None:
    base = random_base("sd1")
    vae: Any = base.vae
    vae.quant_conv.weight.data[0] = math.nan
    with pytest.raises(ModelError, match="NaN or infinite latents"):
        base.encode_images(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ModelError, match="was given NaN"):
        base.decode_latents(torch.full((1, 4, 8, 8), math.nan))


def test_fingerprints_follow_weights_and_precision() -> None:
    base, same, other = random_base("sdxl"), random_base("sdxl"), random_base("sdxl", seed=1)
    assert base.fingerprint("vae") == same.fingerprint("vae")
    assert base.fingerprint("text") == same.fingerprint("text")
    assert base.fingerprint("vae") != other.fingerprint("vae")
    assert base.fingerprint("text") != other.fingerprint("text")
    before = base.fingerprint("text")
    base.place("cpu", torch.bfloat16)
    assert base.fingerprint("text") != before
    assert base.loaded_parts() == ()


def test_checkpointing_and_channels_last_change_no_gradient() -> None:
    def gradient(memory: MemoryConfig) -> tuple[torch.Tensor, nn.Module]:
        base = random_base("sd1")
        base.denoiser.requires_grad_(True).train()
        apply_memory_options(base, memory)
        answer = base.predict(torch.ones(1, 4, 8, 8), torch.tensor([9]), conditioning_for(base, 1))
        answer.square().mean().backward()
        weight: Any = base.module("denoiser.mid_block.resnets.0.conv1").weight
        return weight.grad, base.denoiser

    plain, _ = gradient(MemoryConfig())
    saved, module = gradient(MemoryConfig(gradient_checkpointing=True, channels_last=True))
    torch.testing.assert_close(plain, saved.contiguous(), rtol=1e-4, atol=1e-6)
    conv_in: Any = module.get_submodule("conv_in")
    assert conv_in.weight.is_contiguous(memory_format=torch.channels_last)
