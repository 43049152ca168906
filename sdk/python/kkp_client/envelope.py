"""Envelope v1, sealed and opened under a message key; and the line that a stream begins with.

The layout, byte by byte, is in KKP's docs/formats.md, "Envelope v1", "Detached envelopes" and "Stream v1":

```
header      RFC 8785 canonical JSON of alg, associated_data, context, encoding, message_id and v, and of
            chunk_size where a stream begins
ciphertext  AES-256-GCM(message key, nonce, plaintext, associated data = header), the 16-byte tag at its end
```

Rules that hold here:
- What is read is checked as KKP checks it: exactly the members that belong there, one spelling of each, every
  limit. All that can be wrong is one error, `EnvelopeInvalidError`, always the same.
- The labels of an envelope that was read are nobody's word until KKP has compared its wrap tag and its
  commitment, which it does before it gives out the message key.
- A message key seals one message. Whoever calls `seal` has just been given it, and drops it.

What it does not do: it asks nobody for keys, it derives none, since a client never has the data key, and it
limits no plaintext's size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp_client import strict_json
from kkp_client.encoding import base64url, from_base64url
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError

Encoding: TypeAlias = Literal["utf-8"] | None
JSONObject: TypeAlias = Mapping[str, Any]
Document: TypeAlias = JSONObject | str | bytes

MESSAGE_KEY_BYTES: Final = 32
GCM_TAG_BYTES: Final = 16
MIN_CHUNK_BYTES: Final = 4096
MAX_CHUNK_BYTES: Final = 8_388_608

_ALGORITHM: Final = "A256GCM-HKDF-SHA512-COMMIT"
_STREAM_ALGORITHM: Final = "A256GCM-HKDF-SHA512-COMMIT-STREAM"
_ID_BYTES: Final = 32  # of a message id, a wrap tag and a commitment
_NONCE_BYTES: Final = 12
_MAX_PAIRS: Final = 32
_MAX_CONTEXT_BYTES: Final = 4096
_MAX_ENCRYPTED_DATA_KEY_BYTES: Final = 65_536

_HEADER: Final = frozenset({"v", "alg", "context", "associated_data", "encoding", "message_id"})
_WRAP: Final = frozenset({"backend", "key_id", "key_version", "encrypted_data_key", "wrap_tag"})
_DETACHED: Final = _HEADER | _WRAP | {"commitment"}
_STREAM: Final = _DETACHED | {"chunk_size"}
_WHOLE: Final = _DETACHED | {"nonce", "ciphertext"}


@dataclass(frozen=True, slots=True)
class DetachedEnvelope:
    """An envelope without nonce and ciphertext, well formed and no more than that; made only in this module.

    Attributes:
        context: The pairs that opening must know.
        associated_data: Text that is authenticated and travels in clear.
        encoding: `"utf-8"` where the plaintext is text.
        message_id: Tells the message from every other, in base64url, as all binary members here.
        backend: Who wrapped the data key.
        key_id: With which key.
        key_version: With which version of it.
        encrypted_data_key: The wrap.
        wrap_tag: What binds the labels to the data key.
        commitment: What binds the payload to it.
        chunk_size: How long the chunks of the stream are that it begins; None where it begins none.
    """

    context: Mapping[str, str]
    associated_data: str | None
    encoding: Encoding
    message_id: str
    backend: str
    key_id: str
    key_version: str
    encrypted_data_key: str = field(repr=False)
    wrap_tag: str = field(repr=False)
    commitment: str = field(repr=False)
    chunk_size: int | None = None

    @property
    def detached(self) -> DetachedEnvelope:
        """What a whole envelope has beside its payload, and this is."""
        return self

    @property
    def payload(self) -> tuple[object, ...]:
        """All that moving to another key leaves as it is."""
        return self.header(), self.commitment

    def header(self) -> dict[str, Any]:
        """Return the members that are authenticated with the payload and never change."""
        size = {} if self.chunk_size is None else {"chunk_size": self.chunk_size}
        return {
            "v": 1,
            "alg": _ALGORITHM if self.chunk_size is None else _STREAM_ALGORITHM,
            "context": dict(self.context),
            "associated_data": self.associated_data,
            "encoding": self.encoding,
            "message_id": self.message_id,
            **size,
        }

    def document(self) -> dict[str, Any]:
        """Return it as it is written in JSON."""
        return {
            **self.header(),
            "backend": self.backend,
            "key_id": self.key_id,
            "key_version": self.key_version,
            "encrypted_data_key": self.encrypted_data_key,
            "wrap_tag": self.wrap_tag,
            "commitment": self.commitment,
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """A whole envelope, well formed and no more than that; made only in this module."""

    detached: DetachedEnvelope
    nonce: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    @property
    def payload(self) -> tuple[object, ...]:
        """All that moving to another key leaves as it is."""
        return (*self.detached.payload, self.nonce, self.ciphertext)

    @property
    def plaintext_bytes(self) -> int:
        """How long the plaintext is, which the ciphertext shows."""
        return len(self.ciphertext) - GCM_TAG_BYTES

    def document(self) -> dict[str, Any]:
        """Return it as it is written in JSON."""
        return {
            **self.detached.document(),
            "nonce": base64url(self.nonce),
            "ciphertext": base64url(self.ciphertext),
        }


def invalid() -> EnvelopeInvalidError:
    """Return the one error of all that can be wrong."""
    return EnvelopeInvalidError("The envelope is malformed, was altered, or does not belong to this key.")


def parse(document: Document) -> Envelope:
    """Read a whole envelope, from JSON or already decoded.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    members = _members(document, _WHOLE)
    ciphertext = _binary(members["ciphertext"])
    if len(ciphertext) < GCM_TAG_BYTES:
        raise invalid()
    return Envelope(_detached(members, None), _binary(members["nonce"], _NONCE_BYTES), ciphertext)


def parse_detached(document: Document) -> DetachedEnvelope:
    """Read an envelope without nonce and ciphertext; a whole one is none, nor is a stream's.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    return _detached(_members(document, _DETACHED), None)


def parse_stream(document: Document) -> DetachedEnvelope:
    """Read the envelope that a stream begins with.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    members = _members(document, _STREAM)
    size = members["chunk_size"]
    if type(size) is not int or not MIN_CHUNK_BYTES <= size <= MAX_CHUNK_BYTES:
        raise invalid()
    if members["encoding"] is not None:
        raise invalid()
    return _detached(members, size)


def parse_any(document: Document) -> Envelope | DetachedEnvelope:
    """Read an envelope of any form: whole, detached, or a stream's.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    members = document if isinstance(document, Mapping) else _decoded(document)
    if "nonce" in members:
        return parse(members)
    return parse_stream(members) if "chunk_size" in members else parse_detached(members)


def seal(
    envelope: DetachedEnvelope,
    message_key: bytes,
    plaintext: bytes | str,
    *,
    random: Callable[[int], bytes] = os.urandom,
) -> Envelope:
    """Encrypt the one message that a message key is for.

    Args:
        envelope: What KKP answered beside the key. Its encoding says whether the plaintext is text.
        message_key: Used this once.
        plaintext: Text where the envelope says so, else bytes.
        random: Where the nonce comes from; only test vectors replace it.

    Raises:
        ConfigurationError: The plaintext is none.
    """
    payload, nonce = payload_of(plaintext), random(_NONCE_BYTES)
    return Envelope(
        envelope, nonce, AESGCM(message_key).encrypt(nonce, payload, canonical(envelope.header()))
    )


def open(envelope: Envelope, message_key: bytes) -> bytes:  # noqa: A001  the counterpart of `seal`
    """Return the plaintext, once its tag is found right.

    Raises:
        EnvelopeInvalidError: It is not, or what should be text is none.
    """
    header = canonical(envelope.detached.header())
    try:
        plaintext = AESGCM(message_key).decrypt(envelope.nonce, envelope.ciphertext, header)
        if envelope.detached.encoding == "utf-8":
            plaintext.decode()
    except (InvalidTag, UnicodeDecodeError):
        pass  # the latter holds the plaintext, so that ours is raised where it does not hang from it
    else:
        return plaintext
    raise invalid()


def payload_of(plaintext: object) -> bytes:
    """Return the bytes of a plaintext, which is text or bytes and nothing else.

    Raises:
        ConfigurationError: It is neither, or has a lone surrogate; Python's own error would hold it.
    """
    if isinstance(plaintext, bytes | bytearray | memoryview):
        return bytes(plaintext)
    if not isinstance(plaintext, str):
        raise ConfigurationError("A plaintext is text or bytes.")
    try:
        return plaintext.encode()
    except UnicodeEncodeError:
        pass
    raise ConfigurationError("The plaintext has a lone surrogate, so it is no text.")


def canonical(value: JSONObject) -> bytes:
    """Return the RFC 8785 bytes of objects of strings, null and integers, which is all that a header has.

    RFC 8785 sorts names by UTF-16 code units, which differs from Python's own order beyond U+FFFF.
    """
    return json.dumps(_sorted(value), ensure_ascii=False, separators=(",", ":")).encode()


def _sorted(value: JSONObject) -> dict[str, Any]:
    ordered = sorted(value.items(), key=lambda pair: pair[0].encode("utf-16-be"))
    return {name: _sorted(inner) if isinstance(inner, Mapping) else inner for name, inner in ordered}


def _members(document: Document, names: frozenset[str]) -> JSONObject:
    members = document if isinstance(document, Mapping) else _decoded(document)
    if members.keys() != names:
        raise invalid()
    return members


def _decoded(document: str | bytes) -> JSONObject:
    if not isinstance(document, str | bytes | bytearray):
        raise ConfigurationError(f"An envelope is JSON or an object, and not {type(document).__name__}.")
    try:
        value = strict_json.loads(document.encode() if isinstance(document, str) else document)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise invalid()
    return value


def _detached(members: JSONObject, chunk_size: int | None) -> DetachedEnvelope:
    algorithm = _ALGORITHM if chunk_size is None else _STREAM_ALGORITHM
    if type(members["v"]) is not int or (members["v"], members["alg"]) != (1, algorithm):
        raise invalid()
    if members["encoding"] is not None and members["encoding"] != "utf-8":
        raise invalid()
    associated_data = members["associated_data"]
    if associated_data is not None:
        _text(associated_data, 0, 4096)
    for name in ("message_id", "wrap_tag", "commitment"):
        _binary(members[name], _ID_BYTES)
    if not 1 <= len(_binary(members["encrypted_data_key"])) <= _MAX_ENCRYPTED_DATA_KEY_BYTES:
        raise invalid()
    return DetachedEnvelope(
        context=_context(members["context"]),
        associated_data=associated_data,
        encoding=members["encoding"],
        message_id=members["message_id"],
        backend=_text(members["backend"], 1, 64),
        key_id=_text(members["key_id"], 1, 2048),
        key_version=_text(members["key_version"], 0, 2048),
        encrypted_data_key=members["encrypted_data_key"],
        wrap_tag=members["wrap_tag"],
        commitment=members["commitment"],
        chunk_size=chunk_size,
    )


def _context(context: object) -> Mapping[str, str]:
    if not isinstance(context, Mapping) or len(context) > _MAX_PAIRS:
        raise invalid()
    for name, value in context.items():
        _text(name, 1, 128)
        _text(value, 0, _MAX_CONTEXT_BYTES)
    if len(canonical(context)) > _MAX_CONTEXT_BYTES:
        raise invalid()
    return dict(context)


def _text(text: object, minimum: int, maximum: int) -> str:
    """Return text of so many bytes in UTF-8, which lone surrogates have no place in."""
    try:
        if isinstance(text, str) and minimum <= len(text.encode()) <= maximum:
            return text
    except UnicodeEncodeError:
        pass
    raise invalid()


def _binary(text: object, length: int | None = None) -> bytes:
    """Return the bytes of a member, which has one spelling; of a certain length where one is given."""
    try:
        data = from_base64url(text) if isinstance(text, str) else None
    except ValueError:
        data = None
    if data is None or (length is not None and len(data) != length):
        raise invalid()
    return data
