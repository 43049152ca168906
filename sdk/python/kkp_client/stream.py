r"""Stream v1: a message of any length, sealed and opened chunk by chunk under one message key.

The layout, byte by byte, is in KKP's docs/formats.md, "Stream v1":

```
line      the stream's envelope (`kkp_client.envelope`), one JSON line, at most 262,144 bytes with its "\n"
chunks    AES-256-GCM(message key, nonce_i, chunk), no associated data; chunk_size + 16 bytes, the last one
          16 to chunk_size + 16
nonce_i   i as 11 bytes big-endian, from 0, then 0x01 for the last chunk, else 0x00
```

Rules that hold here:
- Bytes go in and bytes come out, however they are cut; nothing is read or written here, and no more than two
  chunks are held at a time.
- A chunk is the last one exactly if no byte follows it. So both sides look one byte ahead, and open each
  chunk with the one flag that follows from it: what is cut off, added, repeated or moved has the wrong tag.
- A chunk is released after its own tag. Of a damaged stream everything before the fault has been released
  when the fault is found, so whoever acts on a stream as a whole waits for its end.
- A last chunk is empty only where it is the first: a stream of nothing.
- A sealer or an opener that has failed or finished does nothing more.
- A stream is sealed in the process that began it: a fork would use the same nonces for other chunks.

Evolution: that of the envelope. Another layout is another `alg`, or another `v`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Final, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp_client.envelope import GCM_TAG_BYTES, DetachedEnvelope, invalid, parse_stream
from kkp_client.errors import ConfigurationError

DEFAULT_CHUNK_BYTES: Final = 1_048_576
MAX_LINE_BYTES: Final = 262_144
MAX_CHUNKS: Final = 2**32  # far more than anybody has, and no counter of any language wraps before it
_INDEX_BYTES: Final = 11


def line_of(envelope: DetachedEnvelope) -> bytes:
    """Return the line that a stream begins with."""
    return json.dumps(envelope.document(), separators=(",", ":")).encode() + b"\n"


@final
class LineReader:
    """Takes a stream's first bytes until its line is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def update(self, data: bytes) -> tuple[DetachedEnvelope, bytes] | None:
        """Take some bytes; return the envelope and the bytes behind its line, once that has ended.

        Raises:
            ConfigurationError: They are no bytes.
            EnvelopeInvalidError: It is no stream's line, or does not end.
        """
        searched = len(self._buffer)
        self._buffer += _bytes(data)
        end = self._buffer.find(b"\n", searched, MAX_LINE_BYTES)
        if end >= 0:
            return parse_stream(bytes(self._buffer[:end])), bytes(self._buffer[end + 1 :])
        if len(self._buffer) >= MAX_LINE_BYTES:
            raise invalid()
        return None


class _Chunks:
    """Cuts bytes into pieces of one length; none is let go before it is known whether it is the last.

    What is held lies in one buffer from the beginning to the end. A piece is good until the next one is asked
    for: to allocate each of them anew costs more than to seal it.

    Args:
        length: Of every piece but the last.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._buffer = memoryview(bytearray(length))
        self._filled = 0
        self.count = 0

    def take(self, data: bytes | bytearray | memoryview) -> Iterator[tuple[bytes, memoryview]]:
        """Take some bytes; give each piece that others follow, with its nonce.

        Raises:
            ConfigurationError: They are no bytes.
        """
        view = _bytes(data)
        while self._filled + len(view) > self._length:
            missing = self._length - self._filled
            piece = self._buffer if self._filled else view[:missing]
            if self._filled:
                self._fill(view[:missing])
            view, self._filled = view[missing:], 0
            yield self._nonce(0), piece
        self._fill(view)

    def last(self) -> tuple[bytes, memoryview]:
        """Return what is left, with its nonce."""
        return self._nonce(1), self._buffer[: self._filled]

    def _fill(self, view: memoryview) -> None:
        end = self._filled + len(view)
        self._buffer[self._filled : end] = view
        self._filled = end

    def _nonce(self, flag: int) -> bytes:
        if self.count >= MAX_CHUNKS:
            raise invalid()
        index, self.count = self.count, self.count + 1
        return index.to_bytes(_INDEX_BYTES) + bytes([flag])


@final
class StreamSealer:
    """Makes chunks of a plaintext.

    Args:
        message_key: Of this stream alone.
        chunk_size: As the stream's line says.
    """

    def __init__(self, message_key: bytes, chunk_size: int) -> None:
        self._cipher: AESGCM | None = AESGCM(message_key)
        self._chunks = _Chunks(chunk_size)
        self._pid = os.getpid()

    def update(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Take some of the plaintext; give the chunks that are whole, and not the last.

        Raises:
            ConfigurationError: The stream was begun before a fork.
            EnvelopeInvalidError: A stream has no room for so much.
        """
        cipher = _still(self._cipher)
        for nonce, piece in self._chunks.take(data):
            yield self._sealed(cipher, nonce, piece)

    def finish(self) -> bytes:
        """Return the last chunk.

        Raises:
            ConfigurationError: The stream was begun before a fork.
            EnvelopeInvalidError: A stream has no room for so much.
        """
        cipher, self._cipher = _still(self._cipher), None
        return self._sealed(cipher, *self._chunks.last())

    def _sealed(self, cipher: AESGCM, nonce: bytes, piece: memoryview) -> bytes:
        if os.getpid() != self._pid:
            raise ConfigurationError("The stream was begun before a fork, and goes on in one process alone.")
        return cipher.encrypt(nonce, piece, None)


@final
class StreamOpener:
    """Makes the plaintext of chunks.

    Args:
        message_key: Of this stream alone.
        chunk_size: As the stream's line says.
    """

    def __init__(self, message_key: bytes, chunk_size: int) -> None:
        self._cipher: AESGCM | None = AESGCM(message_key)
        self._chunks = _Chunks(chunk_size + GCM_TAG_BYTES)

    def update(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Take some of the stream behind its line; give the plaintext of each chunk that others follow.

        Raises:
            EnvelopeInvalidError: A chunk is not the one that belongs there.
        """
        cipher = _still(self._cipher)
        for nonce, piece in self._chunks.take(data):
            yield self._opened(cipher, nonce, piece)

    def finish(self) -> bytes:
        """Return the plaintext of the last chunk, with which the whole stream is known to be there.

        Raises:
            EnvelopeInvalidError: The stream was cut off, or goes on behind its last chunk.
        """
        cipher, self._cipher = _still(self._cipher), None
        nonce, piece = self._chunks.last()
        if len(piece) < GCM_TAG_BYTES or (len(piece) == GCM_TAG_BYTES and self._chunks.count > 1):
            raise invalid()
        return self._opened(cipher, nonce, piece)

    def _opened(self, cipher: AESGCM, nonce: bytes, piece: memoryview) -> bytes:
        try:
            return cipher.decrypt(nonce, piece, None)
        except InvalidTag:
            self._cipher = None
        raise invalid()


def read_line(pieces: Iterator[bytes]) -> tuple[DetachedEnvelope, bytes]:
    """Return the envelope that a stream begins with, and what was read behind its line.

    Raises:
        EnvelopeInvalidError: It is none, or does not end.
    """
    reader = LineReader()
    for piece in pieces:
        found = reader.update(piece)
        if found is not None:
            return found
    raise invalid()


def sealed(envelope: DetachedEnvelope, message_key: bytes, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give a whole stream, made of a plaintext."""
    yield line_of(envelope)
    sealer = StreamSealer(message_key, chunk_bytes_of(envelope))
    for piece in pieces:
        yield from sealer.update(piece)
    yield sealer.finish()


def opened(
    envelope: DetachedEnvelope, message_key: bytes, behind_line: bytes, pieces: Iterable[bytes]
) -> Iterator[bytes]:
    """Give a plaintext, made of what is behind a stream's line.

    Raises:
        EnvelopeInvalidError: A chunk is not the one that belongs there, or the stream was cut off.
    """
    opener = StreamOpener(message_key, chunk_bytes_of(envelope))
    yield from opener.update(behind_line)
    for piece in pieces:
        yield from opener.update(piece)
    yield opener.finish()


def chunk_bytes_of(envelope: DetachedEnvelope) -> int:
    """Return how long the chunks of a stream are.

    Raises:
        EnvelopeInvalidError: The envelope begins none.
    """
    if envelope.chunk_size is None:
        raise invalid()
    return envelope.chunk_size


def _bytes(data: object) -> memoryview:
    if isinstance(data, bytes | bytearray | memoryview):
        return memoryview(data).cast("B")
    raise ConfigurationError("What a stream is made of is bytes.")


def _still(cipher: AESGCM | None) -> AESGCM:
    if cipher is None:
        raise ValueError("this stream has ended, or failed")
    return cipher
