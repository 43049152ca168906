"""Files of checkpoints, as a sink writes them: one a line, in any order, some of them more than once.

A file is opened before the log that it is compared with, and is read up to where it ended then: what the sink
takes meanwhile is about records that the reader of the log may not see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, final

from kkp.audit.checkpoints import Checkpoint
from kkp.audit.evidence import NotCheckpointsError, read_lines
from kkp.audit.signed_lines import MAX_LINE_BYTES
from kkp.audit.verify import UnreadableError


@final
class CheckpointFile:
    """What a sink wrote into a file until now.

    Args:
        path: The file.

    Raises:
        UnreadableError: It can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._size = path.stat().st_size
        except OSError as error:
            raise UnreadableError(f"{path} can't be read as checkpoints: {error}") from error

    def read(self, is_known: Callable[[bytes], bool] | None = None) -> Iterator[Checkpoint]:
        """Read the checkpoints, but for those that are at hand already.

        Args:
            is_known: Tells of a line, without its newline, that it is.

        Raises:
            UnreadableError: It can't be read, or holds no checkpoint, or something else.
        """
        found = False
        try:
            with self._path.open("rb") as file:
                for checkpoint in read_lines(_lines(file, self._size), is_known):
                    found = True
                    yield checkpoint
        except (OSError, NotCheckpointsError) as error:
            raise UnreadableError(f"{self._path} can't be read as checkpoints: {error}") from error
        if is_known is None and not found:
            raise UnreadableError(f"{self._path} holds no checkpoint")


def _lines(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Return the lines of the first `size` bytes; what was added since is not cut short by that."""
    while file.tell() < size and (line := file.readline(MAX_LINE_BYTES + 1)):
        yield line
