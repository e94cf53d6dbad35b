"""Patterns over module paths (`alpha_pattern` in PEFT's settings), matched in time that grows with
their length alone.

PEFT matches `(.*\\.)?(PATTERN)$` with Python's backtracking engine, which a stranger's pattern can
keep busy for ever. Here a pattern becomes a nondeterministic automaton (Thompson 1968) that reads
the path once. Known are literals, `.`, classes, groups, `|`, the repeats `* + ? {m,n}` and `^ $`
at the ends; for anything else there is one line.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

LONGEST = 500
"""Characters of a pattern."""
SIGNS = frozenset("\\[](){}*+?^$|")
"""Characters that make a pattern more than a name."""
_MOST_STATES = 4000
_DEEPEST = 50
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal,
    "D": lambda c: not c.isdecimal(),
    "w": lambda c: c.isalnum() or c == "_",
    "W": lambda c: not (c.isalnum() or c == "_"),
    "s": str.isspace,
    "S": lambda c: not c.isspace(),
}
_MANY = 1 << 30

Test = Callable[[str], bool]
Node = tuple[object, ...]
"""("test", Test), ("start",), ("end",), ("seq", [Node]), ("any", [Node]) or ("repeat", Node,
least, most)."""


class PatternError(Exception):
    """A pattern that is none, or one beyond what is known here."""


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.depth = text, 0, 0

    def whole(self) -> Node:
        node = self._choice()
        if self.at < len(self.text):
            raise PatternError("has a closing bracket too many")
        return node

    def _peek(self) -> str:
        return self.text[self.at] if self.at < len(self.text) else ""

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise PatternError("ends in the middle")
        self.at += 1
        return character

    def _choice(self) -> Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            branches.append(self._sequence())
        return ("any", branches) if len(branches) > 1 else branches[0]

    def _sequence(self) -> Node:
        nodes: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            node = self._repeated(self._atom())
            nodes.append(node)
        return ("seq", nodes)

    def _atom(self) -> Node:
        character = self._next()
        if character == ".":
            return ("test", lambda c: c != "\n")
        if character in "^$":
            return ("start",) if character == "^" else ("end",)
        if character == "(":
            return self._group()
        if character == "[":
            return ("test", self._class())
        if character == "\\":
            return ("test", self._escape())
        if character in "*+?":
            raise PatternError("repeats nothing")
        return ("test", _is(character))

    def _group(self) -> Node:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise PatternError("is nested too deeply")
        if self._peek() == "?":
            if not self.text.startswith("?:", self.at):
                raise PatternError("looks around or behind, or names a group")
            self.at += 2
        node = self._choice()
        if self._next() != ")":
            raise PatternError("has a bracket that is not closed")
        self.depth -= 1
        return node

    def _escape(self) -> Test:
        character = self._next()
        if character in _CLASSES:
            return _CLASSES[character]
        if character.isalnum():
            raise PatternError(f"has the escape \\{character}")
        return _is(character)

    def _class(self) -> Test:
        negated = self._peek() == "^"
        self.at += negated
        tests: list[Test] = []
        while not (self._peek() == "]" and tests):
            first = self._next()
            if first == "\\":
                tests.append(self._escape())
                if self._opens_range():
                    raise PatternError("has a range that begins with an escape")
            elif self._opens_range():
                self.at += 1
                last = self._next()
                if last == "\\" or last < first:
                    raise PatternError("has a range that makes no sense")
                tests.append(_between(first, last))
            else:
                tests.append(_is(first))
        self.at += 1
        return lambda c: any(test(c) for test in tests) != negated

    def _opens_range(self) -> bool:
        return self._peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", "")

    def _repeated(self, node: Node) -> Node:
        while True:
            character = self._peek()
            if character and character in "*+?":
                self.at += 1
                least, most = {"*": (0, _MANY), "+": (1, _MANY), "?": (0, 1)}[character]
            elif character == "{" and (bounds := self._bounds()) is not None:
                least, most = bounds
            else:
                return node
            if node[0] in ("repeat", "start", "end"):
                raise PatternError("repeats what cannot be repeated")
            if least > most:
                raise PatternError("repeats more often at least than at most")
            node = ("repeat", node, least, most)
            # Lazy or greedy: the same paths match.
            if self._peek() == "?":
                self.at += 1
            elif self._peek() == "+":
                raise PatternError("has a possessive repeat")

    def _bounds(self) -> tuple[int, int] | None:
        """Of `{m,n}`, and past it; None where the brace is a plain character."""
        inside, closing, _ = self.text[self.at + 1 :].partition("}")
        low, comma, high = inside.partition(",")
        if (
            not closing
            or not (low or high)
            or not all(part.isdecimal() and len(part) < 5 for part in (low, high) if part)
        ):
            return None
        if not comma and not low:
            return None
        self.at += len(inside) + 2
        least = int(low or 0)
        return least, (int(high) if high else _MANY) if comma else least


def _is(wanted: str) -> Test:
    return lambda character: character == wanted


def _between(low: str, high: str) -> Test:
    return lambda character: low <= character <= high


class _Automaton:
    """States are numbers; `tests` leads on by a character, `free` without one."""

    def __init__(self, node: Node) -> None:
        self.tests: list[tuple[Test, int] | None] = []
        self.free: list[list[int]] = []
        self.anchors: dict[int, str] = {}
        self.first = self._state()
        self.last = self._build(node, self.first)

    def _state(self) -> int:
        if len(self.free) >= _MOST_STATES:
            raise PatternError("is too large")
        self.tests.append(None)
        self.free.append([])
        return len(self.free) - 1

    def _build(self, node: Node, start: int) -> int:
        kind = node[0]
        if kind == "seq":
            for part in node[1]:  # type: ignore[attr-defined]
                start = self._build(part, start)
            return start
        if kind == "repeat":
            return self._repeat(node, start)
        end = self._state()
        if kind == "any":
            for branch in node[1]:  # type: ignore[attr-defined]
                entry = self._state()
                self.free[start].append(entry)
                self.free[self._build(branch, entry)].append(end)
            return end
        if kind == "test":
            step = self._state()
            self.free[start].append(step)
            self.tests[step] = (node[1], end)  # type: ignore[assignment]
            return end
        self.anchors[end] = str(kind)
        self.free[start].append(end)
        return end

    def _repeat(self, node: Node, start: int) -> int:
        _, inner, least, most = node
        assert isinstance(inner, tuple) and isinstance(least, int) and isinstance(most, int)
        for _ in range(least):
            start = self._build(inner, start)
        end = self._state()
        self.free[start].append(end)
        if most >= _MANY:
            entry = self._state()
            self.free[end].append(entry)
            self.free[self._build(inner, entry)].append(end)
            return end
        for _ in range(most - least):
            start = self._build(inner, start)
            self.free[start].append(end)
        return end

    def matches(self, text: str, entries: set[int]) -> bool:
        """Whether a part of the text from one of the places in `entries` to its end is matched."""
        current: set[int] = set()
        for place in range(len(text) + 1):
            current = self._closure(
                current | ({self.first} if place in entries else set()), place, len(text)
            )
            if place == len(text):
                return self.last in current
            steps = [self.tests[state] for state in current]
            current = {step[1] for step in steps if step is not None and step[0](text[place])}
        return False

    def _closure(self, states: set[int], place: int, length: int) -> set[int]:
        reached, waiting = set(), list(states)
        while waiting:
            state = waiting.pop()
            anchor = self.anchors.get(state)
            wrong = (anchor == "start" and place) or (anchor == "end" and place != length)
            if state in reached or wrong:
                continue
            reached.add(state)
            waiting += self.free[state]
        return reached


@lru_cache(maxsize=256)
def _automaton(pattern: str) -> _Automaton:
    if len(pattern) > LONGEST:
        raise PatternError(f"has {len(pattern)} characters")
    return _Automaton(_Parser(pattern).whole())


def _ends_with(path: str, name: str) -> bool:
    """Whether a path ends with a name, a dot in the name standing for any character, at a dot or
    the beginning.
    """
    start = len(path) - len(name)
    if start < 0 or (start and path[start - 1] != "."):
        return False
    return all(wanted in (found, ".") for found, wanted in zip(path[start:], name))


def matches(pattern: str, path: str) -> bool:
    """Whether PEFT would take `path` for one of the pattern's: the pattern matches all of it, or
    all after a dot.

    Raises PatternError for what is no pattern or has more than is known here.
    """
    if path == pattern or path.endswith(f".{pattern}"):
        return True
    if not set(pattern) & SIGNS:
        # A name alone: by far the most common.
        return _ends_with(path, pattern)
    entries = {0, *(place + 1 for place, character in enumerate(path) if character == ".")}
    return _automaton(pattern).matches(path, entries)
