"""Stream v1, byte by byte: what is too large for one envelope, or not all there yet.

```
line     the stream's envelope (`kkp.envelope`) in JSON, ended by the first newline: at most 262,144 bytes
chunks   AES-256-GCM(K_enc, nonce_i, plaintext chunk, no associated data), each chunk_size + 16 bytes,
         the last one 16 to chunk_size + 16
nonce_i  i in 11 bytes, big-endian, from 0 ‖ 0x01 for the last chunk, else 0x00
```

Rules:
- K_enc is of one message and made of the header, so a chunk needs no associated data: it opens in its own
  stream and at its own place alone, and none of the streams of one data key can lend another a chunk.
- A chunk is the last exactly if no byte follows it, and is opened as what it is, never as both. So a stream
  that was cut, also between two chunks, does not open, nor does one that was lengthened.
- The last chunk is empty only where it is the first: a plaintext has one spelling.
- There are at most 2^32 chunks, so that no counter in any language comes round.
- The line is strict JSON, in any spelling; one that is none, or has other members, is `EnvelopeInvalidError`
  like everything else that is wrong.

Evolution: as of the envelope, the format never changes in place. A new meaning is a new `v`.

What it does not do: it makes no streams, which is for whoever is given a message key, it asks no backend, and
it does not keep what it releases: each chunk is released after its own tag, and a later one may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope as envelopes
from kkp.envelope import DetachedEnvelope
from kkp.errors import EnvelopeInvalidError
from kkp.strict_json import refuse_duplicates

MAX_LINE_BYTES: Final = 262_144
MAX_CHUNKS: Final = 2**32
_TAG_BYTES: Final = 16


def read_line(stream: BinaryIO) -> DetachedEnvelope:
    """Read a stream's envelope, which is as yet nobody's word; the first chunk is then what follows.

    Args:
        stream: Reads whole what it is asked for, as a buffered file does.

    Raises:
        EnvelopeInvalidError: It does not begin with one.
    """
    line = stream.readline(MAX_LINE_BYTES)
    try:
        refuse_duplicates(line)
    except (ValueError, RecursionError):
        raise EnvelopeInvalidError from None
    envelope = envelopes.parse_detached(line)
    if not line.endswith(b"\n") or envelope.header.chunk_size is None:
        raise EnvelopeInvalidError
    return envelope


def opened(stream: BinaryIO, envelope: DetachedEnvelope, message_key: bytes) -> Iterator[bytes]:
    """Release a stream's plaintext, chunk by chunk; the stream stands before the first of them.

    Raises:
        EnvelopeInvalidError: The next chunk is not this stream's next one, or there is none.
    """
    if envelope.header.chunk_size is None:
        raise EnvelopeInvalidError
    key, sealed_bytes = AESGCM(message_key), envelope.header.chunk_size + _TAG_BYTES
    chunk = stream.read(sealed_bytes)
    for index in range(MAX_CHUNKS):
        following = stream.read(sealed_bytes)
        yield _opened_chunk(key, index, chunk, is_last=not following)
        if not following:
            return
        chunk = following
    raise EnvelopeInvalidError


def _opened_chunk(key: AESGCM, index: int, chunk: bytes, *, is_last: bool) -> bytes:
    is_empty = len(chunk) == _TAG_BYTES
    if len(chunk) < _TAG_BYTES or (is_empty and index > 0):
        raise EnvelopeInvalidError
    nonce = index.to_bytes(11, "big") + (b"\1" if is_last else b"\0")
    try:
        return key.decrypt(nonce, chunk, None)
    except InvalidTag:
        raise EnvelopeInvalidError from None
