"""What is asked of KKP, and what its answers say: bodies made, answers read; without I/O.

An answer is distrusted: it has the members that belong there, in their form, and is about what was asked, or
it is a `bad_answer`. Members that are not known are passed over. Errors repeat nothing of an answer but codes
and ids in their known form.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, Required, TypeAlias, TypedDict, TypeVar

from kkp_client import envelope as envelopes
from kkp_client import strict_json
from kkp_client.claims import Claims, read_claims
from kkp_client.encoding import from_base64url
from kkp_client.envelope import DetachedEnvelope, Document, Encoding, Envelope, JSONObject
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError, KKPError, ProblemError, TransportError

Op: TypeAlias = Literal["encrypt", "decrypt", "rewrap"]
EnvelopeT = TypeVar("EnvelopeT")
Key: TypeAlias = tuple[str, str]  # a backend, and the id of a key of its

_MAX_TOKEN_CHARACTERS: Final = 8192
_MOST_REASONS: Final = 32
_CODE: Final = re.compile(r"[a-z_]{1,64}")
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a token is for. What is left out is the client's default, or what the call is about.

    Attributes:
        audience: Whom it is meant for.
        backend: With the next, which key it opens; of a call about an envelope, that envelope's.
        key_id: See `backend`.
        ops: Which operations it opens; of a call, that one.
        ttl_seconds: How long it lives; KKP's default where left out.
        policy_claims: What it claims for policy to see.
        context: Pairs that an envelope's context must have.
        subject: For whom it speaks, if not for whoever asks.
        request_context: What policy is told of the request.
    """

    audience: str | None = None
    backend: str | None = None
    key_id: str | None = None
    ops: Sequence[Op] | None = None
    ttl_seconds: int | None = None
    policy_claims: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    request_context: JSONObject = field(default_factory=dict)


NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
DEFAULT_SCOPE: Final = Scope()


class Sealing(TypedDict, total=False):
    """How something is to be sealed.

    Attributes:
        backend: With the next, the key to seal under.
        key_id: See `backend`.
        context: Pairs that are authenticated, and that opening must know.
        associated_data: Text that is authenticated and travels in clear.
        policy_context: What policy is told of the request.
    """

    backend: Required[str]
    key_id: Required[str]
    context: Mapping[str, str]
    associated_data: str | None
    policy_context: JSONObject


class StreamSealing(Sealing, total=False):
    """How a stream is to be sealed.

    Attributes:
        chunk_size: How many bytes are sealed at a time, 4,096 to 8,388,608; 1,048,576 where left out.
    """

    chunk_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptItem:
    """A plaintext to be sealed; text comes back as text. The rest is what `Sealing` says."""

    backend: str
    key_id: str
    plaintext: bytes | str = field(repr=False)
    context: Mapping[str, str] = field(default_factory=dict)
    associated_data: str | None = None
    policy_context: JSONObject = field(default_factory=dict)

    @property
    def encoding(self) -> Encoding:
        """What the envelope says of the plaintext."""
        return "utf-8" if isinstance(self.plaintext, str) else None

    @property
    def length(self) -> int:
        """How many bytes the plaintext has."""
        return len(envelopes.payload_of(self.plaintext))

    def body(self) -> dict[str, Any]:
        """Return what `/envelope/encrypt` takes."""
        payload = envelopes.payload_of(self.plaintext)
        if isinstance(self.plaintext, str):
            return {**_asked(self), "plaintext": self.plaintext}
        return {**_asked(self), "plaintext_b64": b64encode(payload).decode()}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """A message key that is wanted, for what `Sealing` says.

    Attributes:
        encoding: `"utf-8"` where the plaintext is text.
        chunk_size: Of a stream; None for a message that is sealed as a whole.

    Raises:
        ConfigurationError: No stream has such chunks.
    """

    backend: str
    key_id: str
    context: Mapping[str, str] = field(default_factory=dict)
    associated_data: str | None = None
    policy_context: JSONObject = field(default_factory=dict)
    encoding: Encoding = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        size = self.chunk_size
        if size is not None and not envelopes.MIN_CHUNK_BYTES <= size <= envelopes.MAX_CHUNK_BYTES:
            raise ConfigurationError("A stream's chunks have 4,096 to 8,388,608 bytes.")

    def body(self) -> dict[str, Any]:
        """Return what `/envelope/data-key` takes."""
        return present({**_asked(self), "encoding": self.encoding, "chunk_size": self.chunk_size})


def _asked(request: EncryptItem | KeyRequest) -> dict[str, Any]:
    members = {
        "context": pairs_of("context", request.context),
        "associated_data": request.associated_data,
        "policy_context": members_of("policy_context", request.policy_context),
    }
    return {**labels((request.backend, request.key_id)), **present(members)}


@dataclass(frozen=True, slots=True)
class Opened:
    """What an envelope held.

    Attributes:
        plaintext: Its bytes.
        text: The same as text, where text was sealed; else None.
        claims: What the token says that opened it, where KKP did.
    """

    plaintext: bytes = field(repr=False)
    text: str | None = field(repr=False)
    claims: Claims | None = None


@dataclass(frozen=True, slots=True)
class MessageKey:
    """The key of one message, and the envelope that it is for."""

    envelope: DetachedEnvelope
    key: bytes = field(repr=False)


def encoded(document: JSONObject) -> bytes:
    """Return an object as it is sent; equal objects are equal bytes.

    Raises:
        ConfigurationError: A caller gave what JSON has no form for.
    """
    try:
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError):
        pass
    raise ConfigurationError("What is asked for holds something that JSON has no form for.")


def pairs_of(name: str, given: object) -> dict[str, str]:
    """Return a mapping of text to text.

    Raises:
        ConfigurationError: It is none; the message has its name alone.
    """
    members = members_of(name, given)
    if all(isinstance(text, str) for pair in members.items() for text in pair):
        return members
    raise ConfigurationError(f"What was given as {name} is no mapping of text to text.")


def members_of(name: str, given: object) -> dict[str, Any]:
    """Return a mapping.

    Raises:
        ConfigurationError: It is none.
    """
    if isinstance(given, Mapping):
        return dict(given)
    raise ConfigurationError(f"What was given as {name} is no mapping, but {type(given).__name__}.")


def present(members: JSONObject) -> dict[str, Any]:
    """Return the members that say something."""
    return {name: value for name, value in members.items() if value is not None and value != {}}


def labels(key: Key) -> dict[str, str]:
    """Return the members that name a key."""
    return {"backend": key[0], "key_id": key[1]}


def key_of(envelope: DetachedEnvelope) -> Key:
    """Return the key that an envelope names."""
    return envelope.backend, envelope.key_id


def opening(envelope: Envelope | DetachedEnvelope, policy_context: JSONObject) -> dict[str, Any]:
    """Return what is sent to have an envelope opened."""
    told = members_of("policy_context", policy_context)
    return present({"envelope": envelope.document(), "policy_context": told})


def parsed(
    documents: Sequence[Document], parse: Callable[[Document], EnvelopeT]
) -> tuple[dict[int, EnvelopeT], dict[int, KKPError]]:
    """Return the envelopes that are well formed, and the errors of what is none, by their places."""
    read: dict[int, EnvelopeT] = {}
    refused: dict[int, KKPError] = {}
    for place, document in enumerate(documents):
        try:
            read[place] = parse(document)
        except (ConfigurationError, EnvelopeInvalidError) as error:
            refused[place] = error
    return read, refused


def life_seconds(token: str) -> int | None:
    """Return for how long a token says that it was issued; None for what is no token."""
    found = _TOKEN.fullmatch(token) if len(token) <= _MAX_TOKEN_CHARACTERS else None
    try:
        claims = strict_json.loads(from_base64url(found[1])) if found is not None else None
    except ValueError:
        return None
    if not isinstance(claims, dict):
        return None
    iat, exp = claims.get("iat"), claims.get("exp")
    return exp - iat if type(iat) is int and type(exp) is int and exp > iat else None


def sealed(answer: JSONObject, item: EncryptItem) -> JSONObject:
    """Read the envelope of a plaintext.

    Raises:
        TransportError: It is none, or of something else.
    """
    envelope = _envelope(answer, envelopes.parse)
    if envelope is None or not _is_of(envelope.detached, item) or envelope.plaintext_bytes != item.length:
        raise bad_answer()
    return envelope.document()


def moved(answer: JSONObject, envelope: Envelope | DetachedEnvelope, target: Key) -> JSONObject:
    """Read an envelope that was moved.

    Raises:
        TransportError: It is another one, or not where it was to go.
    """
    new = _envelope(answer, envelopes.parse_any)
    if new is None or key_of(new.detached) != target or new.payload != envelope.payload:
        raise bad_answer()
    return new.document()


def opened(answer: JSONObject, envelope: Envelope) -> Opened:
    """Read what an envelope held.

    Raises:
        TransportError: It can't be that.
    """
    plaintext = _from_base64(answer.get("plaintext_b64"))
    if plaintext is None or len(plaintext) != envelope.plaintext_bytes:
        raise bad_answer()
    text = text_of(plaintext) if envelope.detached.encoding == "utf-8" else None
    if answer.get("plaintext") != text or (text is None and envelope.detached.encoding == "utf-8"):
        raise bad_answer()
    return Opened(plaintext, text, _claims(answer))


def message_key(answer: JSONObject) -> bytes:
    """Read the key of a message.

    Raises:
        TransportError: It is none.
    """
    key = _from_base64(answer.get("message_key_b64"))
    if key is None or len(key) != envelopes.MESSAGE_KEY_BYTES:
        raise bad_answer()
    return key


def begun(answer: JSONObject, request: KeyRequest) -> MessageKey:
    """Read an envelope without a payload, and the key of its message.

    Raises:
        TransportError: It is none, or for something else.
    """
    parse = envelopes.parse_detached if request.chunk_size is None else envelopes.parse_stream
    envelope = _envelope(answer, parse)
    if envelope is None or not _is_of(envelope, request) or envelope.chunk_size != request.chunk_size:
        raise bad_answer()
    return MessageKey(envelope, message_key(answer))


def bad_answer(status: int = 200, retry_after: float | None = None) -> TransportError:
    """Return the error of an answer that is none."""
    return TransportError(
        "What answered is no KKP, or not about what was asked.",
        code="bad_answer",
        status=status,
        retry_after_seconds=retry_after,
    )


def problem(document: object, status: int, retry_after: float | None = None) -> KKPError:
    """Return the error that a problem document is; of what is none, that it is none."""
    members = document if isinstance(document, dict) else {}
    code = members.get("code")
    if members.get("status") != status or not isinstance(code, str) or _CODE.fullmatch(code) is None:
        return bad_answer(status, retry_after)
    kind = EnvelopeInvalidError if code == "envelope_invalid" else ProblemError
    request_id, reasons = _id(members.get("request_id")), _reasons(members.get("reasons"))
    waits_until = members.get("approval_expires_at")
    return kind(
        _refusal(code, reasons, request_id),
        code=code,
        status=status,
        request_id=request_id,
        decision_id=_id(members.get("decision_id")),
        reasons=reasons,
        retry_after_seconds=retry_after,
        approval_id=_id(members.get("approval_id")),
        approval_expires_at=waits_until if type(waits_until) is int else None,
    )


def _refusal(code: str, reasons: Sequence[str], request_id: str | None) -> str:
    request = "" if request_id is None else f"request {request_id}"
    about = "; ".join(filter(None, (", ".join(reasons), request)))
    return f"KKP refused: {code} ({about})." if about else f"KKP refused: {code}."


def _reasons(reasons: object) -> Sequence[str]:
    listed = reasons[:_MOST_REASONS] if isinstance(reasons, list) else []
    return [reason for reason in map(_id, listed) if reason is not None]


def _id(text: object) -> str | None:
    return text if isinstance(text, str) and _ID.fullmatch(text) is not None else None


def _envelope(answer: JSONObject, parse: Callable[[JSONObject], EnvelopeT]) -> EnvelopeT | None:
    document = answer.get("envelope")
    try:
        return parse(document) if isinstance(document, dict) else None
    except EnvelopeInvalidError:
        return None


def _is_of(envelope: DetachedEnvelope, asked: EncryptItem | KeyRequest) -> bool:
    """Tell whether an envelope is what was asked for."""
    return (
        envelope.backend == asked.backend
        and envelope.key_id == asked.key_id
        and envelope.context == dict(asked.context)
        and envelope.associated_data == asked.associated_data
        and envelope.encoding == asked.encoding
    )


def text_of(plaintext: bytes) -> str | None:
    """Return a plaintext as text; None where it is none."""
    try:
        return plaintext.decode()
    except UnicodeDecodeError:
        return None


def _claims(answer: JSONObject) -> Claims | None:
    """Read the claims of the token that opened an envelope; there may have been none."""
    claims = answer.get("claims")
    if claims is None:
        return None
    try:
        return read_claims(claims if isinstance(claims, dict) else {})
    except ValueError:
        pass
    raise bad_answer()


def _from_base64(text: object) -> bytes | None:
    """Return the bytes of padded base64 (RFC 4648 section 4), in its one spelling."""
    if not isinstance(text, str):
        return None
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None
    return data if b64encode(data).decode() == text else None
