"""sd-scripts' settings by block: lists of numbers for all blocks, in the order in which they
compute.
"""

from collections.abc import Mapping
from typing import Any

from konomi.config.foreign.table import Imported

_DOWN = {12: [f"IN{i:02d}" for i in range(12)], 9: [f"IN{i:02d}" for i in range(9)]}
_UP = {12: [f"OUT{i:02d}" for i in range(12)], 9: [f"OUT{i:02d}" for i in range(9)]}
_ALL = {25: [*_DOWN[12], "M00", *_UP[12]], 19: [*_DOWN[9], "M00", *_UP[9]]}
_SIZES = {
    "block_dims": ("ranks", ""),
    "conv_block_dims": ("ranks", ":conv"),
    "block_alphas": ("alphas", ""),
    "conv_block_alphas": ("alphas", ":conv"),
}
_RATES = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
_THRESHOLD = "block_lr_zero_threshold"
BLOCK_ARGUMENTS = frozenset((*_SIZES, *_RATES, _THRESHOLD))


def import_blocks(found: Imported, arguments: Mapping[str, str]) -> None:
    """Take over what network arguments say of single blocks, or say why not."""
    tables: dict[str, dict[str, float]] = {}
    for name, (table, words) in _SIZES.items():
        if name in arguments:
            numbers = _numbers(found, name, arguments[name])
            named = _named(found, name, _ALL, numbers)
            if table == "ranks":
                named = {block: int(value) for block, value in named.items()}
            tables.setdefault(table, {}).update(
                {f"{block}{words}": value for block, value in named.items()}
            )
    factors = _factors(found, arguments)
    for table, values in (*tables.items(), ("rate_factors", factors)):
        if values:
            sources = [name for name in (*_SIZES, *_RATES) if name in arguments]
            of_table = [n for n in sources if _SIZES.get(n, ("rate_factors", ""))[0] == table]
            found.put(", ".join(of_table), f"method.blocks.{table}", values)


def _factors(found: Imported, arguments: Mapping[str, str]) -> dict[str, float]:
    known: Mapping[str, Mapping[int, list[str]]] = {
        "down_lr_weight": _DOWN,
        "mid_lr_weight": {1: ["M00"]},
        "up_lr_weight": _UP,
    }
    factors: dict[str, float] = {}
    for name, lists in known.items():
        if name in arguments:
            numbers = _numbers(found, name, arguments[name])
            if name == "mid_lr_weight" and len(set(numbers)) == 1:
                # Some models have three numbers for the one block.
                numbers = numbers[:1]
            factors |= _named(found, name, lists, numbers)
    try:
        threshold = float(arguments.get(_THRESHOLD) or 0)
    except ValueError:
        found.leave(_THRESHOLD, f"{arguments[_THRESHOLD]!r} is not a number")
        threshold = 0.0
    return {block: 0.0 if value <= threshold else value for block, value in factors.items()}


def _named(
    found: Imported, name: str, lists: Mapping[int, list[str]], numbers: list[float]
) -> dict[str, float]:
    if not numbers:
        return {}
    if len(numbers) not in lists:
        wanted = " or ".join(str(count) for count in lists)
        found.leave(name, f"{len(numbers)} numbers; konomi reads lists of {wanted}")
        return {}
    return dict(zip(lists[len(numbers)], numbers, strict=True))


def _numbers(found: Imported, name: str, written: Any) -> list[float]:
    try:
        return [float(part) for part in str(written).split(",") if part.strip()]
    except ValueError:
        found.leave(name, f"{written!r} is a curve; write a factor for each block in method.blocks")
        return []
