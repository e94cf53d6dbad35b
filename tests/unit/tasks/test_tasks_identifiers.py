"""Identifiers: never a word that splits, ranked by measured reactions; and what is said of a bad
one.
"""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import konomi.tasks.identifying as identifying
from konomi.cli.main import main
from konomi.config.sections import TextConfig
from konomi.errors import RecipeError
from konomi.models.load import load_base
from konomi.models.random_base import random_base
from konomi.models.tokenizer import clip_vocabulary
from konomi.tasks.identifying import candidates, denoiser_reactions, identifiers
from konomi.tasks.prior import _list as prior_list
from konomi.tasks.prior import everyday_nouns, is_ordinary
from konomi.tasks.word_lists import is_in_use, is_offensive
from konomi.training.events import Prepared


@pytest.fixture
def small(monkeypatch):
    """A random base in place of the one that is named, and few candidates."""
    monkeypatch.setattr(identifying, "CANDIDATES", 40)
    monkeypatch.setattr(candidates, "__defaults__", (40,))

    def use(family):
        base = random_base(family)
        base.place("cpu", torch.float32)
        monkeypatch.setattr(identifying, "load_base", lambda *_, **__: base)
        return base

    return use


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_no_candidate_splits_or_is_an_ordinary_word(family):
    base = random_base(family)
    words = candidates(base, 400)
    assert len(words) == len(set(words)) == 400
    from transformers import CLIPTokenizer

    tables = [clip_vocabulary()] * len(base.text_encoders)
    for vocabulary in tables:
        tokenizer = CLIPTokenizer(vocab=vocabulary.tokens, merges=list(vocabulary.merges))
        split = [
            word
            for word in words
            if len(tokenizer(word, add_special_tokens=False)["input_ids"]) != 1
        ]
        assert split == []
    assert all(re.fullmatch("[a-z]{3,5}", word) for word in words)
    assert not set(words) & set(everyday_nouns())
    numbers = [clip_vocabulary().tokens[f"{word}</w>"] for word in words]
    assert numbers == sorted(numbers, reverse=True)
    assert min(numbers) > 20_000


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("class_noun", ["", "dog"])
def test_words_come_with_their_reactions_best_first(small, family, class_noun):
    base = small(family)
    *progress, found = identifiers("any", class_noun=class_noun, count=5)
    assert all(isinstance(news, Prepared) for news in progress)
    assert (progress[-1].what, progress[-1].done) == ("predictions", progress[-1].total)
    assert len(found) == 5
    assert [one.score for one in found] == sorted(one.score for one in found)
    for one in found:
        assert one.token == clip_vocabulary().tokens[f"{one.word}</w>"]
        assert one.score == pytest.approx((one.text * one.denoiser) ** 0.5)
        assert all(len(pieces) == 1 for pieces in base.tokens(one.word).values())
    # By hand, for the best: relative change of the text states.
    with torch.no_grad():
        prompts = [
            f"a photo of a {found[0].word} {class_noun}".strip(),
            f"a photo of a {class_noun}".strip(),
        ]
        with_word, without = base.encode_captions(prompts, TextConfig()).states.double()
    assert found[0].text == pytest.approx(
        ((with_word - without).norm() / without.norm()).item(), rel=1e-4
    )


def test_a_base_does_not_react_to_nothing_and_reacts_the_same_alone_and_in_company(small):
    base = small("sd1")
    with torch.no_grad():
        plain = base.encode_captions(["a photo of a cat"], TextConfig())
    prompts = ["a photo of a cat", "a photo of a sks cat", "pizza"]
    nothing, some, much = denoiser_reactions(base, prompts, plain)
    assert nothing == pytest.approx(0.0, abs=1e-5) and some > 1e-3 and much > 1e-3
    assert denoiser_reactions(base, prompts[1:2], plain) == pytest.approx([some], rel=1e-4)


@pytest.mark.slow
def test_tiny_offers_the_words_that_its_captions_left_without_meaning():
    """`sks` and the like came with captions by chance: the base should react to them less than to
    names of things.
    """
    *_, found = identifiers("tiny", count=30, device="cpu")
    words = {one.word for one in found}
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tools.tiny.captions import RARE_WORDS

    assert len(words & set(RARE_WORDS)) >= 5
    assert not words & {"pizza", "robot", "eagle", "fox"}


def test_ordinary_words():
    assert [word for word in ("walnut", "Dog", "photo", "sks", "zwx") if is_ordinary(word)] == [
        "walnut",
        "Dog",
        "photo",
    ]


def test_the_command_prints_a_table_or_json(small, capsys):
    small("sd1")
    assert main(["identifiers", "--base", "any", "--count", "3"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["word", "token", "text", "denoiser", "score"] and len(table) == 5
    assert main(["identifiers", "--base", "any", "--count", "3", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["word"] for entry in entries] == [row.split()[0] for row in table[1:4]]
    assert entries[0].keys() == {"word", "token", "text", "denoiser", "score"}


def test_no_words_are_no_list(small, monkeypatch, capsys):
    base = small("sd1")
    monkeypatch.setattr(type(base), "vocabularies", lambda self: {"text_encoder": {"a</w>": 1}})
    with pytest.raises(RecipeError, match="no words of 3 to 5 letters"):
        list(identifiers("any"))
    assert main(["identifiers", "--base", "any", "--count", "0"]) == 1
    assert "--count is 0" in capsys.readouterr().err


def test_words_in_use_and_offensive_words_are_never_offered():
    words = candidates(load_base("tiny"))
    assert {"sks", "ohwx", "zwx"} <= set(words)
    assert not {"kebab", "jew", "thong", "lube", "god", "mary"} & set(words)
    assert not [word for word in words if is_in_use(word) or is_offensive(word)]
    everywhere = candidates(random_base("sd1"))
    assert len(everywhere) > 300
    assert not [word for word in everywhere if is_offensive(word)]


def test_offensive_words_are_found_inside_others_and_good_words_are_not():
    # Kept out of sight here as well.
    assert is_offensive("xan" + "al") and is_offensive("FU" + "CK")
    assert not any(is_offensive(word) for word in ("sks", "ohwx", "dog", "creature", "class"))


def test_no_class_noun_that_is_proposed_offends():
    nouns = {word for noun in (*everyday_nouns(), *prior_list("tiny")) for word in noun.split()}
    assert sorted(word for word in nouns if is_offensive(word, inside=False)) == ["pot"]  # a vessel
