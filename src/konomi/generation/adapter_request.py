"""Which adapters to attach at which weights: `--add FILE:0.8` on the command line,
`<lora:name:0.8>` in a prompt.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from math import isfinite
from pathlib import Path

from konomi.adapters.adapter import Adapter
from konomi.adapters.apply import Strengths
from konomi.config.weighted_file import NUMBER, weighted_file
from konomi.errors import FileFormatError, RecipeError
from konomi.formats import hypernetwork
from konomi.formats.source import CUSTOM_DIFFUSION_NAMES, open_source
from konomi.formats.writer import Content
from konomi.generation.block_weights import layer_weights, parse_block_weights
from konomi.generation.request import UsedAdapter
from konomi.models.prompt_syntax import Tag, extract_tags

FOLDER_MARKS = ("adapter_config.json", *CUSTOM_DIFFUSION_NAMES)
"""What a folder holds that is an adapter."""
SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True, slots=True)
class AdapterRequest:
    """An adapter file and its weights; 0 leaves the part untouched."""

    path: Path
    denoiser_weight: float = 1.0
    text_weight: float = 1.0
    kind: str = ""
    """Of the tag that asked for it, `lora`, `lyco` or `hypernet`; "" on the command line, which
    takes any."""
    blocks: tuple[tuple[str, float], ...] = ()
    """Weights of the denoiser's blocks, besides (`lbw`)."""
    unused: tuple[str, ...] = ()
    """Arguments of the tag that konomi does not use, as written."""

    def check(self, content: Content) -> None:
        """Raises RecipeError where a tag's word is not for what the file holds."""
        word = tag_kind(content)
        if self.kind and (self.kind == "hypernet") != (word == "hypernet"):
            article = "an" if content[0] in "aeiou" else "a"
            raise RecipeError(
                f"<{self.kind}:{self.path.stem}> finds {self.path}, which is {article} {content}. "
                f"Write <{word}:{self.path.stem}:1>, or --add {self.path}."
            )


def tag_kind(content: Content) -> str:
    """The word of tags that name such an adapter."""
    return "hypernet" if content == "hypernetwork" else "lora"


def parse_add(argument: str, flag: str = "--add") -> AdapterRequest:
    """`FILE`, `FILE:WEIGHT`, `FILE:unet=W`, `FILE:unet=W:text=W` (`denoiser` and `te` are read
    too), as `konomi.config.weighted_file` reads it. `flag`: where it is written, for messages.

    Raises RecipeError where neither file nor folder is there.
    """
    found = weighted_file(argument)
    if not found.path.exists():
        raise RecipeError(
            f"{flag} {argument}: there is no file {found.path}. Write FILE, FILE:0.8 or "
            "FILE:unet=0.8:text=0.5."
        )
    if not (isfinite(found.denoiser) and isfinite(found.text)):
        raise RecipeError(f"{flag} {argument[:80]}: the weight is too large a number.")
    return AdapterRequest(found.path, found.denoiser, found.text)


def adapters_of_prompt(prompt: str, folders: Sequence[Path]) -> tuple[AdapterRequest, ...]:
    """The adapters that a prompt's `<lora:NAME:...>` and `<hypernet:NAME:...>` tags ask for, in
    order.

    `:W` sets both weights, `:TEXT:DENOISER` as web UIs read it, `:te=W` and `:unet=W` by name;
    `:lbw=1,0,...` weights blocks (`konomi.generation.block_weights`). What else a tag says is in
    `unused`. Raises RecipeError for a weight that is not a number, or a name that is in none of
    the folders.
    """
    find = cache(
        lambda name, kind: find_adapter(name, folders, kind)
    )  # It looks through all the folders.
    return tuple(_request(tag, find) for tag in extract_tags(prompt)[1])


def strengths(
    request: AdapterRequest, adapter: Adapter, block_of: Callable[[str], str]
) -> tuple[Strengths, tuple[str, ...]]:
    """How much of each layer a request asks for, and the layers that its block weights say nothing
    about.
    """
    if not request.blocks:
        return Strengths(request.denoiser_weight, request.text_weight), ()
    weights, without = layer_weights(dict(request.blocks), adapter.layers, block_of)
    return Strengths(request.denoiser_weight, request.text_weight, weights), without


def find_adapter(name: str, folders: Sequence[Path], kind: str = "lora") -> Path:
    """The file (or adapter folder) NAME or NAME.safetensors, .pt, .bin, .ckpt, at any depth; the
    shallowest counts.

    Where several files have the name, those that hold what the tag's `kind` is for come first. A
    name never leads out of the folders. Raises RecipeError naming what is there.
    """
    known: list[tuple[int, str, Path]] = []
    for order, folder in enumerate(folders):
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.suffix in SUFFIXES or any((path / name).is_file() for name in FOLDER_MARKS):
                depth = order * 1000 + len(path.relative_to(folder).parts)
                known.append((depth, path.name if path.is_dir() else path.stem, path))
    matches = [entry for entry in known if name in (entry[1], entry[2].name)]
    if len(matches) > 1:
        matches.sort(
            key=lambda entry: (_holds_hypernetwork(entry[2]) != (kind == "hypernet"), entry)
        )
    if matches:
        return matches[0][2]
    stems = sorted({stem for _, stem, _ in known})
    folded = {stem.casefold(): stem for stem in stems}
    near = [folded[one] for one in get_close_matches(name.casefold(), folded, n=3)]
    there = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"there is {', '.join(stems[:10]) or 'nothing'}."
    )
    where = ", ".join(map(str, folders)) or "no folder"
    raise RecipeError(f"<{kind}:{name}>: no such adapter in {where}; {there}")


def format_tag(adapter: UsedAdapter) -> str:
    """The tag that asks for it, in a form every web UI reads."""
    text, denoiser = f"{adapter.text_weight:g}", f"{adapter.denoiser_weight:g}"
    if (
        adapter.kind == "hypernet"
    ):  # It has nothing to do with the text encoder; web UIs read one number.
        text = denoiser
    weights = text if text == denoiser else f"{text}:{denoiser}"
    return f"<{adapter.kind}:{adapter.name}:{weights}>"


def _request(tag: Tag, find: Callable[[str, str], Path]) -> AdapterRequest:
    positional = [argument for argument in tag.arguments if argument and "=" not in argument]
    named = dict(argument.split("=", 1) for argument in tag.arguments if "=" in argument)
    text = _weight(tag, named.get("te", positional[0] if positional else "1"))
    denoiser = _weight(
        tag,
        named["unet"] if "unet" in named else positional[1] if len(positional) > 1 else str(text),
    )
    words = f"<{tag.kind}:{tag.name}:...>"
    blocks = (
        parse_block_weights(named["lbw"], words)
        if "lbw" in named and tag.kind != "hypernet"
        else {}
    )
    used = {"te", "unet", *(("lbw",) if blocks else ())}
    unused = [
        *positional[2:],
        *(f"{name}={value}" for name, value in named.items() if name not in used),
    ]
    path = find(tag.name, tag.kind)
    return AdapterRequest(path, denoiser, text, tag.kind, tuple(blocks.items()), tuple(unused))


def _holds_hypernetwork(path: Path) -> bool:
    try:
        return hypernetwork.recognise(open_source(path))
    except FileFormatError:
        return False


def _weight(tag: Tag, written: str) -> float:
    if not re.fullmatch(NUMBER, written.strip()):
        raise RecipeError(
            f"<{tag.kind}:{tag.name}:...>: the weight {written[:40]!r} is not a number."
        )
    if not isfinite(float(written)):
        raise RecipeError(f"<{tag.kind}:{tag.name}:...>: the weight is too large a number.")
    return float(written)
