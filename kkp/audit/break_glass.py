"""Break-glass records: what was opened past KKP, by whom and why, in a file on the operator's machine.

One line for an attempt, before a backend is asked, and one for its outcome, before a plaintext is released:

```
line  {"record":BODY,"hash":"<64 hex digits>"}
hash  SHA-256("kkp/break-glass/v1" ‖ 0x00 ‖ BODY)
BODY  RFC 8785 of

v              1
chain          the file's, e.g. 20261122T031500Z-1f2e3d4c: when it was begun, then random
seq            1, 2, 3 … without a gap
prev           the hash of the line before, lowercase hex; 64 zeros at seq 1
time           Unix seconds, by the clock of that machine
type           attempt | outcome
```

An attempt has `host`, `account`, `reason`, `envelope` (SHA-256 of its canonical bytes, in hex), `backend`,
`key_id` and `context_names`; an outcome has `attempt`, the seq of one, and `result`: `opened`, or a code.

Rules that hold here:
- A record is on disk, file and name, when `RecordFile` returns; otherwise it raises, and nothing may follow.
- The file is its owner's alone, and no link. One in which anything was altered is not added to.
- A line has one spelling. No key, no plaintext and no value of a context has a place in it.

What it can't do: the hashes have no key, so whoever can write the file can write all of it anew, or cut its
end. The cloud's own log, and the audit log once the file was imported, are out of their reach.

*Evolution*: the format never changes in place. A new member or meaning is a new `v` under a new prefix, and
version 1 is read forever.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self, TypeAlias, final

import msgspec

from kkp.audit.chain import FIRST_SEQ, GENESIS_HASH, new_chain_id
from kkp.clock import Clock
from kkp.data_dir import flush_directory, is_writable_by_others, open_private, write_all
from kkp.errors import AuditUnavailableError, ConfigError

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_REASON_CHARACTERS: Final = 500
OPENED: Final = "opened"

_HASH_PREFIX: Final = b"kkp/break-glass/v1\0"

_Hex: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]


class _Placed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """What every record has."""

    v: int = 1
    chain: _Text
    seq: int
    prev: _Hex
    time: int


class Attempt(_Placed, frozen=True, kw_only=True, tag="attempt"):
    """What is about to be opened."""

    host: _Text
    account: _Text
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARACTERS)]
    envelope: _Hex
    backend: _Text
    key_id: _Text
    context_names: tuple[_Text, ...]


class Outcome(_Placed, frozen=True, kw_only=True, tag="outcome"):
    """How an attempt ended."""

    attempt: int
    result: Annotated[str, msgspec.Meta(pattern=r"\A[a-z_]{1,64}\Z")]


Record: TypeAlias = Attempt | Outcome


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    record: msgspec.Raw
    hash: _Hex


class Stored(NamedTuple):
    """A record of a file, and its hash in hex."""

    record: Record
    hash: str


class Place(NamedTuple):
    """Where the next record of a file stands."""

    chain: str
    seq: int
    prev: str
    time: int


class AlteredError(Exception):
    """A file is not as it was written: at this line, for this reason."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line} {problem}")


_encoder = msgspec.json.Encoder(order="sorted")
_line_decoder = msgspec.json.Decoder(_Line)
_record_decoder: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)


def read_records(content: bytes) -> list[Stored]:
    """Return the records of a file, in order.

    Raises:
        AlteredError: Anything in it is not as it was written.
    """
    found: list[Stored] = []
    for number, line in enumerate(io.BytesIO(content), 1):  # which ends lines at newlines alone
        if not line.endswith(b"\n"):
            raise AlteredError(number, "was cut short")
        stored = _read_line(number, line[:-1])
        _check_place(number, stored.record, found)
        found.append(stored)
    return found


def unfinished(records: Sequence[Stored]) -> list[Attempt]:
    """Return the attempts of which nobody knows how they ended, because the process did."""
    ended = {record.attempt for record, _ in records if isinstance(record, Outcome)}
    return [record for record, _ in records if isinstance(record, Attempt) and record.seq not in ended]


def _read_line(number: int, line: bytes) -> Stored:
    try:
        wrapped = _line_decoder.decode(line)
        record = _record_decoder.decode(wrapped.record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise AlteredError(number, "is no break-glass record") from None
    if record.v != 1 or _encoder.encode(record) != bytes(wrapped.record):
        raise AlteredError(number, "is not spelled as KKP spells it, or is of a newer KKP")
    stored = _stored(record)
    if stored.hash != wrapped.hash or _line(stored) != line:
        raise AlteredError(number, "does not have its hash")
    return stored


def _check_place(number: int, record: Record, before: Sequence[Stored]) -> None:
    last = before[-1] if before else None
    prev = last.hash if last is not None else GENESIS_HASH.hex()
    chain = last.record.chain if last is not None else record.chain
    if (record.chain, record.seq, record.prev) != (chain, number, prev):
        raise AlteredError(number, "does not follow the one before it")
    if isinstance(record, Outcome):
        is_known = FIRST_SEQ <= record.attempt < record.seq
        if not is_known or not isinstance(before[record.attempt - 1].record, Attempt):
            raise AlteredError(number, "is the outcome of no attempt")


def _stored(record: Record) -> Stored:
    return Stored(record, hashlib.sha256(_HASH_PREFIX + _encoder.encode(record)).hexdigest())


def _line(stored: Stored) -> bytes:
    return b'{"record":%b,"hash":"%b"}' % (_encoder.encode(stored.record), stored.hash.encode())


def read_record_file(path: Path) -> list[Stored]:
    """Return the records of a file, as nobody is writing to it.

    Raises:
        AlteredError: Anything in it is not as it was written.
        ConfigError: It can't be read, or others can touch it.
    """
    try:
        descriptor = open_private(path, os.O_RDONLY, "break-glass records")
    except FileNotFoundError:
        raise ConfigError([f"break-glass records: {path} does not exist"]) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return read_records(_content(descriptor))
    except OSError as error:
        raise ConfigError([f"break-glass records: {path} can't be read ({error.strerror})"]) from None
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MAX_FILE_BYTES:
        raise ConfigError([f"break-glass records: a file holds {MAX_FILE_BYTES} bytes at most"])
    content = b""
    while part := os.pread(descriptor, MAX_FILE_BYTES + 1 - len(content), len(content)):
        content += part
    return content


@final
class RecordFile:
    """A file that records are added to. Open and close it by `with`.

    Args:
        path: The file; made where there is none.
        clock: Dates the records.

    Raises:
        AuditUnavailableError: No record can be made durable there.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        with self._failing_closed():
            if _can_be_swapped(path.parent):
                raise ConfigError([f"others can put another file in the place of {path}"])
            self._descriptor = open_private(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "break-glass records")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def append(self, make: Callable[[Place], Record]) -> Stored:
        """Add a record; it is durable when this returns.

        Raises:
            AuditUnavailableError: It is not certain that it is; do nothing.
        """
        with self._failing_closed():
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                return self._append(make)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _append(self, make: Callable[[Place], Record]) -> Stored:
        before = _content(self._descriptor)
        stored = _stored(make(self._place(read_records(before))))
        line = _line(stored)
        _read_line(stored.record.seq, line)  # what can't be read again would keep every later one out
        line += b"\n"
        if len(before) + len(line) > MAX_FILE_BYTES:
            raise ConfigError(["it is full"])
        try:
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, len(before))  # half a line would keep every later one out
            raise
        flush_directory(self.path.parent)
        if not os.path.samestat(self.path.lstat(), os.fstat(self._descriptor)):
            raise ConfigError(["it was moved away or replaced"])
        return stored

    def _place(self, before: Sequence[Stored]) -> Place:
        now = self._clock.now()
        if not before:
            return Place(new_chain_id(now), FIRST_SEQ, GENESIS_HASH.hex(), int(now))
        last = before[-1]
        return Place(last.record.chain, last.record.seq + 1, last.hash, int(now))

    @contextmanager
    def _failing_closed(self) -> Iterator[None]:
        """Say of whatever goes wrong that there is no record."""
        try:
            yield
        except AlteredError as error:
            raise self._unavailable(f"{error}, and it stays as it is") from error
        except ConfigError as error:
            raise self._unavailable(str(error)) from error
        except OSError as error:
            raise self._unavailable(f"{error.strerror}") from error

    def _unavailable(self, problem: str) -> AuditUnavailableError:
        return AuditUnavailableError(f"No record in {self.path}: {problem}; --record names another file")


def _can_be_swapped(directory: Path) -> bool:
    mode = directory.stat().st_mode
    return is_writable_by_others(mode) and not mode & stat.S_ISVTX
