# ruff: noqa: INP001, T201  a script beside its data, and it says what it did
"""Makes the cases of `stream_v1.json`: `python sdk/vectors/make_stream_v1.py`, from the repository's root.

Written from docs/formats.md with HMAC, SHA-512, AES-GCM and RFC 8785 alone, so that the server and both SDKs
are held to the page and not to one another. All that is random comes of a case's name: the same cases come
out wherever it runs.

A case that was committed is never made anew: if it comes out otherwise, nothing is written. New ones are
added at the end of their section.
"""

from __future__ import annotations

import hmac
import json
import sys
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha512
from pathlib import Path
from typing import Any, Final, TypeAlias

import rfc8785
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Case: TypeAlias = dict[str, Any]
Nonces: TypeAlias = Callable[[int, int], bytes]

FILE: Final = Path(__file__).with_name("stream_v1.json")
FORMAT: Final = "kkp/stream/v1"
ALGORITHM: Final = "A256GCM-HKDF-SHA512-COMMIT-STREAM"
HEADER: Final = ("alg", "associated_data", "chunk_size", "context", "encoding", "message_id", "v")
CHUNK: Final = 4096
MORE: Final = 0  # the flag of a chunk that others follow
LAST: Final = 1
CONTEXT: Final = {"table": "orders", "environment": "prod"}


def nonce(index: int, flag: int) -> bytes:
    """Return the nonce of a chunk."""
    return index.to_bytes(11, "big") + bytes([flag])


@dataclass(frozen=True)
class Stream:
    """A stream that is made by the book; what a case would have otherwise is replaced."""

    name: str
    plaintext: bytes = b""
    chunk_size: int = CHUNK
    context: Mapping[str, str] = field(default_factory=lambda: CONTEXT)
    associated_data: str | None = None
    labels: Mapping[str, str] = field(
        default_factory=lambda: {"backend": "aws", "key_id": "alias/orders", "key_version": "1"}
    )
    data_key_of: str = ""  # the name of the case whose data key it has; empty for its own

    @property
    def data_key(self) -> bytes:
        """32 bytes."""
        return random(f"data key of {self.data_key_of or self.name}", 32)

    @property
    def payload_header(self) -> Case:
        """The seven members that the keys are made of."""
        return {
            "v": 1,
            "alg": ALGORITHM,
            "context": dict(self.context),
            "associated_data": self.associated_data,
            "encoding": None,
            "message_id": encode(random(f"message id of {self.name}", 32)),
            "chunk_size": self.chunk_size,
        }

    @property
    def header(self) -> bytes:
        """Its canonical bytes."""
        return rfc8785.dumps(self.payload_header)

    @property
    def message_key(self) -> bytes:
        """K_enc."""
        return self._keys()[0]

    @property
    def envelope(self) -> Case:
        """The thirteen members."""
        _, commitment, wrap_key = self._keys()
        wrap = {**self.labels, "encrypted_data_key": encode(random(f"wrap of {self.name}", 60))}
        tag = hmac.digest(wrap_key, rfc8785.dumps(wrap), "sha256")
        return {
            **self.payload_header,
            **wrap,
            "wrap_tag": encode(tag),
            "commitment": encode(commitment),
        }

    def pieces(self) -> Sequence[bytes]:
        """Return the plaintext, cut as it is sealed."""
        starts = range(0, max(1, len(self.plaintext)), self.chunk_size)
        return [self.plaintext[start : start + self.chunk_size] for start in starts]

    def chunks(self, nonces: Nonces = nonce, associated_data: bytes | None = None) -> list[bytes]:
        """Return the sealed chunks."""
        pieces = self.pieces()
        last = len(pieces) - 1
        return [
            self.chunk(piece, nonces(index, LAST if index == last else MORE), associated_data)
            for index, piece in enumerate(pieces)
        ]

    def chunk(self, piece: bytes, with_nonce: bytes, associated_data: bytes | None = None) -> bytes:
        """Return one sealed chunk."""
        return AESGCM(self.message_key).encrypt(with_nonce, piece, associated_data)

    def line(self, **changes: object) -> bytes:
        """Return the first line, its members replaced where it is said; `...` leaves one out."""
        members = {**self.envelope, **changes}
        return written({name: value for name, value in members.items() if value is not ...})

    def _keys(self) -> tuple[bytes, bytes, bytes]:
        header = rfc8785.dumps(self.payload_header)
        message_id = random(f"message id of {self.name}", 32)
        extracted = hmac.digest(message_id, self.data_key, "sha512")
        digest = sha512(header).digest()
        keys = hmac.digest(extracted, b"kkp/envelope/v1" + digest + b"\1", "sha512")
        wrap_key = hmac.digest(extracted, b"kkp/envelope/v1/wrap" + digest + b"\1", "sha512")[:32]
        return keys[:32], keys[32:], wrap_key


def random(name: str, length: int) -> bytes:
    """Return bytes that nothing but the name decides."""
    blocks = (sha512(f"{FORMAT} {name} {number}".encode()).digest() for number in range(-(-length // 64)))
    return b"".join(blocks)[:length]


def encode(data: bytes) -> str:
    """Return base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def written(members: Mapping[str, object]) -> bytes:
    """Return a line of JSON."""
    return json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def sealed(stream: Stream) -> Case:
    """Return a case of `seal`."""
    return {
        "name": stream.name,
        "data_key": encode(stream.data_key),
        "plaintext_b64url": encode(stream.plaintext),
        "header": stream.header.decode(),
        "message_key": encode(stream.message_key),
        "envelope": stream.envelope,
        "chunks": [encode(chunk) for chunk in stream.chunks()],
    }


def opening(name: str, of: Stream, raw: bytes) -> Case:
    """Return a case of `open` without its verdict."""
    return {
        "name": name,
        "data_key": encode(of.data_key),
        "message_key": encode(of.message_key),
        "stream": encode(raw),
    }


def opens(name: str, of: Stream, line: bytes) -> Case:
    """Return a case whose line is written in another way, and which opens."""
    raw = line + b"".join(of.chunks())
    return {**opening(name, of, raw), "verdict": "opens", "plaintext_b64url": encode(of.plaintext)}


def damaged(name: str, of: Stream, *chunks: bytes, released: bytes = b"") -> Case:
    """Return a case whose line is good and whose chunks are not."""
    return by_reader(name, of, of.line() + b"".join(chunks), released)


def by_reader(name: str, of: Stream, raw: bytes, released: bytes = b"") -> Case:
    """Return a case that a reader refuses who was given the message key."""
    verdict = {"verdict": "envelope_invalid", "refused_by": "reader", "released_b64url": encode(released)}
    return {**opening(name, of, raw), **verdict}


def by_kkp(name: str, of: Stream, **changes: object) -> Case:
    """Return a case for which KKP gives out no message key; whoever had it could not tell."""
    raw = of.line(**changes) + b"".join(of.chunks())
    return {**opening(name, of, raw), "verdict": "envelope_invalid", "refused_by": "kkp"}


def flipped(data: bytes, at: int) -> bytes:
    """Return the data with one bit of a byte flipped."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def of_length(name: str, length: int, **members: Any) -> Stream:  # noqa: ANN401  members of `Stream`
    """Return a stream of that many bytes."""
    return Stream(name, random(f"plaintext of {name}", length), **members)


def seal_cases() -> Iterator[Case]:
    """Streams that must come out byte for byte."""
    yield sealed(of_length("three chunks, the last one short", 2 * CHUNK + 7, associated_data="backup 7"))
    yield sealed(of_length("nothing at all: one empty last chunk", 0))
    yield sealed(of_length("one byte", 1))
    yield sealed(of_length("one byte less than a chunk", CHUNK - 1))
    yield sealed(of_length("exactly one chunk", CHUNK))
    yield sealed(of_length("one byte more than a chunk", CHUNK + 1))
    yield sealed(of_length("exactly two chunks, the last one full", 2 * CHUNK))
    yield sealed(of_length("a chunk size that is no power of two", 4097 + 2, chunk_size=4097))
    yield sealed(of_length("the chunk size that is the default", 5, chunk_size=1_048_576))
    yield sealed(of_length("the largest chunk size", 5, chunk_size=8_388_608))
    yield sealed(of_length("no context and empty associated data", 3, context={}, associated_data=""))
    astral = {"\ufb33": "1", "\U0001f600": "2", "z": "3", "\u20ac": '"\\\u001f\n'}
    yield sealed(of_length("context names on the astral plane sort by UTF-16", 3, context=astral))
    labels = {"backend": "azure", "key_id": "orders", "key_version": ""}
    yield sealed(of_length("labels of another backend, with no key version", 3, labels=labels))


def open_cases() -> Iterator[Case]:
    """Streams with a verdict."""
    yield from written_otherwise()
    yield from broken_small_streams()
    yield from broken_ends()
    yield from broken_orders()
    yield from chunks_of_others()
    yield from broken_lines()
    yield from wrong_members()
    yield from changed_members()


def written_otherwise() -> Iterator[Case]:
    """What is no other stream for being written in another way."""
    small = of_length("a line that is written in other ways", 5, context={"é": "\u20ac"})
    yield opens("a canonical line", small, rfc8785.dumps(small.envelope) + b"\n")
    backwards = dict(reversed(small.envelope.items()))
    yield opens("the members in another order", small, written(backwards))
    yield opens("white space between the members", small, json.dumps(small.envelope).encode() + b" \t\r\n")
    yield opens("white space before the object", small, b" \t\r" + small.line())
    escaped = json.dumps(small.envelope, ensure_ascii=True).replace('"alg"', '"\\u0061lg"').encode() + b"\n"
    yield opens("escapes in names and values", small, escaped)


def broken_small_streams() -> Iterator[Case]:
    """A stream of one short chunk, cut, lengthened and altered."""
    short = of_length("five bytes", 5)
    (only,) = short.chunks()
    yield damaged("nothing behind the line", short)
    yield damaged("fifteen bytes behind the line", short, only[:15])
    yield damaged("a bit flipped in the only chunk", short, flipped(only, 0))
    yield damaged("a bit flipped in the only chunk's tag", short, flipped(only, -1))
    yield damaged("the last byte cut off", short, only[:-1])
    yield damaged("the first byte cut off", short, only[1:])
    yield damaged("a byte behind the only chunk", short, only, b"\0")
    yield damaged("a newline behind the only chunk", short, only, b"\n")
    yield damaged("a newline before the only chunk", short, b"\n", only)
    yield damaged("the only chunk twice", short, only, only)
    yield damaged("the only chunk not marked as the last", short, short.chunk(b"12345", nonce(0, MORE)))
    yield damaged("the only chunk numbered 1", short, short.chunk(b"12345", nonce(1, LAST)))
    header_as_data = short.chunks(associated_data=short.header)
    yield damaged("the header as the chunk's associated data", short, *header_as_data)
    yield damaged("nothing, and not marked as the last", short, short.chunk(b"", nonce(0, MORE)))


def broken_ends() -> Iterator[Case]:
    """A stream of one full chunk, and what may be behind it."""
    full = of_length("a full chunk", CHUNK)
    (last,) = full.chunks()
    going_on = full.chunk(full.plaintext, nonce(0, MORE))
    yield damaged("a byte behind a full last chunk", full, last, b"\0")
    yield damaged("an empty last chunk behind a full last chunk", full, last, full.chunk(b"", nonce(1, LAST)))
    behind = {"released": full.plaintext}
    yield damaged("a full chunk and no last one", full, going_on)
    yield damaged(
        "an empty last chunk that is not the first", full, going_on, full.chunk(b"", nonce(1, LAST)), **behind
    )
    yield damaged("fifteen bytes for a last chunk", full, going_on, bytes(15), **behind)
    too_long = full.chunk(full.plaintext + b"x", nonce(0, LAST))
    yield damaged("a last chunk one byte too long", full, too_long)


def broken_orders() -> Iterator[Case]:
    """A stream of three chunks, cut, reordered and altered."""
    three = of_length("three chunks", 2 * CHUNK + 7)
    pieces, (first, second, third) = three.pieces(), three.chunks()
    one, two = pieces[0], pieces[0] + pieces[1]
    yield damaged("the last chunk cut off", three, first, second, released=one)
    yield damaged("a cut within the second chunk", three, first, second[:100], released=one)
    yield damaged("a bit flipped in the first chunk", three, flipped(first, 0), second, third)
    yield damaged("a bit flipped in the second chunk", three, first, flipped(second, 9), third, released=one)
    yield damaged("a bit flipped in the last chunk", three, first, second, flipped(third, 0), released=two)
    yield damaged("a byte behind the last chunk", three, first, second, third, b"\0", released=two)
    yield damaged("the last chunk twice", three, first, second, third, third, released=two)
    yield damaged("the first two chunks swapped", three, second, first, third)
    yield damaged("the last chunk in the second's place", three, first, third, second, released=one)
    yield damaged("the first chunk twice", three, first, first, second, third, released=one)
    yield damaged("the first chunk left out", three, second, third)
    yield damaged("the second chunk left out", three, first, third, released=one)
    all_last = [three.chunk(piece, nonce(index, LAST)) for index, piece in enumerate(pieces)]
    yield damaged("every chunk marked as the last", three, *all_last)
    none_last = [three.chunk(piece, nonce(index, MORE)) for index, piece in enumerate(pieces)]
    yield damaged("no chunk marked as the last", three, *none_last, released=two)
    little = three.chunks(nonces=lambda index, flag: index.to_bytes(11, "little") + bytes([flag]))
    yield damaged("numbers in little-endian order", three, *little, released=one)
    flag_first = three.chunks(nonces=lambda index, flag: bytes([flag]) + index.to_bytes(11, "big"))
    yield damaged("the flag before the number", three, *flag_first, released=one)
    short_second = three.chunk(pieces[1][:-1], nonce(1, MORE))
    yield damaged("a short chunk that is not the last", three, first, short_second, third, released=one)


def chunks_of_others() -> Iterator[Case]:
    """Chunks that are good in another stream."""
    ours = of_length("two chunks", CHUNK + 3)
    first, second = ours.chunks()
    with_other_id = replace(ours, name="two chunks of another message", data_key_of=ours.name)
    theirs = with_other_id.chunks()
    one = ours.pieces()[0]
    yield damaged(
        "the last chunk of another stream under the same data key", ours, first, theirs[1], released=one
    )
    yield damaged("the first chunk of another stream under the same data key", ours, theirs[0], second)
    yield damaged("all chunks of another stream under the same data key", ours, *theirs)
    stranger = replace(ours, name="two chunks under another data key").chunks()
    yield damaged(
        "the last chunk of another stream under another data key", ours, first, stranger[1], released=one
    )
    other_context = replace(ours, context={}, data_key_of=ours.name).chunks()
    yield damaged("chunks sealed for another context", ours, *other_context)
    wider = replace(ours, chunk_size=2 * CHUNK, data_key_of=ours.name)
    yield damaged("chunks of another chunk size", ours, *wider.chunks())
    cut_in_two = [
        wider.chunk(piece, nonce(index, LAST if index else MORE)) for index, piece in enumerate(ours.pieces())
    ]
    yield damaged("chunks of this size under the keys of another chunk size", ours, *cut_in_two)


def broken_lines() -> Iterator[Case]:
    """Lines that are no strict JSON, or none at all."""
    small = of_length("a line that is broken", 5)
    line, chunks = small.line(), b"".join(small.chunks())
    text = line.removesuffix(b"\n")

    def case(name: str, raw: bytes) -> Case:
        return by_reader(name, small, raw)

    yield case("nothing", b"")
    yield case("a newline alone", b"\n")
    yield case("an empty line before the line", b"\n" + line + chunks)
    yield case("a line that does not end", text)
    yield case("the chunks without a newline before them", text + chunks)
    yield case("the chunks without the line", chunks)
    yield case("a cut object", text[:-1] + b"\n" + chunks)
    yield case("a line cut within a member", text[:100] + b"\n" + text[100:] + b"\n" + chunks)
    yield case("an object and more", text + b"{}\n" + chunks)
    yield case("a trailing comma", text[:-1] + b",}\n" + chunks)
    yield case("an array", b"[" + text + b"]\n" + chunks)
    yield case("null", b"null\n" + chunks)
    yield case("a string", json.dumps(text.decode()).encode() + b"\n" + chunks)
    yield case("what KKP answered, not taken apart", b'{"envelope":' + text + b"}\n" + chunks)
    yield case("a byte order mark", b"\xef\xbb\xbf" + line + chunks)
    yield case("UTF-16", text.decode().encode("utf-16-le") + b"\n\0" + chunks)
    yield case("an invalid byte in a string", line.replace(b'"prod"', b'"pr\xffd"') + chunks)
    yield case("an encoded lone surrogate", line.replace(b'"prod"', b'"\xed\xa0\x80"') + chunks)
    yield case("an escaped lone surrogate", line.replace(b'"prod"', b'"\\ud800"') + chunks)
    yield case("a control character in a string", line.replace(b'"prod"', b'"pr\x01d"') + chunks)
    yield case("a member twice", line.replace(b'"v":1', b'"v":1,"v":1') + chunks)
    yield case("a member twice, once with an escape", line.replace(b'"v":1', b'"v":1,"\\u0076":1') + chunks)
    yield case("a context name twice", line.replace(b'{"table":', b'{"table":"orders","table":') + chunks)
    yield case("a no-break space between the members", line.replace(b',"alg"', b',\xc2\xa0"alg"') + chunks)
    yield case("a comment", line.replace(b',"alg"', b',/**/"alg"') + chunks)


def wrong_members() -> Iterator[Case]:
    """Members that no stream's line has, or not like this; the keys are made of them as they stand."""
    small = of_length("a line with wrong members", 5)
    chunks = b"".join(small.chunks())

    def case(name: str, **changes: object) -> Case:
        return by_reader(name, small, small.line(**changes) + chunks)

    def spelled(name: str, old: bytes, new: bytes) -> Case:
        line = small.line()
        if old not in line:
            raise ValueError(f"{name}: {old!r} is not in the line")
        return by_reader(name, small, line.replace(old, new) + chunks)

    for member in small.envelope:
        yield case(f"a line without {member}", **{member: ...})
    yield case("an unknown member", extra=1)
    yield case("a nonce", nonce=encode(bytes(12)))
    yield case("a ciphertext", ciphertext=encode(bytes(16)))
    yield case("v 2", v=2)
    yield case("v as a string", v="1")
    yield case("v true", v=True)
    yield spelled("v with a fraction", b'"v":1,', b'"v":1.0,')
    yield case("the algorithm of an envelope", alg="A256GCM-HKDF-SHA512-COMMIT")
    yield case(
        "the algorithm of an envelope, without a chunk size", alg="A256GCM-HKDF-SHA512-COMMIT", chunk_size=...
    )
    yield case("the algorithm in small letters", alg=ALGORITHM.lower())
    yield case("an algorithm that does not commit", alg="A256GCM")
    yield case("an algorithm of null", alg=None)
    yield case("an encoding", encoding="utf-8")
    yield case("an encoding of false", encoding=False)
    yield case("a chunk size of 4,095", chunk_size=CHUNK - 1)
    yield case("a chunk size of 8,388,609", chunk_size=8_388_609)
    yield case("a chunk size of 0", chunk_size=0)
    yield case("a negative chunk size", chunk_size=-CHUNK)
    yield case("a chunk size of 2^32 + 4,096", chunk_size=2**32 + CHUNK)
    yield case("a chunk size of 2^64 + 4,096", chunk_size=2**64 + CHUNK)
    yield case("a chunk size as a string", chunk_size="4096")
    yield case("a chunk size of null", chunk_size=None)
    yield case("a chunk size of true", chunk_size=True)
    yield case("a chunk size in a list", chunk_size=[CHUNK])
    yield spelled("a chunk size with a fraction", b'"chunk_size":4096', b'"chunk_size":4096.0')
    yield spelled("a chunk size with an exponent", b'"chunk_size":4096', b'"chunk_size":4.096e3')
    yield spelled("a chunk size with a leading zero", b'"chunk_size":4096', b'"chunk_size":04096')
    yield spelled("a chunk size with a sign", b'"chunk_size":4096', b'"chunk_size":+4096')
    yield spelled("a chunk size of NaN", b'"chunk_size":4096', b'"chunk_size":NaN')
    yield case("a context of null", context=None)
    yield case("a context of a list", context=[])
    yield case("a context value of a number", context={"table": 7})
    yield case("a context value of null", context={"table": None})
    yield case("associated data of a number", associated_data=7)
    for member in ("message_id", *small.labels, "encrypted_data_key", "wrap_tag", "commitment"):
        yield case(f"{member} of null", **{member: None})
        yield case(f"{member} of a number", **{member: 7})


def changed_members() -> Iterator[Case]:
    """Members that have their form and belong to another stream, or to none."""
    small = of_length("a line with changed members", 5, associated_data="backup 7")
    envelope = small.envelope
    yield by_kkp("another context value", small, context={**CONTEXT, "environment": "dev"})
    yield by_kkp("a context pair left out", small, context={"table": "orders"})
    yield by_kkp("a context pair more", small, context={**CONTEXT, "region": "eu"})
    yield by_kkp("other associated data", small, associated_data="backup 8")
    yield by_kkp("associated data left out", small, associated_data=None)
    yield by_kkp("another message id", small, message_id=encode(random("another message id", 32)))
    yield by_kkp("another chunk size", small, chunk_size=CHUNK + 1)
    yield by_kkp("another backend", small, backend="twin")
    yield by_kkp("another name of the key", small, key_id="alias/payments")
    yield by_kkp("another key version", small, key_version="2")
    yield by_kkp("another wrapped key", small, encrypted_data_key=encode(random("another wrap", 60)))
    for member in ("wrap_tag", "commitment"):
        yield by_kkp(f"another {member}", small, **{member: encode(random(f"another {member}", 32))})
    yield by_kkp(
        "wrap_tag and commitment swapped",
        small,
        wrap_tag=envelope["commitment"],
        commitment=envelope["wrap_tag"],
    )
    for member in ("message_id", "wrap_tag", "commitment"):
        yield by_kkp(f"{member} of 31 bytes", small, **{member: encode(bytes(31))})
        yield by_kkp(f"{member} of 33 bytes", small, **{member: encode(bytes(33))})
        yield by_kkp(f"{member} with padding", small, **{member: envelope[member] + "="})
    yield by_kkp("an empty wrapped key", small, encrypted_data_key="")
    yield by_kkp("a context of 33 pairs", small, context={f"name {number}": "" for number in range(33)})
    yield by_kkp("an empty context name", small, context={"": "v"})
    yield by_kkp("an empty backend", small, backend="")
    yield by_kkp("an empty key id", small, key_id="")


def made() -> Case:
    """Return all cases."""
    return {"format": FORMAT, "seal": list(seal_cases()), "open": list(open_cases())}


def merged(committed: Case, now: Case) -> Case:
    """Return the committed cases with the new ones behind them.

    Raises:
        ValueError: A case that was committed comes out otherwise, or not at all.
    """
    return {"format": now["format"], **{part: _added(part, committed, now) for part in ("seal", "open")}}


def _added(part: str, committed: Case, now: Case) -> list[Case]:
    known = {case["name"]: case for case in committed.get(part, [])}
    fresh = {case["name"]: case for case in now[part]}
    if len(fresh) != len(now[part]):
        raise ValueError(f"{part}: two cases have one name")
    if changed := [name for name, case in known.items() if fresh.get(name) != case]:
        raise ValueError(f"{part}: committed cases would change: {', '.join(changed)}")
    return [*known.values(), *(case for name, case in fresh.items() if name not in known)]


def main() -> int:
    """Add the new cases to the file."""
    committed: Case = json.loads(FILE.read_text(encoding="ascii")) if FILE.exists() else {}
    try:
        whole = merged(committed, made())
    except ValueError as error:
        print(f"nothing is written: {error}", file=sys.stderr)
        return 1
    FILE.write_text(json.dumps(whole, indent=1) + "\n", encoding="ascii")
    before, after = (
        sum(len(cases.get(part, [])) for part in ("seal", "open")) for cases in (committed, whole)
    )
    print(f"{after - before} cases added to {before}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
