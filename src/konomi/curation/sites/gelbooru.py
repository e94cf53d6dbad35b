"""Gelbooru (0.2.5), which answers only to an account.

Pages are limited to 20,000 posts, so posts with smaller numbers are searched for instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from konomi.curation.sites.gelbooru_0_2 import post_of
from konomi.curation.sites.reading import page
from konomi.curation.sites.site import Post, Refused


@dataclass(frozen=True, slots=True)
class Gelbooru:
    """Answers `{"@attributes": ..., "post": [...]}`, without `post` where there is nothing."""

    name: str
    address: str
    domain: str
    seconds_between: float = 1.0
    secrets: ClassVar[tuple[str, ...]] = ("GELBOORU_USER_ID", "GELBOORU_API_KEY")
    needs_account: ClassVar[bool] = True
    tells_groups: ClassVar[bool] = False
    most_tags: ClassVar[int] = 1000

    def search(
        self,
        tags: tuple[str, ...],
        ratings: tuple[str, ...],
        below: int | None,
        account: Mapping[str, str],
    ) -> tuple[str, dict[str, str]]:
        rating = [f"rating:{ratings[0]}"] if len(ratings) == 1 else []
        older = [] if below is None else [f"id:<{below}"]
        query = {
            "page": "dapi", "s": "post", "q": "index", "json": "1", "limit": "100",
            "tags": " ".join([*tags, *rating, *older]),
        }  # fmt: skip
        if account:
            query |= {"user_id": account[self.secrets[0]], "api_key": account[self.secrets[1]]}
        return f"{self.address}/index.php", query

    @staticmethod
    def is_free(tag: str) -> bool:
        """Whether a word does not count among `most_tags`."""
        return ":" in tag

    def posts(self, content: bytes) -> list[Post]:
        found = page(content)
        if not isinstance(found, dict):
            raise ValueError("no table of posts")
        posts = found.get("post", [])
        # A single post may stand alone.
        posts = [posts] if isinstance(posts, dict) else posts
        if not isinstance(posts, list):
            raise ValueError("no list of posts")
        return [post_of(post, self.address) for post in posts]

    def reason(self, refused: Refused) -> str:
        if refused.status == 401:
            return f"it answers only to an account: set {' and '.join(self.secrets)}."
        return ""
