"""Opening an envelope or a stream past KKP, on record.

The attempt is recorded before a backend is asked, the outcome before the plaintext goes anywhere: no record,
no plaintext. A stream is read twice: all of it is checked before any of it is released, as an envelope's
plaintext is, and it is never in memory as a whole. `kkp.cli.envelope` checks what was given, and has the
person say that they mean it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from kkp import data_dir, streams
from kkp import envelope as envelopes
from kkp.audit.break_glass import OPENED, Attempt, Outcome, Place, RecordFile, Stored
from kkp.authn.operator import account
from kkp.cli import reach
from kkp.cli.common import STDOUT, say
from kkp.config import Settings
from kkp.envelope import DetachedEnvelope, Envelope
from kkp.errors import ConfigError, EnvelopeInvalidError, KKPError, KMSUnavailableError
from kkp.model import BackendLimits
from kkp.operations.envelopes import unwrapped

_DEADLINE_SECONDS: Final = 120.0


class NotWrittenError(Exception):
    """The plaintext could not be written; the text says why."""


@dataclass(frozen=True, slots=True)
class Act:
    """What is to be done, once it is all known to make sense; of a stream, the file has what is behind it."""

    envelope: DetachedEnvelope
    file: Path
    uris: Mapping[str, str]
    settings: Callable[[], Settings]
    limits: BackendLimits
    reason: str
    output: Path | None

    @property
    def digest(self) -> str:
        """What the envelope is called in the record."""
        return envelopes.digest(self.envelope)


def open_on_record(act: Act, records: RecordFile) -> None:
    """Open the envelope and release its plaintext.

    Raises:
        AuditUnavailableError: There is no record of the attempt, or none of its outcome.
        NotWrittenError: The plaintext could not be written.
        KKPError: The envelope could not be opened.
    """
    attempt = records.append(lambda place: _attempt(act, place))
    try:
        pieces = _opened(act, asyncio.run(_data_key(act)))
    except BaseException as error:  # of whatever kind: it goes on record, and on
        _record(records, attempt, _result(error))
        raise
    _record(records, attempt, OPENED)
    try:
        _release(pieces(), act.output)
    except (OSError, KKPError) as error:
        _record(records, attempt, "output_failed")
        told = error.strerror if isinstance(error, OSError) else "the stream was changed after it was checked"
        raise NotWrittenError(told) from error


def _attempt(act: Act, place: Place) -> Attempt:
    wrap = act.envelope.wrap
    return Attempt(
        **place._asdict(),
        host=socket.gethostname(),
        account=account(),
        reason=act.reason,
        envelope=act.digest,
        backend=wrap.backend,
        key_id=wrap.key_id,
        context_names=tuple(sorted(act.envelope.header.context)),
    )


def _record(records: RecordFile, attempt: Stored, result: str) -> None:
    number = attempt.record.seq
    last = records.append(lambda place: Outcome(**place._asdict(), attempt=number, result=result))
    say(f"kkp: {result}: recorded as {last.record.chain}:{last.record.seq}, hash {last.hash}")
    say(f"kkp: when KKP is back, run: kkp audit import {records.path}")


def _result(error: BaseException) -> str:
    if isinstance(error, ConfigError):
        return "misconfigured"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return error.code if isinstance(error, KKPError) else "internal"


async def _data_key(act: Act) -> bytes:
    """Have the backend unwrap the data key.

    Raises:
        KKPError: The backend's answer was no.
    """
    try:
        async with (
            asyncio.timeout(_DEADLINE_SECONDS),
            reach.own_resources(act.uris, act.settings, act.limits) as resources,
            reach.reached(act.envelope.wrap.backend, act.uris, resources) as backend,
        ):
            return await unwrapped(backend, act.envelope)
    except TimeoutError:
        raise KMSUnavailableError("The backend did not answer in time.") from None


def _opened(act: Act, data_key: bytes) -> Callable[[], Iterable[bytes]]:
    """Open the envelope, or check the stream to its end, and return what gives the plaintext.

    Raises:
        EnvelopeInvalidError: A check failed.
    """
    if isinstance(act.envelope, Envelope):
        plaintext = envelopes.open(act.envelope, data_key)
        return lambda: (plaintext,)
    pieces = partial(_pieces, act, envelopes.message_key(act.envelope, data_key))
    for _ in pieces():  # each is checked, and let go
        pass
    return pieces


def _pieces(act: Act, message_key: bytes) -> Iterator[bytes]:
    """Give a stream's plaintext, piece by piece.

    Raises:
        EnvelopeInvalidError: It is not what it was, or not whole.
    """
    try:
        with act.file.open("rb") as file:
            if streams.read_line(file) != act.envelope:
                raise EnvelopeInvalidError
            yield from streams.opened(file, act.envelope, message_key)
    except OSError as error:
        raise ConfigError([f"{act.file}: it can't be read ({error.strerror})"]) from None


def _release(pieces: Iterable[bytes], output: Path | None) -> None:
    with data_dir.whole_file(output) if output is not None else nullcontext(STDOUT) as descriptor:
        for piece in pieces:
            data_dir.write_all(descriptor, piece)
