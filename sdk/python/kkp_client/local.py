"""Messages that are sealed and opened in this process, under message keys that KKP gives out.

KKP sees who asks, for which key and in which context, and never the payload. What is sealed here as a whole
(`seal`, envelope v1) KKP opens as well; what is sealed as a stream (`seal_stream`, stream v1) may be of any
length, and is never in memory as a whole.

Rules that hold here:
- A message key is asked for for each message, and dropped with it.
- A stream's plaintext is given out chunk by chunk, each checked by then, but its end is not known to be there
  before the last one: whoever acts on a plaintext as a whole waits until the stream has ended without an
  error. `open_file` does: a file stands under its name when it is whole, and never before.
- A file that is written is readable by its owner alone, takes the place of one that has its name, and is on
  disk when it does. A name that is a symbolic link is replaced itself. A process that is killed leaves what
  it had written beside it, as `.kkp-…`.

`LocalEnvelope` is for asyncio, `SyncLocalEnvelope` for threads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Event
from typing import BinaryIO, Final, Protocol, TypeAlias, Unpack, final, runtime_checkable

from kkp_client import envelope as envelopes
from kkp_client import stream
from kkp_client.client import KKPClient
from kkp_client.envelope import DetachedEnvelope, Document, Envelope, JSONObject
from kkp_client.messages import (
    DEFAULT_SCOPE,
    NOTHING,
    KeyRequest,
    MessageKey,
    Opened,
    Scope,
    Sealing,
    StreamSealing,
)
from kkp_client.stream import DEFAULT_CHUNK_BYTES, StreamOpener, StreamSealer
from kkp_client.sync_client import SyncKKPClient


@runtime_checkable
class Reads(Protocol):
    """A file, or what reads like one."""

    def read(self, size: int, /) -> bytes:
        """Return so many bytes at most, and none at the end."""
        ...


Source: TypeAlias = Reads | Iterable[bytes]
AsyncSource: TypeAlias = AsyncIterable[bytes] | Source
Name: TypeAlias = str | os.PathLike[str]

_READ_BYTES: Final = 1_048_576


@final
class LocalEnvelope:
    """Seals and opens here, in asyncio.

    Args:
        client: Asks KKP for message keys.
    """

    def __init__(self, client: KKPClient) -> None:
        self._client = client

    async def seal(
        self,
        plaintext: bytes | str,
        *,
        scope: Scope = DEFAULT_SCOPE,
        **sealing: Unpack[Sealing],
    ) -> JSONObject:
        """Return the envelope of a plaintext. The arguments are those of `KKPClient.encrypt`.

        Raises:
            KKPError: There is no message key for it, or text that can't be.
        """
        request = _request(plaintext, sealing)
        return _sealed(await self._client.data_key(request, scope=scope), plaintext)

    async def open(
        self, envelope: Document, *, policy_context: JSONObject = NOTHING, scope: Scope = DEFAULT_SCOPE
    ) -> Opened:
        """Return what an envelope holds. The arguments are those of `KKPClient.decrypt`.

        Raises:
            KKPError: KKP gives out no message key, or the payload was altered.
        """
        whole = envelopes.parse(envelope)
        key = await self._client.message_key(whole.detached, policy_context=policy_context, scope=scope)
        return _opened(whole, key)

    async def seal_stream(
        self,
        source: AsyncSource,
        *,
        scope: Scope = DEFAULT_SCOPE,
        **sealing: Unpack[StreamSealing],
    ) -> AsyncIterator[bytes]:
        """Give the stream of a plaintext, piece by piece.

        Args:
            source: A file opened for reading bytes, which is read in a thread, or any iterable of bytes.
            scope: See `KKPClient.encrypt`.
            **sealing: See `kkp_client.messages.StreamSealing`.

        Raises:
            KKPError: There is no message key for it.
        """
        request = _stream_request(sealing)
        begun = await self._client.data_key(request, scope=scope)
        yield stream.line_of(begun.envelope)
        sealer = StreamSealer(begun.key, stream.chunk_bytes_of(begun.envelope))
        async for piece in _pieces_async(source):
            for chunk in sealer.update(piece):
                yield chunk
        yield sealer.finish()

    async def open_stream(
        self,
        source: AsyncSource,
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> AsyncIterator[bytes]:
        """Give the plaintext of a stream, piece by piece; it is whole if this ends without an error.

        Raises:
            KKPError: KKP gives out no message key, or the stream was altered or cut off.
        """
        pieces = _pieces_async(source)
        envelope, behind_line = await _read_line(pieces)
        key = await self._client.message_key(envelope, policy_context=policy_context, scope=scope)
        opener = StreamOpener(key, stream.chunk_bytes_of(envelope))
        for chunk in opener.update(behind_line):
            yield chunk
        async for piece in pieces:
            for chunk in opener.update(piece):
                yield chunk
        yield opener.finish()

    async def seal_file(
        self,
        source: Name,
        target: Name,
        *,
        scope: Scope = DEFAULT_SCOPE,
        **sealing: Unpack[StreamSealing],
    ) -> None:
        """Write the stream of one file to another. The arguments are those of `seal_stream`.

        Raises:
            KKPError: There is no message key for it.
            OSError: A file can't be read or written.
        """
        request = _stream_request(sealing)
        with await asyncio.to_thread(_open, source) as file:
            begun = await self._client.data_key(request, scope=scope)
            await _write_in_thread(target, stream.sealed(begun.envelope, begun.key, _pieces(file)))

    async def open_file(
        self,
        source: Name,
        target: Name,
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> None:
        """Write the plaintext of a stream in one file to another, which is there only if it is whole.

        Raises:
            KKPError: KKP gives out no message key, or the stream was altered or cut off.
            OSError: A file can't be read or written.
        """
        with await asyncio.to_thread(_open, source) as file:
            pieces = _pieces(file)
            envelope, behind_line = await asyncio.to_thread(stream.read_line, pieces)
            key = await self._client.message_key(envelope, policy_context=policy_context, scope=scope)
            await _write_in_thread(target, stream.opened(envelope, key, behind_line, pieces))


@final
class SyncLocalEnvelope:
    """Seals and opens here, in threads. Its methods are those of `LocalEnvelope`.

    Args:
        client: Asks KKP for message keys.
    """

    def __init__(self, client: SyncKKPClient) -> None:
        self._client = client

    def seal(
        self,
        plaintext: bytes | str,
        *,
        scope: Scope = DEFAULT_SCOPE,
        **sealing: Unpack[Sealing],
    ) -> JSONObject:
        """Return the envelope of a plaintext: see `LocalEnvelope.seal`."""
        request = _request(plaintext, sealing)
        return _sealed(self._client.data_key(request, scope=scope), plaintext)

    def open(
        self, envelope: Document, *, policy_context: JSONObject = NOTHING, scope: Scope = DEFAULT_SCOPE
    ) -> Opened:
        """Return what an envelope holds: see `LocalEnvelope.open`."""
        whole = envelopes.parse(envelope)
        key = self._client.message_key(whole.detached, policy_context=policy_context, scope=scope)
        return _opened(whole, key)

    def seal_stream(
        self,
        source: Source,
        *,
        scope: Scope = DEFAULT_SCOPE,
        **sealing: Unpack[StreamSealing],
    ) -> Iterator[bytes]:
        """Give the stream of a plaintext, piece by piece: see `LocalEnvelope.seal_stream`."""
        request = _stream_request(sealing)
        begun = self._client.data_key(request, scope=scope)
        yield from stream.sealed(begun.envelope, begun.key, _pieces(source))

    def open_stream(
        self, source: Source, *, policy_context: JSONObject = NOTHING, scope: Scope = DEFAULT_SCOPE
    ) -> Iterator[bytes]:
        """Give the plaintext of a stream, piece by piece: see `LocalEnvelope.open_stream`."""
        pieces = _pieces(source)
        envelope, behind_line = stream.read_line(pieces)
        key = self._client.message_key(envelope, policy_context=policy_context, scope=scope)
        yield from stream.opened(envelope, key, behind_line, pieces)

    def seal_file(
        self,
        source: Name,
        target: Name,
        *,
        scope: Scope = DEFAULT_SCOPE,
        **sealing: Unpack[StreamSealing],
    ) -> None:
        """Write the stream of one file to another: see `LocalEnvelope.seal_file`."""
        request = _stream_request(sealing)
        with _open(source) as file:
            begun = self._client.data_key(request, scope=scope)
            _write(target, stream.sealed(begun.envelope, begun.key, _pieces(file)))

    def open_file(
        self,
        source: Name,
        target: Name,
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> None:
        """Write the plaintext of a stream in one file to another: see `LocalEnvelope.open_file`."""
        with _open(source) as file:
            pieces = _pieces(file)
            envelope, behind_line = stream.read_line(pieces)
            key = self._client.message_key(envelope, policy_context=policy_context, scope=scope)
            _write(target, stream.opened(envelope, key, behind_line, pieces))


def _request(plaintext: bytes | str, sealing: Sealing) -> KeyRequest:
    envelopes.payload_of(plaintext)  # before a key is asked for that it would be no use to
    return KeyRequest(encoding="utf-8" if isinstance(plaintext, str) else None, **sealing)


def _sealed(begun: MessageKey, plaintext: bytes | str) -> JSONObject:
    return envelopes.seal(begun.envelope, begun.key, plaintext).document()


def _opened(envelope: Envelope, key: bytes) -> Opened:
    plaintext = envelopes.open(envelope, key)
    return Opened(plaintext, plaintext.decode() if envelope.detached.encoding == "utf-8" else None)


def _stream_request(sealing: StreamSealing) -> KeyRequest:
    sealing.setdefault("chunk_size", DEFAULT_CHUNK_BYTES)
    return KeyRequest(**sealing)


def _pieces(source: Source) -> Iterator[bytes]:
    """Give what a source holds, of a file so much at a time."""
    if not isinstance(source, Reads):
        yield from source
        return
    while (piece := source.read(_READ_BYTES)) != b"":  # None, of a file that does not block, is no end
        yield piece


async def _pieces_async(source: AsyncSource) -> AsyncIterator[bytes]:
    if isinstance(source, AsyncIterable):
        async for piece in source:
            yield piece
        return
    if isinstance(source, Reads):
        while (piece := await asyncio.to_thread(source.read, _READ_BYTES)) != b"":
            yield piece
        return
    for piece in source:
        yield piece


async def _read_line(pieces: AsyncIterator[bytes]) -> tuple[DetachedEnvelope, bytes]:
    reader = stream.LineReader()
    async for piece in pieces:
        found = reader.update(piece)
        if found is not None:
            return found
    raise envelopes.invalid()


def _open(name: Name) -> BinaryIO:
    return Path(name).open("rb")


class _StoppedError(Exception):
    """Whoever waited for a file waits no longer."""


def _until(stopped: Event, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if stopped.is_set():
            raise _StoppedError
        yield piece


def _write(target: Name, pieces: Iterable[bytes]) -> None:
    """Write a file that stands under its name only when it is whole and on disk."""
    path = Path(target)
    with NamedTemporaryFile("wb", dir=path.parent, prefix=".kkp-", delete=False) as file:
        try:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise
    _sync(path.parent)


def _sync(directory: Path) -> None:
    """Have a directory's new entry on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def _write_in_thread(target: Name, pieces: Iterable[bytes]) -> None:
    """Write a file in a thread, which has ended when this does: also where it is cancelled."""
    stopped = Event()
    writing = asyncio.ensure_future(asyncio.to_thread(_write, target, _until(stopped, pieces)))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.gather(writing, return_exceptions=True)
        raise
