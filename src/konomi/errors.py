"""What konomi says to a person when something cannot go on.

Every message names what is wrong, where, and what to do about it. The command line prints it as one line and exits
with 1; anything that is *not* a KonomiError is a bug of ours and keeps its traceback.
"""


class KonomiError(Exception):
    """Something the user can mend. The message is complete by itself."""


class RecipeError(KonomiError):
    """A recipe, an override or a command-line value is wrong. The message starts with the dotted name."""


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
        super().__init__(f"{purpose} needs the package {package}. Install it: pip install 'konomi[{extra}]'")
