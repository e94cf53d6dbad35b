"""What is drawn to be measured, and what each prompt is for."""

import pytest

from konomi.evaluation.prompts import (
    Subject,
    default_prompts,
    prompts_of,
    shared_phrases,
    style_prompts,
)


@pytest.mark.parametrize("drawings", [False, True])
def test_by_default_subject_places_class_and_something_else(drawings):
    found = default_prompts(Subject("sks", "dog"), drawings=drawings)
    kinds = [prompt.kind for prompt in found]
    assert kinds == ["subject", *["context"] * 3, *["class"] * 2, *["unrelated"] * 2]
    for prompt in found[:4]:
        assert "sks dog" in prompt.text
        assert prompt.plain == prompt.text.replace("sks dog", "dog")
    for before, prompt in zip(found, found[4:6], strict=False):
        assert prompt.text == before.text.replace("sks dog", "dog")
    assert not any("dog" in prompt.text for prompt in found[6:])


def test_words_that_are_not_there_are_left_out():
    named = default_prompts(Subject("zwx"))
    assert [prompt.kind for prompt in named] == ["subject", *["context"] * 3, *["unrelated"] * 2]
    assert named[0].text == "a photo of zwx" and named[0].plain == "a photo of something"
    class_alone = default_prompts(Subject(noun="apple"))
    assert class_alone[0].text == "a photo of an apple"
    assert [prompt.kind for prompt in class_alone].count("class") == 0


def test_something_unrelated_is_not_the_class():
    for noun in ("fox", "house"):
        last = default_prompts(Subject("sks", noun), drawings=True)[-2:]
        assert [one.kind for one in last] == ["unrelated"] * 2 and last[0].text != last[1].text
        assert not any(noun in one.text for one in last)


def test_the_subject_is_called_with_the_phrases_that_all_captions_have():
    bag = Subject("zwx", "bag")
    captions = [f"a zwx bag, Noto style, on a {hue} background, photo" for hue in ("red", "black")]
    # What two captions share may be the scene.
    assert shared_phrases(captions * 2, bag) == ()
    captions.append("photo,  a small zwx bag, noto style,on grass")
    assert [one.casefold() for one in shared_phrases(captions, bag)] == ["noto style"]
    assert shared_phrases([*captions, "a zwx bag"], bag) == shared_phrases([], bag) == ()
    before = default_prompts(bag)
    for plain, found in zip(before, default_prompts(bag, always=("noto style", "2d")), strict=True):
        calls = plain.kind in ("subject", "context")
        assert found.kind == plain.kind
        assert found.text == plain.text + ", noto style, 2d" * calls
        assert found.plain == plain.plain + ", noto style, 2d" * calls


@pytest.mark.parametrize("drawings", [False, True])
def test_a_style_is_called_as_its_captions_call_it_and_is_no_thing(drawings):
    found = style_prompts(Subject("inkwash"), drawings=drawings)
    assert [prompt.kind for prompt in found] == [*["context"] * 4, *["unrelated"] * 2]
    for prompt in found[:4]:
        assert prompt.text == f"inkwash, {prompt.plain}" and prompt.plain.startswith("a")
    assert [one.text for one in found[4:]] == [one.plain for one in found[:2]]


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
