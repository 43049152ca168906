"""The ciphertext format, byte by byte: envelope v1, and what a stream v1 begins with.

An envelope is one JSON object. Binary members are base64url without padding (RFC 4648 section 5), unknown
and missing members are refused, and every member is always present:

```
payload header   v, alg, context, associated_data, encoding, message_id (32 bytes)
wrap             backend, key_id, key_version, encrypted_data_key, wrap_tag (32 bytes)
payload          commitment (32 bytes), nonce (12 bytes), ciphertext (plaintext ‖ 16-byte GCM tag)

header             = RFC 8785 canonical JSON of the payload header's six members
K_enc ‖ K_commit   = HKDF-SHA-512(data key, salt = message_id,
                                  info = "kkp/envelope/v1" ‖ SHA-512(header), 64 bytes)
K_wrap             = HKDF-SHA-512(data key, salt = message_id,
                                  info = "kkp/envelope/v1/wrap" ‖ SHA-512(header), 32 bytes)
ciphertext         = AES-256-GCM(K_enc, nonce, plaintext, associated data = header)
commitment         = K_commit
wrap_tag           = HMAC-SHA-256(K_wrap, RFC 8785 of {backend, encrypted_data_key, key_id, key_version})
```

Rules:
- The header is authenticated with the payload and never changes. The wrap says who can open the envelope
  and may be replaced (`rewrap`); its labels are authenticated too, because policy is asked about them and
  two names may reach one key.
- GCM alone does not commit to its key: one ciphertext can be made to open under two. The commitment is
  therefore compared before anything is decrypted, in constant time, as is the wrap tag.
- Every message has keys of its own, because `message_id` salts them; so a data key may serve several.
- A *detached* envelope is one without `nonce` and `ciphertext`: whoever seals or opens elsewhere is given it
  and its message key, K_enc, and never the data key. One message key is for one message: a second payload
  under it would open in the place of the first.
- The envelope of a *stream* is a detached one with a seventh member in its header, `chunk_size`, and an `alg`
  of its own. All keys are made of the header: it shares none with an envelope. `kkp.streams` has its chunks.
- `encoding` is `"utf-8"` when the plaintext was given as text, and then it must decode; else `null`.
- A structural fault and a failed check raise one error, `EnvelopeInvalidError`, always the same.
- Text is taken as it is: no Unicode normalisation, no lone surrogates.

Evolution: the format never changes in place. A new meaning is a new `v`, and version 1 is read forever.

What it does not do: it neither wraps data keys nor asks policy, it does not limit the plaintext's size, and
it does not see duplicate JSON members, which the edge refuses (here the last one wins, and what is checked
is what is used). Lengths are not hidden.
"""

from __future__ import annotations

import hmac
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256, sha512
from typing import Annotated, Final, Literal, TypeAlias, TypeVar, overload

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kkp.errors import EnvelopeInvalidError, InvalidRequestError, KKPError, KMSUnavailableError
from kkp.model import JSON

Encoding: TypeAlias = Literal["utf-8"] | None

DATA_KEY_BYTES = 32
MIN_CHUNK_BYTES = 4096
MAX_CHUNK_BYTES = 8 * 1024 * 1024
MAX_CONTEXT_PAIRS = 32
MAX_CONTEXT_NAME_BYTES = 128
MAX_CONTEXT_BYTES = 4096
MAX_ASSOCIATED_DATA_BYTES = 4096
MAX_BACKEND_BYTES = 64
MAX_KEY_ID_BYTES = 2048
MAX_KEY_VERSION_BYTES = 2048
MAX_ENCRYPTED_DATA_KEY_BYTES = 65_536

ChunkSize: TypeAlias = Annotated[int, msgspec.Meta(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)]

_ALGORITHM: Final = "A256GCM-HKDF-SHA512-COMMIT"
_STREAM_ALGORITHM: Final = "A256GCM-HKDF-SHA512-COMMIT-STREAM"
_INFO = b"kkp/envelope/v1"
_WRAP_INFO = b"kkp/envelope/v1/wrap"
_MESSAGE_ID_BYTES = 32
_MAC_BYTES = 32
_NONCE_BYTES = 12
_GCM_TAG_BYTES = 16
_NOT_THERE: Final = msgspec.Raw()
_FAULTS: Final = (msgspec.MsgspecError, ValueError, RecursionError, KKPError)  # of JSON that is no envelope


class _Members(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every envelope has in JSON."""

    v: Literal[1]
    alg: str
    context: dict[str, str]
    associated_data: str | None
    encoding: Encoding
    message_id: str
    backend: str
    key_id: str
    key_version: str
    encrypted_data_key: str
    wrap_tag: str
    commitment: str


class DetachedEnvelopeWire(_Members, frozen=True, forbid_unknown_fields=True):
    """An envelope without nonce and ciphertext, as it stands in JSON."""

    alg: Literal["A256GCM-HKDF-SHA512-COMMIT"]


class StreamEnvelopeWire(_Members, frozen=True, forbid_unknown_fields=True):
    """The envelope of a stream, as it stands in JSON; `chunk_size` is in bytes of plaintext."""

    alg: Literal["A256GCM-HKDF-SHA512-COMMIT-STREAM"]
    encoding: None
    chunk_size: ChunkSize


class EnvelopeWire(DetachedEnvelopeWire, frozen=True, forbid_unknown_fields=True):
    """An envelope as it stands in JSON; `parse` reads it and `to_wire` makes it."""

    nonce: str
    ciphertext: str


DetachedWire: TypeAlias = DetachedEnvelopeWire | StreamEnvelopeWire
Wire: TypeAlias = EnvelopeWire | DetachedWire


@dataclass(frozen=True, slots=True)
class Header:
    """What is authenticated with the payload and never changes; only a stream's has a chunk size."""

    context: Mapping[str, str]
    associated_data: str | None
    encoding: Encoding
    message_id: bytes
    chunk_size: int | None = None

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes that the payload is bound to."""
        of_stream = {} if self.chunk_size is None else {"chunk_size": self.chunk_size}
        return msgspec.json.encode(
            {
                "alg": _ALGORITHM if self.chunk_size is None else _STREAM_ALGORITHM,
                "associated_data": self.associated_data,
                **of_stream,
                "context": _sorted(self.context),
                "encoding": self.encoding,
                "message_id": _encode(self.message_id),
                "v": 1,
            }
        )


@dataclass(frozen=True, slots=True)
class Wrap:
    """Who can open the envelope: the key's labels and the wrapped data key, under one tag."""

    backend: str
    key_id: str
    key_version: str
    encrypted_data_key: bytes = field(repr=False)
    wrap_tag: bytes = field(default=b"", repr=False)  # of one that is being made, empty until it is tagged


@dataclass(frozen=True, slots=True)
class DetachedEnvelope:
    """A well-formed envelope without nonce and ciphertext, or a stream's; authentic once `verify` returned.

    Made only in this module.
    """

    header: Header
    wrap: Wrap
    commitment: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Envelope(DetachedEnvelope):
    """A well-formed envelope; nothing in it is authentic until `open` returned. Made only in this module."""

    nonce: bytes = field(repr=False)
    ciphertext: bytes = field(repr=False)

    @property
    def plaintext_bytes(self) -> int:
        """How long the plaintext is, which the ciphertext shows."""
        return len(self.ciphertext) - _GCM_TAG_BYTES


EnvelopeT = TypeVar("EnvelopeT", bound=DetachedEnvelope)


@dataclass(frozen=True, slots=True, repr=False)
class _MessageKeys:
    """The keys of one message."""

    encryption: bytes
    commitment: bytes
    wrap: bytes


def parse(raw: bytes | bytearray | memoryview | msgspec.Raw) -> Envelope:
    """Read an envelope's JSON, which is as yet nobody's word.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    try:
        return _from_wire(_decoder.decode(raw))
    except _FAULTS:
        # Chained to nothing: which check failed is not to be read from the error.
        raise EnvelopeInvalidError from None


def parse_detached(raw: bytes | bytearray | memoryview | msgspec.Raw) -> DetachedEnvelope:
    """Read the JSON of a detached envelope or a stream's; one with a nonce or a ciphertext is neither.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    try:
        is_stream = _form_decoder.decode(raw).alg == _STREAM_ALGORITHM
        return _detached_from_wire((_stream_decoder if is_stream else _detached_decoder).decode(raw))
    except _FAULTS:
        raise EnvelopeInvalidError from None


def parse_any(raw: bytes | bytearray | memoryview | msgspec.Raw) -> DetachedEnvelope:
    """Read the JSON of an envelope in whichever of its forms.

    Raises:
        EnvelopeInvalidError: Any structural fault.
    """
    try:
        is_whole = _form_decoder.decode(raw).ciphertext is not _NOT_THERE
    except _FAULTS:
        raise EnvelopeInvalidError from None
    return parse(raw) if is_whole else parse_detached(raw)


@overload
def to_wire(envelope: Envelope) -> EnvelopeWire: ...
@overload
def to_wire(envelope: DetachedEnvelope) -> Wire: ...
def to_wire(envelope: DetachedEnvelope) -> Wire:
    """Return the envelope as it is written in JSON."""
    detached = detached_to_wire(envelope)
    if not isinstance(envelope, Envelope):
        return detached
    return EnvelopeWire(
        **msgspec.structs.asdict(detached),
        nonce=_encode(envelope.nonce),
        ciphertext=_encode(envelope.ciphertext),
    )


def detached_to_wire(envelope: DetachedEnvelope) -> DetachedWire:
    """Return what a detached envelope has in JSON; of a whole one, all but its nonce and ciphertext."""
    header, wrap = envelope.header, envelope.wrap
    members: dict[str, JSON] = {
        "v": 1,
        "context": dict(header.context),
        "associated_data": header.associated_data,
        "encoding": header.encoding,
        "message_id": _encode(header.message_id),
        "backend": wrap.backend,
        "key_id": wrap.key_id,
        "key_version": wrap.key_version,
        "encrypted_data_key": _encode(wrap.encrypted_data_key),
        "wrap_tag": _encode(wrap.wrap_tag),
        "commitment": _encode(envelope.commitment),
    }
    if header.chunk_size is None:
        return DetachedEnvelopeWire(alg=_ALGORITHM, **members)
    return StreamEnvelopeWire(alg=_STREAM_ALGORITHM, chunk_size=header.chunk_size, **members)


def canonical_bytes(envelope: DetachedEnvelope) -> bytes:
    """Return the RFC 8785 bytes of all its members, which name it whatever way its JSON was written."""
    members = msgspec.structs.asdict(to_wire(envelope))
    return msgspec.json.encode(dict(sorted({**members, "context": _sorted(envelope.header.context)}.items())))


def digest(envelope: DetachedEnvelope) -> str:
    """Return the SHA-256 of the envelope's RFC 8785 bytes, in hex."""
    return sha256(canonical_bytes(envelope)).hexdigest()


def check_context(context: Mapping[str, str]) -> None:
    """Refuse a context that an envelope can't hold.

    Raises:
        InvalidRequestError: A limit is exceeded, which the message names, or a lone surrogate.
    """
    if len(context) > MAX_CONTEXT_PAIRS:
        raise InvalidRequestError(f"The context has more than {MAX_CONTEXT_PAIRS} pairs.")
    for name, value in context.items():
        _check_text("A context name", name, 1, MAX_CONTEXT_NAME_BYTES)
        _check_text("A context value", value, 0, MAX_CONTEXT_BYTES)
    if len(context_bytes(context)) > MAX_CONTEXT_BYTES:
        raise InvalidRequestError(f"The context is longer than {MAX_CONTEXT_BYTES} bytes in canonical JSON.")


def check_associated_data(associated_data: str | None) -> None:
    """Refuse associated data that an envelope can't hold.

    Raises:
        InvalidRequestError: The limit is exceeded, or a lone surrogate.
    """
    if associated_data is not None:
        _check_text("The associated data", associated_data, 0, MAX_ASSOCIATED_DATA_BYTES)


def check_chunk_size(chunk_size: int | None, encoding: Encoding) -> None:
    """Refuse a stream that can't be one.

    Raises:
        InvalidRequestError: The chunk size is out of its limits, or the stream would be text.
    """
    if chunk_size is None:
        return
    if not MIN_CHUNK_BYTES <= chunk_size <= MAX_CHUNK_BYTES:
        raise InvalidRequestError(f"A chunk size is {MIN_CHUNK_BYTES} to {MAX_CHUNK_BYTES} bytes.")
    if encoding is not None:
        raise InvalidRequestError("A stream is of bytes: `chunk_size` and `encoding` exclude each other.")


def context_bytes(context: Mapping[str, str]) -> bytes:
    """Return the RFC 8785 bytes of a checked context."""
    return msgspec.json.encode(_sorted(context))


def seal(  # noqa: PLR0913  every argument is bound to the ciphertext, and none has a safe default
    plaintext: bytes | str,
    *,
    data_key: bytes,
    context: Mapping[str, str],
    associated_data: str | None,
    backend: str,
    key_id: str,
    key_version: str,
    encrypted_data_key: bytes,
    random: Callable[[int], bytes] = os.urandom,
) -> Envelope:
    """Encrypt under a data key that the named key has already wrapped for the same context.

    Args:
        plaintext: Text is sealed as UTF-8 and comes back marked as such; bytes come back as bytes.
        data_key: 32 random bytes.
        context: Names and values that opening must know.
        associated_data: Text that is authenticated and travels in clear.
        backend: The backend's configured name.
        key_id: The key as the caller named it.
        key_version: What the backend reported.
        encrypted_data_key: What the backend returned.
        random: Where message id and nonce come from; only test vectors replace it.

    Raises:
        InvalidRequestError: Context, associated data, labels or text that an envelope can't hold.
        KMSUnavailableError: The backend's wrapped key does not fit.
    """
    encoding: Encoding = "utf-8" if isinstance(plaintext, str) else None
    payload = _utf8("The plaintext", plaintext) if isinstance(plaintext, str) else plaintext
    envelope, keys, header = _begin(
        data_key,
        context,
        associated_data,
        encoding,
        Wrap(backend, key_id, key_version, encrypted_data_key),
        random,
    )
    nonce = random(_NONCE_BYTES)
    return Envelope(
        header=envelope.header,
        wrap=envelope.wrap,
        commitment=envelope.commitment,
        nonce=nonce,
        ciphertext=AESGCM(keys.encryption).encrypt(nonce, payload, header),
    )


def detach(  # noqa: PLR0913  every argument is bound to the message's key, and none has a safe default
    *,
    data_key: bytes,
    context: Mapping[str, str],
    associated_data: str | None,
    encoding: Encoding,
    backend: str,
    key_id: str,
    key_version: str,
    encrypted_data_key: bytes,
    chunk_size: int | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> tuple[DetachedEnvelope, bytes]:
    """Begin an envelope or a stream that somebody else seals: return it and the key of its one message.

    The arguments are those of `seal`, but for `encoding`, `"utf-8"` if the plaintext will be text, and
    `chunk_size`, which is a stream's.

    Raises:
        InvalidRequestError: Context, associated data, labels or chunk size that an envelope can't hold.
        KMSUnavailableError: The backend's wrapped key does not fit.
    """
    wrap = Wrap(backend, key_id, key_version, encrypted_data_key)
    envelope, keys, _ = _begin(data_key, context, associated_data, encoding, wrap, random, chunk_size)
    return envelope, keys.encryption


def open(envelope: Envelope, data_key: bytes) -> bytes:  # noqa: A001  the counterpart of `seal`
    """Return the plaintext, once every check has passed.

    Raises:
        EnvelopeInvalidError: Any check failed.
    """
    keys, header = _verified_keys(envelope, data_key)
    try:
        plaintext = AESGCM(keys.encryption).decrypt(envelope.nonce, envelope.ciphertext, header)
        if envelope.header.encoding == "utf-8":
            plaintext.decode()
    except (InvalidTag, UnicodeDecodeError):
        raise EnvelopeInvalidError from None
    return plaintext


def message_key(envelope: DetachedEnvelope, data_key: bytes) -> bytes:
    """Return the key of the envelope's one message, once wrap tag and commitment are found right.

    Raises:
        EnvelopeInvalidError: One of them does not belong to the data key.
    """
    keys, _ = _verified_keys(envelope, data_key)
    return keys.encryption


def verify(envelope: DetachedEnvelope, data_key: bytes) -> None:
    """Check that labels, header and commitment belong to the data key; the payload is not looked at.

    Raises:
        EnvelopeInvalidError: They do not.
    """
    _verified_keys(envelope, data_key)


def rewrap(  # noqa: PLR0913  the new labels, all of them authenticated
    envelope: EnvelopeT,
    data_key: bytes,
    *,
    backend: str,
    key_id: str,
    key_version: str,
    encrypted_data_key: bytes,
) -> EnvelopeT:
    """Return the envelope under a new wrap of the same data key; the payload is not touched.

    Raises:
        EnvelopeInvalidError: The envelope's own wrap or commitment does not belong to the data key.
        InvalidRequestError: Labels that an envelope can't hold.
        KMSUnavailableError: The backend's wrapped key does not fit.
    """
    keys, _ = _verified_keys(envelope, data_key)
    return replace(envelope, wrap=_tagged(keys, Wrap(backend, key_id, key_version, encrypted_data_key)))


class _Form(msgspec.Struct, frozen=True):
    """What tells an envelope's form before it is read."""

    alg: str
    ciphertext: msgspec.Raw = _NOT_THERE


_decoder = msgspec.json.Decoder(EnvelopeWire)
_detached_decoder = msgspec.json.Decoder(DetachedEnvelopeWire)
_stream_decoder = msgspec.json.Decoder(StreamEnvelopeWire)
_form_decoder = msgspec.json.Decoder(_Form)


def _from_wire(wire: EnvelopeWire) -> Envelope:
    detached = _detached_from_wire(wire)
    ciphertext = _decode(wire.ciphertext)
    if len(ciphertext) < _GCM_TAG_BYTES:
        raise EnvelopeInvalidError
    return Envelope(
        header=detached.header,
        wrap=detached.wrap,
        commitment=detached.commitment,
        nonce=_decode_exactly(_NONCE_BYTES, wire.nonce),
        ciphertext=ciphertext,
    )


def _detached_from_wire(wire: DetachedWire) -> DetachedEnvelope:
    check_context(wire.context)
    check_associated_data(wire.associated_data)
    wrap = Wrap(
        backend=wire.backend,
        key_id=wire.key_id,
        key_version=wire.key_version,
        encrypted_data_key=_decode(wire.encrypted_data_key),
        wrap_tag=_decode_exactly(_MAC_BYTES, wire.wrap_tag),
    )
    _check_wrap(wrap)
    message_id = _decode_exactly(_MESSAGE_ID_BYTES, wire.message_id)
    chunk_size = wire.chunk_size if isinstance(wire, StreamEnvelopeWire) else None
    return DetachedEnvelope(
        header=Header(wire.context, wire.associated_data, wire.encoding, message_id, chunk_size),
        wrap=wrap,
        commitment=_decode_exactly(_MAC_BYTES, wire.commitment),
    )


def _begin(  # noqa: PLR0913, PLR0917  see `seal`
    data_key: bytes,
    context: Mapping[str, str],
    associated_data: str | None,
    encoding: Encoding,
    wrap: Wrap,
    random: Callable[[int], bytes],
    chunk_size: int | None = None,
) -> tuple[DetachedEnvelope, _MessageKeys, bytes]:
    """Return an envelope without its payload, its message's keys, and its header's canonical bytes."""
    check_context(context)
    check_associated_data(associated_data)
    check_chunk_size(chunk_size, encoding)
    header = Header(dict(context), associated_data, encoding, random(_MESSAGE_ID_BYTES), chunk_size)
    canonical = header.canonical()
    keys = _derive(data_key, header.message_id, canonical)
    return DetachedEnvelope(header, _tagged(keys, wrap), keys.commitment), keys, canonical


def _derive(data_key: bytes, message_id: bytes, header: bytes) -> _MessageKeys:
    if len(data_key) != DATA_KEY_BYTES:
        raise ValueError("a data key has 32 bytes")
    digest = sha512(header).digest()
    keys = HKDF(SHA512(), 64, message_id, _INFO + digest).derive(data_key)
    wrap = HKDF(SHA512(), 32, message_id, _WRAP_INFO + digest).derive(data_key)
    return _MessageKeys(encryption=keys[:32], commitment=keys[32:], wrap=wrap)


def _verified_keys(envelope: DetachedEnvelope, data_key: bytes) -> tuple[_MessageKeys, bytes]:
    """Derive the message's keys and check wrap tag and commitment, both always; with the header's bytes."""
    if len(data_key) != DATA_KEY_BYTES:
        raise EnvelopeInvalidError
    header = envelope.header.canonical()
    keys = _derive(data_key, envelope.header.message_id, header)
    labels_match = hmac.compare_digest(_wrap_tag(keys, envelope.wrap), envelope.wrap.wrap_tag)
    key_matches = hmac.compare_digest(keys.commitment, envelope.commitment)
    if not (labels_match and key_matches):
        raise EnvelopeInvalidError
    return keys, header


def _tagged(keys: _MessageKeys, wrap: Wrap) -> Wrap:
    _check_wrap(wrap)
    return replace(wrap, wrap_tag=_wrap_tag(keys, wrap))


def _wrap_tag(keys: _MessageKeys, wrap: Wrap) -> bytes:
    labels = {
        "backend": wrap.backend,
        "encrypted_data_key": _encode(wrap.encrypted_data_key),
        "key_id": wrap.key_id,
        "key_version": wrap.key_version,
    }
    return hmac.digest(keys.wrap, msgspec.json.encode(labels), "sha256")


def _check_wrap(wrap: Wrap) -> None:
    _check_text("The backend's name", wrap.backend, 1, MAX_BACKEND_BYTES)
    _check_text("The key id", wrap.key_id, 1, MAX_KEY_ID_BYTES)
    version_fits = len(_utf8("The key version", wrap.key_version)) <= MAX_KEY_VERSION_BYTES
    key_fits = 1 <= len(wrap.encrypted_data_key) <= MAX_ENCRYPTED_DATA_KEY_BYTES
    if not (version_fits and key_fits):
        raise KMSUnavailableError("The backend's wrapped key does not fit an envelope.")


def _check_text(what: str, text: str, minimum: int, maximum: int) -> None:
    if not minimum <= len(_utf8(what, text)) <= maximum:
        raise InvalidRequestError(f"{what} must be {minimum} to {maximum} bytes long in UTF-8.")


def _utf8(what: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Not chained: the original error's text quotes what may be a plaintext.
        raise InvalidRequestError(f"{what} holds a lone surrogate.") from None


def _sorted(pairs: Mapping[str, str]) -> dict[str, str]:
    """Sort by name as RFC 8785 does, by UTF-16 code units; msgspec writes strings as it demands."""
    return dict(sorted(pairs.items(), key=lambda pair: pair[0].encode("utf-16-be")))


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Decode strictly: a text has one spelling, so padding, other letters and stray bits are refused."""
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _encode(data) != text:
        raise EnvelopeInvalidError
    return data


def _decode_exactly(length: int, text: str) -> bytes:
    data = _decode(text)
    if len(data) != length:
        raise EnvelopeInvalidError
    return data
