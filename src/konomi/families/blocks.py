"""Blocks by name: of the denoiser as supermerger and kohya name them (`IN04`, `M00`, `OUT07`), of
text encoders by their layers (`TE00`, of a second one `TE2_00`).

A denoiser whose family names none has the lists of layers that its paths begin with: `BLOCKS03` of
`blocks.3`. Layers outside all blocks go with the first or the last: the time embedding with IN00,
the last convolution with the last OUT, as in block-weighted merging.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from konomi.families.family import DenoiserSpec, Family, TextEncoderSpec

BASE = "BASE"
"""All text encoders."""
_NAME = re.compile(r"(IN|OUT|MID|M|TE|TE\d_|[A-Z_]*[A-Z])(\d{1,3})")
_MID = {"MID": "M00", "M0": "M00", "MID00": "M00", "MID0": "M00", "M": "M00"}


def known_blocks(family: Family) -> tuple[str, ...]:
    """Those of the published model, BASE first; empty where the family names none."""
    lists = family.denoiser.block_lists
    return lists[-1] if lists else ()


def usual_name(written: str) -> str:
    """`in4` and `mid` as they are called here: `IN04`, `M00`; what is no such name in capitals."""
    name = written.strip().upper()
    if name in _MID:
        return _MID[name]
    match = re.fullmatch(r"(.*[A-Z_])(\d)", name)
    return f"{match[1]}0{match[2]}" if match else name


def block_name(family: Family, key: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The block of a layer or weight, by its canonical key; "" for the VAE.

    configs: of the parts, by folder, in diffusers' terms.
    """
    part, _, path = key.partition(".")
    for spec in family.adapted_parts:
        if spec.part == part:
            config = configs.get(spec.folder, {})
            if isinstance(spec, DenoiserSpec):
                return _of_denoiser(spec, path, config)
            return _of_text_encoder(family, spec, path, config)
    return ""


def sorted_blocks(names: Iterable[str]) -> tuple[str, ...]:
    """In the order in which they compute, text encoders first."""
    return tuple(sorted(set(names), key=_place))


def expand(written: str, known: Sequence[str]) -> tuple[str, ...] | None:
    """The blocks that `IN04`, `IN04-OUT02`, `OUT*` or `BASE` names among those that there are, in
    their order; empty where there is none of them, None where the words are those of no block.
    """
    first, dash, last = (usual_name(word) for word in written.partition("-"))
    if first == BASE and not dash:
        return tuple(name for name in known if name.startswith("TE"))
    if any(sign in first for sign in "*?[") and not dash:
        found = tuple(name for name in known if fnmatchcase(name, first))
        looks_like_one = re.match(r"(IN|OUT|M|TE)", first) and "." not in first
        return found if found or looks_like_one else None
    names = [first, last] if dash else [first]
    if not all(name in known or _NAME.fullmatch(name) for name in names):
        return None
    if any(name not in known for name in names):
        return ()
    start, end = sorted(known.index(name) for name in (names[0], names[-1]))
    return tuple(known[start : end + 1])


def nearest(written: str, known: Sequence[str]) -> str:
    """The name that was probably meant: of the same kind with the nearest number, else one that is
    written alike; "" where none is.
    """
    name = usual_name(written)
    stem, number = _split(name)
    alike = [one for one in known if _split(one)[0] == stem]
    if alike and number is not None:
        return min(alike, key=lambda one: abs((_split(one)[1] or 0) - number))
    return next(iter(get_close_matches(name, known, 1, 0.5)), "")


def _split(name: str) -> tuple[str, int | None]:
    """`OUT` and 5 of `OUT05`."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :]) if name[len(stem) :] else None


def _of_denoiser(spec: DenoiserSpec, path: str, config: Mapping[str, Any]) -> str:
    if spec.block_of is not None:
        outer = spec.outer_block_of
        return spec.block_of(path, config) or ("" if outer is None else outer(path, config))
    first, _, rest = path.partition(".")
    number = rest.partition(".")[0]
    if first in spec.block_order and number.isdecimal():
        return f"{first.upper()}{int(number):02d}"
    return ""


def _of_text_encoder(
    family: Family, spec: TextEncoderSpec, path: str, config: Mapping[str, Any]
) -> str:
    place = [encoder.part for encoder in family.text_encoders].index(spec.part)
    stem = "TE" if place == 0 else f"TE{place + 1}_"
    if spec.numbered_layers is None:
        return stem.rstrip("_")
    match = spec.numbered_layers.match(path)
    if match:
        return f"{stem}{int(match[1]):02d}"
    last = int(config.get("num_hidden_layers", 1)) - 1
    return f"{stem}{0 if 'embedding' in path else max(last, 0):02d}"


def _place(name: str) -> tuple[int, str]:
    order = ("TE", "IN", "M", "OUT")
    return next((i for i, word in enumerate(order) if re.match(rf"{word}(\d|$)", name)), 4), name
