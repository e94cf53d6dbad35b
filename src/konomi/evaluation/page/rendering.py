"""A page as HTML. Every text passes `printable` and is escaped, whatever it says: captions, names
of files and settings come from strangers.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from konomi import __version__
from konomi.errors import printable
from konomi.evaluation.page.content import Page
from konomi.evaluation.page.texts import Words

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def html_of(page: Page) -> str:
    """The whole page, in one text that needs nothing else."""
    words = Words(page.language)
    return (
        _environment()
        .get_template("page.html")
        .render(
            page=page,
            t=SimpleNamespace(**words.table),
            say=words,
            version=__version__,
            script_hash=_script_hash(),
        )
    )


@cache
def _script_hash() -> str:
    """By which a browser tells the page's own script; it runs no other."""
    digest = hashlib.sha256((TEMPLATES / "page.js").read_bytes()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def visible(value: Any) -> Any:
        # Style sheet, script and drawings are Markup; nothing else is.
        return (
            printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        )

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["own"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    environment.filters["drawing"] = Markup
    return environment
