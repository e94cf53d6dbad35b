import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from konomi.models.prompt_switching import prompt_per_step
from konomi.models.prompt_syntax import (
    Span,
    Tag,
    escape,
    extract_tags,
    find_words,
    parse_emphasis,
    parse_mixture,
)

TRICKY = st.text(alphabet="ab ()[]{}\\:|<>.0159-+\nBREAKé猫", max_size=60)


def spans(prompt):
    """The one section of a prompt without BREAK, weights rounded."""
    (section,) = parse_emphasis(prompt)
    return [(span.text, round(span.weight, 6)) for span in section]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog", [("a dog", 1)]),
        ("a (dog) b", [("a ", 1), ("dog", 1.1), (" b", 1)]),
        ("((dog))", [("dog", 1.21)]),
        ("[dog]", [("dog", 0.909091)]),
        ("{dog}", [("dog", 1.05)]),
        ("{{dog}}", [("dog", 1.1025)]),
        ("(dog:1.3)", [("dog", 1.3)]),
        ("(dog: 0.5 )", [("dog", 0.5)]),
        ("(dog:-.5)", [("dog", -0.5)]),
        ("((a):1.5)", [("a", 1.65)]),
        ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
        ("(a [b] c)", [("a ", 1.1), ("b", 1.0), (" c", 1.1)]),
        (r"\(dog\) \[b\] \{c\}", [("(dog) [b] {c}", 1)]),
        (r"a\b \\(c)", [("a\\b \\", 1), ("c", 1.1)]),
        ("(a", [("a", 1.1)]),
        ("a) b]", [("a) b]", 1)]),
        ("(a] b)", [("a] b", 1.1)]),
        ("ratio 3:2", [("ratio 3:2", 1)]),
        ("a:1.3)", [("a:1.3)", 1)]),
        ("[a:1.3)", [("a:1.3)", 0.909091)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:" + "9" * 400 + ")", [("a:" + "9" * 400 + ")", 1.1)]),
        ("()", []),
        ("", []),
        ("BREAKFAST", [("BREAKFAST", 1)]),
    ],
)
def test_emphasis(prompt, expected):
    assert spans(prompt) == expected


def test_break_divides_sections_also_within_emphasis():
    assert parse_emphasis("a BREAK b") == ((Span("a"),), (Span("b"),))
    assert parse_emphasis("BREAK a BREAK BREAK") == ((), (Span("a"),), (), ())
    first, second = parse_emphasis("(a BREAK b:1.5)")
    assert (first, second) == ((Span("a", 1.5),), (Span("b", 1.5),))


@given(TRICKY)
def test_emphasis_never_raises_and_keeps_the_words(prompt):
    text = "".join(span.text for section in parse_emphasis(prompt) for span in section)
    removed = set(
        "()[]{}\\:.-+ \n0123456789"
    )  # Brackets, weights, escapes and the blanks around BREAK.
    assert [c for c in text.replace("BREAK", "") if c not in removed] == [
        c for c in prompt.replace("BREAK", "") if c not in removed
    ]


@given(TRICKY.filter(lambda text: "BREAK" not in text))
def test_escaped_text_is_taken_as_it_is(text):
    assert "".join(span.text for span in parse_emphasis(escape(text))[0]) == text
    assert prompt_per_step(escape(text), 3) == (escape(text),) * 3
    assert parse_mixture(escape(text)) == ((escape(text), 1.0),)


@given(TRICKY, st.integers(1, 12))
@settings(deadline=None)
def test_the_rest_never_raises(prompt, num_steps):
    per_step = prompt_per_step(prompt, num_steps)
    assert len(per_step) == num_steps
    assert all(len(one) <= len(prompt) for one in per_step)
    assert parse_mixture(prompt)
    cleaned, tags = extract_tags(prompt)
    assert len(tags) == 0 or len(cleaned) < len(prompt)
    assert "".join(piece for piece, _ in find_words(prompt, ["ab", "<s1>", "é"])) == prompt


def test_switches_are_followed_at_any_depth():
    deep = "[" * 5000 + "a|b" + "]" * 5000
    assert [one.strip("[]") for one in prompt_per_step(deep, 2)] == ["a", "b"]
    chosen = "[x:" * 500 + "a" + ":0]" * 500
    assert prompt_per_step(chosen, 3) == ("a",) * 3


def test_brackets_within_a_part_do_not_reach_beyond_it():
    assert prompt_per_step("[x[(]|y]", 2) == ("x[(]", "y")


def test_deep_nesting_is_no_problem():
    deep = "[" * 5000 + "a|b" + "]" * 5000
    assert len(prompt_per_step(deep, 2)) == 2
    parse_emphasis("(" * 5000 + "a")
    parse_emphasis("(" * 5000)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [b:c:0.5] d", ["a b d"] * 2 + ["a c d"] * 2),
        ("[b:c:3]", ["b", "b", "b", "c"]),
        ("[c:0.25]", ["", "c", "c", "c"]),
        ("[b::0.75]", ["b", "b", "b", ""]),
        ("[b:c:0]", ["c"] * 4),
        ("[b:c:1.0]", ["b"] * 4),
        ("[b:c:1]", ["b", "c", "c", "c"]),
        ("[b:c:99]", ["b"] * 4),
        ("[a|b|c]", ["a", "b", "c", "a"]),
        ("[[a|b]:c:0.5]", ["a", "b", "c", "c"]),
        ("[a:[b:c:0.75]:0.25]", ["a", "b", "b", "c"]),
        ("[x [a|b] y]", ["[x a y]", "[x b y]"] * 2),
        ("[(a:1.2):b:0.5]", ["(a:1.2)"] * 2 + ["b"] * 2),
        ("([a:b:0.5]:1.3)", ["(a:1.3)"] * 2 + ["(b:1.3)"] * 2),
        ("[a]", ["[a]"] * 4),
        ("[a:b]", ["[a:b]"] * 4),
        ("[a:b:c:0.5]", ["[a:b:c:0.5]"] * 4),
        (r"\[a|b\]", [r"\[a|b\]"] * 4),
        ("[a|b", ["[a|b"] * 4),
    ],
)
def test_switching(prompt, expected):
    assert list(prompt_per_step(prompt, 4)) == expected


def test_switching_counts_steps_without_rounding_surprises():
    for num_steps in range(1, 60):
        for tenths in range(11):
            shown = prompt_per_step(f"[a:b:{tenths / 10}]", num_steps).count("a")
            assert shown == tenths * num_steps // 10


def test_mixtures_are_shares_of_one():
    assert parse_mixture("a:0.7 | b:0.3") == (("a", pytest.approx(0.7)), ("b", pytest.approx(0.3)))
    assert parse_mixture("a|b") == (("a", 0.5), ("b", 0.5))
    assert parse_mixture("a:3|b") == (("a", 0.75), ("b", 0.25))
    assert parse_mixture("a:1.5|b:-0.5") == (("a", 1.5), ("b", -0.5))
    assert parse_mixture("a:1|b:-1") == (("a", 1.0), ("b", -1.0))
    assert parse_mixture("ratio 3:2") == (("ratio 3:2", 1.0),)
    assert parse_mixture("(a:1.2) c:0.5|[x|y]:0.5") == (("(a:1.2) c", 0.5), ("[x|y]", 0.5))
    assert parse_mixture(r"a\|b") == ((r"a\|b", 1.0),)


def test_tags():
    prompt, tags = extract_tags(
        "a dog <lora:my name:0.8>, <s1> <LORA:b:0.5:1> <hypernet:h> <lora:c:te=0:unet=1>"
    )
    assert prompt == "a dog , <s1>"
    assert tags == (
        Tag("lora", "my name", ("0.8",)),
        Tag("lora", "b", ("0.5", "1")),
        Tag("hypernet", "h"),
        Tag("lora", "c", ("te=0", "unet=1")),
    )
    assert extract_tags(" <s1> a < b : c > ") == (" <s1> a < b : c > ", ())


def test_words_are_found_whole_in_any_case_the_longest_first():
    known = ["sks", "sks-dog", "<s1>", "c++"]
    assert find_words("a SKS-dog, sks sksy <S1>x c++", known) == [
        ("a ", None),
        ("SKS-dog", "sks-dog"),
        (", ", None),
        ("sks", "sks"),
        (" sksy ", None),
        ("<S1>", "<s1>"),
        ("x ", None),
        ("c++", "c++"),
    ]
    assert find_words("plain", []) == [("plain", None)]
    assert find_words("可愛いsksの写真", ["sks"]) == [
        ("可愛い", None),
        ("sks", "sks"),
        ("の写真", None),
    ]
