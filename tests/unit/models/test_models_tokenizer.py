"""Token numbers against transformers' CLIPTokenizer."""

import pytest

from konomi.errors import ModelError
from konomi.models.tokenizer import (
    END,
    START,
    Tokenizer,
    Vocabulary,
    build_tokenizer,
    clip_vocabulary,
    read_vocabulary,
    write_tokenizer,
)

TEXTS = [
    "a photo of a cat", "", " ", "It's 1999!  we've", "東京 café, naïve", "cafe\u0301",
    "(masterpiece:1.2), <lora:x:1>",
    "!", "a !!! b!", "<|endoftext|> in <|startoftext|>text", "🦊🦊 ﷺ ½", "tab\tand\nline",
    "A" * 300,
    "it's we'll İstanbul", "\u200b\ufeffx", "\x00\x01", "1girl,solo,(:", "a" * 3000 + " b",
]  # fmt: skip


@pytest.mark.parametrize("pad", [END, "!"])
def test_ids_are_those_of_transformers(pad):
    """With the padding token a word like any other, as OpenCLIP and OpenAI's CLIP read it."""
    ours, theirs = Tokenizer(clip_vocabulary(), pad_token=pad), build_tokenizer(clip_vocabulary())
    for text in TEXTS:
        assert (
            ours.ids(text)
            == theirs(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        )
        assert ours.pieces(text) == theirs.tokenize(text)
    padding = build_tokenizer(clip_vocabulary(), pad_token=pad)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(ours, name) for name in names] == [getattr(padding, name) for name in names]
    assert ours.vocabulary() == theirs.get_vocab()


def test_an_exclamation_mark_is_a_word_where_it_pads():
    """Numbers from OpenAI's vocabulary: `!` inside a word is 0, at a word's end 256."""
    tokenizer = Tokenizer(clip_vocabulary(), pad_token="!")
    assert tokenizer.ids("wow! a cat") == [*tokenizer.ids("wow"), 256, *tokenizer.ids("a cat")]
    assert tokenizer.ids("!") == [256]
    assert tokenizer.ids("a !!! b") == Tokenizer(clip_vocabulary()).ids("a !!! b")
    assert tokenizer.pad_token_id == 0
    # transformers takes the mark for padding in the text as well.
    assert (
        build_tokenizer(clip_vocabulary(), pad_token="!")(
            "wow!", add_special_tokens=False
        ).input_ids[-1]
        == 0
    )


def test_half_a_character_pair_becomes_a_replacement_character():
    tokenizer = Tokenizer(clip_vocabulary())
    assert tokenizer.ids("a \ud83e b") == tokenizer.ids("a \ufffd b")


def test_a_padding_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ModelError, match=r"padding token '\[PAD\]' is not in its vocabulary"):
        Tokenizer(clip_vocabulary(), pad_token="[PAD]")


@pytest.mark.parametrize(
    ("tokens", "merges", "message"),
    [
        ({"a": 0, START: 1}, (), "lacks <|endoftext|>"),
        ({"a": 0, START: 1, END: -2}, (), "token numbers outside"),
        ({"a": 0, START: 1, END: 2**40}, (), "token numbers outside"),
        ({"a": 0, START: 1, END: 2}, (("a", "a"),), "make 'aa', which its vocabulary lacks"),
    ],
)
def test_a_broken_vocabulary_is_refused(tokens, merges, message):
    with pytest.raises(ModelError, match=message.replace("|", r"\|")):
        Tokenizer(Vocabulary(tokens, merges))


def test_a_folder_is_parsed_once_and_again_when_it_has_changed(tmp_path):
    small = Vocabulary({"a": 0, "b</w>": 1, "ab</w>": 2, START: 3, END: 4}, (("a", "b</w>"),))
    write_tokenizer(tmp_path / "tokenizer", small, pad_token="a")
    first, pad = read_vocabulary(tmp_path / "tokenizer")
    assert (first, pad) == (small, "a")
    assert read_vocabulary(tmp_path / "tokenizer")[0] is first
    renamed = (
        (tmp_path / "tokenizer" / "vocab.json")
        .read_text()
        .replace('"b</w>": 1, "ab</w>": 2', '"b</w>": 2, "ab</w>": 1')
    )
    (tmp_path / "tokenizer" / "vocab.json").write_text(renamed)
    second, _ = read_vocabulary(tmp_path / "tokenizer")
    assert [Tokenizer(one).ids("AB") for one in (first, second)] == [[2], [1]]
