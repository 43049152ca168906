"""What the listener reads from files, replaced while it serves.

- It is read again when one of its files changes, be it rewritten, replaced, or behind a link that moved, or
  when asked to.
- What can't be used is refused and logged; what was read before it stays in force. So a rotation that is
  half-way done harms nobody: the next look finds the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar, final

from kkp.errors import ConfigError

LOOK_SECONDS: Final = 2.0
_log = logging.getLogger(__name__)
_Marks: TypeAlias = tuple[tuple[int, ...] | None, ...]
T = TypeVar("T")


@final
class Reloading(Generic[T]):
    """Something that files hold.

    Args:
        what: Its name, for the log.
        files: The files.
        load: Reads it; a ConfigError says why it can't be used.

    Attributes:
        value: What is in force.
        refused: Whether the files hold something else, which can't be used.

    Raises:
        ConfigError: It can't be used at the start.
    """

    def __init__(self, what: str, files: Sequence[Path], load: Callable[[], T]) -> None:
        self._what = what
        self._files = tuple(files)
        self._load = load
        self._marks = self._marks_now()
        self.value = load()
        self.refused = False

    async def run(self, look_seconds: float = LOOK_SECONDS) -> None:
        """Look at the files this often, until cancelled."""
        while True:
            await asyncio.sleep(look_seconds)
            self.look()

    def look(self) -> bool:
        """Read it again if the files changed, and tell whether they did."""
        has_changed = self._marks_now() != self._marks
        if has_changed:
            self.reload()
        return has_changed

    def reload(self) -> None:
        """Read it again; what can't be used is logged, and the old one stays."""
        self._marks = (
            self._marks_now()
        )  # before they are read: what changes meanwhile is seen at the next look
        try:
            self.value = self._load()
        except ConfigError as error:
            self.refused = True
            _log.error("the new %s is refused, the old one stays: %s", self._what, error)
            return
        self.refused = False

    def _marks_now(self) -> _Marks:
        return tuple(map(_mark, self._files))


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
