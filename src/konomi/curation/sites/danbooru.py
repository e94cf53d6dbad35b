"""Danbooru and sites with its program: safebooru.donmai.us, aibooru.online.

Its listing takes `page=bID`, posts with smaller numbers, which has no end as numbered pages have.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from konomi.curation.sites.reading import number_of, page, text, whole, words
from konomi.curation.sites.site import GROUPS, WORDS, Post, Refused

_FREE = ("status:", "rating:", "id:", "date:", "age:", "filesize:", "filetype:", "width:",
         "height:", "mpixels:", "ratio:", "score:", "favcount:", "md5:", "-rating:")  # fmt: skip
"""Search words that do not count among the tags of a search."""


@dataclass(frozen=True, slots=True)
class Danbooru:
    """Answers JSON at `/posts.json`; says of every tag what kind it is."""

    name: str
    address: str
    domain: str
    seconds_between: float = 1.0
    secrets: ClassVar[tuple[str, ...]] = ("DANBOORU_LOGIN", "DANBOORU_API_KEY")
    needs_account: ClassVar[bool] = False
    tells_groups: ClassVar[bool] = True
    most_tags: ClassVar[int] = 2

    def search(
        self,
        tags: tuple[str, ...],
        ratings: tuple[str, ...],
        below: int | None,
        account: Mapping[str, str],
    ) -> tuple[str, dict[str, str]]:
        rating = [f"rating:{','.join(one[0] for one in ratings)}"] if ratings else []
        query = {"tags": " ".join([*tags, *rating]), "limit": "200"}
        if below is not None:
            query["page"] = f"b{below}"
        if account:
            query |= {"login": account[self.secrets[0]], "api_key": account[self.secrets[1]]}
        return f"{self.address}/posts.json", query

    @staticmethod
    def is_free(tag: str) -> bool:
        """Whether a word does not count among `most_tags`."""
        return tag.startswith(_FREE)

    def posts(self, content: bytes) -> list[Post]:
        found = page(content)
        if not isinstance(found, list):
            raise ValueError("no list of posts")
        return [_post(post) for post in found]

    def reason(self, refused: Refused) -> str:
        if refused.status == 401:
            return f"the account in {' and '.join(self.secrets)} is not known there."
        if refused.status == 422:
            return (
                f"it allows {self.most_tags} tags a search without a Gold account. Leave some out."
            )
        if refused.status == 410:
            return "it shows no more pages of this search."
        return ""


def _post(post: Any) -> Post:
    number = number_of(post)
    url = text(post, "file_url")
    hidden = ""
    if post.get("is_banned") is True:
        hidden = "removed at the artist's wish"
    elif not url:
        hidden = "not shown without an account"
    rating = text(post, "rating")
    return Post(
        id=number,
        url=url,
        hidden=hidden,
        md5=text(post, "md5"),
        width=whole(post, "image_width"),
        height=whole(post, "image_height"),
        rating=WORDS.get(rating, rating),
        score=whole(post, "score"),
        tags=words(post, "tag_string"),
        groups={group: words(post, f"tag_string_{group}") for group in GROUPS},
        source=text(post, "source"),
    )
