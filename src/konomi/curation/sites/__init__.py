"""Picture sites that can be searched by tags, one file for each program that runs them."""

from dataclasses import replace
from urllib.parse import urlsplit

from konomi.curation.sites.danbooru import Danbooru
from konomi.curation.sites.gelbooru import Gelbooru
from konomi.curation.sites.gelbooru_0_2 import Gelbooru02
from konomi.curation.sites.site import Post, Refused, Site
from konomi.errors import RecipeError, printable

__all__ = ["SITES", "Post", "Refused", "Site", "chosen_site"]

SITES: tuple[Danbooru | Gelbooru02 | Gelbooru, ...] = (
    Danbooru("danbooru", "https://danbooru.donmai.us", "donmai.us"),
    Gelbooru02("safebooru", "https://safebooru.org", "safebooru.org"),
    Gelbooru("gelbooru", "https://gelbooru.com", "gelbooru.com"),
)
"""Every site that is known by a name. Others that run the same program are `NAME:URL`."""


def chosen_site(text: str) -> Site:
    """The site of `--from`: a name, or `NAME:URL` for another site with that one's program, as
    `danbooru:https://safebooru.donmai.us`.

    Raises RecipeError for what is neither.
    """
    known = {site.name: site for site in SITES}
    name, colon, address = text.partition(":")
    if name in known and not colon:
        return known[name]
    if name in known and address.startswith(("https://", "http://")):
        host = urlsplit(address).hostname or ""
        return replace(known[name], name=host, address=address.rstrip("/"), domain=host)
    names = ", ".join(known)
    raise RecipeError(
        f"--from {printable(text)}: it takes one of {names}, or NAME:URL for another site that "
        "runs the program of NAME."
    )
