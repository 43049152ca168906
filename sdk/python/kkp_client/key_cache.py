"""The life of what is fetched again and again: KKP's keys, and its list of revocations. Without I/O.

Whoever fetches says when, and what came of it; this says whether to ask, and with what. Times are those of a
clock that nobody can step. Rules that hold here:
- Age counts from before the request that fetched a document. A 304 makes it young again.
- What fails leaves the last good document in place; how old is too old is for its reader to say.
- After failures in a row the pause before the next request doubles, from 1 s to 30 s. Two requests are never
  begun less than 1 s apart, whatever `max-age` says.
- An unknown key may be asked for every 30 s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar, final

T = TypeVar("T")

MAX_AGE_SECONDS: Final = 600
_MIN_PAUSE_SECONDS: Final = 1
_MAX_PAUSE_SECONDS: Final = 30
_UNKNOWN_KEY_PAUSE_SECONDS: Final = 30
_MAX_DOUBLINGS: Final = 5
_MAX_AGE: Final = re.compile(
    r'(?:^|,)[ \t]*max-age[ \t]*=[ \t]*"?([0-9]{1,18})"?[ \t]*(?:,|$)', re.IGNORECASE
)
_ETAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,256}"')
_NOT_MODIFIED: Final = 304


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered.

    Attributes:
        status: HTTP's.
        headers: By their names in small letters.
        body: Whole, and within the document's limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


class NotReadError(Exception):
    """What was answered is no document; the text says why, and quotes nothing of it."""


class Held(NamedTuple, Generic[T]):
    """A document, and how young it is.

    Attributes:
        document: What was made of the answer.
        etag: By which the next request names it; None where it has none that could be sent back.
        fetched_at: When the request was begun that fetched or confirmed it.
        max_age_seconds: For how long it is young.
    """

    document: T
    etag: str | None
    fetched_at: float
    max_age_seconds: float


@final
class DocumentCache(Generic[T]):
    """One document, and when to ask for it.

    Args:
        url: Where it is.
        max_bytes: How long an answer may be.
        default_age_seconds: For how long it is young where the answer does not say.
    """

    def __init__(self, url: str, *, max_bytes: int, default_age_seconds: float) -> None:
        self.url = url
        self.max_bytes = max_bytes
        self.held: Held[T] | None = None
        self.failure = ""
        self._default_age_seconds = default_age_seconds
        self._failures = 0
        self._began_at: float | None = None
        self._ended_at: float | None = None
        self._asked_for_unknown_at: float | None = None

    def is_older_than(self, share: float, at: float) -> bool:
        """Tell whether there is a document, and it is older than a share of its `max-age`."""
        held = self.held
        return held is not None and at - held.fetched_at >= share * held.max_age_seconds

    def may_ask(self, at: float) -> bool:
        """Tell whether a request may be made now."""
        pause = min(2.0 ** min(self._failures - 1, _MAX_DOUBLINGS), _MAX_PAUSE_SECONDS)
        return _has_passed(self._began_at, _MIN_PAUSE_SECONDS, at) and (
            self._failures == 0 or _has_passed(self._ended_at, pause, at)
        )

    def may_ask_for_unknown_key(self, at: float) -> bool:
        """Tell whether a request may be made for want of a key, and count it as one."""
        if not self.may_ask(at) or not _has_passed(
            self._asked_for_unknown_at, _UNKNOWN_KEY_PAUSE_SECONDS, at
        ):
            return False
        self._asked_for_unknown_at = at
        return True

    def begin(self, at: float) -> dict[str, str]:
        """Begin a request; return the headers that it has on account of what is held."""
        self._began_at = at
        etag = self.held.etag if self.held is not None else None
        return {} if etag is None else {"If-None-Match": etag}

    def replace(self, document: T, answer: Answer, at: float) -> None:
        """Hold the document that was made of an answer to the request that was begun last."""
        stated = _stated_age(answer)
        age = self._default_age_seconds if stated is None else stated
        etag = answer.headers.get("etag", "")
        sent_back = etag if _ETAG.fullmatch(etag) else None
        self._succeed(Held(document, sent_back, self._began_at or at, age), at)

    def confirm(self, answer: Answer, at: float) -> None:
        """Hold on to the document, which an answer says is still the same.

        Raises:
            NotReadError: It says something else.
        """
        held = self.held
        if answer.status != _NOT_MODIFIED or held is None or held.etag is None:
            raise NotReadError(f"it answered {answer.status}")
        stated = _stated_age(answer)
        age = held.max_age_seconds if stated is None else stated
        self._succeed(held._replace(fetched_at=self._began_at or at, max_age_seconds=age), at)

    def fail(self, why: str, at: float) -> None:
        """Note that a request failed; whatever is held stays."""
        self._failures += 1
        self._ended_at = at
        self.failure = f"GET {self.url}: {why}"

    def _succeed(self, held: Held[T], at: float) -> None:
        self.held = held
        self._failures, self.failure, self._ended_at = 0, "", at


def _stated_age(answer: Answer) -> float | None:
    stated = _MAX_AGE.search(answer.headers.get("cache-control", ""))
    return None if stated is None else float(min(int(stated[1]), MAX_AGE_SECONDS))


def _has_passed(since: float | None, seconds: float, at: float) -> bool:
    return since is None or at - since >= seconds
