"""Stage 1: the vocabulary. Byte-pair encoding in CLIP's manner (Radford et al. 2021), learned from
the captions' words.

256 byte symbols, the same 256 ending a word, merges in order of learning, then start and end of
text last, as in CLIP's own vocabulary: the end token has the greatest id.
"""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tools.tiny.captions import RARE_WORDS, caption
from tools.tiny.scenes import COLOURS, Sprites, describe

VOCABULARY = 4096
START, END = "<|startoftext|>", "<|endoftext|>"
EVERYDAY = (
    "a an the of in on at and with to by for from near under over behind beside inside wearing "
    "holding sitting standing playing sleeping flying running eating photo picture drawing image "
    "painting sketch cartoon style toy doll plush stuffed animal dog puppy cat kitten sneaker shoe "
    "boot backpack bowl can candle vase teapot clock glasses poop robot monster jungle beach snow "
    "street city forest garden grass field mountain sea water wooden floor table carpet purple "
    "pink rainbow gold silver dark bright pale cute happy sad angry small big large tiny huge old "
    "new front left right top bottom center middle corner side full body portrait close up view "
    "character mascot creature leaf ears eyes smile hat party night day sun rain cloud stars heart "
    "simple plain white black"
)
"""Words people type that the emoji names do not have; they become whole tokens too."""


def bytes_to_unicode() -> dict[int, str]:
    """GPT-2's reversible map from bytes to printable characters."""
    kept = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in kept]
    table = {b: chr(b) for b in kept}
    return table | {b: chr(256 + n) for n, b in enumerate(others)}


def count_words(sprites: Sprites, scenes: int = 20_000) -> Counter[str]:
    """How often each word comes in captions; names, tags, colours and rare words come at least a
    few times.
    """
    pattern = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_", re.IGNORECASE)
    counts: Counter[str] = Counter()
    for seed in range(scenes):
        counts.update(pattern.findall(caption(sprites, describe(sprites, seed), 0).lower()))
    for text in (*sprites.names, *(tag for s in sprites.all for tag in s.tags), *COLOURS, EVERYDAY):
        counts.update(pattern.findall(text.lower()) * 4)
    for word in RARE_WORDS:
        counts[word] = max(counts[word], 1_000)
    return counts


def learn_merges(counts: Counter[str], number: int) -> list[tuple[str, str]]:
    """The most frequent neighbours, joined one after the other; ties go to the alphabetically
    first.
    """
    table = bytes_to_unicode()
    words = {}
    for word, count in counts.items():
        symbols = [table[b] for b in word.encode("utf-8")]
        words[(*symbols[:-1], symbols[-1] + "</w>")] = count
    merges: list[tuple[str, str]] = []
    pairs: Counter[tuple[str, str]] = Counter()
    for word_symbols, count in words.items():
        for pair in pairwise(word_symbols):
            pairs[pair] += count
    while len(merges) < number and pairs:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] <= 0:
            break
        merges.append(best)
        words = _apply(words, pairs, best)
    return merges


def _apply(
    words: dict[tuple[str, ...], int], pairs: Counter[tuple[str, str]], best: tuple[str, str]
) -> dict[tuple[str, ...], int]:
    """Join one pair everywhere and keep the count of neighbours true."""
    out = {}
    for symbols, count in words.items():
        if best[0] not in symbols:
            out[symbols] = count
            continue
        joined: list[str] = []
        at = 0
        while at < len(symbols):
            if symbols[at : at + 2] == best:
                joined.append(best[0] + best[1])
                at += 2
            else:
                joined.append(symbols[at])
                at += 1
        for pair in pairwise(symbols):
            pairs[pair] -= count
        for pair in pairwise(joined):
            pairs[pair] += count
        out[tuple(joined)] = count
    return out


def write_tokenizer(sprites: Sprites, folder: Path) -> None:
    """The files that `CLIPTokenizer.from_pretrained` reads."""
    letters = list(bytes_to_unicode().values())
    symbols = letters + [letter + "</w>" for letter in letters]
    merges = learn_merges(count_words(sprites), VOCABULARY - len(symbols) - 2)
    if len(symbols) + len(merges) + 2 != VOCABULARY:
        raise ValueError(
            f"only {len(merges)} merges could be learned: fewer than {VOCABULARY} entries"
        )
    entries = [*symbols, *(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(entries)}
    if len(vocabulary) != VOCABULARY:
        raise ValueError("two merges make the same token")
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    settings = {
        **special, "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
