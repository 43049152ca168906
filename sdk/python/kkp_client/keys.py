"""Key sets: which keys of a JWKS (RFC 7517) sign tokens. Pure.

Rules that hold here:
- A member counts if it is an Ed25519 public key for signatures whose `kid` is its RFC 7638 thumbprint. Its
  point must be written canonically and not be of small order: with such a key anybody could sign. What does
  not count is passed over, as RFC 7517 section 5 wants it.
- A member with a private half is no key: anybody could sign with it.
- A set in which none counts, or one twice, is no set.
- Whether a key is a point of the curve is not looked at: under one that is none nothing verifies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple, final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kkp_client import strict_json
from kkp_client.encoding import base64url, from_base64url
from kkp_client.strict_json import JSON

MAX_DOCUMENT_BYTES: Final = 256 * 1024
MAX_KEYS: Final = 256
MAX_AGE_SECONDS: Final = 600  # C of the issuer's ring: the longest that anybody may use a copy of its keys
KEY_BYTES: Final = 32
_PRIME: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _PRIME)  # of the curve's equation, -x^2 + y^2 = 1 + d x^2 y^2


@final
class PublicKey:
    """An Ed25519 key that is fit to verify with.

    Args:
        raw: Its 32 bytes, which `is_sound` has found good.
    """

    __slots__ = ("_key", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._key = Ed25519PublicKey.from_public_bytes(raw)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Tell whether a signature is this key's (RFC 8032 section 5.1.7, without the cofactor)."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class KeySet(NamedTuple):
    """Keys, and how old this knowledge is.

    Attributes:
        keys: By `kid`.
        fetched_at: In Unix seconds, when the request for them was sent.
    """

    keys: Mapping[str, PublicKey]
    fetched_at: float


def is_sound(raw: bytes) -> bool:
    """Tell whether 32 bytes are a point in its one spelling, of an order that is worth something."""
    y = int.from_bytes(raw, "little") % 2**255  # the highest bit is the sign of x
    return y < _PRIME and not _is_of_small_order(y)


def _is_of_small_order(y: int) -> bool:
    """Tell whether these are points of which eight make nothing.

    The y of that of order 1 is 1, of order 2 it is -1, and of order 4 it is 0. Of order 8 are those whose
    double has y = 0: by the law of addition x^2 = -y^2, which makes the curve's equation d y^4 + 2 y^2 = 1.
    """
    return y in {0, 1, _PRIME - 1} or (_D * y**4 + 2 * y**2 - 1) % _PRIME == 0


def thumbprint(members: Mapping[str, str]) -> str:
    """Return the RFC 7638 thumbprint of a key.

    Args:
        members: The required ones, sorted by name; their values need no escapes.
    """
    document = ",".join(f'"{name}":"{value}"' for name, value in members.items())
    return base64url(hashlib.sha256(f"{{{document}}}".encode()).digest())


def read_key_set(document: bytes) -> Mapping[str, PublicKey]:
    """Return the keys of a JWKS that count, by `kid`.

    Raises:
        ValueError: It is no key set; the message quotes nothing of it.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"it is over {MAX_DOCUMENT_BYTES} bytes")
    keys: dict[str, PublicKey] = {}
    for member in _members(document):
        found = _counting(member)
        if found is None:
            continue
        kid, raw = found
        if kid in keys:
            raise ValueError("it has a key twice")
        keys[kid] = PublicKey(raw)
    if not keys:
        raise ValueError("it has no key that could have signed a token")
    return keys


def _members(document: bytes) -> list[JSON]:
    top = strict_json.loads(document)
    members = top.get("keys") if isinstance(top, dict) else None
    if not isinstance(members, list):
        raise ValueError("it is not a JWKS")  # noqa: TRY004  one kind of error for one kind of fault
    if len(members) > MAX_KEYS:
        raise ValueError(f"it has more than {MAX_KEYS} keys")
    return members


def _counting(member: JSON) -> tuple[str, bytes] | None:
    """Return the `kid` and the bytes of a member that counts; None for one that does not."""
    if not isinstance(member, dict) or not _may_verify(member):
        return None
    x, kid = member.get("x"), member.get("kid")
    if not isinstance(x, str) or kid != thumbprint({"crv": "Ed25519", "kty": "OKP", "x": x}):
        return None
    raw = read_coordinate(x)
    return (str(kid), raw) if raw is not None and is_sound(raw) else None


def _may_verify(member: Mapping[str, JSON]) -> bool:
    is_ed25519 = member.get("kty") == "OKP" and member.get("crv") == "Ed25519" and "d" not in member
    operations = member.get("key_ops", ["verify"])
    is_for_signatures = isinstance(operations, list) and "verify" in operations
    return (
        is_ed25519
        and is_for_signatures
        and member.get("alg", "EdDSA") == "EdDSA"
        and member.get("use", "sig") == "sig"
    )


def read_coordinate(text: str) -> bytes | None:
    """Return the 32 bytes that a coordinate stands for; None for anything else."""
    try:
        raw = from_base64url(text)
    except ValueError:
        return None
    return raw if len(raw) == KEY_BYTES else None
