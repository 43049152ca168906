"""Which members of a composite fail, for its operator: callers may not notice, and are not told which.

The log has one line when a member begins to fail at something, and one when that is over. The first time that
somebody asks for a key that is not configured it has one with those that are, which no caller learns.

Rules:
- Wrapping and unwrapping are told apart, because a member may be permitted the one and not the other. An
  outage is over for both as soon as either works.
- A bad wrap and a throttle say little of a member, and are not noted.
- A failure so soon after the one before was told is not noted either, unless that one lasts: what a member
  refuses, such as a disabled version of a key, and what it opens a caller can ask for in turn, without end.
- A member that is not asked counts as what it was when it was last asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeAlias, final, runtime_checkable

from kkp.errors import InvalidWrapError, KeyNotReadyError, KKPError, KMSThrottledError, KMSUnavailableError

Work: TypeAlias = Literal["wrap", "unwrap"]
_Label: TypeAlias = tuple[str, str]  # the configured name of a member's backend, and its key there

_ADD = "add another as [backends.NAME.keys.KEY]"
_log = logging.getLogger(__name__)


@final
class FailingMembers:
    """The members of one composite that failed when they were last asked.

    Args:
        composite: What the log calls it.
        total: How many members it has.
        quiet_seconds: How soon is too soon for another failure of a member that worked again.
        monotonic: Seconds on a clock that never runs backwards.
    """

    def __init__(
        self,
        composite: str,
        total: int,
        quiet_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self._composite = composite
        self._quiet_seconds = quiet_seconds
        self._monotonic = monotonic
        self._quiet_until: dict[tuple[_Label, Work], float] = {}
        self._has_told_keys = False
        self._failing: dict[tuple[_Label, Work], type[KKPError]] = {}

    def count(self) -> int:
        """Return how many fail at something."""
        return len({member for member, _ in self._failing})

    def unknown_key(self, known: Iterable[str]) -> None:
        """Tell which keys there are, once: anybody who may ask can ask for others without end."""
        if self._has_told_keys:
            return
        self._has_told_keys = True
        keys = ", ".join(sorted(known))
        _log.warning("%s: no such key was asked for; its keys are %s; %s", self._composite, keys, _ADD)

    def failed(self, member: _Label, work: Work, error: KKPError) -> None:
        """Note that a member did not do it."""
        if isinstance(error, InvalidWrapError | KMSThrottledError):
            return
        if (member, work) not in self._failing:
            now = self._monotonic()
            if now < self._quiet_until.get((member, work), now):
                return
            self._quiet_until[member, work] = now + self._quiet_seconds
            _log.error(
                "%s: member %s:%s can't %s (%s): %s", self._composite, *member, work, error.code, error
            )
        self._failing[member, work] = type(error)

    def worked(self, member: _Label, work: Work) -> None:
        """Note that a member did it."""
        if not self._failing:
            return
        over = [
            (label, failed_at)
            for (label, failed_at), kind in self._failing.items()
            if label == member and (failed_at == work or _is_outage(kind))
        ]
        for label, failed_at in over:
            del self._failing[label, failed_at]
            _log.warning("%s: member %s:%s can %s again", self._composite, *label, failed_at)


@runtime_checkable
class HasMembers(Protocol):
    """A backend that is made of others."""

    failing: FailingMembers


def _is_outage(kind: type[KKPError]) -> bool:
    return issubclass(kind, KMSUnavailableError) and not issubclass(kind, KeyNotReadyError)
