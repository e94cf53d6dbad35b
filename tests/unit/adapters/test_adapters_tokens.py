"""Learned words and hypernetworks on a base: there while attached, gone afterwards, refused where
they do not fit.
"""

import pytest
import torch

from konomi.adapters.adapter import Adapter, Hypernetwork, Perceptron
from konomi.adapters.apply import Strengths, attach
from konomi.adapters.hypernetwork import build_network
from konomi.config.sections import TextConfig
from konomi.errors import ModelError
from konomi.models.random_base import random_base
from twins import transformers_text


def word(width=32, count=2, name="<cat>"):
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    return Adapter(embeddings={name: {"text_encoder": vectors}}, family="sd1", name="cat")


def states(base, caption="a photo of <cat>"):
    with torch.no_grad():
        return base.encode_captions([caption], TextConfig()).states


def test_a_word_stands_for_its_vectors_until_it_is_taken_off():
    base = random_base("sd1")
    plain = states(base)
    adapter = word()
    with attach(base, [(adapter, Strengths())]):
        table = base.module("text_encoder.text_model.embeddings.token_embedding")
        ids = base.tokenizer(base.spec.text_encoders[0]).ids("a photo of")
        # The oracle: the same vectors written into rows of the table, called by their ids.
        kept = table.weight.detach().clone()
        with torch.no_grad():
            table.weight[[300, 301]] = adapter.embeddings["<cat>"]["text_encoder"]
        loaded = base.loaded_encoders()[0]
        start, end, pad = (
            loaded.tokenizer.bos_token_id,
            loaded.tokenizer.eos_token_id,
            loaded.tokenizer.pad_token_id,
        )
        row = [start, *ids, 300, 301, end]
        tokens = torch.tensor([row + [pad] * (77 - len(row))])
        with torch.no_grad():
            theirs = transformers_text(loaded.module, base.source.configs["text_encoder"])
            expected = theirs(input_ids=tokens).last_hidden_state
            table.weight.copy_(kept)
        torch.testing.assert_close(states(base), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(states(base), plain)
    assert base.added_tokens == {}


def test_text_strength_zero_leaves_a_word_as_plain_text():
    base = random_base("sd1")
    plain = states(base)
    with attach(base, [(word(), Strengths(text=0.0))]):
        assert torch.equal(states(base), plain)


def test_words_of_another_width_or_twice_are_refused_and_leave_no_trace():
    base = random_base("sd1")
    with pytest.raises(ModelError, match="is 48 wide; text_encoder of this base has width 32"):
        attach(base, [(word(name="<dog>"), Strengths()), (word(48), Strengths())])
    assert base.added_tokens == {}
    with pytest.raises(ModelError, match="another adapter already has"):
        attach(base, [(word(), Strengths()), (word(), Strengths())])
    assert base.added_tokens == {}


def hypernetwork(width=32):
    torch.manual_seed(3)
    spec = Hypernetwork(pairs={}, structure=(1, 2, 1), activation="relu")
    halves = []
    for _ in range(2):
        network = build_network(width, spec)
        halves.append(
            Perceptron({f"linear.{k}": v.clone() for k, v in network.state_dict().items()})
        )
    return Hypernetwork(
        pairs={width: (halves[0], halves[1])}, structure=(1, 2, 1), activation="relu"
    )


def test_a_hypernetwork_changes_what_keys_and_values_read_and_comes_off():
    base = random_base("sd1")
    net = hypernetwork()
    key = next(k for k in base.select_layers("cross_attention.kv") if k.endswith("to_k"))
    layer = base.module(key)
    context = torch.randn(1, 5, 32)
    plain = layer(context)
    t = net.pairs[32][0].tensors
    hidden = torch.relu(context @ t["linear.0.weight"].T + t["linear.0.bias"])
    changed = context + 0.5 * (hidden @ t["linear.2.weight"].T + t["linear.2.bias"])
    with attach(base, [(Adapter(hypernetwork=net), Strengths(denoiser=0.5))]):
        torch.testing.assert_close(
            layer(context), torch.nn.functional.linear(changed, layer.weight)
        )
    assert torch.equal(layer(context), plain)
    with attach(base, [(Adapter(hypernetwork=net), Strengths(denoiser=0.0))]):
        assert torch.equal(layer(context), plain)


def test_a_hypernetwork_of_another_width_is_refused():
    with pytest.raises(ModelError, match="of width 40; this base has no such layers"):
        attach(random_base("sd1"), [(Adapter(hypernetwork=hypernetwork(40)), Strengths())])
