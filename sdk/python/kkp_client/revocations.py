"""The signed list of what was revoked, read and asked, without I/O (docs/formats.md).

It shows no name: what a token names is looked up by its digest, `entry_id`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, cast

from kkp_client import jws
from kkp_client.claims import Claims, Members, read_whole
from kkp_client.encoding import base64url
from kkp_client.errors import RevocationsUnavailableError, TokenError
from kkp_client.keys import KeySet
from kkp_client.leeway import DEFAULT_LEEWAY_SECONDS, refuse_leeway
from kkp_client.strict_json import JSON

LIST_TYPE: Final = "kkp-revocations+jwt"
MAX_LIST_CHARACTERS: Final = 8 * 1024 * 1024
_REMEMBERED_IDS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RevocationList:
    """What is revoked.

    Attributes:
        iss: Whose tokens it is about.
        iat: When it was true.
        exp: Until when it may be relied on.
        seq: Never falls; of two lists, the one with the higher knows more.
        tokens: The `jti` of each, with a time after which it no longer matters.
        subjects: From the digest of each to the latest `iat` that is void.
        identities: Digests, of `sub` and of `act.sub`; these and the following in their order.
        keys: Digests of backend and key id.
        backends: Digests.
    """

    iss: str
    iat: int
    exp: int
    seq: int
    tokens: Mapping[str, int]
    subjects: Mapping[str, int]
    identities: AbstractSet[str]
    keys: AbstractSet[str]
    backends: AbstractSet[str]

    def __repr__(self) -> str:  # of megabytes
        return f"RevocationList(seq={self.seq}, exp={self.exp})"

    def is_about(self, claims: Claims) -> bool:
        """Tell whether what a token says has been revoked."""
        return (
            claims.jti in self.tokens
            or (bool(self.subjects) and claims.iat <= self.subjects.get(entry_id("subject", claims.sub), -1))
            or (bool(self.identities) and self._names_identity(claims))
            or (bool(self.keys) and entry_id("key", claims.backend, claims.key_id) in self.keys)
            or (bool(self.backends) and entry_id("backend", claims.backend) in self.backends)
        )

    def _names_identity(self, claims: Claims) -> bool:
        return any(entry_id("identity", name) in self.identities for name in {claims.sub, claims.asked_by})

    def as_json(self) -> dict[str, JSON]:
        """Return the claims as JSON has them."""
        return {
            "iss": self.iss,
            "iat": self.iat,
            "exp": self.exp,
            "seq": self.seq,
            "tokens": dict(self.tokens),
            "subjects": dict(self.subjects),
            "identities": [*self.identities],
            "keys": [*self.keys],
            "backends": [*self.backends],
        }


class Revocations(NamedTuple):
    """That revocations are wanted, and the list of them; None where there is none at hand."""

    list: RevocationList | None


@lru_cache(_REMEMBERED_IDS)  # callers, and the keys that their tokens are about, come again
def entry_id(kind: str, *names: str) -> str:
    """Return what the list calls something that is not a token."""
    # RFC 8785 canonical JSON, of a list of strings.
    document = json.dumps([kind, *names], ensure_ascii=False, separators=(",", ":"))
    return base64url(hashlib.sha256(document.encode()).digest())


def verify_revocation_list(  # noqa: PLR0913  all that a verdict depends on
    document: str,
    *,
    keys: KeySet | None,
    now: float,
    issuer: str,
    leeway_seconds: float = DEFAULT_LEEWAY_SECONDS,
    highest_seq: int = 0,
) -> RevocationList:
    """Return a list that can be relied on.

    Args:
        document: The compact JWS.
        keys: KKP's; None where there are none at hand.
        now: Unix seconds.
        issuer: The exact `iss`.
        leeway_seconds: How far clocks may be apart, 0 to 60.
        highest_seq: Of all lists that were ever accepted.

    Raises:
        TokenError: It is refused.
        KeysUnavailableError: It can't be verified for want of keys.
        RevocationsUnavailableError: It is too old, or older than one that was accepted.
        ConfigurationError: The leeway is out of its range.
    """
    refuse_leeway(leeway_seconds)
    read = jws.read(document, typ=LIST_TYPE, max_characters=MAX_LIST_CHARACTERS)
    revoked = _list_of(read)
    if revoked.iss != issuer:
        raise TokenError.of_another_issuer(issuer)
    if not now < revoked.exp:  # NaN is refused, too
        raise RevocationsUnavailableError.because("list_too_old")
    if revoked.iat > now + leeway_seconds:
        raise TokenError.because("not_yet_valid")
    jws.check_signature(read, keys, now)
    if revoked.seq < highest_seq:
        raise RevocationsUnavailableError.because("older_list")
    return revoked


def _list_of(document: jws.JWS) -> RevocationList:
    try:
        return _read(document.claims)
    except ValueError:
        pass
    raise TokenError.because("wrong_claims")


def _read(members: Members) -> RevocationList:
    issuer = members.get("iss")
    if not isinstance(issuer, str):
        raise ValueError("no issuer")  # noqa: TRY004  one kind of error for one kind of fault
    return RevocationList(
        iss=issuer,
        iat=read_whole(members, "iat"),
        exp=read_whole(members, "exp"),
        seq=read_whole(members, "seq"),
        tokens=_times(members.get("tokens")),
        subjects=_times(members.get("subjects")),
        identities=_ids(members.get("identities")),
        keys=_ids(members.get("keys")),
        backends=_ids(members.get("backends")),
    )


def _times(value: JSON) -> Mapping[str, int]:
    if not isinstance(value, dict) or not all(type(time) is int for time in value.values()):
        raise ValueError("not times by their names")
    return cast("dict[str, int]", value)


def _ids(value: JSON) -> AbstractSet[str]:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError("no list of strings")
    return dict.fromkeys(cast("list[str]", value)).keys()  # a set that keeps its order
