"""What every picture site answers: how it is searched, what a post says of its picture, and what
its refusals mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

RATINGS = ("general", "sensitive", "questionable", "explicit")
GROUPS = ("character", "copyright", "artist", "general", "meta")
"""Kinds of tags, in the order in which a grouped caption has them; `meta` is about the file and in
none."""
AI_TAGS = frozenset({"ai-generated", "ai-assisted", "ai_generated", "ai_art", "ai-created"})
"""By which sites say that a picture was made by a model."""
WORDS: Mapping[str, str] = {
    "g": "general",
    "s": "sensitive",
    "q": "questionable",
    "e": "explicit",
    "safe": "general",
}
"""Short and older names of ratings."""


@dataclass(frozen=True, slots=True)
class Post:
    """One picture of a site. Sizes are what the site says; the file is checked when it is there."""

    id: int
    url: str
    """Of the file; "" where the site does not show it."""
    hidden: str
    """Why there is no file to be had; "" where there is one."""
    md5: str
    """"" where the site does not say."""
    width: int
    height: int
    rating: str
    """One of `RATINGS`, or what else the site says."""
    score: int
    tags: tuple[str, ...]
    """In the site's order, with underscores."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Kind of tag -> tags, where the site says it."""
    source: str = ""
    """Where the picture was published first."""

    @property
    def ai_made(self) -> bool:
        """Whether the site marks it as made by a model."""
        return not AI_TAGS.isdisjoint(self.tags)


@dataclass(frozen=True, slots=True)
class Refused:
    """A status of a site that trying again does not mend."""

    status: int
    headers: Mapping[str, str]
    """With names in lower case."""
    content: bytes
    """The beginning of the answer."""


class Site(Protocol):
    """A site, or another with the same program."""

    @property
    def name(self) -> str:
        """In file names and messages: a word, or the host of a site without one."""
        ...

    @property
    def address(self) -> str:
        """`https://host`, without a slash at the end."""
        ...

    @property
    def domain(self) -> str:
        """Files are taken from here and from what lies below; see `fetching`."""
        ...

    @property
    def seconds_between(self) -> float:
        """Seconds between the beginnings of two requests, at least."""
        ...

    @property
    def secrets(self) -> tuple[str, ...]:
        """Environment variables with an account, all or none of them."""
        ...

    @property
    def needs_account(self) -> bool: ...

    @property
    def tells_groups(self) -> bool:
        """Whether its posts say which tag is of which kind."""
        ...

    @property
    def most_tags(self) -> int:
        """Tags that a search without an account may have; the others are looked for in what it
        finds."""
        ...

    def is_free(self, tag: str) -> bool:
        """Whether a search word does not count among `most_tags`."""
        ...

    def search(
        self,
        tags: tuple[str, ...],
        ratings: tuple[str, ...],
        below: int | None,
        account: Mapping[str, str],
    ) -> tuple[str, dict[str, str]]:
        """The address of a page of posts and its query: the newest, or those with smaller numbers
        than `below`. `account`: `secrets` -> values.
        """
        ...

    def posts(self, content: bytes) -> list[Post]:
        """What a page holds. Raises ValueError for what is no page."""
        ...

    def reason(self, refused: Refused) -> str:
        """What a refusal means; "" for none that the site is known for."""
        ...
