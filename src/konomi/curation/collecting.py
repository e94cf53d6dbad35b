"""Pictures and their tags from a site, page by page, into a folder to train on."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from konomi.curation.collection import Collection, NotAPicture, examine, open_collection
from konomi.curation.fetching import Elsewhere, Fetcher, TooLarge
from konomi.curation.sites import Post, Refused, Site
from konomi.curation.sites.site import RATINGS
from konomi.curation.tag_text import caption_of
from konomi.errors import DataError, RecipeError, printable

_PAGE_LIMIT = 32 << 20
"""Bytes of a page of posts."""
_TYPES = ("png", "jpg", "jpeg", "webp", "avif", "gif")
"""What can be trained on; sites have films and archives too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to collect."""

    tags: tuple[str, ...]
    site: Site
    output: Path
    limit: int
    """Pictures of the site in the folder, with those that are there already."""
    ratings: tuple[str, ...] = ("general",)
    min_score: int | None = None
    min_side: int = 0
    """Pixels of the shorter side."""
    exclude: tuple[str, ...] = ()
    """Tags whose pictures are left out."""
    captions: str = "site"
    """`site` (its order), `grouped` (characters first), or `none`."""
    trigger: str = ""
    """A word that every caption begins with."""
    ai_made: bool = False
    """Whether to take pictures that the site marks as made by a model."""
    max_mib: int = 64
    """Of one file."""


@dataclass(frozen=True, slots=True)
class Collected:
    """How far it is: after each picture, and after each page."""

    path: Path | None
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class CollectReport:
    """What `collect` did."""

    folder: Path
    new: int
    present: int
    """Pictures of the site that are in the folder now."""
    left_out: dict[str, int]
    """Reason -> posts."""
    requests: int
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Collector:
    """One run of `collect`."""

    wish: Wish
    account: Mapping[str, str]
    fetcher: Fetcher
    left_out: Counter[str] = field(default_factory=Counter)

    def run(self) -> Iterator[Collected | CollectReport]:
        """Tells of each picture; the report comes last.

        Raises DataError for a site that refuses or does not answer, RunError for a disk that does.
        """
        wish = self.wish
        collection = open_collection(wish.output, wish.site.name)
        before = len(collection.known)
        yield Collected(None, collection.present, wish.limit)
        asked, looked_for = _split_tags(wish, bool(self.account))
        posts = self._posts(asked)
        while collection.present < wish.limit and (post := next(posts, None)) is not None:
            if post.id in collection.known:
                continue
            reason = self._reason(post, looked_for, collection)
            if not reason:
                reason, path = self._fetch(post, collection)
            if reason:
                self.left_out[reason] += 1
            else:
                yield Collected(path, collection.present, wish.limit)
        yield CollectReport(
            folder=wish.output,
            new=len(collection.known) - before,
            present=collection.present,
            left_out=dict(self.left_out),
            requests=self.fetcher.requests,
            notes=_notes(wish, looked_for, collection),
        )

    def _posts(self, tags: tuple[str, ...]) -> Iterator[Post]:
        """From the newest to the oldest, each once."""
        below: int | None = None
        while True:
            site = self.wish.site
            url, query = site.search(tags, self.wish.ratings, below, self.account)
            content = self.fetcher.read(url, query, limit=_PAGE_LIMIT)
            if isinstance(content, Refused):
                raise DataError(_refusal(site, content))
            try:
                posts = site.posts(content)
            except ValueError as error:
                raise DataError(
                    f"{site.domain}: its answer is no list of posts ({error}). Does it run another "
                    "program?"
                ) from error
            fresh = [post for post in posts if below is None or post.id < below]
            if not fresh:
                if posts:
                    raise DataError(f"{site.domain}: it answers with the same posts again.")
                return
            yield from sorted(fresh, key=lambda post: -post.id)
            below = min(post.id for post in fresh)

    def _reason(self, post: Post, looked_for: frozenset[str], collection: Collection) -> str:
        """Why a post is left out, before its picture is fetched; "" for one that is not."""
        wish, tags = self.wish, frozenset(post.tags)
        suffix = post.url.partition("?")[0].rpartition(".")[2].lower()
        checks = (
            (bool(post.hidden), post.hidden),
            (bool(wish.ratings) and post.rating not in wish.ratings, "another rating"),
            (not looked_for <= tags, "without all tags"),
            (not tags.isdisjoint(wish.exclude), "with a tag that is left out"),
            (post.ai_made and not wish.ai_made, "marked as made by a model"),
            (wish.min_score is not None and post.score < wish.min_score, "a lower score"),
            (min(post.width, post.height) < wish.min_side, "too small"),
            (suffix not in _TYPES, "no picture (a film, an archive)"),
            (bool(post.md5) and post.md5 in collection.hashes, "the same picture again"),
        )
        return next((reason for found, reason in checks if found), "")

    def _fetch(self, post: Post, collection: Collection) -> tuple[str, Path | None]:
        """Why there is no picture, or where it lies."""
        wish = self.wish
        part = wish.output / f".{wish.site.name}-{post.id}.part"
        try:
            refused = self.fetcher.save(post.url, part, limit=wish.max_mib << 20)
            if refused is not None:
                return _file_refusal(refused), None
            found = examine(part)
            if post.md5 and found.md5 != post.md5:
                return "the file is not what the site says it is", None
            if found.md5 in collection.hashes:
                return "the same picture again", None
            grouped = wish.captions == "grouped"
            caption = caption_of(post, grouped=grouped, trigger=wish.trigger)
            return "", collection.add(
                post, part, found, None if wish.captions == "none" else caption
            )
        except TooLarge:
            return f"larger than {wish.max_mib} MiB", None
        except Elsewhere:
            return "its address lies outside the site", None
        except NotAPicture as error:
            return str(error), None
        finally:
            part.unlink(missing_ok=True)


def accounts(site: Site, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The account of a site, from the environment; none where none is given.

    Raises RecipeError for half of one, and where the site answers to nobody without.
    """
    found = {name: environment[name] for name in site.secrets if environment.get(name)}
    if len(found) == len(site.secrets):
        return found
    names = " and ".join(site.secrets)
    if found:
        raise RecipeError(f"{site.name}: an account is {names}; only {next(iter(found))} is set.")
    if site.needs_account:
        raise RecipeError(
            f"{site.name} answers only to an account: set the environment variables {names} (on "
            "the site: account, options, API access)."
        )
    return {}


def check_wish(wish: Wish) -> None:
    """Raises RecipeError for a wish that cannot be."""
    if not wish.tags:
        raise RecipeError("name one tag at least.")
    if wish.limit < 1:
        raise RecipeError(f"--limit is {wish.limit}; it takes a number of pictures, 1 or more.")
    if wish.captions == "grouped" and not wish.site.tells_groups:
        raise RecipeError(
            f"--captions grouped: {wish.site.name} does not say which tag is of which kind. Use "
            "--captions site."
        )
    for rating in wish.ratings:
        if rating not in RATINGS:
            raise RecipeError(
                f"--rating {printable(rating)}: it takes {', '.join(RATINGS)}, or all."
            )


def _split_tags(wish: Wish, account: bool) -> tuple[tuple[str, ...], frozenset[str]]:
    """The words to search with, and those to look for in what is found."""
    site = wish.site
    plain = [tag for tag in wish.tags if not site.is_free(tag)]
    if account or len(plain) <= site.most_tags:
        return wish.tags, frozenset()
    # Only what stands in a post's tags can be looked for there.
    later = [tag for tag in plain if ":" not in tag and not tag.startswith(("-", "~"))
             and "*" not in tag][site.most_tags - len(plain) :]  # fmt: skip
    return tuple(tag for tag in wish.tags if tag not in later), frozenset(later)


def _notes(wish: Wish, looked_for: frozenset[str], collection: Collection) -> tuple[str, ...]:
    notes = []
    if looked_for:
        notes.append(
            f"{wish.site.name} takes {wish.site.most_tags} tags a search; "
            f"{', '.join(sorted(looked_for))} was looked for in what it found."
        )
    gone = len(collection.known) - collection.present
    if gone:
        notes.append(
            f"{gone} pictures were collected before and removed since; they are not fetched again."
        )
    return tuple(notes)


def _refusal(site: Site, refused: Refused) -> str:
    """What a search was refused for."""
    if refused.status == 403 and "cf-mitigated" in refused.headers:
        return (
            f"{site.domain} is behind Cloudflare, which lets no program through now (status 403). "
            "It is no wrong password; ask again later, or from another network."
        )
    known = site.reason(refused)
    return f"{site.domain}: {known or f'it refuses (status {refused.status}).'}"


def _file_refusal(refused: Refused) -> str:
    if refused.status == 451:
        return "taken down"
    if refused.status in (404, 410):
        return "not there any more"
    return f"refused (status {refused.status})"
