"""Words that start from what a network sees in the user's pictures (`initial = "leap"`).

A method says which word it wants such a start for; whoever has the pictures calls `look`, before
`plan`. Shapes: n vectors of a word, D width of a text encoder's token embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from konomi.adapters.tokens import repeated
from konomi.errors import RecipeError
from konomi.formats.start_network import StartNetwork, read_start_network
from konomi.models.base import BaseModel
from konomi.models.clip import load_clip
from konomi.models.hub import is_hub_id
from konomi.models.load import BUILTIN
from konomi.models.start_network import answer, split_by_part
from konomi.storage.home import cache_root, expanded

LEAP = "leap"
"""What a setting of the start says in place of words."""
PICTURES = 16
"""Of a word's that are looked at; more change the mean little."""


@dataclass(slots=True)
class LearnedStart:
    """The network of a run, and what it has said so far."""

    network: StartNetwork
    path: Path
    words: tuple[str, ...]
    """That are to start from it."""
    vectors: dict[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Word -> part of the text encoder -> [n, D]."""

    def look(self, pictures: Mapping[str, Callable[[], Sequence[Image.Image]]]) -> None:
        """Word -> its pictures, in their order. Raises ModelError where the network's CLIP is not
        to be had, FileFormatError where its tensors are not of its kind."""
        clip = load_clip(self.network.facts.clip) if self.network.facts.clip else None
        for word, images in pictures.items():
            found = split_by_part(answer(self.network, images(), clip), self.network.facts)
            self.vectors[word] = found

    def start(self, word: str, count: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Part -> [count, D], on the devices of `like`: the network's vectors, over and over."""
        known = self.vectors.get(word)
        if known is None:
            raise AssertionError(f"nobody has looked at the pictures of {word!r}")
        return {part: repeated(known[part], count).to(table.device) for part, table in like.items()}


@runtime_checkable
class StartsFromPictures(Protocol):
    """A method whose words may have a start that depends on the pictures."""

    @property
    def learned_start(self) -> LearnedStart | None:
        """None where they start from something else. Known before `plan`."""
        ...


def leap_start(
    base: BaseModel,
    source: str,
    initial: str,
    file: str,
    words: Sequence[str],
    *,
    setting: str = "method.initial_file",
) -> LearnedStart | None:
    """None where the recipe asks for another start; else as `learned_start`."""
    if initial != LEAP:
        return None
    return learned_start(base, source, file, words, setting=setting)


def unused_network(
    initial: str, file: str, *, section_setting: str = "initial_file"
) -> dict[str, str]:
    """For `Needs.unused`."""
    if initial == LEAP or not file:
        return {}
    start = section_setting.removesuffix("_file")
    return {f"method.{section_setting}": f'method.{start} is not "{LEAP}".'}


def learned_start(
    base: BaseModel, source: str, file: str, words: Sequence[str], *, setting: str
) -> LearnedStart:
    """The network for a base, checked; loads no weights of the denoiser.

    source: the base as the recipe names it.
    file: the recipe's own choice; empty: the one that konomi has for `tiny`, or that
        `learn-start` has written for `source`.
    setting: the recipe's name for `file`, for messages.

    Raises RecipeError where there is none, or one for another base, FileFormatError.
    """
    path = expanded(file) if file else network_of(source)
    if not file and not path.is_file():
        raise RecipeError(
            f"{path}: there is no network of starts for {base.name}. Make one with konomi "
            f"learn-start --base {source}, or name one in {setting}."
        )
    network = read_start_network(path)
    facts = network.facts
    shapes = base.meta_copy()
    widths = {part: shapes.token_embedding(part).shape[1] for part in shapes.text_encoders}
    if facts.widths != widths:
        told = " and ".join(
            f"{' + '.join(map(str, some.values()))}" for some in (facts.widths, widths)
        )
        raise RecipeError(
            f"{path}: was made for {facts.base}, another kind of base than {base.name} (widths of "
            f"token embeddings: {told}). Make one with konomi learn-start --base {source}."
        )
    if facts.fingerprint != token_fingerprint(base):
        raise RecipeError(
            f"{path}: was made for {facts.base}, whose text encoder has other weights than "
            f"{base.name}'s. Make one with konomi learn-start --base {source}."
        )
    return LearnedStart(network, path, tuple(words))


def token_fingerprint(base: BaseModel) -> str:
    """Of the text encoders: to be asked for before the base is placed, in the precision of its
    files."""
    return base.fingerprint("text")


def network_of(source: str) -> Path:
    """Where the network for a base lies: inside konomi for `tiny`, beside a file or folder, in the
    cache for a hub id."""
    if source == "tiny":
        return BUILTIN / "start" / "tiny.safetensors"
    path = expanded(source)
    if not path.exists() and is_hub_id(source):
        return cache_root() / "starts" / f"{source.replace('/', '--')}.safetensors"
    whole = path.absolute()
    stem = whole.stem if whole.is_file() else whole.name
    return whole.with_name(f"{stem}-start.safetensors")
