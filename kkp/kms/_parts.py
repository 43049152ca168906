"""The wrapped key of a composite: what its members wrapped, bound together by one check value.

`encrypted_data_key` is one JSON object in RFC 8785 canonical form, in no other spelling:

```
{"check":B,"kind":"any-of","parts":[{"backend":"aws","encrypted_data_key":B,"key_id":"alias/orders","key_version":"…"},…],"v":1}

B        bytes in base64 (RFC 4648 section 4, with padding)
kind     any-of or all-of
parts    1 to 8, no two of one backend and key id, in the order in which the members were configured
check    HMAC-SHA-256(K_check, RFC 8785 of {"context", "key_id", "kind", "parts", "v"})
K_check  HKDF-SHA-256(secret, no salt, info = "kkp/composite/v1", 32 bytes)
secret   any-of: the data key, which every part wraps; all-of: the shares, one after the other as their parts
key_version  SHA-256(RFC 8785 of [kind, [backend, key_id, key_version], …]) in lowercase hex
```

Under `check`, `key_id` is the composite's own, a logical name that does not stand in the object. The last
line is the version that the composite reports for it.

Rules:
- A label in a part is nobody's word: it is compared with the configuration, and never asked or followed.
- Who does not know the secret can't make a check value. So no part can be taken away, added, exchanged or
  relabelled, no kind or logical name put in another's place, and a member that answers with something else
  than it was given is found out. HMAC commits to its key: no object has two secrets.
- The secret of an all-of is every share and not the data key, their sum. Sums can be known without knowing
  the shares: the same data key, wrapped by two members as it is in an any-of or once an envelope has moved
  from one to the other, is zero as a sum of shares. Its check value would still take the key itself.
- All limits are checked, and the version compared, before any member can be asked.

*Evolution:* the format never changes in place. A new meaning is a new `v` and a new info; version 1 is read
forever.

What it does not do: wrap, ask members, or know which there are.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

import msgspec

from kkp.envelope import MAX_ENCRYPTED_DATA_KEY_BYTES
from kkp.kms._aead import derive_key, invalid_wrap
from kkp.kms.base import WrappedKey, context_bytes

Kind: TypeAlias = Literal["any-of", "all-of"]

MAX_PARTS: Final = 8

_INFO = b"kkp/composite/v1"
_VERSION: Final = 1


class Label(NamedTuple):
    """A member: the configured name of its backend, and its key there."""

    backend: str
    key_id: str


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one member wrapped; the order of the fields is RFC 8785's."""

    backend: str
    encrypted_data_key: bytes
    key_id: str
    key_version: str

    @property
    def label(self) -> Label:
        """Whose part it says it is."""
        return Label(self.backend, self.key_id)

    @property
    def wrapped(self) -> WrappedKey:
        """What the member is handed."""
        return WrappedKey(self.encrypted_data_key, self.key_version)


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object; the order of the fields is RFC 8785's."""

    check: bytes
    kind: Kind
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=1, max_length=MAX_PARTS)]
    v: Literal[1]


@dataclass(frozen=True, slots=True)
class Sealed:
    """A well-formed wrapped key; nothing in it is authentic before `belongs_to` said so."""

    parts: tuple[Part, ...]
    _kind: Kind
    _check: bytes

    def belongs_to(self, secret: bytes, key_id: str, context: Mapping[str, str]) -> bool:
        """Tell whether it was made of this secret, for this logical key and context."""
        return hmac.compare_digest(_check(secret, self._kind, key_id, self.parts, context), self._check)


def write(
    kind: Kind, key_id: str, parts: Sequence[Part], secret: bytes, context: Mapping[str, str]
) -> WrappedKey:
    """Bind the parts together.

    Args:
        kind: Of the composite.
        key_id: The logical name.
        parts: At most `MAX_PARTS`, each of another member.
        secret: What the parts hold.
        context: What each part is bound to.
    """
    wire = _Wire(_check(secret, kind, key_id, parts, context), kind, tuple(parts), _VERSION)
    version = key_version(kind, ((*part.label, part.key_version) for part in parts))
    return WrappedKey(msgspec.json.encode(wire), version)


def read(kind: Kind, wrapped: WrappedKey) -> Sealed:
    """Take a wrapped key apart; it is as yet nobody's word.

    Raises:
        InvalidWrapError: It is malformed, over a limit, another kind's, or another version's.
    """
    blob = wrapped.encrypted_data_key
    if len(blob) > MAX_ENCRYPTED_DATA_KEY_BYTES:
        raise invalid_wrap()
    try:
        wire = _decoder.decode(blob)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise invalid_wrap() from None
    is_distinct = len({part.label for part in wire.parts}) == len(wire.parts)
    # The one spelling has no white space, escape, member or padding that could be there or not.
    if wire.kind != kind or not is_distinct or msgspec.json.encode(wire) != blob:
        raise invalid_wrap()
    if wrapped.key_version != key_version(kind, ((*part.label, part.key_version) for part in wire.parts)):
        raise invalid_wrap()
    return Sealed(wire.parts, kind, wire.check)


def key_version(kind: Kind, versions: Iterable[tuple[str, str, str]]) -> str:
    """Return the version of a logical key: another one as soon as a member or a member's version is.

    Args:
        kind: Of the composite.
        versions: Backend, key id and key version of each member, in the configured order.
    """
    return sha256(msgspec.json.encode([kind, *versions])).hexdigest()


_decoder = msgspec.json.Decoder(_Wire)


def _check(
    secret: bytes, kind: Kind, key_id: str, parts: Sequence[Part], context: Mapping[str, str]
) -> bytes:
    bound = {
        "context": msgspec.Raw(context_bytes(context)),
        "key_id": key_id,
        "kind": kind,
        "parts": parts,
        "v": _VERSION,
    }
    return hmac.digest(derive_key(secret, None, _INFO), msgspec.json.encode(bound), "sha256")
