"""What konomi says to a person when something cannot go on.

Every message names what is wrong, where, and what to do about it. The command line prints it as
one line and exits with 1; anything that is *not* a KonomiError is a bug of ours: one line names
the file that holds its traceback.
"""

import unicodedata

_JOINERS = "\u200c\u200d"
"""Emoji and several scripts are written with them; they reorder nothing."""


def printable(text: str) -> str:
    """A text of unknown origin as a terminal may show it: the one gate that names from files pass
    before they are seen.

    Line breaks, control characters (C0, C1, so every escape sequence), controls that turn the
    direction of writing and lone surrogates become visible escapes (`\\n`, `\\x1b`, `\\u202e`);
    letters and spaces of every script stay.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_visible(c) else _escaped(c) for c in text)


def _is_visible(character: str) -> bool:
    # `isprintable` is false for every space but the ASCII one, among them the one between Japanese
    # words.
    return (
        character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
    )


def _escaped(character: str) -> str:
    # Python's stand-ins for bytes of a file name that are no UTF-8 (PEP 383) are shown as the
    # bytes.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(value: object, longest: int = 80, *, quoted: bool = False) -> str:
    """A value of a stranger's file as a message may show it: neither 400 digits nor a list in a
    list in a list.

    At most `longest` characters of it; `quoted`: a text as Python writes it, to be told from what
    is no text.
    """
    try:
        text = value if isinstance(value, str) and not quoted else repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} too long to be shown"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class KonomiError(Exception):
    """Something the user can mend. The message is complete by itself; several arguments are a line
    each.
    """

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)


class RecipeError(KonomiError):
    """A recipe, an override or a command-line value is wrong. The message starts with the dotted
    name.
    """


class DataError(KonomiError):
    """Images, captions or their folders are missing or unreadable."""


class FileFormatError(KonomiError):
    """A model or adapter file is damaged, hostile, or of a kind konomi does not know."""


class ModelError(KonomiError):
    """A base model cannot be loaded, or an adapter does not fit it."""


class RunError(KonomiError):
    """A training run cannot start, go on, or be resumed."""


class MissingExtraError(KonomiError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}. Install it: pip install 'konomi[{extra}]'"
        )
