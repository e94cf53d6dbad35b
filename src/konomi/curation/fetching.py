"""Requests to a site, one after another and no faster than it likes: they say who asks, wait when
told to, follow no way out of the site, and take no more than was agreed.
"""

import email.utils
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin, urlsplit

from konomi import __version__
from konomi.curation.sites.site import Refused
from konomi.errors import DataError, printable

if TYPE_CHECKING:
    from requests import Response, Session

USER_AGENT = f"konomi/{__version__}"
"""Sites block programs that do not say who they are, and those that claim to be browsers."""
_TRY_AGAIN = frozenset({429, 500, 502, 503, 504})
_TRIES = 6
_LONGEST_WAIT = 600.0
"""Seconds; a site that asks for more is left for another day."""
_TIMEOUT = (15.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""
_MOST_REDIRECTS = 4
_PIECE = 1 << 16
T = TypeVar("T")


class GaveUp(DataError):
    """A site that did not answer, however often it was asked."""


class TooLarge(DataError):
    """An answer of more bytes than were agreed."""


class Elsewhere(DataError):
    """An address that lies outside the site."""


@dataclass(slots=True)
class Fetcher:
    """One connection to one site."""

    domain: str
    """Addresses of this host and of those below it are asked, and no others."""
    seconds_between: float
    """Between the beginnings of two requests, at least."""
    tell: Callable[[str], object]
    """Is told of waiting."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    requests: int = 0
    """So far."""
    _session: "Session | None" = None
    _last: float = field(default=float("-inf"))

    def read(self, url: str, query: Mapping[str, str], *, limit: int) -> bytes | Refused:
        """A whole answer, of `limit` bytes at most.

        Raises GaveUp, TooLarge, Elsewhere.
        """
        return self._tried(url, query, lambda answer: b"".join(_pieces(answer, limit, url)))

    def save(self, url: str, path: Path, *, limit: int) -> Refused | None:
        """An answer into a new file. Raises as `read`."""

        def kept(answer: "Response") -> None:
            with path.open("wb") as target:
                for piece in _pieces(answer, limit, url):
                    target.write(piece)

        return self._tried(url, {}, kept)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _tried(
        self, url: str, query: Mapping[str, str], use: "Callable[[Response], T]"
    ) -> T | Refused:
        from requests import RequestException

        reason, asked = "", None
        for attempt in range(_TRIES):
            if attempt:
                self._wait(2.0**attempt if asked is None else asked, reason)
            try:
                with self._asked(url, query) as answer:
                    if answer.status_code == 200:
                        return use(answer)
                    refused = _refused(answer)
            except RequestException as error:
                # Its text may hold the query, and with it the account.
                reason, asked = type(error).__name__, None
                continue
            if refused.status not in _TRY_AGAIN:
                return refused
            reason = f"status {refused.status}"
            asked = _asked_to_wait(refused.headers)
            if asked is not None and asked > _LONGEST_WAIT:
                raise GaveUp(
                    f"{_host(url)} asks to wait for {asked / 60:.0f} minutes. What is here is "
                    "kept; ask again later."
                )
        raise GaveUp(
            f"{_host(url)} did not answer ({reason}), {_TRIES} times. What is here is kept; ask "
            "again later."
        )

    @contextmanager
    def _asked(self, url: str, query: Mapping[str, str]) -> "Iterator[Response]":
        """The answer at the end of all redirects, none of which leads away."""
        for _ in range(_MOST_REDIRECTS + 1):
            self._check(url)
            pause = self._last + self.seconds_between - self.clock()
            if pause > 0:
                self.sleep(pause)
            self._last = self.clock()
            self.requests += 1
            with self._open().get(
                url, params=dict(query), stream=True, allow_redirects=False, timeout=_TIMEOUT
            ) as answer:
                if not answer.is_redirect:
                    yield answer
                    return
                url, query = urljoin(url, answer.headers["location"]), {}
        raise Elsewhere(f"{_host(url)} sends on and on.")

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        host, allowed = parts.hostname or "", self.domain
        if parts.scheme not in ("https", "http") or not (
            host == allowed or host.endswith(f".{allowed}")
        ):
            raise Elsewhere(f"{printable(url[:200])} lies outside {allowed}, and is not followed.")

    def _open(self) -> "Session":
        if self._session is None:
            from requests import Session

            self._session = Session()
            self._session.headers["User-Agent"] = USER_AGENT
            # No account of a .netrc is sent unasked.
            self._session.auth = lambda request: request
        return self._session

    def _wait(self, seconds: float, reason: str) -> None:
        self.tell(f"{self.domain}: {reason}; waiting for {seconds:.0f} s.")
        self.sleep(seconds)


def _pieces(answer: "Response", limit: int, url: str) -> Iterator[bytes]:
    size = 0
    for piece in answer.iter_content(_PIECE):
        size += len(piece)
        if size > limit:
            raise TooLarge(f"{printable(url[:200])} is larger than {limit >> 20} MiB.")
        yield piece


def _refused(answer: "Response") -> Refused:
    headers = {name.lower(): value for name, value in answer.headers.items()}
    return Refused(answer.status_code, headers, next(iter(answer.iter_content(_PIECE)), b""))


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds of `Retry-After`, which is a number of them or a date."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, date.timestamp() - time.time())


def _host(url: str) -> str:
    return printable(urlsplit(url).hostname or url[:80])
