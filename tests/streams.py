"""Streams for tests: sealed with AES-GCM alone, as docs/formats.md tells whoever holds a message key."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope, streams
from kkp.errors import EnvelopeInvalidError

CHUNK = 4096


def nonce(index: int, *, is_last: bool) -> bytes:
    """Return the nonce of a chunk."""
    return index.to_bytes(11, "big") + bytes([is_last])


def chunks(message_key: bytes, plaintext: bytes, chunk_size: int = CHUNK) -> list[bytes]:
    """Seal a plaintext, chunk by chunk."""
    pieces = [plaintext[at : at + chunk_size] for at in range(0, max(1, len(plaintext)), chunk_size)]
    last = len(pieces) - 1
    return [
        AESGCM(message_key).encrypt(nonce(index, is_last=index == last), piece, None)
        for index, piece in enumerate(pieces)
    ]


def written(members: Mapping[str, Any], message_key: bytes, plaintext: bytes) -> bytes:
    """Seal a plaintext behind the line of an envelope that was begun for it."""
    sealed = chunks(message_key, plaintext, members["chunk_size"])
    return json.dumps(members).encode() + b"\n" + b"".join(sealed)


def opened(raw: bytes, data_key: bytes) -> Iterator[bytes]:
    """Go the whole road: the line, KKP's checks with the data key, the chunks."""
    stream = io.BytesIO(raw)
    begun = streams.read_line(stream)
    yield from streams.opened(stream, begun, envelope.message_key(begun, data_key))


def read(raw: bytes, message_key: bytes) -> Iterator[bytes]:
    """Read as somebody who was handed the message key."""
    stream = io.BytesIO(raw)
    yield from streams.opened(stream, streams.read_line(stream), message_key)


def refused(pieces: Iterator[bytes]) -> bytes:
    """Return what is released before the one error, which does not tell what it is about."""
    released = bytearray()
    with pytest.raises(EnvelopeInvalidError) as caught:
        _drain(pieces, released)
    assert caught.value.args == EnvelopeInvalidError().args
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return bytes(released)


def _drain(pieces: Iterator[bytes], into: bytearray) -> None:
    for piece in pieces:
        into += piece
