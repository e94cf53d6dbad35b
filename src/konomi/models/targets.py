"""Neutral words for groups of layers, the same for every family with this architecture."""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from konomi.errors import ModelError

_ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r".*\.ff\.net\.(0\.proj|2)"
_PROJECTION = r".*\.attentions\.\d+\.(proj_in|proj_out)"

DENOISER_WORDS: Mapping[str, re.Pattern[str]] = {
    word: re.compile(pattern)
    for word, pattern in {
        "attention": _ATTENTION,
        "attention.kv": r".*\.attn[12]\.(to_k|to_v)",
        "cross_attention": r".*\.attn2\.(to_q|to_k|to_v|to_out\.0)",
        "cross_attention.kv": r".*\.attn2\.(to_k|to_v)",
        "feed_forward": _FEED_FORWARD,
        "projection": _PROJECTION,
        "transformer": f"{_ATTENTION}|{_FEED_FORWARD}|{_PROJECTION}",
        "conv": r".*\.resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|.*\.(down|up)samplers\.\d+\.conv",
    }.items()
}
TEXT_WORDS: Mapping[str, re.Pattern[str]] = {
    "text": re.compile(r".*\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.(fc1|fc2))"),
}


def known_words() -> tuple[str, ...]:
    return (*DENOISER_WORDS, *TEXT_WORDS)


def check_words(words: Iterable[str]) -> None:
    """Raises ModelError for a word that names no kind of layer: known before any weight is loaded."""
    for word in words:
        if word not in known_words():
            raise unknown_word(word)


def is_conv(path: str) -> bool:
    """Whether a denoiser's layer is among those called `conv`."""
    return DENOISER_WORDS["conv"].fullmatch(path) is not None


def unknown_word(word: str) -> ModelError:
    return ModelError(f"there are no layers called {word!r}. Known: {', '.join(known_words())}.")


def matching(module: nn.Module, pattern: re.Pattern[str]) -> dict[str, nn.Module]:
    """Path -> layer, in the module's order."""
    return {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and pattern.fullmatch(path)
    }
