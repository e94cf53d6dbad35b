"""`collect`: pictures and tags of a site."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from konomi.curation.collecting import (
    Collected,
    Collector,
    CollectReport,
    Wish,
    accounts,
    check_wish,
)
from konomi.curation.fetching import Fetcher
from konomi.curation.sites import chosen_site
from konomi.storage.lock import RunLock


def collect(
    *tags: str,
    output: str | Path,
    site: str = "danbooru",
    limit: int = 100,
    ratings: Sequence[str] = ("general",),
    min_score: int | None = None,
    min_side: int = 0,
    exclude: Sequence[str] = (),
    captions: str = "site",
    trigger: str = "",
    ai_made: bool = False,
    max_mib: int = 64,
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[Collected | CollectReport]:
    """Collect pictures that have all of these tags, the newest first, with a caption beside each
    and `metadata.jsonl` with where each comes from. Asked again, it goes on; nothing is fetched
    twice.

    tags: as the site writes them.
    output: the folder.
    site: `danbooru`, `safebooru`, `gelbooru`, or NAME:URL for another site with that program.
    limit: pictures of the site in the folder, with those that are there already.
    ratings: of `general`, `sensitive`, `questionable`, `explicit`; none for all.
    min_score: the least score.
    min_side: pixels of the shorter side, at least.
    exclude: tags whose pictures are left out.
    captions: `site` (tags in its order), `grouped` (characters first) or `none`.
    trigger: a word that every caption begins with.
    ai_made: whether to take what the site marks as made by a model.
    max_mib: size of one file, in MiB.
    tell: is handed a line when the site has to be waited for.

    An account comes from the environment alone (`DANBOORU_LOGIN` and `DANBOORU_API_KEY`,
    `GELBOORU_USER_ID` and `GELBOORU_API_KEY`) and is written nowhere.

    Yields what is done, at last the report. Raises KonomiError; what was collected is kept.
    """
    wish = Wish(
        tags=tuple(tags),
        site=chosen_site(site),
        output=Path(output),
        limit=limit,
        ratings=tuple(ratings),
        min_score=min_score,
        min_side=min_side,
        exclude=tuple(exclude),
        captions=captions,
        trigger=trigger,
        ai_made=ai_made,
        max_mib=max_mib,
    )
    check_wish(wish)
    account = accounts(wish.site)
    fetcher = Fetcher(wish.site.domain, wish.site.seconds_between, tell)
    try:
        with RunLock(wish.output):
            yield from Collector(wish, account, fetcher).run()
    finally:
        fetcher.close()
