"""Text states against transformers' own forward pass and against hand computation."""

from functools import cache

import pytest
import torch

from konomi.config.sections import TextConfig
from konomi.errors import ModelError, RecipeError
from konomi.models.clip_text import TextEncoder
from konomi.models.text_encoding import LoadedTextEncoder, count_chunks, encode_text
from konomi.models.tokenizer import Tokenizer, build_tokenizer, clip_vocabulary
from twins import transformers_text

EMPHASIS = TextConfig(emphasis=True)
START, END = 49406, 49407


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(clip_vocabulary())


@cache
def their_tokenizer(pad):
    return build_tokenizer(clip_vocabulary(), pad_token=pad)


@pytest.fixture(scope="module")
def loaded_encoder(tokenizer):
    """SD1's way."""
    return LoadedTextEncoder("text_encoder", tokenizer, encoder())


@pytest.fixture(scope="module")
def second():
    """SDXL's second way."""
    tokenizer = Tokenizer(clip_vocabulary(), pad_token="!")
    module = encoder(projection=True)
    return LoadedTextEncoder(
        "text_encoder_2", tokenizer, module, layer=2, final_norm=False, pooled=True
    )


CONFIG = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3,
    "projection_dim": 10,
    "vocab_size": 49408, "eos_token_id": END, "bos_token_id": START, "pad_token_id": END,
}  # fmt: skip


def encoder(*, projection=False):
    torch.manual_seed(0)
    built = TextEncoder(CONFIG, projection=projection).eval()
    built.initialise()
    # Fresh norms have a mean of exactly zero, trained ones have not.
    torch.nn.init.normal_(built.text_model.final_layer_norm.bias, mean=0.2)
    return built


@pytest.fixture(scope="module")
def theirs(loaded_encoder):
    return transformers_text(loaded_encoder.module, CONFIG)


@pytest.fixture(scope="module")
def their_second(second):
    return transformers_text(second.module, CONFIG)


def tokens(loaded_encoder, caption):
    theirs = their_tokenizer("!" if loaded_encoder.tokenizer.pad_token_id == 0 else "<|endoftext|>")
    return theirs(
        caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


def by_hand(theirs, *chunks, pad=END):
    """transformers' states of chunks given as lists of ids."""
    rows = [[START, *ids, END, *[pad] * (75 - len(ids))] for ids in chunks]
    return theirs(torch.tensor(rows)).last_hidden_state


def ids(loaded_encoder, text):
    return their_tokenizer("<|endoftext|>")(text, add_special_tokens=False)["input_ids"]


def states(loaded_encoder, caption, text=EMPHASIS, **more):
    return encode_text([loaded_encoder], [caption], text, **more).states[0]


@torch.no_grad()
def test_plain_captions_equal_transformers(loaded_encoder, theirs):
    captions = ["a photo of a dog", "", "Ein Hund, (1.5:2) [x] | {y} BREAK 猫"]
    encoded = encode_text([loaded_encoder], captions, TextConfig())
    expected = torch.cat(
        [theirs(tokens(loaded_encoder, caption)).last_hidden_state for caption in captions]
    )
    torch.testing.assert_close(encoded.states, expected)
    assert encoded.pooled is None


@torch.no_grad()
@pytest.mark.parametrize("skip", [1, 2, 4])
def test_clip_skip_norms_the_chosen_layer(loaded_encoder, theirs, skip):
    out = theirs(tokens(loaded_encoder, "a dog"), output_hidden_states=True)
    expected = loaded_encoder.module.text_model.final_layer_norm(out.hidden_states[-skip])
    torch.testing.assert_close(
        encode_text([loaded_encoder], ["a dog"], TextConfig(clip_skip=skip)).states, expected
    )


def test_clip_skip_beyond_the_layers(loaded_encoder):
    with pytest.raises(RecipeError, match=r"text\.clip_skip is 5; .* has 4 layers"):
        states(loaded_encoder, "a", TextConfig(clip_skip=5))


@torch.no_grad()
def test_sdxl_takes_the_layer_before_the_last_and_the_projected_end(
    loaded_encoder, second, theirs, their_second
):
    first = LoadedTextEncoder(
        "text_encoder", loaded_encoder.tokenizer, loaded_encoder.module, layer=2, final_norm=False
    )
    captions = ["a dog", "a cat with <|endoftext|> in it"]
    encoded = encode_text([first, second], captions, TextConfig())
    out_1 = theirs(tokens(first, captions[0]), output_hidden_states=True)
    out_2 = their_second(tokens(second, captions[0]), output_hidden_states=True)
    torch.testing.assert_close(
        encoded.states[0], torch.cat([out_1.hidden_states[-2], out_2.hidden_states[-2]], -1)[0]
    )
    torch.testing.assert_close(encoded.pooled[0], out_2.text_embeds[0])
    # An end token inside the text is not the end.
    ids_NL = tokens(second, captions[1])
    last = their_second(ids_NL).last_hidden_state
    length = len(ids(second, captions[1]))
    torch.testing.assert_close(
        encoded.pooled[1], second.module.text_projection(last[0, length + 1])
    )


@torch.no_grad()
@pytest.mark.parametrize(("max_tokens", "positions"), [(75, 77), (150, 154), (225, 231)])
def test_long_captions_are_chunks_encoded_alone(loaded_encoder, theirs, max_tokens, positions):
    caption = " ".join(["dog cat"] * 50)
    numbers = ids(loaded_encoder, caption)
    assert len(numbers) == 100
    encoded = states(loaded_encoder, caption, TextConfig(max_tokens=max_tokens))
    chunks = [numbers[:75], numbers[75:], []][: max_tokens // 75]
    assert encoded.shape[0] == positions
    torch.testing.assert_close(encoded, by_hand(theirs, *chunks).flatten(0, 1))
    assert count_chunks([loaded_encoder], ["dog", caption], TextConfig()) == 2
    assert count_chunks([loaded_encoder], ["dog"], TextConfig()) == 1


@torch.no_grad()
def test_sd_scripts_chunking_strips_inner_ends(loaded_encoder, theirs):
    numbers = ids(loaded_encoder, " ".join(["dog cat"] * 50))
    encoded = states(
        loaded_encoder,
        " ".join(["dog cat"] * 50),
        TextConfig(max_tokens=225, chunking="sd_scripts"),
    )
    parts = by_hand(theirs, numbers[:75], numbers[75:], [])
    assert encoded.shape[0] == 227
    expected = torch.cat(
        [parts[0, :1], parts[0, 1:76], parts[1, 1:76], parts[2, 1:76], parts[2, 76:]]
    )
    torch.testing.assert_close(encoded, expected)


@torch.no_grad()
def test_a_caption_does_not_depend_on_its_neighbours(loaded_encoder, second):
    text = TextConfig(max_tokens=150, emphasis=True)
    captions = ["a (dog:1.3)", "cat " * 90, "a:0.5|b:0.5"]
    together = encode_text([loaded_encoder, second], captions, text)
    for i, caption in enumerate(captions):
        alone = encode_text([loaded_encoder, second], [caption], text)
        torch.testing.assert_close(together.states[i : i + 1], alone.states)
        torch.testing.assert_close(together.pooled[i : i + 1], alone.pooled)


@torch.no_grad()
def test_padding_is_the_towers_own(second, their_second):
    encoded = encode_text([second], ["dog"], TextConfig())
    rows = [[START, *ids(second, "dog"), END, *[0] * 74]]
    out = their_second(torch.tensor(rows), output_hidden_states=True)
    torch.testing.assert_close(encoded.states, out.hidden_states[-2])


@torch.no_grad()
def test_emphasis_multiplies_and_restores_the_mean(loaded_encoder):
    plain = states(loaded_encoder, "a dog runs")
    weights = torch.ones(77, 1)
    assert len(ids(loaded_encoder, "dog")) == 1
    weights[2] = 1.5
    weighted = plain * weights
    torch.testing.assert_close(
        states(loaded_encoder, "a (dog:1.5) runs", restore_mean=False), weighted
    )
    expected = weighted * plain.mean() / weighted.mean()
    torch.testing.assert_close(states(loaded_encoder, "a (dog:1.5) runs"), expected)
    assert torch.equal(states(loaded_encoder, "a (dog:1.0) runs"), plain)


@torch.no_grad()
def test_emphasis_rescales_only_its_own_chunk(loaded_encoder):
    text = TextConfig(emphasis=True, max_tokens=150)
    encoded = states(loaded_encoder, "a (dog:1.5) BREAK a cat", text)
    torch.testing.assert_close(encoded[77:], states(loaded_encoder, "a cat"))
    torch.testing.assert_close(encoded[:77], states(loaded_encoder, "a (dog:1.5)"))


@torch.no_grad()
def test_a_mean_of_zero_says_nothing_about_scale(loaded_encoder, tokenizer):
    encoded = states(loaded_encoder, "(dog:-1) (cat:-1) " * 30)
    assert encoded.abs().max() < 10 * states(loaded_encoder, "dog cat " * 30).abs().max()
    module = encoder()
    torch.nn.init.zeros_(module.text_model.final_layer_norm.bias)
    centred = LoadedTextEncoder("text_encoder", tokenizer, module)
    expected = states(centred, "a (dog:1.5)", restore_mean=False)
    torch.testing.assert_close(states(centred, "a (dog:1.5)"), expected)


@torch.no_grad()
def test_break_fills_the_chunk(loaded_encoder, theirs):
    text = TextConfig(emphasis=True, max_tokens=150)
    expected = by_hand(theirs, ids(loaded_encoder, "a dog"), ids(loaded_encoder, "a cat")).flatten(
        0, 1
    )
    torch.testing.assert_close(states(loaded_encoder, "a dog BREAK a cat", text), expected)
    assert count_chunks([loaded_encoder], ["a dog BREAK a cat"], text) == 2


@torch.no_grad()
def test_mixing_blends_states_and_pooled(second):
    one, other = (encode_text([second], [text], EMPHASIS) for text in ("a dog", "a cat"))
    mixed = encode_text([second], ["a dog:1.4 | a cat:-0.4", "a dog"], EMPHASIS)
    torch.testing.assert_close(mixed.states[:1], 1.4 * one.states - 0.4 * other.states)
    torch.testing.assert_close(mixed.pooled[:1], 1.4 * one.pooled - 0.4 * other.pooled)
    torch.testing.assert_close(mixed.states[1:], one.states)


def rows_of(loaded_encoder, text):
    return (
        loaded_encoder.module.text_model.embeddings.token_embedding.weight[
            ids(loaded_encoder, text)
        ]
        .detach()
        .clone()
    )


@torch.no_grad()
def test_a_learned_word_with_known_rows_equals_those_words(loaded_encoder):
    tokens = {"MyPet": {"text_encoder": rows_of(loaded_encoder, "brown dog")}}
    for prompt in ("a {} runs", "a ({}:1.3) runs", "cat " * 73 + "{}", "{}, {}"):
        text = TextConfig(emphasis=True, max_tokens=150)
        expected = states(loaded_encoder, prompt.replace("{}", "brown dog"), text)
        torch.testing.assert_close(
            states(loaded_encoder, prompt.replace("{}", "mypet"), text, tokens=tokens), expected
        )


@torch.no_grad()
def test_a_learned_word_is_never_torn_apart(loaded_encoder):
    tokens = {"sks": {"text_encoder": torch.randn(4, 24)}}
    caption = "cat " * 73 + "sks"
    assert count_chunks([loaded_encoder], [caption], EMPHASIS, tokens=tokens) == 2
    encoded = states(loaded_encoder, caption, TextConfig(max_tokens=150), tokens=tokens)
    torch.testing.assert_close(encoded[:77], states(loaded_encoder, "cat " * 73))
    torch.testing.assert_close(encoded[77:], states(loaded_encoder, "sks", tokens=tokens))


def test_gradients_reach_learned_words_and_the_encoder(loaded_encoder, second):
    vectors = {
        part: torch.randn(2, 24, requires_grad=True) for part in ("text_encoder", "text_encoder_2")
    }
    encoded = encode_text(
        [loaded_encoder, second], ["a (<s1>:1.2)"], EMPHASIS, tokens={"<s1>": vectors}
    )
    (encoded.states.square().sum() + encoded.pooled.square().sum()).backward()
    assert all(v.grad.abs().sum(1).min() > 0 for v in vectors.values())
    weight = loaded_encoder.module.text_model.encoder.layers[0].self_attn.q_proj.weight
    assert weight.grad.abs().sum() > 0
    # Only rows of real tokens receive gradient, none of a learned word's placeholder.
    used = {START, END, *ids(loaded_encoder, "a")}
    touched = (
        loaded_encoder.module.text_model.embeddings.token_embedding.weight.grad.abs()
        .sum(1)
        .nonzero()
        .flatten()
        .tolist()
    )
    assert set(touched) == used


def test_a_learned_word_of_another_family_is_refused(loaded_encoder):
    with pytest.raises(
        ModelError, match=r"'sks' is 16 wide; text_encoder of this base has width 24"
    ):
        states(loaded_encoder, "sks", tokens={"sks": {"text_encoder": torch.randn(1, 16)}})
    with pytest.raises(ModelError, match="80 vectors; at most 75"):
        states(loaded_encoder, "sks", tokens={"sks": {"text_encoder": torch.randn(80, 24)}})


@torch.no_grad()
def test_a_learned_word_without_vectors_for_a_tower_is_plain_text_there(second):
    tokens = {"dog": {"text_encoder": torch.randn(1, 24)}}
    torch.testing.assert_close(states(second, "a dog", tokens=tokens), states(second, "a dog"))
