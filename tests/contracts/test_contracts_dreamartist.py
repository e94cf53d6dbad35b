"""DreamArtist against plain PyTorch in float64: two branches, guidance, reconstruction, LoRAs of
one branch each.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths, attach
from konomi.config.sections import SourceConfig
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.dreamartist import DreamArtistConfig
from konomi.models.memory import enable_gradient_checkpointing
from konomi.models.modes import eval_mode
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer

FAMILIES = [("sd1", "epsilon"), ("sd2", "v"), ("sdxl", "epsilon")]
GUIDANCES = [{}, {"guidance": 5.0}, {"guidance": 3.0, "low_guidance": 1.0}]
CAPTIONS = ("a photo of", " dog 0"), ("a photo of", " dog 1")
"""What stands before and behind the word in the kit's captions."""


def start(kit, family="sd1", prediction=None, total=3, base=None, **options):
    base = base or (kit.base(family, prediction=prediction) if prediction else kit.base(family))
    optimizer = {key: options.pop(key) for key in ("learning_rate", "clip_norm") if key in options}
    recipe = kit.recipe(DreamArtistConfig(**options), **({"clip_norm": 0} | optimizer))
    method = kit.method(base, recipe)
    trainer = Trainer(
        method.plan(), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=total
    )
    return base, method, trainer


def words_of(method):
    """Word -> {part: parameter}."""
    found = {}
    for name, parameter in method.tokens.parameters.items():
        part, _, word = name.partition(".")
        found.setdefault(word, {})[part] = parameter
    return found


def with_details(kit, examples):
    """Pixels and a mask beside the latents."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.rand(len(examples), 3, 64, 64, generator=generator) * 2 - 1
    mask = torch.rand(len(examples), 1, 8, 8, generator=generator) * 5
    return replace(examples, pixels=pixels, loss_mask=mask)


class PlainBranches:
    """The paper's loop in float64 with the families' own modules. Words are rows appended to the
    token tables.
    """

    def __init__(self, base, words, *, guidance=3.0, low_guidance=None):
        self.base, self.guidance, self.low = base, guidance, low_guidance
        self.unet = copy.deepcopy(base.denoiser).double()
        self.vae = copy.deepcopy(base.vae).double()
        self.alphas = base.process.schedule.alphas_cumprod.double()
        self.words = {
            word: {part: p.detach().double().requires_grad_() for part, p in parts.items()}
            for word, parts in words.items()
        }

    def text(self, before, word, behind):
        """States and pooled vector of one caption."""
        states, pooled = [], None
        for loaded_encoder in self.base.loaded_encoders():
            module = copy.deepcopy(loaded_encoder.module).double()
            core = module.text_model
            token = loaded_encoder.tokenizer
            ids = [token.ids(text) for text in (before, behind)]
            vectors = self.words[word][loaded_encoder.part]
            table = core.embeddings.token_embedding.weight
            rows = [
                table[[token.bos_token_id, *ids[0]]],
                vectors,
                table[[*ids[1], token.eos_token_id]],
            ]
            length = sum(map(len, rows))
            rows.append(table[[token.pad_token_id] * (77 - length)])
            hidden = torch.cat(rows)[None] + core.embeddings.position_embedding.weight[None]
            every = []
            for layer in core.encoder.layers:
                hidden = layer(hidden)
                every.append(hidden)
            states.append(
                every[-loaded_encoder.layer]
                if not loaded_encoder.final_norm
                else core.final_layer_norm(every[-1])
            )
            if loaded_encoder.pooled:
                pooled = module.text_projection(core.final_layer_norm(hidden)[:, length - 1])
        return torch.cat(states, dim=-1), pooled

    def noise_pred(self, noisy, timestep, text, sizes):
        states, pooled = text
        extra = (
            {}
            if pooled is None
            else {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes.double()}}
        )
        return self.unet(noisy, timestep, encoder_hidden_states=states, **extra).sample

    def loss(self, examples, rng, *, reconstruction=0.0):
        rng = rng.for_samples(examples.sample_ids)
        latents = (
            examples.latents.mean + examples.latents.std * rng.fork("latents").normal((4, 8, 8))
        ).double()
        noise, timesteps = (
            rng.fork("noise").normal((4, 8, 8)).double(),
            rng.fork("timestep").integers(0, 1000),
        )
        total = 0.0
        for i, t in enumerate(timesteps):
            alpha, sigma = self.alphas[t].sqrt(), (1 - self.alphas[t]).sqrt()
            noisy = (alpha * latents[i] + sigma * noise[i])[None]
            sizes = examples.sizes[i : i + 1]
            above = self.noise_pred(
                noisy, t, self.text(CAPTIONS[i][0], "sks", CAPTIONS[i][1]), sizes
            )
            below = self.noise_pred(noisy, t, self.text("", "sks-neg", ""), sizes)
            s = self.guidance
            if self.low is not None:
                s = self.low + (self.guidance - self.low) * math.cos(
                    (t.item() / 999 - 1) * math.pi / 2
                )
            guided = below + s * (above - below)
            epsilon = self.base.process.prediction == "epsilon"
            wanted = noise[i] if epsilon else alpha * noise[i] - sigma * latents[i]
            mask = torch.ones(1, 8, 8) if examples.loss_mask is None else examples.loss_mask[i]
            total = total + (mask * (guided - wanted) ** 2).mean()
            if reconstruction:
                clean = (
                    (noisy - sigma * guided) / alpha if epsilon else alpha * noisy - sigma * guided
                )
                picture = self.vae.decode(clean / self.base.latent_scale)[0]
                weights = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
                total = (
                    total + reconstruction * (weights * (picture - examples.pixels[i]).abs()).mean()
                )
        return total / len(timesteps)


def assert_like_the_oracle(method, oracle, examples, *, reconstruction=0.0):
    rng = Rng.for_step(5, 3)
    expected = oracle.loss(examples, rng, reconstruction=reconstruction)
    expected.backward()
    loss = method.loss(Batch(examples), rng)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for word, parts in words_of(method).items():
        for part, parameter in parts.items():
            gradient = oracle.words[word][part].grad
            assert gradient.norm() > 0
            largest = gradient.abs().max().item()
            torch.testing.assert_close(
                parameter.grad.double(), gradient, rtol=1e-3, atol=1e-3 * largest
            )


@pytest.mark.parametrize(("family", "prediction"), FAMILIES)
@pytest.mark.parametrize(
    "guidance",
    [GUIDANCES[0], pytest.param(GUIDANCES[1], marks=pytest.mark.slow), GUIDANCES[2]],
    ids=["fixed", "apt", "dynamic"],
)
def test_loss_and_gradients_of_both_words(kit, family, prediction, guidance):
    base, method, _ = start(kit, family, prediction, **guidance)
    assert_like_the_oracle(
        method, PlainBranches(base, words_of(method), **guidance), kit.examples()
    )


@pytest.mark.parametrize(("family", "prediction"), FAMILIES)
@pytest.mark.kernels
def test_reconstruction_loss_and_masks(kit, family, prediction):
    base, method, _ = start(kit, family, prediction, reconstruction=1.0)
    assert kit.needs(base, method.recipe).pixels
    examples = with_details(kit, kit.examples())
    assert_like_the_oracle(
        method, PlainBranches(base, words_of(method)), examples, reconstruction=1.0
    )


def test_words_start_as_the_asterisk_and_the_negative_a_little_beside_it(kit):
    base, method, _ = start(kit, "sdxl")
    for part, vectors in base.token_vectors("*").items():
        assert len(vectors) == 1
        assert torch.equal(words_of(method)["sks"][part], vectors.expand(3, -1))
        apart = words_of(method)["sks-neg"][part] - vectors
        assert apart.shape[0] == 6
        assert apart.std().item() == pytest.approx(1e-3, rel=0.2)
    again = start(kit, "sdxl")[1]
    assert all(
        torch.equal(p, words_of(again)[w][part])
        for w, ps in words_of(method).items()
        for part, p in ps.items()
    )
    # A start of several tokens is repeated as long as it is needed.
    _, longer, _ = start(kit, "sd1", start="photo dog", vectors=5)
    known = longer.base.token_vectors("photo dog")["text_encoder"]
    wanted = torch.cat([known] * 5)[:5]
    assert torch.equal(words_of(longer)["sks"]["text_encoder"], wanted)


def test_dynamic_guidance_is_low_without_noise_and_high_in_pure_noise(kit):
    _, method, _ = start(kit, low_guidance=1.0)
    s = method.guidance(torch.tensor([0, 333, 999])).flatten()
    torch.testing.assert_close(s, torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["words", "lora"])
@pytest.mark.kernels
def test_accumulation_counts_every_micro_batch(kit, options):
    """One pass of four, and four passes of one, weigh the same: loss, gradients and weights after
    two steps.
    """
    whole = kit.examples(count=4)

    class Passes:
        steps_per_epoch = 1

        def __init__(self, passes):
            self.passes = passes

        def iterate(self, first, stop, **_):
            for _ in range(first, stop):
                yield self.passes

    def one(i):
        latents = replace(
            whole.latents, mean=whole.latents.mean[i : i + 1], std=whole.latents.std[i : i + 1]
        )
        ids, sizes = whole.sample_ids[i : i + 1], whole.sizes[i : i + 1]
        return replace(
            whole, names=whole.names[i : i + 1], captions=whole.captions[i : i + 1], sample_ids=ids,
            sizes=sizes,
            latents=latents,
        )  # fmt: skip

    results = []
    for passes in ((Batch(whole),), tuple(Batch(one(i), weight=0.25) for i in range(4))):
        _, method, trainer = start(kit, total=2, learning_rate=1e-3, **options)
        rng = Rng.for_step(1, 1)
        for batch in passes:
            (method.loss(batch, rng) * batch.weight).backward()
        gradients = {name: p.grad.clone() for name, p in trainer.parameters.items()}
        trainer.optimizer.zero_grad(set_to_none=True)
        losses = [event.loss for event in trainer.run(Passes(passes), stop=Stop())]
        results.append((gradients, losses, {n: p.detach() for n, p in trainer.parameters.items()}))
    (gradients, losses, weights), (split, split_losses, split_weights) = results
    assert split_losses == pytest.approx(losses, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            split[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item() + 1e-12
        )
        torch.testing.assert_close(split_weights[name], weights[name], rtol=0, atol=1e-4)


def trained(kit, family="sd1", **options):
    base, method, trainer = start(
        kit, family, learning_rate=1e-2, lora_rate=1e-2, negative_lora_rate=1e-2, **options
    )
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    return base, method, trainer, losses


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_each_lora_acts_in_its_own_branch_alone(kit, family):
    """The oracle: the branches asked one by one, each with a single ordinary adapter on a fresh
    base.
    """
    base, method, _, _ = trained(kit, family, lora_rank=2)
    result = method.export()
    assert (
        result.layers.keys()
        == result.negative.layers.keys()
        == base.select_layers("transformer").keys()
    )
    assert all(
        update.up.abs().max() > 0
        for half in (result, result.negative)
        for update in half.layers.values()
    )
    examples = kit.examples(seed=9)
    rng = Rng.for_step(2, 2).for_samples(examples.sample_ids)
    noised = method.denoising.add_noise(examples, rng)
    with torch.no_grad():
        guided = method.guided(examples, noised, rng)
    fresh = kit.base(family)

    def alone(layers, captions):
        single = Adapter(layers=layers, embeddings=result.embeddings)
        with torch.no_grad(), attach(fresh, [(single, Strengths())]):
            text = fresh.encode_captions(captions, kit.recipe(None).text)
            text = fresh.with_sizes(text, examples.sizes)
            return fresh.predict(noised.noisy_latents, noised.timesteps_B, text)

    above, below = (
        alone(result.layers, examples.captions),
        alone(result.negative.layers, ["sks-neg"] * 2),
    )
    torch.testing.assert_close(guided, below + 3 * (above - below), rtol=1e-3, atol=1e-3)
    # In evaluation, as for validation, every row is a positive one.
    text = base.with_sizes(
        base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
    )
    with eval_mode(base.denoiser):
        live = base.predict(noised.noisy_latents, noised.timesteps_B, text)
    torch.testing.assert_close(live, above, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.kernels
def test_lora_variant_shows_what_it_exports_and_leaves_the_base_clean(kit, family):
    base, method, trainer, _ = trained(kit, family, lora_rank=2)
    examples = kit.examples()
    original_base, result = kit.base(family), method.export()
    rates = {group.name: group.learning_rate for group in trainer.phases[0].groups}
    assert rates == {"words": 1e-2, "positive": 1e-2, "negative": 1e-2}
    noisy, t = examples.latents.mean, torch.tensor([500, 20])

    def ask(base):
        text = base.with_sizes(
            base.encode_captions(examples.captions, kit.recipe(None).text), examples.sizes
        )
        with eval_mode(base.denoiser):
            return base.predict(noisy, t, text)

    live = ask(base)
    with method.as_loaded(result):
        assert base.negative_weights
        torch.testing.assert_close(ask(base), live, rtol=1e-3, atol=1e-3)
    assert torch.equal(ask(base), live) and base.negative_weights == {}
    method.close()
    assert base.added_tokens == {}
    assert torch.equal(ask(base), ask(original_base))


def test_lora_variant_resumes_bit_for_bit(kit):
    _, _, whole, expected = trained(kit, lora_rank=2)
    _, _, first = start(
        kit, lora_rank=2, learning_rate=1e-2, lora_rate=1e-2, negative_lora_rate=1e-2
    )
    run = first.run(kit.stream(kit.batch()), stop=Stop(), sync_at=lambda step: step == 2)
    losses = [next(run).loss, next(run).loss]
    state = copy.deepcopy(first.state())
    run.close()
    _, _, second = start(
        kit, lora_rank=2, learning_rate=1e-2, lora_rate=1e-2, negative_lora_rate=1e-2
    )
    second.restore(state)
    losses += [event.loss for event in second.run(kit.stream(kit.batch()), stop=Stop())]
    assert losses == expected
    ours, theirs = second.state().tensors["weights"], whole.state().tensors["weights"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}], ids=["words", "lora"])
@pytest.mark.kernels
def test_gradient_checkpointing_changes_nothing_but_rounding(kit, options):
    _, plain, _ = start(kit, **options)
    base, saving, _ = start(kit, **options)
    enable_gradient_checkpointing(base)
    for method in (plain, saving):
        method.loss(kit.batch(), Rng.for_step(0, 0)).backward()
    pairs = [
        (p, words_of(saving)[w][part])
        for w, parts in words_of(plain).items()
        for part, p in parts.items()
    ]
    if options:
        ours, theirs = plain.lora.parameters, saving.lora.parameters
        pairs += [(p, theirs[name]) for name, p in ours.items()]
    for one, other in pairs:
        torch.testing.assert_close(
            other.grad, one.grad, rtol=1e-3, atol=1e-3 * one.grad.abs().max().item() + 1e-12
        )


def test_inpainting_bases_train(kit):
    base, method, trainer = start(kit, base=kit.base("sd1", inpainting=True))
    assert kit.needs(base, method.recipe).pixels
    examples = with_details(kit, kit.examples())
    losses = [event.loss for event in trainer.run(kit.stream(Batch(examples)), stop=Stop())]
    assert all(map(math.isfinite, losses))


@pytest.mark.kernels
def test_bf16_follows_float32(kit):
    _, _, exact = start(kit, lora_rank=2, total=4)
    expected = [event.loss for event in exact.run(kit.stream(kit.batch()), stop=Stop())]
    base = kit.base("sd1")
    base.place("cpu", torch.bfloat16)
    _, _, trainer = start(kit, lora_rank=2, total=4, base=base)
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    assert losses == pytest.approx(expected, rel=0.05)
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())


@pytest.mark.parametrize(
    ("triggers", "words"),
    [
        (("",), "--trigger WORD"),
        (("sks", "zwx"), "one word in a run, not 2"),
        (("sks-neg",), "choose one without -neg"),
    ],
)
def test_a_word_that_cannot_be_learned_is_told(kit, triggers, words):
    recipe = kit.recipe(DreamArtistConfig())
    sources = tuple(SourceConfig(path="photos", trigger=trigger) for trigger in triggers)
    with pytest.raises(RecipeError, match=words):
        kit.method(kit.base("sd1"), replace(recipe, data=replace(recipe.data, sources=sources)))


def test_unknown_targets_and_a_start_that_is_no_word_are_told(kit):
    with pytest.raises(RecipeError, match=r"method\.targets is empty"):
        start(kit, lora_rank=2, targets=())
    with pytest.raises(RecipeError, match="holds no word"):
        start(kit, start=" ")
