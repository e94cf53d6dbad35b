"""What is drawn to be measured, and what each prompt is for."""

import pytest

from konomi.evaluation.prompts import Subject, default_prompts, prompts_of


@pytest.mark.parametrize("drawings", [False, True])
def test_by_default_subject_places_class_and_something_else(drawings):
    found = default_prompts(Subject("sks", "dog"), drawings=drawings)
    kinds = [prompt.kind for prompt in found]
    assert kinds == ["subject", "context", "context", "context", "class", "unrelated"]
    for prompt in found[:4]:
        assert "sks dog" in prompt.text
        assert prompt.plain == prompt.text.replace("sks dog", "dog")
    assert "sks" not in found[4].text and "dog" in found[4].text
    assert "dog" not in found[5].text


def test_words_that_are_not_there_are_left_out():
    named = default_prompts(Subject("zwx"))
    assert [prompt.kind for prompt in named] == ["subject", *["context"] * 3, "unrelated"]
    assert named[0].text == "a photo of zwx" and named[0].plain == "a photo of something"
    class_alone = default_prompts(Subject(noun="apple"))
    assert class_alone[0].text == "a photo of an apple"
    assert [prompt.kind for prompt in class_alone].count("class") == 0


def test_something_unrelated_is_not_the_class():
    for noun in ("fox", "house"):
        last = default_prompts(Subject("sks", noun), drawings=True)[-1]
        assert last.kind == "unrelated" and noun not in last.text


@pytest.mark.parametrize(
    ("line", "text", "kind", "plain"),
    [
        ("a {} in the jungle", "a sks apple in the jungle", "context", "an apple in the jungle"),
        ("photo of sks apple", "photo of sks apple", "subject", "photo of apple"),
        ("SKS apple, best quality", "SKS apple, best quality", "context", "apple, best quality"),
        ("an apple", "an apple", "class", "an apple"),
        ("a house", "a house", "unrelated", "a house"),
    ],
)
def test_what_a_prompt_is_for_follows_from_its_words(line, text, kind, plain):
    (found,) = prompts_of([line, line], Subject("sks", "apple"))
    assert (found.text, found.kind, found.plain) == (text, kind, plain)


def test_without_any_word_every_prompt_shows_what_was_learned():
    found = prompts_of(["a castle", "a cat"], Subject())
    assert [prompt.kind for prompt in found] == ["context", "context"]
