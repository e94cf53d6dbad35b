"""CLIP's tokenizer, from the vocabulary that ships with konomi or from a diffusers folder.

The vocabulary is OpenAI's `bpe_simple_vocab_16e6.txt.gz` (MIT, see configs/clip/LICENSE): 256 byte
symbols, the same with `</w>`, one token per merge of the first 48,894, and the two special tokens;
49,408 in all (Radford et al. 2021).
"""

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from konomi.config.parse import parse_json
from konomi.errors import ModelError
from konomi.families import CONFIGS
from konomi.families.family import TextEncoderSpec
from konomi.storage.hashing import texts_hash

START = "<|startoftext|>"
END = "<|endoftext|>"
CLIP_TOKENS = 49408
_MERGES = 49152 - 256 - 2
_MOST_TOKENS = 1 << 24
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""What CLIP takes for a word (Radford et al. 2021, `simple_tokenizer.py`)."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-pair vocabulary: what `vocab.json` and `merges.txt` hold."""

    tokens: dict[str, int]
    merges: tuple[tuple[str, str], ...]

    def __hash__(self) -> int:
        return hash((len(self.tokens), len(self.merges)))

    def to_json(self) -> dict[str, Any]:
        """For embedding in a single file's metadata."""
        return {"tokens": self.tokens, "merges": [" ".join(pair) for pair in self.merges]}


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins of the bytes, in the vocabulary's order (Radford et al. 2019)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(others)]


@lru_cache(maxsize=1)
def clip_vocabulary() -> Vocabulary:
    """The vocabulary of every published Stable Diffusion."""
    text = gzip.decompress((CONFIGS / "clip" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode(
        "utf-8"
    )
    lines = text.split("\n")[1 : 1 + _MERGES]
    return vocabulary_of_merges(
        tuple((left, right) for left, right in (line.split() for line in lines))
    )


def vocabulary_of_merges(merges: tuple[tuple[str, str], ...]) -> Vocabulary:
    """CLIP's numbering of tokens for a list of merges: bytes, bytes at a word's end, merges,
    start, end.
    """
    symbols = _byte_symbols()
    names = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    return Vocabulary({name: number for number, name in enumerate(names)}, merges)


class Tokenizer:
    """CLIP's tokenizer, over the `tokenizers` package alone: the ids of transformers'
    `CLIPTokenizer` (but for its padding token), which takes almost a second of every start to
    import.
    """

    def __init__(self, vocabulary: Vocabulary, *, pad_token: str = END) -> None:
        """Raises ModelError if the vocabulary lacks what every prompt needs.

        `pad_token` stands behind the end of a text and is a word like any other in it: OpenCLIP's
        encoders are padded with `!`, and in OpenCLIP, sd-scripts and the web UIs an exclamation
        mark is read as one. transformers takes the padding token out of the text instead, together
        with the spaces around it.
        """
        self._pipeline = _pipeline(vocabulary)
        if pad_token not in vocabulary.tokens:
            raise ModelError(
                f"the tokenizer's padding token {pad_token!r} is not in its vocabulary."
            )
        self.bos_token_id = self._id(START)
        self.eos_token_id = self._id(END)
        self.pad_token_id = self._id(pad_token)

    def ids(self, text: str) -> list[int]:
        """Token numbers of a text of any length, without start and end."""
        return list(self._pipeline.encode(_encodable(text), add_special_tokens=False).ids)

    def pieces(self, text: str) -> list[str]:
        """The tokens themselves, as `vocab.json` writes them."""
        return list(self._pipeline.encode(_encodable(text), add_special_tokens=False).tokens)

    def vocabulary(self) -> dict[str, int]:
        return dict(self._pipeline.get_vocab())

    def _id(self, token: str) -> int:
        number: int | None = self._pipeline.token_to_id(token)
        assert number is not None, token
        return number


@dataclass(frozen=True, slots=True)
class StoredClipTokenizer:
    """Implements `konomi.models.source.StoredTokenizer`."""

    vocabulary: Vocabulary
    pad_token: str = END

    def open(self, spec: TextEncoderSpec, config: Mapping[str, Any]) -> Tokenizer:
        tokenizer = Tokenizer(self.vocabulary, pad_token=self.pad_token)
        size, last = (
            int(config.get("vocab_size", CLIP_TOKENS)),
            max(self.vocabulary.tokens.values()),
        )
        if last >= size:
            raise ModelError(
                f"its {spec.tokenizer} has the token number {last}, and its {spec.part} only "
                f"{size} tokens."
            )
        return tokenizer

    def write(self, folder: Path, *, length: int) -> None:
        write_tokenizer(folder, self.vocabulary, pad_token=self.pad_token, length=length)

    def fingerprint(self) -> tuple[str, ...]:
        """Whether the padding is a word, and the vocabulary where it is not CLIP's."""
        pad = f"{self.pad_token} is a word" if self.pad_token != END else ""
        if self.vocabulary == clip_vocabulary():
            return pad, ""
        known = [repr(sorted(self.vocabulary.tokens.items())), repr(self.vocabulary.merges)]
        return pad, texts_hash(known)


@lru_cache(maxsize=2)
def _pipeline(vocabulary: Vocabulary) -> Any:
    """The `tokenizers` package's own, checked first: a tenth of a second, so all of one vocabulary
    share it.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    _check(vocabulary)
    pipeline = Tokenizer(
        models.BPE(
            vocab=vocabulary.tokens,
            merges=list(vocabulary.merges),
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token=END,
        )
    )
    pipeline.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Wherever these stand in a text, they are one token.
    pipeline.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (START, END)]
    )
    return pipeline


def _encodable(text: str) -> str:
    """Half a character pair, which damaged files leave in a text, has no bytes: it becomes
    U+FFFD.
    """
    return _SURROGATE.sub("\ufffd", text)


def _check(vocabulary: Vocabulary) -> None:
    for needed in (START, END):
        if needed not in vocabulary.tokens:
            raise ModelError(f"the tokenizer's vocabulary lacks {needed}.")
    if len(set(vocabulary.tokens.values())) != len(vocabulary.tokens):
        raise ModelError("the tokenizer's vocabulary gives two tokens the same number.")
    for text in (*vocabulary.tokens, *(half for pair in vocabulary.merges for half in pair)):
        if not text.isascii() and _SURROGATE.search(text):
            raise ModelError(
                f"the tokenizer's vocabulary has the token {text!r}, which is not text."
            )
    if not all(0 <= number < _MOST_TOKENS for number in vocabulary.tokens.values()):
        raise ModelError(
            f"the tokenizer's vocabulary has token numbers outside 0 to {_MOST_TOKENS - 1}."
        )
    for left, right in vocabulary.merges:
        for needed in (left, right, left + right):
            if needed not in vocabulary.tokens:
                raise ModelError(
                    f"the tokenizer's merges make {needed!r}, which its vocabulary lacks."
                )


def build_tokenizer(vocabulary: Vocabulary, *, pad_token: str = END, length: int = 77) -> Any:
    """A transformers `CLIPTokenizer`, for transformers' own models: it pads and cuts.

    Raises ModelError if the vocabulary lacks what every prompt needs.
    """
    from transformers import CLIPTokenizer

    _check(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary.tokens,
        merges=list(vocabulary.merges),
        pad_token=pad_token,
        model_max_length=length,
    )


def read_vocabulary(folder: Path) -> tuple[Vocabulary, str]:
    """Vocabulary and padding token of a diffusers tokenizer folder (`vocab.json` + `merges.txt`,
    or `tokenizer.json`).

    Only data is read: no class or file that a config names is looked up. Raises ModelError for a
    damaged folder.
    """
    try:
        pad = _pad_token(folder)
        if (folder / "vocab.json").is_file():
            vocabulary = _of_two_files(
                (folder / "vocab.json").read_bytes(), (folder / "merges.txt").read_bytes()
            )
        else:
            vocabulary = _of_one_file((folder / "tokenizer.json").read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: the tokenizer lacks {Path(error.filename).name}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ModelError(
            f"{folder}: the tokenizer's files are damaged ({str(error)[:200]})."
        ) from error
    return vocabulary, pad


def read_clip_tokenizer(folder: Path) -> StoredClipTokenizer:
    """`read_vocabulary`, as a base keeps it."""
    return StoredClipTokenizer(*read_vocabulary(folder))


# By content: a run reads the same 1.5 MB several times, for both text encoders of a base and for
# its fingerprint.
@lru_cache(maxsize=2)
def _of_two_files(vocabulary: bytes, merges: bytes) -> Vocabulary:
    lines = merges.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    pairs = tuple(_pair(line) for line in lines if line and not line.startswith("#version"))
    return Vocabulary(_numbered(parse_json(vocabulary.decode("utf-8"))), pairs)


@lru_cache(maxsize=2)
def _of_one_file(content: bytes) -> Vocabulary:
    model = parse_json(content.decode("utf-8"))["model"]
    return Vocabulary(_numbered(model["vocab"]), tuple(_pair(entry) for entry in model["merges"]))


def _numbered(tokens: Any) -> dict[str, int]:
    if not isinstance(tokens, dict) or not all(type(number) is int for number in tokens.values()):
        raise ValueError("the vocabulary is not a table of token numbers")
    return tokens


def _pair(entry: str | list[str]) -> tuple[str, str]:
    left, right = entry.split() if isinstance(entry, str) else entry
    return left, right


def _pad_token(folder: Path) -> str:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            pad = parse_json((folder / name).read_text(encoding="utf-8")).get("pad_token")
            if isinstance(pad, dict):
                pad = pad.get("content")
            if isinstance(pad, str):
                return pad
    return END


def write_tokenizer(
    folder: Path, vocabulary: Vocabulary, *, pad_token: str, length: int = 77
) -> None:
    """The classic files, which every version of transformers reads."""
    folder.mkdir(parents=True)
    merges = "".join(f"{left} {right}\n" for left, right in vocabulary.merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8", newline="\n")
    _write_json(folder / "vocab.json", vocabulary.tokens, indent=None)
    special = {"bos_token": START, "eos_token": END, "pad_token": pad_token, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        **special,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": length,
        "tokenizer_class": "CLIPTokenizer",
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    path.write_text(
        json.dumps(content, indent=indent, ensure_ascii=False) + "\n",
        encoding="utf-8",
        newline="\n",
    )
