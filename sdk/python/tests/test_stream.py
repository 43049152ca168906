from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kkp_client import envelope as envelopes
from kkp_client import stream
from kkp_client.encoding import from_base64url
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError
from kkp_client.stream import LineReader, StreamOpener, StreamSealer

VECTORS: Any = json.loads((Path(__file__).parents[2] / "vectors/stream_v1.json").read_text())
ENVELOPE = envelopes.parse_stream(VECTORS["seal"][0]["envelope"])
KEY = bytes(range(32))
SIZE = 4096
CUTS = (1, 15, SIZE - 1, SIZE, SIZE + 16, 2**30)


def named(section: str) -> pytest.MarkDecorator:
    cases = VECTORS[section]
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


def cut(data: bytes, length: int) -> Iterator[bytes]:
    return (data[at : at + length] for at in range(0, len(data), length))


def seal(plaintext: bytes, length: int = 2**30) -> bytes:
    sealer = StreamSealer(KEY, SIZE)
    chunks = [chunk for piece in cut(plaintext, length) for chunk in sealer.update(piece)]
    return b"".join((*chunks, sealer.finish()))


def released(chunks: bytes, length: int = 2**30) -> tuple[bytes, bool]:
    """Return what an opener releases, and whether it found the stream whole."""
    out = bytearray()
    opener = StreamOpener(KEY, SIZE)
    try:
        for piece in cut(chunks, length):
            for plaintext in opener.update(piece):
                out += plaintext
        out += opener.finish()
    except EnvelopeInvalidError:
        return bytes(out), False
    return bytes(out), True


@named("seal")
@pytest.mark.parametrize("length", CUTS)
def test_a_plaintext_however_cut_makes_the_stream_of_the_vectors(case: Any, length: int) -> None:
    envelope = envelopes.parse_stream(case["envelope"])
    plaintext = from_base64url(case["plaintext_b64url"])
    if length == 1 and len(plaintext) > 3 * SIZE:
        pytest.skip("long, and not another case")
    made = stream.sealed(envelope, from_base64url(case["message_key"]), cut(plaintext, length))
    line, *chunks = made
    assert json.loads(line) == case["envelope"]
    assert chunks == [from_base64url(chunk) for chunk in case["chunks"]]
    assert envelopes.canonical(envelope.header()).decode() == case["header"]


@named("open")
@pytest.mark.parametrize("length", [7, SIZE, 2**30])
def test_a_stream_however_cut_has_the_verdict_of_the_vectors(case: Any, length: int) -> None:
    if case.get("refused_by") == "kkp":
        return  # which never gives out the message key
    out = bytearray()

    def read() -> None:
        pieces = cut(from_base64url(case["stream"]), length)
        envelope, behind_line = stream.read_line(pieces)
        for piece in stream.opened(envelope, from_base64url(case["message_key"]), behind_line, pieces):
            out.extend(piece)

    if case["verdict"] == "opens":
        read()
        assert out == from_base64url(case["plaintext_b64url"])
    else:
        with pytest.raises(EnvelopeInvalidError):
            read()
        assert out == from_base64url(case["released_b64url"])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 3 * SIZE + 5), st.integers(1, 2 * SIZE), st.integers(1, 2 * SIZE))
def test_what_was_sealed_opens_however_either_side_cuts_it(size: int, sealing: int, opening: int) -> None:
    plaintext = bytes(range(256)) * (size // 256 + 1)
    plaintext = plaintext[:size]
    assert released(seal(plaintext, sealing), opening) == (plaintext, True)


@pytest.mark.parametrize("length", [7, SIZE, 2**30])
def test_a_stream_that_is_cut_off_anywhere_releases_whole_chunks_and_is_refused(length: int) -> None:
    plaintext = bytes(3 * SIZE)
    chunks = seal(plaintext)
    for end in (0, 1, 15, 16, SIZE + 15, SIZE + 16, SIZE + 17, 2 * (SIZE + 16), len(chunks) - 1):
        out, is_whole = released(chunks[:end], length)
        assert not is_whole
        assert out == plaintext[: max(end - 1, 0) // (SIZE + 16) * SIZE]


@pytest.mark.parametrize("behind", [b"\0", bytes(16), bytes(SIZE + 16)])
@pytest.mark.parametrize("size", [0, 1, SIZE, 2 * SIZE])
def test_bytes_behind_the_last_chunk_are_refused(size: int, behind: bytes) -> None:
    assert released(seal(bytes(size)) + behind)[1] is False


def test_chunks_that_are_swapped_repeated_or_dropped_are_refused() -> None:
    chunks = list(cut(seal(bytes(3 * SIZE)), SIZE + 16))
    first, second, third = chunks
    for wrong in ([second, first, third], [first, first, second, third], [first, third], [second, third]):
        assert released(b"".join(wrong))[1] is False
    assert released(first + second + third)[1] is True


def test_every_bit_of_a_chunk_counts() -> None:
    chunks = bytearray(seal(b"0123456789"))
    for at in range(len(chunks)):
        chunks[at] ^= 1
        assert released(bytes(chunks)) == (b"", False)
        chunks[at] ^= 1


def test_an_empty_last_chunk_behind_another_is_refused_though_its_tag_is_right() -> None:
    sealer = StreamSealer(KEY, SIZE)
    first = next(sealer.update(bytes(SIZE) + b"\0"))
    sealer._chunks._filled = 0
    chunks = first + sealer.finish()
    assert len(chunks) == SIZE + 32
    assert released(chunks) == (bytes(SIZE), False)


def test_a_sealer_and_an_opener_do_nothing_more_at_their_end() -> None:
    sealer, opener = StreamSealer(KEY, SIZE), StreamOpener(KEY, SIZE)
    opener_of_less = StreamOpener(KEY, SIZE)
    last = sealer.finish()
    list(opener.update(last))
    assert opener.finish() == b""
    with pytest.raises(EnvelopeInvalidError):
        list(opener_of_less.update(bytes(SIZE + 17)))
    ended: list[Callable[[], object]] = [
        sealer.finish,
        lambda: list(sealer.update(b"")),
        opener.finish,
        lambda: list(opener_of_less.update(b"")),
        opener_of_less.finish,
    ]
    for call in ended:
        with pytest.raises(ValueError, match="has ended, or failed"):
            call()


def test_a_stream_is_sealed_in_the_process_that_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork has the same key and counter: of two chunks under one nonce both can be read."""
    sealer, opener = StreamSealer(KEY, SIZE), StreamOpener(KEY, SIZE)
    sealed = b"".join([*sealer.update(bytes(SIZE + 1)), StreamSealer(KEY, SIZE).finish()])
    chunks = sealer.update(bytes(2 * SIZE))
    monkeypatch.setattr(os, "getpid", lambda: 0)
    calls: list[Callable[[], bytes]] = [lambda: next(chunks), sealer.finish]
    for goes_on in calls:
        with pytest.raises(ConfigurationError, match="before a fork"):
            goes_on()
    assert list(opener.update(sealed)) == [bytes(SIZE)]  # reading twice harms nobody


def test_a_stream_has_no_more_than_2_to_the_32_chunks() -> None:
    sealer = StreamSealer(KEY, SIZE)
    sealer._chunks.count = stream.MAX_CHUNKS - 1
    assert len(list(sealer.update(bytes(SIZE + 1)))) == 1
    with pytest.raises(EnvelopeInvalidError):
        sealer.finish()
    opener = StreamOpener(KEY, SIZE)
    opener._chunks.count = stream.MAX_CHUNKS
    with pytest.raises(EnvelopeInvalidError):
        list(opener.update(bytes(SIZE + 17)))


def padded_line(length: int) -> bytes:
    """Return a good line of so many bytes, the line feed among them."""
    line = stream.line_of(ENVELOPE)
    return line[:-1] + b" " * (length - len(line)) + b"\n"


@pytest.mark.parametrize("length", [1000, stream.MAX_LINE_BYTES])
def test_a_line_is_as_long_as_it_may_be(length: int) -> None:
    found = LineReader().update(padded_line(stream.MAX_LINE_BYTES) + b"behind")
    assert found == (ENVELOPE, b"behind")
    reader = LineReader()
    line = padded_line(stream.MAX_LINE_BYTES)
    *before, last = cut(line, length)
    assert all(reader.update(piece) is None for piece in before)
    assert reader.update(last) == (ENVELOPE, b"")


@pytest.mark.parametrize("length", [1000, 2**30])
def test_a_line_that_is_too_long_is_refused_before_it_ends(length: int) -> None:
    for line in (padded_line(stream.MAX_LINE_BYTES + 1), b" " * stream.MAX_LINE_BYTES):
        with pytest.raises(EnvelopeInvalidError):
            stream.read_line(cut(line, length))


def test_a_stream_without_a_line_is_refused() -> None:
    for pieces in ([], [b""], [stream.line_of(ENVELOPE)[:-1]], [b"\n"]):
        with pytest.raises(EnvelopeInvalidError):
            stream.read_line(iter(pieces))


def test_an_envelope_that_begins_no_stream_has_no_chunks() -> None:
    whole = json.loads((Path(__file__).parents[2] / "vectors/envelope_v1.json").read_text())
    with pytest.raises(EnvelopeInvalidError):
        stream.chunk_bytes_of(envelopes.parse_detached(whole["detached"][0]["envelope"]))


@pytest.mark.parametrize("size", [4095, 8_388_609, 4096.0, True, None, "4096"])
def test_a_line_with_chunks_of_another_size_is_refused(size: object) -> None:
    with pytest.raises(EnvelopeInvalidError):
        envelopes.parse_stream({**ENVELOPE.document(), "chunk_size": size})


def test_a_line_of_text_is_refused() -> None:
    with pytest.raises(EnvelopeInvalidError):
        envelopes.parse_stream({**ENVELOPE.document(), "encoding": "utf-8"})
