"""Textual Inversion against plain PyTorch in float64, and what its options promise."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional

from konomi.adapters.apply import Strengths, attach
from konomi.config.recipe import Recipe
from konomi.config.sections import DataConfig, SourceConfig
from konomi.data.batch import Batch
from konomi.diffusion.random import Rng
from konomi.errors import RecipeError
from konomi.methods.textual_inversion import TEMPLATES, TextualInversionConfig
from konomi.models.memory import enable_gradient_checkpointing
from konomi.training.processes import Processes
from konomi.training.stop import Stop
from konomi.training.trainer import Trainer
from twins import transformers_text

FAMILIES = [("sd1", "epsilon"), ("sd2", "v"), ("sdxl", "epsilon")]
ROWS = range(1000, 1004)
"""Rows of the cloned token table that the oracle replaces."""


def start(
    kit, family="sd1", prediction=None, *, base=None, sources=(), total=4, optimizer=None, **options
):
    base = base or (kit.base(family, prediction=prediction) if prediction else kit.base(family))
    recipe: Recipe = kit.recipe(TextualInversionConfig(**options), **(optimizer or {}))
    recipe = replace(
        recipe, data=DataConfig(sources=tuple(SourceConfig(path="x", **s) for s in sources))
    )
    method = kit.method(base, recipe)
    trainer = Trainer(
        method.plan(), recipe, processes=Processes(0, 1, torch.device("cpu")), total_steps=total
    )
    return base, method, trainer


def plain_text(loaded_encoder, config, table, captions):
    """transformers' own forward pass with ids of replaced rows: hidden states and pooled
    vectors.
    """
    token = loaded_encoder.tokenizer
    rows = []
    for before, behind in captions:
        left, right = (token.ids(text) for text in (before, behind))
        ids = [token.bos_token_id, *left, *ROWS, *right, token.eos_token_id]
        rows.append(ids + [token.pad_token_id] * (77 - len(ids)))
    module = transformers_text(loaded_encoder.module, config).double()
    name = "text_model.embeddings.token_embedding.weight"
    return functional_call(
        module, {name: table}, (torch.tensor(rows),), {"output_hidden_states": True}
    )


def oracle(base, examples, rng, vectors):
    """The textbook loss in float64 with diffusers' scheduler; `vectors` replace rows of each token
    table.
    """
    from diffusers import DDPMScheduler

    states, extra = [], {}
    captions = [("a photo of", f"dog {i}") for i in range(len(examples))]
    for loaded_encoder in base.loaded_encoders():
        table = (
            loaded_encoder.module.text_model.embeddings.token_embedding.weight.detach()
            .double()
            .clone()
        )
        table = table.index_put((torch.tensor(list(ROWS)),), vectors[loaded_encoder.part])
        out = plain_text(loaded_encoder, base.source.configs[loaded_encoder.part], table, captions)
        states.append(
            out.last_hidden_state
            if loaded_encoder.final_norm
            else out.hidden_states[-loaded_encoder.layer]
        )
        if loaded_encoder.pooled:
            extra = {
                "added_cond_kwargs": {
                    "text_embeds": out.text_embeds,
                    "time_ids": examples.sizes.double(),
                }
            }
    rng = rng.for_samples(examples.sample_ids)
    latents = (
        examples.latents.mean + examples.latents.std * rng.fork("latents").normal((4, 8, 8))
    ).double()
    noise, timesteps = (
        rng.fork("noise").normal((4, 8, 8)).double(),
        rng.fork("timestep").integers(0, 1000),
    )
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.alphas_cumprod = base.process.schedule.alphas_cumprod.double()
    unet = copy.deepcopy(base.denoiser).double()
    noisy = scheduler.add_noise(latents, noise, timesteps)
    noise_pred = unet(noisy, timesteps, encoder_hidden_states=torch.cat(states, -1), **extra).sample
    wanted = (
        noise
        if base.process.prediction == "epsilon"
        else scheduler.get_velocity(latents, noise, timesteps)
    )
    return functional.mse_loss(noise_pred, wanted)


@pytest.mark.parametrize(("family", "prediction"), FAMILIES)
@pytest.mark.parametrize("keep_norm", ["none", "clip", "rescale"])
@pytest.mark.kernels
def test_loss_and_gradient(kit, family, prediction, keep_norm):
    base, method, _ = start(kit, family, prediction, keep_norm=keep_norm)
    examples, rng = kit.examples(), Rng.for_step(5, 3)
    plain = {part: p.detach().double().requires_grad_() for part, p in parameters(method).items()}
    kept = {}
    for part, vectors in plain.items():
        table = (
            base.module(f"{part}.text_model.embeddings.token_embedding").weight.detach().double()
        )
        mean, length = table.norm(dim=1).mean(), vectors.norm(dim=1, keepdim=True)
        scale = {"none": 1.0, "clip": (mean / length).clamp(max=1), "rescale": mean / length}[
            keep_norm
        ]
        kept[part] = vectors * scale
    expected = oracle(base, examples, rng, kept)
    expected.backward()
    loss = method.loss(Batch(examples), rng)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for part, parameter in parameters(method).items():
        gradient = plain[part].grad
        assert gradient.norm() > 0
        torch.testing.assert_close(
            parameter.grad.double(), gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max().item()
        )


def parameters(method):
    return {name.partition(".")[0]: p for name, p in method.tokens.parameters.items()}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_token_table_never_changes(kit, family):
    base, method, trainer = start(kit, family, optimizer={"weight_decay": 0.5})
    state = {
        part: {n: t.clone() for n, t in base.state(part).items()} for part in base.text_encoders
    }
    first = {name: p.detach().clone() for name, p in method.tokens.parameters.items()}
    list(trainer.run(kit.stream(kit.batch()), stop=Stop()))
    for part, tensors in state.items():
        assert all(torch.equal(tensor, base.state(part)[name]) for name, tensor in tensors.items())
    assert all(not torch.equal(p, first[name]) for name, p in method.tokens.parameters.items())
    (group,) = trainer.phases[0].groups
    assert group.weight_decay == 0.0


@pytest.mark.parametrize("keep_norm", ["clip", "rescale"])
def test_kept_lengths_are_what_is_exported_and_drawn(kit, keep_norm):
    base, method, trainer = start(
        kit, keep_norm=keep_norm, optimizer={"learning_rate": 0.5}, total=5
    )
    list(trainer.run(kit.stream(kit.batch()), stop=Stop()))
    table = base.module("text_encoder.text_model.embeddings.token_embedding").weight
    mean = table.norm(dim=1).mean()
    result = method.export()
    lengths = result.embeddings["sks"]["text_encoder"].norm(dim=1)
    assert (lengths <= mean * 1.0001).all()
    if keep_norm == "rescale":
        torch.testing.assert_close(lengths, mean.expand(4), rtol=1e-4, atol=0)
    else:
        assert method.tokens.parameters["text_encoder.sks"].norm(dim=1).max() > mean
    with torch.no_grad():
        live = base.encode_captions(["a sks"], kit.recipe(None).text).states
        with method.as_loaded(result):
            assert torch.equal(base.encode_captions(["a sks"], kit.recipe(None).text).states, live)


def test_vectors_start_as_words_repeated_or_as_noise_like_the_table(kit):
    base, method, _ = start(kit, initial="red panda", vectors=3)
    known = base.token_vectors("red panda")["text_encoder"]
    assert len(known) == 2
    assert torch.equal(method.tokens.parameters["text_encoder.sks"], known[[0, 1, 0]])
    noun = start(kit, sources=[{"trigger": "qxz", "class_noun": "dog"}], vectors=2)[1]
    dog = base.token_vectors("dog")["text_encoder"]
    assert torch.equal(noun.tokens.parameters["text_encoder.qxz"], dog.repeat(2, 1))
    noise = start(kit, vectors=75)[1].tokens.parameters["text_encoder.sks"]
    table = base.module("text_encoder.text_model.embeddings.token_embedding").weight
    assert noise.std().item() == pytest.approx(table.std().item(), rel=0.1)
    assert torch.equal(noise, start(kit, vectors=75)[1].tokens.parameters["text_encoder.sks"])
    with pytest.raises(RecipeError, match="holds no word"):
        start(kit, initial=" ")


def test_several_words_at_once_are_learned_apart(kit):
    sources = [{"trigger": "sks", "class_noun": "dog"}, {"trigger": "qxz"}, {"trigger": "sks"}]
    base, method, trainer = start(kit, sources=sources)
    assert list(base.added_tokens) == ["sks", "qxz"]
    before = {name: p.detach().clone() for name, p in method.tokens.parameters.items()}
    list(trainer.run(kit.stream(kit.batch()), stop=Stop()))
    after = method.tokens.parameters
    assert not torch.equal(after["text_encoder.sks"], before["text_encoder.sks"])
    assert torch.equal(after["text_encoder.qxz"], before["text_encoder.qxz"])
    fresh = kit.base("sd1")
    with attach(fresh, [(method.export(), Strengths())]):
        assert list(fresh.added_tokens) == ["sks", "qxz"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([{"trigger": "sks"}, {}], "has no trigger, and other sources have one"),
        ([{"trigger": "sks"}, {"trigger": "SKS"}], "differ only in upper and lower case"),
    ],
)
def test_words_that_cannot_be_told_apart(kit, sources, message):
    with pytest.raises(RecipeError, match=message):
        start(kit, sources=sources)


def test_the_word_is_in_every_caption(kit):
    examples = replace(
        kit.examples(count=4), captions=("a red house", "", "SKS, jumping", "sksの写真")
    )
    _, method, _ = start(kit, sources=[{"class_noun": "dog"}])
    captions = method.captioned(examples, Rng.for_step(0, 0)).captions
    assert captions == ("sks, a red house", "", "SKS, jumping", "sksの写真")


@pytest.mark.parametrize("templates", ["object", "style", "none"])
def test_a_word_alone_is_put_into_a_template(kit, templates):
    examples = replace(
        kit.examples(count=4), captions=("sks dog", "sks", "sks dog", "sks dog, jumping")
    )
    _, method, _ = start(
        kit, sources=[{"trigger": "sks", "class_noun": "dog"}], templates=templates
    )
    seen = set()
    for step in range(40):
        captions = method.captioned(examples, Rng.for_step(0, step)).captions
        assert captions == method.captioned(examples, Rng.for_step(0, step)).captions
        assert captions[3] == "sks dog, jumping"
        seen |= set(captions[:3])
    assert seen == {template.format("sks") for template in TEMPLATES[templates]}


def test_steps_whose_captions_were_all_dropped_change_nothing(kit):
    _, method, trainer = start(kit, total=2)
    batch = kit.batch()
    before = {name: p.detach().clone() for name, p in method.tokens.parameters.items()}
    dropped = replace(batch, subject=replace(batch.subject, captions=("", "")))
    losses = [event.loss for event in trainer.run(kit.stream(dropped), stop=Stop())]
    assert len(losses) == 2
    assert all(torch.equal(p, before[name]) for name, p in method.tokens.parameters.items())


@pytest.mark.kernels
def test_gradient_checkpointing_changes_nothing_but_rounding(kit):
    _, _, plain = start(kit, "sdxl")
    expected = [event.loss for event in plain.run(kit.stream(kit.batch()), stop=Stop())]
    base, _, trainer = start(kit, "sdxl")
    enable_gradient_checkpointing(base)
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    assert losses == pytest.approx(expected, rel=1e-4)


@pytest.mark.kernels
def test_bf16_follows_float32(kit):
    _, _, exact = start(kit, total=6)
    expected = [event.loss for event in exact.run(kit.stream(kit.batch()), stop=Stop())]
    base = kit.base("sd1")
    base.place("cpu", torch.bfloat16)
    _, _, trainer = start(kit, base=base, total=6)
    losses = [event.loss for event in trainer.run(kit.stream(kit.batch()), stop=Stop())]
    assert losses == pytest.approx(expected, rel=0.03)
    assert all(p.dtype == torch.float32 for p in trainer.parameters.values())
