"""How the members of requests are written: each shape has a name, and what has a pattern says it in words.

What requests have in common with the configuration stands in `kkp.names`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from kkp import emails
from kkp.envelope import DetachedEnvelopeWire, EnvelopeWire, StreamEnvelopeWire
from kkp.names import MAX_INTEGER, Name, Text, TokenOp, spelt
from kkp.revocations import MAX_REASON_CHARACTERS
from kkp.ring_times import MAX_SECONDS

MAX_OVERLAP_SECONDS = 30 * 86400  # two keys for longer than that are no longer a change of keys


def in_forms(*forms: type[msgspec.Struct]) -> msgspec.Meta:
    """Describe an envelope in one of these forms; `kkp.envelope` reads it, and its faults are one error."""
    refs = [{"$ref": f"#/components/schemas/{form.__name__}"} for form in forms]
    return msgspec.Meta(extra_json_schema=refs[0] if len(refs) == 1 else {"anyOf": refs})


DETACHED_FORMS = (DetachedEnvelopeWire, StreamEnvelopeWire)
ENVELOPE_FORMS = (EnvelopeWire, *DETACHED_FORMS)
WholeEnvelope = Annotated[msgspec.Raw, in_forms(EnvelopeWire)]
DetachedEnvelope = Annotated[msgspec.Raw, in_forms(*DETACHED_FORMS)]
AnyEnvelope = Annotated[msgspec.Raw, in_forms(*ENVELOPE_FORMS)]

Integer = Annotated[int, msgspec.Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)]
KeyTTL = Annotated[int, msgspec.Meta(ge=1, le=MAX_SECONDS)]
Overlap = Annotated[int, msgspec.Meta(ge=0, le=MAX_OVERLAP_SECONDS)]
PageSize = Annotated[int, msgspec.Meta(ge=1, le=1000)]

Scalar: TypeAlias = Text | bool | Integer | float | None
Pairs = Annotated[dict[Name, Text], msgspec.Meta(max_length=32)]
Context = Annotated[dict[str, str], msgspec.Meta(max_length=32)]  # `kkp.envelope` looks at the rest
PolicyContext = Annotated[dict[Name, Scalar], msgspec.Meta(max_length=32)]
Document = Annotated[dict[Name, Any], msgspec.Meta(max_length=32)]
TokenOps = Annotated[list[TokenOp], msgspec.Meta(max_length=3)]

KeyId = Annotated[
    str,
    spelt(
        r"[A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,511}",
        "a key's name: 1 to 512 of A-Z, a-z, 0-9 and ._:/@+=-, of which the first is a letter or a digit",
    ),
]
TokenId = Annotated[str, spelt(r"[A-Za-z0-9_-]{22}", "a token's jti: 22 characters of base64url")]
IdentityName = Annotated[
    str,
    spelt(
        r"[a-z0-9][a-z0-9._-]{0,62}(:[\x21-\x7e]{1,254})?",
        "an identity's name: 1 to 63 of a-z, 0-9, ., _ and -, of which the first is a letter or a digit; of "
        "somebody whom an issuer vouches for, that is the issuer's, and a colon and the subject follow",
    ),
]
RevokedName = Annotated[
    str, spelt(r"[\x21-\x7e]{1,512}", "1 to 512 visible ASCII characters, without spaces")
]
Reason = Annotated[
    str,
    spelt(
        rf"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{{0,{MAX_REASON_CHARACTERS}}}",
        f"up to {MAX_REASON_CHARACTERS} characters, on one line",
    ),
]
ApprovalId = Annotated[str, spelt(r"[A-Za-z0-9_-]{21}[AQgw]", "an approval_id: 128 bits in base64url")]
AuditCursor = Annotated[
    str, spelt(r"[A-Za-z0-9-]{1,64}:[0-9]{1,15}", "<chain>:<seq>, as `next` of the page before has it")
]
RevocationCursor = Annotated[
    str, spelt(r"[A-Za-z0-9_-]{22,43}", "a revocation's id, as `next` of the page before has it")
]

Email = Annotated[
    str,
    msgspec.Meta(
        pattern=emails.PATTERN,
        max_length=emails.MAX_CHARACTERS,
        description=f"an e-mail address of up to {emails.MAX_CHARACTERS} ASCII characters",
    ),
]
Password = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
EnrolmentCode = Annotated[
    str,
    spelt(r"kkp_ec_[A-Za-z0-9_-]{43}", "an enrolment code: kkp_ec_ and 43 characters of base64url"),
]

GrantType = Literal["urn:ietf:params:oauth:grant-type:token-exchange"]
SubjectTokenType = Literal[
    "urn:ietf:params:oauth:token-type:access_token",
    "urn:ietf:params:oauth:token-type:jwt",
    "urn:ietf:params:oauth:token-type:id_token",
]
RequestedTokenType = Literal[
    "urn:ietf:params:oauth:token-type:access_token", "urn:ietf:params:oauth:token-type:jwt"
]
SubjectToken = Annotated[
    str,
    spelt(r"[A-Za-z0-9._~+/-]+=*", "a credential, as it would stand behind `Bearer`", max_length=8 * 1024),
]
Resource = Annotated[
    str,
    spelt(
        r"urn:kkp:key:[a-z0-9][a-z0-9_-]{0,31}:([A-Za-z0-9._:/@+=-]|%[0-9A-Fa-f]{2}){1,512}",
        "urn:kkp:key:, a backend's name, a colon, and a key's name, percent-encoded",
    ),
]
Scope = Annotated[
    str,
    spelt(
        r"(encrypt|decrypt|rewrap)( (encrypt|decrypt|rewrap)){0,2}",
        "one or more of encrypt, decrypt and rewrap, with one space between two",
    ),
]

Word = Annotated[
    str,
    spelt(r"[a-z][a-z0-9_]{0,63}", "a word: 1 to 64 of a-z, 0-9 and _, of which the first is a letter"),
]
Moment = Annotated[
    str,
    spelt(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", "a time such as 2026-01-01T00:00:00Z"),
]
IPAddress = Annotated[str, spelt(r"([0-9A-Fa-f:.]{2,45})?", "an IP address such as 10.0.0.7")]
