"""Sites with Gelbooru's older program (0.2): safebooru.org, xbooru.com, tbib.org."""

import html
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

from konomi.curation.sites.reading import number_of, page, text, whole
from konomi.curation.sites.site import WORDS, Post, Refused


@dataclass(frozen=True, slots=True)
class Gelbooru02:
    """Answers a bare list, or nothing at all where there is nothing; does not say what kind a tag
    is."""

    name: str
    address: str
    domain: str
    seconds_between: float = 1.0
    secrets: ClassVar[tuple[str, ...]] = ()
    needs_account: ClassVar[bool] = False
    tells_groups: ClassVar[bool] = False
    most_tags: ClassVar[int] = 1000

    def search(
        self,
        tags: tuple[str, ...],
        ratings: tuple[str, ...],
        below: int | None,
        account: Mapping[str, str],
    ) -> tuple[str, dict[str, str]]:
        older = [] if below is None else [f"id:<{below}"]
        return f"{self.address}/index.php", {
            "page": "dapi", "s": "post", "q": "index", "json": "1", "limit": "100",
            "tags": " ".join([*tags, *older]),
        }  # fmt: skip

    @staticmethod
    def is_free(tag: str) -> bool:
        """Whether a word does not count among `most_tags`."""
        return ":" in tag

    def posts(self, content: bytes) -> list[Post]:
        if not content.strip():
            return []
        found = page(content)
        if not isinstance(found, list):
            raise ValueError("no list of posts")
        return [post_of(post, self.address) for post in found]

    def reason(self, refused: Refused) -> str:
        return ""


def post_of(post: Any, address: str) -> Post:
    """A post of Gelbooru, old or new. Raises ValueError for what is none."""
    number = number_of(post)
    url = text(post, "file_url") or _address_of(post, address)
    rating = text(post, "rating").lower()
    return Post(
        id=number,
        url=url,
        hidden="" if url else "not shown by the site",
        md5=text(post, "md5") or text(post, "hash"),
        width=whole(post, "width"),
        height=whole(post, "height"),
        rating=WORDS.get(rating, rating),
        score=whole(post, "score"),
        tags=tuple(html.unescape(tag) for tag in text(post, "tags").split()),
        source=text(post, "source"),
    )


def _address_of(post: Mapping[str, Any], address: str) -> str:
    """Of a file, where an old program does not write it out."""
    folder, name = post.get("directory"), posixpath.basename(text(post, "image"))
    if not isinstance(folder, str | int) or not name:
        return ""
    return f"{address}/images/{quote(str(folder))}/{quote(name)}"
