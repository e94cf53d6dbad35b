"""Custom Diffusion against a formulation of its own in float64, and what is particular to it."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from konomi.config.recipe import Recipe
from konomi.config.sections import (
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SourceConfig,
    TextConfig,
)
from konomi.data.batch import Batch, Examples, Latents
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.custom_diffusion import CustomDiffusion, CustomDiffusionConfig
from konomi.models.memory import enable_gradient_checkpointing
from konomi.models.random_base import random_base


def make_examples(
    caption="a photo of a <a> dog next to <b>", count=2, pixels=False, dtype=torch.float32
):
    g = torch.Generator().manual_seed(0)
    side = 8
    return Examples(
        names=("x.png",) * count,
        sample_ids=torch.arange(count),
        captions=(caption,) * count,
        sizes=torch.tensor([[64, 64, 0, 0, 64, 64]] * count),
        latents=Latents(
            torch.randn(count, 4, side, side, generator=g), torch.full((count, 4, side, side), 0.01)
        ),
        pixels=torch.rand(count, 3, 64, 64, generator=g) * 2 - 1 if pixels else None,
    )


def words_of(method):
    """Word -> {part: the parameter that is trained}."""
    found = {}
    for key, vectors in method.tokens.parameters.items():
        part, word = key.split(".", 1)
        found.setdefault(word, {})[part] = vectors
    return found


def make_method(
    family="sd1", words=("<a>", "<b>"), base=None, dtype=torch.float32, objective=None, **config
):
    base = base or random_base(family)
    base.place("cpu", dtype)
    recipe = Recipe(
        base="random",
        method=CustomDiffusionConfig(words=words, **config),
        objective=objective or ObjectiveConfig(),
        run=RunConfig(seed=5, batch_size=2),
        optimizer=OptimizerConfig(),
    )
    method = CustomDiffusion(recipe.method, base, recipe)
    (phase,) = method.plan()
    return base, method, {name: p for group in phase.groups for name, p in group.parameters.items()}


def moved(parameters, scale=0.05):
    """Away from the start, where every change is zero."""
    for index, parameter in enumerate(parameters.values()):
        g = torch.Generator().manual_seed(index)
        parameter.data += scale * torch.randn(parameter.shape, generator=g).to(parameter)


def attention_with_start_detached(module, states, text, changes, path):
    """Cross-attention in plain operations: K and V of the first position are constants."""
    w_k = module.to_k.weight.detach() + changes[f"denoiser.{path}.to_k"]
    w_v = module.to_v.weight.detach() + changes[f"denoiser.{path}.to_v"]
    keys, values = text @ w_k.T, text @ w_v.T
    keys = torch.cat([(text[:, :1] @ w_k.T).detach(), keys[:, 1:]], dim=1)
    values = torch.cat([(text[:, :1] @ w_v.T).detach(), values[:, 1:]], dim=1)
    batch, _, width = states.shape
    heads = module.heads

    def split(x):
        return x.view(batch, -1, heads, width // heads).transpose(1, 2)

    scores = split(module.to_q(states)) @ split(keys).transpose(2, 3) / (width // heads) ** 0.5
    mixed = scores.softmax(-1) @ split(values)
    return module.to_out[0](mixed.transpose(1, 2).reshape(batch, -1, width))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_loss_and_gradients_equal_a_plain_formulation_in_float64(family):
    _, method, parameters = make_method(family, dtype=torch.float64)
    moved(parameters)
    examples = make_examples()
    rng = Rng.for_step(5, 0)
    loss = method.loss(Batch(examples), rng)
    loss.backward()

    other = random_base(family)
    other.place("cpu", torch.float64)
    changes = {
        name.removesuffix(".change"): p.detach().clone().requires_grad_()
        for name, p in parameters.items()
        if name.endswith(".change")
    }
    words = {
        name: {part: vectors.detach().clone().requires_grad_() for part, vectors in parts.items()}
        for name, parts in words_of(method).items()
    }
    for path, module in other.denoiser.named_modules():
        if path.endswith(".attn2"):

            def forward(states, text, module=module, path=path):
                return attention_with_start_detached(module, states, text, changes, path)

            module.forward = forward
    keys = rng.for_samples(examples.sample_ids)
    latents = examples.latents.mean + examples.latents.std * keys.fork("latents").normal((4, 8, 8))
    noise = keys.fork("noise").normal((4, 8, 8))
    timesteps = keys.fork("timestep").integers(0, 1000)
    alphas = other.process.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    text = other.with_sizes(
        other.encode_captions(examples.captions, TextConfig(), tokens=words), examples.sizes
    )
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    wanted = noise.double() if other.process.prediction == "epsilon" else velocity
    expected = functional.mse_loss(other.predict(noisy, timesteps, text), wanted)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for key, change in changes.items():
        ours = parameters[f"{key}.change"].grad
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, change.grad, rtol=1e-4, atol=1e-8)
    for name, parts in words.items():
        for part, vectors in parts.items():
            torch.testing.assert_close(
                words_of(method)[name][part].grad, vectors.grad, rtol=1e-4, atol=1e-8
            )


def test_the_first_position_alone_would_teach_nothing():
    """Gradients of weights and text states leave out what the layers answer there, and nothing
    else.
    """
    base, _, parameters = make_method()
    moved(parameters)
    key, module = next(iter(base.select_layers("cross_attention.kv").items()))
    states = torch.randn(
        2, 77, module.in_features, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    noise_pred = module(states)
    upstream = torch.randn(noise_pred.shape, generator=torch.Generator().manual_seed(2))
    noise_pred.backward(upstream)
    # Closed form: dL/dW is the sum of upstream x state over all positions but the first.
    expected = torch.einsum("bto,bti->oi", upstream[:, 1:], states.detach()[:, 1:])
    torch.testing.assert_close(parameters[f"{key}.change"].grad, expected, rtol=1e-5, atol=1e-5)
    assert not states.grad[:, 0].any() and states.grad[:, 1:].any()
    whole = module.weight + parameters[f"{key}.change"]
    torch.testing.assert_close(noise_pred, states @ whole.T, rtol=1e-5, atol=1e-5)


def test_every_chunk_begins_with_a_position_that_teaches_nothing():
    base, _, _ = make_method()
    module = next(iter(base.select_layers("cross_attention.kv").values()))
    states = torch.ones(1, 154, module.in_features, requires_grad=True)
    module(states).sum().backward()
    assert [t for t in range(154) if not states.grad[0, t].any()] == [0, 77]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_word_learns_the_last_one_too(family):
    _, method, _ = make_method(family, words=("<a>", "<b>", "<c>"))
    method.loss(Batch(make_examples("<a> and <b> and <c>")), Rng.for_step(0, 0)).backward()
    for name, parts in words_of(method).items():
        for vectors in parts.values():
            assert vectors.grad.abs().max() > 0, name


def test_a_word_that_is_not_in_the_batch_is_left_alone():
    _, method, _ = make_method()
    method.loss(Batch(make_examples("a photo of <a>")), Rng.for_step(0, 0)).backward()
    a, b = (words_of(method)[name]["text_encoder"].grad for name in ("<a>", "<b>"))
    assert a.abs().max() > 0 and (b is None or not b.any())


def test_words_start_as_rare_tokens_of_the_base():
    base, method, _ = make_method(words=("<a>", "<b>"))
    # CLIP takes `ktn` apart, so the first is the authors' second.
    for name, token in (("<a>", "pll"), ("<b>", "ucd")):
        torch.testing.assert_close(
            words_of(method)[name]["text_encoder"].detach(),
            base.token_vectors(token)["text_encoder"],
        )
    _, method, _ = make_method(words=("<a>",), initial=("dog",))
    torch.testing.assert_close(
        words_of(method)["<a>"]["text_encoder"].detach(), base.token_vectors("dog")["text_encoder"]
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"words": ("<a>",), "initial": ("dog", "cat")}, "names 2 words; 1"),
        ({"words": ("<a>",), "initial": ("wqzxv",)}, "more than one token"),
        ({"words": ("<a>", "<A>")}, "upper and lower case"),
    ],
)
def test_words_that_cannot_be(config, said):
    with pytest.raises(RecipeError, match=said):
        make_method(**config)


def test_each_source_brings_its_word_and_must():
    sources = tuple(
        SourceConfig(path=f"p{i}", trigger=t) for i, t in enumerate(("<a>", "<b>", "<a>"))
    )
    data = DataConfig(sources=(*sources, SourceConfig(path="q", role="prior")))
    recipe = Recipe(base="random", method=CustomDiffusionConfig(), data=data)
    assert CustomDiffusion(recipe.method, random_base("sd1"), recipe).names == ("<a>", "<b>")
    bare = replace(data, sources=(*sources, SourceConfig(path="p9")))
    with pytest.raises(RecipeError, match=r"p9: .*--trigger WORD"):
        CustomDiffusion(recipe.method, random_base("sd1"), replace(recipe, data=bare))


def test_only_what_was_pasted_counts_and_the_caption_says_how_large():
    """The oracle: pixels pasted by hand, encoded by the base's own VAE, and the mean over the
    cells that count.
    """
    base, method, _ = make_method(objective=ObjectiveConfig(masked=False))
    examples = replace(make_examples(pixels=True), loss_mask=torch.zeros(2, 1, 8, 8))
    from konomi.data.size_variation import draw_size_changes, with_sizes_varied

    step = next(
        s for s in range(50) if all(
            c.factor < 0.99
            for c in draw_size_changes(Rng.for_step(1,
            s).for_samples(examples.sample_ids).fork("size"))
        )
    )  # fmt: skip
    rng = Rng.for_step(1, step)
    loss = method.loss(Batch(examples), rng)

    keys = rng.for_samples(examples.sample_ids)
    varied = with_sizes_varied(
        replace(examples, loss_mask=None), draw_size_changes(keys.fork("size")), latent_factor=8
    )
    with torch.no_grad():
        encoded = base.encode_images(varied.pixels)
        latents = encoded.mean + encoded.std * keys.fork("latents").normal((4, 8, 8))
        noise, timesteps = (
            keys.fork("noise").normal((4, 8, 8)),
            keys.fork("timestep").integers(0, 1000),
        )
        alphas = base.process.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1).float()
        noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        noise_pred = base.predict(
            noisy, timesteps, base.encode_captions(varied.captions, TextConfig())
        )
    counts = varied.loss_mask > 0
    squares = (noise_pred - noise).square()
    expected = torch.stack([squares[i][:, counts[i, 0]].mean() for i in range(2)]).mean()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)


def test_a_batch_in_two_passes_draws_what_the_whole_draws():
    _, method, parameters = make_method()
    moved(parameters)
    whole = make_examples(pixels=True)
    rng = Rng.for_step(5, 3)
    halves = [
        replace(
            whole,
            names=whole.names[i : i + 1],
            captions=whole.captions[i : i + 1],
            sample_ids=whole.sample_ids[i : i + 1],
            sizes=whole.sizes[i : i + 1],
            pixels=whole.pixels[i : i + 1],
            latents=Latents(whole.latents.mean[i : i + 1], whole.latents.std[i : i + 1]),
        )
        for i in range(2)
    ]
    together = method.loss(Batch(whole), rng)
    apart = sum(method.loss(Batch(half), rng) for half in halves) / 2
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["checkpointing", "bf16", "diffusers"])
def test_the_gradient_is_the_same_by_every_way_to_compute(how):
    base, method, parameters = make_method()
    moved(parameters)
    method.loss(Batch(make_examples()), Rng.for_step(0, 0)).backward()
    expected = {name: p.grad.clone() for name, p in parameters.items()}
    other = random_base("sd1")
    if how == "diffusers":
        other._modules["denoiser"] = diffusers_unet(base)
    dtype = torch.bfloat16 if how == "bf16" else torch.float32
    base, method, parameters = make_method(base=other, dtype=dtype)
    moved(parameters)
    if how == "checkpointing":
        enable_gradient_checkpointing(base)
        base.denoiser.train()
    method.loss(Batch(make_examples()), Rng.for_step(0, 0)).backward()
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        if how == "bf16":
            cosine = functional.cosine_similarity(
                parameter.grad.flatten(), expected[name].flatten(), dim=0
            )
            assert cosine > 0.98, name
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


def diffusers_unet(base):
    from diffusers import UNet2DConditionModel

    config = {k: v for k, v in base.source.configs["unet"].items() if not k.startswith("_")}
    unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(base.state("denoiser"))
    return unet.requires_grad_(False).eval()


def test_latents_are_cached_where_sizes_stay():
    base, method, _ = make_method(size_augmentation=False)
    recipe = method.recipe
    needs = CustomDiffusion.needs(method.config, base, recipe)
    assert not needs.pixels and needs.trains_text
    assert CustomDiffusion.needs(
        replace(method.config, size_augmentation=True), base, recipe
    ).pixels
    with_pixels, without = make_examples(pixels=True), make_examples()
    rng = Rng.for_step(0, 0)
    torch.testing.assert_close(
        method.loss(Batch(with_pixels), rng), method.loss(Batch(without), rng)
    )


def test_closing_gives_the_base_back():
    base, method, parameters = make_method()
    before = copy.deepcopy(base.added_tokens)
    moved(parameters)
    assert set(before) == {"<a>", "<b>"}
    method.close()
    assert base.added_tokens == {}
    fresh = random_base("sd1")
    states = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(1))
    for key, module in base.select_layers("cross_attention.kv").items():
        assert torch.equal(module(states), fresh.module(key)(states))
