"""Every text of the source that a person may read, and whether it has a Japanese entry.

Run: python tools/messages.py [--all]. Prints the share for each floor of the house, and the texts
without an entry. A text is a string or f-string with two words in a row; docstrings and errors for
programmers do not count.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src" / "konomi"
OURS = {
    "ValueError",
    "TypeError",
    "AssertionError",
    "AttributeError",
    "NotImplementedError",
    "RuntimeError",
}
"""Errors for programmers; a ValueError of a setting's check is part of another message."""
NOT_READ: dict[str, str] = {
    "evaluation/page/texts.py": "the page's words, which have their Japanese beside them",
    "tasks/demonstration.py": "prompts; what else it says is looked up all the same",
    "evaluation/prompts.py": "prompts",
    "tasks/extraction_picture.py": "words in a picture, for which fonts may be missing",
    "methods/textual_inversion.py": "captions that are trained on",
    "data/size_variation.py": "words put into captions",
    "generation/infotext.py": "names that A1111 reads",
    "models/clip_unet_rules.py": "names of settings",
    "data/summary.py": "counts, which `COUNTS` of the catalogue translates one by one",
    "evaluation/reasons.py": "sentences with their Japanese beside them",
    "config/schema.py": "docs/settings.md",
    "config/write.py": "the comments of a recipe, in English with their settings",
}
"""Files whose texts are no messages, and why; what of them has an entry is looked up all the
same."""
EXCEPTIONS: dict[str, str] = {
    r"^(an? )?(close-up |cropped )?(photo|picture) of ": "a prompt",
    r"^a house by a lake$|on the beach$": "a prompt",
    r"^konomi [a-z]+( \{\})*( --.*)?$"
    r"|^konomi (check|train) RECIPE|^pipe\.|^ddim, euler": "a command, or code",
    r"^- not imported: |^# The recipe of a recipe card": "a comment in a recipe",
    r"unique_token": "code in the file of a data set",
    r"^no [a-z_]+( \(sd-scripts' default\))?$": "the name of a setting that was not there",
    r"^(any|one) of \{\}$": "a piece of what a setting takes, which has entries as a whole",
    r"^(custom diffusion|single file|model folder|unknown tensors|aesthetic embedding|model of "
    r"another family"
    r"|holds neither model_index.json nor adapter_config.json)$": "a kind or format, by the name "
    "that --json has",
    r"^(hold out|fixed noise|konomi cache 1|made up|bold red"
    r"|sample\.width, height|Input should be )$": "not shown",
    r"^class images/": "not shown",
    r"^(Prodigy|schedule-free|Lion) optimiser$|^\.tar shards$|^Reading \.tar "
    r"shards$|pip install": "a name",
    r"^\{\}, Sheet of: |\nno previews were drawn$": "written into a picture",
    r"already has a replaced forward$|^this UNet reads pooled"
    r"|^buckets are multiples": "a programmer's",
    r"^no step is under way|^two live adapters": "a programmer's",
    r"^Detected pickle protocol$": "torch's own, which is kept from the reader",
    r"is missing in some parts$|^the run is to end$"
    r"|^a \{\} too long to be shown$": "a programmer's, or a value",
    r"^a (network \{\} of width|whole number of \{\} bits|list or table of \{\})|^ and "
    r"layer norm$": "a value",
    r"^(another file|not noted|out of all bounds)$": "a value",
    r"et al\. [12]\d{3}": "a paper",
    r"^Aesthetic [a-z ]+$": "a name that A1111 reads",
    r"^konomi (train aesthetic|learn-start)$": "a command",
    r"^(Weighted sum|Add difference)$|^extracted from \{\} against": "words in metadata",
}
"""Patterns of texts that are no messages by themselves, and what they are."""
_PROSE = re.compile(r"[A-Za-z]{2,},? [a-z]{2,}")
_HOLE = re.compile(r"\{\w*\}")


class Message(NamedTuple):
    """One text, with `{}` for each value."""

    file: str
    line: int
    kind: str
    """The call it stands in: `RunError`, `Finding`, `fault`, `help`, ...; empty elsewhere."""
    text: str


@cache
def messages() -> tuple[Message, ...]:
    """All of the source but the catalogue itself."""
    paths = [path for path in sorted(SOURCE.rglob("*.py")) if path.parent.name != "japanese"]
    return tuple(message for path in paths for message in _of_file(path))


def has_japanese(message: Message) -> bool:
    """Whether the message, or the entry of one that it is a piece of, is in the catalogue."""
    from konomi.language import translated, translated_sum

    text = message.text.strip().removeprefix("{} ")
    forms = [text, f"{text}.", f"{text} {{}}", text.removesuffix("{}").rstrip()]
    if message.kind in ("LayerError", "fault"):
        # `formats.source.fault` makes a sentence of them.
        forms = [f"{{}} {message.text}."]
    if any(_is_japanese(translated(_HOLE.sub("<x>", form))) for form in forms):
        return True
    if _is_japanese(translated_sum(_HOLE.sub("3", message.text))):
        return True
    pieces = [re.escape(piece) for piece in _HOLE.split(message.text.strip(" ;,.:\n"))]
    return re.search(".*?".join(pieces), _templates(), re.MULTILINE) is not None


def is_message(message: Message) -> bool:
    """False for what only looks like one: prompts, names, a page of its own, errors for
    programmers.
    """
    if message.kind in OURS or message.file in NOT_READ:
        return False
    return not any(re.search(pattern, message.text) for pattern in EXCEPTIONS)


def without_japanese() -> list[Message]:
    """What `is_message` and has no entry. The reader's language has to be Japanese."""
    return [message for message in messages() if is_message(message) and not has_japanese(message)]


def _of_file(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        parent = above.get(node)
        if isinstance(parent, ast.Expr | ast.JoinedStr):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        elif isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        else:
            continue
        if _PROSE.search(text):
            yield Message(
                path.relative_to(SOURCE).as_posix(), node.lineno, _kind(node, above), text
            )


def _kind(node: ast.AST, above: dict[ast.AST, ast.AST]) -> str:
    while not isinstance(node, ast.stmt):
        node = above[node]
        if isinstance(node, ast.keyword) and node.arg in ("help", "description", "usage"):
            return "help"
        if isinstance(node, ast.Call):
            name = node.func
            return (
                name.id
                if isinstance(name, ast.Name)
                else name.attr
                if isinstance(name, ast.Attribute)
                else ""
            )
    return ""


@cache
def _templates() -> str:
    from konomi.cli.japanese import PAIRS

    return "\n".join(PAIRS)


def _is_japanese(text: str) -> bool:
    return re.search("[\u3040-\u30ff\u4e00-\u9fff]", text) is not None


def main() -> int:
    """Print the figures."""
    import os

    os.environ["KONOMI_LANGUAGE"] = "ja"
    found = [message for message in messages() if is_message(message)]
    lacking = [message for message in found if not has_japanese(message)]
    total, absent = (
        Counter(message.file.partition("/")[0] for message in some) for some in (found, lacking)
    )
    for floor, count in sorted(total.items()):
        print(f"{floor:<14}{count - absent[floor]:>5} of {count:>5} in Japanese")
    print(f"{'all':<14}{len(found) - len(lacking):>5} of {len(found):>5} in Japanese")
    for message in lacking:
        print(f"{message.file}:{message.line} [{message.kind}] {message.text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
