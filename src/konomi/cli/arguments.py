"""argparse with help for slips: what is not known is answered with the nearest of what is."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from konomi.language import translated


class ArgumentParser(argparse.ArgumentParser):
    """The parser of every command."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's; the words are kept, because an error may come before the unknown ones are
        looked at.
        """
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print usage and the message, with what was probably meant, and leave with exit code 2."""
        super().error(translated(message + self._meant()))

    def format_help(self) -> str:
        """argparse's, in the reader's language."""
        self.description = translated(self.description or "")
        for group in self._action_groups:
            group.title = translated(group.title or "")
        for action in self._actions:
            if isinstance(action.help, str):
                action.help = translated(action.help)
        return super().format_help()

    def _meant(self) -> str:
        """` Did you mean --steps?` for each option that there is not."""
        known = self._option_string_actions
        options = [
            word.partition("=")[0]
            for word in getattr(self, "_words", ())
            if word.startswith("--") and word != "--"
        ]
        unknown = [option for option in dict.fromkeys(options) if option not in known]
        hints = []
        for option in unknown:
            name = "--" + option.lstrip("-").replace("_", "-")
            close = difflib.get_close_matches(
                name, [one for one in known if one.startswith("--")], 1, 0.6
            )
            meant = (
                f"Did you mean {close[0]}?"
                if close
                else "Settings of a recipe are given as name=value."
            )
            hints.append(f"; there is no {option}. {meant}")
        return "".join(hints)
