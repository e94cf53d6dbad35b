"""How another tool's settings become konomi's: a table of names, and the application of one.

Every field is taken over, or named with the reason why not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NO_SUCH = "konomi has no such setting"


@dataclass(frozen=True, slots=True)
class To:
    """Becomes a setting of konomi. `convert` raises ValueError with the reason for a value that it
    does not know.
    """

    setting: str
    convert: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class Left:
    """Is left out, for a reason."""

    reason: str


Table = Mapping[str, To | Left]
ITSELF = Left("konomi does this by itself")


@dataclass(slots=True)
class Imported:
    """A recipe's plain data, and what became of each field."""

    tool: str
    kind: str
    """The method."""
    data: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    """`network_dim -> method.rank = 16`."""
    left: list[str] = field(default_factory=list)
    """`xformers: konomi chooses the attention itself`."""

    def put(self, name: str, setting: str, value: Any) -> None:
        """Take a value over."""
        here = self.data
        *sections, last = setting.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[last] = value
        self.taken.append(f"{name} -> {setting} = {value!r}")

    def drop(self, setting: str, reason: str) -> bool:
        """Take back what konomi cannot hold, or what it is part of; whether there was such a
        thing.
        """
        *sections, last = setting.split(".")
        if not sections or setting == "data.sources":
            return False
        here: Any = self.data
        for section in sections:
            here = here.get(section) if isinstance(here, dict) else None
        if not isinstance(here, dict) or last not in here or isinstance(here[last], dict):
            return self.drop(".".join(sections), reason)
        del here[last]
        names = [line.partition(" -> ")[0] for line in self.taken if f" -> {setting} = " in line]
        self.taken = [line for line in self.taken if f" -> {setting} = " not in line]
        self.leave(", ".join(dict.fromkeys(names)) or setting, reason)
        return True

    def leave(self, name: str, reason: str) -> None:
        """Say why a field is not taken over."""
        self.left.append(f"{name}: {reason}")

    def apply(
        self, table: Table, fields: Mapping[str, Any], *, handled: frozenset[str] = frozenset()
    ) -> None:
        """Take over what the table knows, and name the rest; `handled` is what was seen to already.

        Nothing is lost with a switch that is off where konomi decides by itself.
        """
        for name, value in fields.items():
            if name in handled:
                continue
            if value is None or value == "":
                continue
            entry = table.get(name, Left(NO_SUCH))
            if value is False and entry == ITSELF:
                continue
            if isinstance(entry, Left):
                self.leave(name, entry.reason)
                continue
            try:
                self.put(name, entry.setting, entry.convert(value))
            except (ValueError, TypeError) as error:
                self.leave(name, f"{value!r}: {error}")


def flattened(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`train.lr`, value) for nested tables; lists stay whole."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def one_of(**choices: Any) -> Callable[[Any], Any]:
    """A value by its name in lower case."""

    def convert(value: Any) -> Any:
        found = choices.get(str(value).lower())
        if found is None:
            raise ValueError(
                "konomi has none like it; it has "
                f"{', '.join(dict.fromkeys(map(str, choices.values())))}"
            )
        return found

    return convert


def whole(value: Any) -> int:
    """A whole number, also where it is text or ends in .0."""
    number = float(value)
    if number != int(number):
        raise ValueError("is not a whole number")
    return int(number)


def switch(value: Any) -> bool:
    """True or false, also as text."""
    if isinstance(value, str):
        return value.lower() in ("true", "1", "yes", "on")
    return bool(value)


def unless(value: Any) -> bool:
    """The opposite."""
    return not switch(value)


OPTIMIZERS = one_of(
    adamw="adamw", adam="adamw", adamw8bit="adamw8bit", adamw_8bit="adamw8bit",
    pagedadamw8bit="adamw8bit",
    adam8bit="adamw8bit", adafactor="adafactor", lion="lion", lion8bit="lion", prodigy="prodigy",
    adamwschedulefree="schedule_free", schedule_free_adamw="schedule_free",
)  # fmt: skip
SCHEDULES = one_of(
    constant="constant", constant_with_warmup="constant", linear="linear", cosine="cosine",
    cosine_with_restarts="cosine_restarts", cosine_with_hard_restarts="cosine_restarts",
    polynomial="polynomial",
)  # fmt: skip
PRECISIONS = one_of(
    no="fp32", fp32="fp32", float="fp32", float32="fp32", float_32="fp32", fp16="fp16",
    float16="fp16",
    float_16="fp16", bf16="bf16", bfloat16="bf16", bfloat_16="bf16",
)  # fmt: skip
