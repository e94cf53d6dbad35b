"""Patterns of PEFT's settings, against PEFT itself and in bounded time."""

import re
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key

from konomi.formats.module_patterns import PatternError, matches

PATHS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.10.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.proj_in",
    "to_q",
)
PATTERNS = (
    "to_q", "attn1.to_q", r"attn\d\.to_q", r"down_blocks\.[0-9]+\.attentions\.0\..*", "(to_q|to_k)",
    "to_(q|k|v)",
    r".*attn2.*", "^to_q", "^down_blocks.*", "to_q$", "t?o_q", r"(a|ab)*to_q", "[^.]+",
    r"\w+\.to_q", r"attn1\..{4}",
    "to_.", "t{1}o_q", "t{0,2}o_q{1,}", "(?:to_)q", "", "q", "a{,}", "x{y}", "[]to]+_q",
    r"transformer_blocks.\d.attn1\.to_q",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_what_peft_matches(pattern: str) -> None:
    for path in PATHS:
        assert matches(pattern, path) == (get_pattern_key([pattern], path) == pattern), path


@settings(max_examples=200, deadline=None)
@given(st.text("ab.01*+?|()[]{},^$\\dw-", max_size=12), st.text("ab.01", max_size=10))
def test_it_is_python_s_engine_where_it_answers(pattern: str, path: str) -> None:
    try:
        found = matches(pattern, path)
    except PatternError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = re.match(rf"(.*\.)?({pattern})$", path) is not None
    assert found == expected


@pytest.mark.parametrize(
    "pattern",
    [".?" * 60 + "Z", "(a+)+Z", "(.|.|.)*Z", "(.*.*)*Z", ".*" * 100 + "Z", "(x?){200}x{200}",
     "(" * 40 + "a" + ")*" * 40,
     "a{1000}{1000}", "(?=a)", "(?P<n>a)", r"(a)\1", "[", "(", "a**", "*", "\\", "a" * 501],
)  # fmt: skip
def test_whatever_is_asked_ends_at_once(pattern: str) -> None:
    start = time.process_time()
    try:
        matches(pattern, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" * 2)
    except PatternError as error:
        assert str(error)
    assert time.process_time() - start < 1
