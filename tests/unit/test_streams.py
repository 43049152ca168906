"""Stream v1: both sides of each limit, and that no stream opens which is not whole and as it was sealed.

The cases that both SDKs have in common are in tests/unit/test_stream_vectors.py.
"""

from __future__ import annotations

import io
import os
from base64 import urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope, streams
from kkp.envelope import DetachedEnvelope
from kkp.errors import EnvelopeInvalidError
from tests.promises import Recorder
from tests.streams import CHUNK, chunks, nonce, opened, read, refused, written

DATA_KEY = bytes(range(32))


def begin(**changes: Any) -> tuple[dict[str, Any], bytes]:
    """Begin a stream; return the members of its line, and its message key."""
    arguments: dict[str, Any] = {
        "data_key": DATA_KEY,
        "context": {"table": "orders"},
        "associated_data": "backup 7",
        "encoding": None,
        "chunk_size": CHUNK,
        "backend": "aws",
        "key_id": "alias/orders",
        "key_version": "1",
        "encrypted_data_key": b"w" * 60,
    }
    begun, key = envelope.detach(**(arguments | changes))
    return msgspec.to_builtins(envelope.to_wire(begun)), key


def stream(plaintext: bytes, **changes: Any) -> bytes:
    return written(*begin(**changes), plaintext)


# Both sides of each limit.


@pytest.mark.parametrize("chunk_size", [CHUNK, CHUNK + 1, 65_536])
@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_plaintext_of_any_length_opens(chunk_size: int, count: int, more: int) -> None:
    plaintext = os.urandom(max(0, count * chunk_size + more))
    assert b"".join(opened(stream(plaintext, chunk_size=chunk_size), DATA_KEY)) == plaintext


def test_the_largest_chunk_opens() -> None:
    plaintext = os.urandom(envelope.MAX_CHUNK_BYTES + 1)
    raw = stream(plaintext, chunk_size=envelope.MAX_CHUNK_BYTES)
    assert [len(piece) for piece in opened(raw, DATA_KEY)] == [envelope.MAX_CHUNK_BYTES, 1]


@pytest.mark.parametrize(("too_many", "opens"), [(0, True), (1, False)])
def test_a_line_has_at_most_262_144_bytes_with_its_newline(too_many: int, *, opens: bool) -> None:
    raw = stream(b"text")
    line, _, rest = raw.partition(b"\n")
    spaces = b" " * (262_144 - len(line) - 1 + too_many)
    longest = line + spaces + b"\n" + rest
    if opens:
        assert b"".join(opened(longest, DATA_KEY)) == b"text"
    else:
        assert refused(opened(longest, DATA_KEY)) == b""


def test_no_more_is_read_for_a_line_than_it_may_have() -> None:
    endless = io.BytesIO(b" " * 1_000_000)
    with pytest.raises(EnvelopeInvalidError):
        streams.read_line(endless)
    assert endless.tell() == 262_144


@pytest.mark.parametrize(("most", "opens"), [(3, True), (2, False)])
def test_a_stream_of_more_chunks_than_there_may_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, most: int, *, opens: bool
) -> None:
    assert streams.MAX_CHUNKS == 2**32
    monkeypatch.setattr(streams, "MAX_CHUNKS", most)
    plaintext = os.urandom(2 * CHUNK + 1)
    if opens:
        assert b"".join(opened(stream(plaintext), DATA_KEY)) == plaintext
    else:
        assert refused(opened(stream(plaintext), DATA_KEY)) == plaintext[: 2 * CHUNK]


def test_a_number_beyond_one_byte_is_big_endian() -> None:
    members, key = begin()
    plaintext = os.urandom(257 * CHUNK)
    raw = written(members, key, plaintext)
    last = AESGCM(key).decrypt(b"\0" * 9 + b"\1\0\1", raw[-CHUNK - 16 :], None)

    assert last == plaintext[-CHUNK:]
    assert b"".join(opened(raw, DATA_KEY)) == plaintext


# Damage.


@pytest.mark.promise(26)
def test_no_bit_of_a_stream_can_be_flipped(record_promise: Recorder) -> None:
    raw = stream(b"text")
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refused(opened(bytes(flipped), DATA_KEY)) == b""
    record_promise(26, "flipped bits", len(raw) * 8)


@pytest.mark.promise(26)
def test_a_stream_opens_nowhere_but_at_its_end() -> None:
    plaintext = os.urandom(CHUNK + 40)
    raw = stream(plaintext)
    begins = len(raw) - len(plaintext) - 32
    first_ends = begins + CHUNK + 16
    for cut in {*range(begins + 40), *range(first_ends - 20, len(raw))}:
        released = refused(opened(raw[:cut], DATA_KEY))
        assert released == (plaintext[:CHUNK] if cut > first_ends else b"")
    for more in (b"\0", b"\n", raw, raw[begins:]):
        assert refused(opened(raw + more, DATA_KEY)) == plaintext[:CHUNK]


@pytest.mark.promise(26)
def test_no_two_chunks_can_be_swapped_and_none_left_out_or_repeated() -> None:
    members, key = begin()
    plaintext = os.urandom(4 * CHUNK)
    line = written(members, key, b"").partition(b"\n")[0] + b"\n"
    good = chunks(key, plaintext)
    assert b"".join(opened(line + b"".join(good), DATA_KEY)) == plaintext
    for at in range(4):
        without = [*good[:at], *good[at + 1 :]]
        assert len(refused(opened(line + b"".join(without), DATA_KEY))) <= at * CHUNK
        twice = [*good[: at + 1], *good[at:]]
        assert len(refused(opened(line + b"".join(twice), DATA_KEY))) <= (at + 1) * CHUNK
        for other in range(at + 1, 4):
            swapped = list(good)
            swapped[at], swapped[other] = good[other], good[at]
            assert refused(opened(line + b"".join(swapped), DATA_KEY)) == plaintext[: at * CHUNK]


@pytest.mark.promise(24)
def test_a_chunk_of_another_stream_of_the_same_data_key_opens_in_neither() -> None:
    ours, theirs = begin(), begin()
    plaintext = os.urandom(2 * CHUNK)
    for place in (0, 1):
        mixed = chunks(ours[1], plaintext)
        mixed[place] = chunks(theirs[1], plaintext)[place]
        line = written(*ours, b"").partition(b"\n")[0] + b"\n"
        assert refused(opened(line + b"".join(mixed), DATA_KEY)) == plaintext[: place * CHUNK]


def test_an_empty_last_chunk_behind_another_is_refused_though_its_tag_is_right() -> None:
    members, key = begin()
    full = AESGCM(key).encrypt(nonce(0, is_last=False), bytes(CHUNK), None)
    empty = AESGCM(key).encrypt(nonce(1, is_last=True), b"", None)
    line = written(members, key, b"").partition(b"\n")[0] + b"\n"
    assert refused(opened(line + full + empty, DATA_KEY)) == bytes(CHUNK)


# Envelopes that are no stream's, and the reverse.


@pytest.mark.promise(24)
def test_a_line_can_not_be_turned_into_an_envelope_nor_an_envelope_into_a_line() -> None:
    members, _ = begin()
    as_envelope = {**members, "alg": "A256GCM-HKDF-SHA512-COMMIT"}
    del as_envelope["chunk_size"]
    plain, key = begin(chunk_size=None)
    as_stream = {**plain, "alg": members["alg"], "chunk_size": CHUNK}

    for changed in (as_envelope, as_stream):
        parsed = envelope.parse_detached(msgspec.json.encode(changed))  # well-formed,
        with pytest.raises(EnvelopeInvalidError):
            envelope.message_key(parsed, DATA_KEY)  # and somebody else's
    assert refused(read(written(as_stream, key, b"text"), os.urandom(32))) == b""


def test_what_has_no_chunk_size_is_no_stream() -> None:
    plain, key = begin(chunk_size=None)
    line = io.BytesIO(msgspec.json.encode(plain) + b"\n")
    with pytest.raises(EnvelopeInvalidError):
        streams.read_line(line)
    begun: DetachedEnvelope = envelope.parse_detached(msgspec.json.encode(plain))
    assert refused(streams.opened(io.BytesIO(chunks(key, b"text")[0]), begun, key)) == b""


def test_a_stream_has_no_whole_form() -> None:
    members, _ = begin()
    payload = {"nonce": "A" * 16, "ciphertext": urlsafe_b64encode(bytes(18)).decode()}
    raw = msgspec.json.encode({**members, **payload})
    for parse in (envelope.parse, envelope.parse_detached, envelope.parse_any):
        with pytest.raises(EnvelopeInvalidError):
            parse(raw)
