"""Tokens of configured issuers as credentials: Kubernetes, GitHub, SPIFFE, any OIDC provider.

Rules that hold here, in this order:
- The strict layer of `kkp.tokens` stands before PyJWT: one spelling, no duplicate member, at most 8 KiB. A
  header that brings a key or an address along (`jwk`, `x5c`, `jku`, `x5u`), or `crit`, makes it nothing.
- Whose it is says `iss`, or for SPIFFE the trust domain of `sub`. Its algorithm must be one that is taken
  from that issuer before a key is looked for, so nothing else makes KKP fetch any.
- It is signed by a key of that issuer. Until then whoever sent it learns nothing of what is wrong.
- `exp` is there, holds to the second and lies no further ahead than `max_lifetime_secs`; `nbf` and `iat` have
  the clock error for leeway.
- It has exactly one audience, ours.
- It is bound to no key (`cnf`): what its issuer wanted proven with it would not be.
- What the issuer must claim of everybody is claimed, and a rule fits.

What was verified is kept under its SHA-256, in bounds, since many present one token again and again. Its end,
and whether its issuer still has the very key, is asked on every use. How often an issuer's keys are fetched
is `kkp.authn.jwks`'s.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple, Protocol, final

import msgspec

from kkp import mappings, tokens
from kkp.authn.base import Once, Proven
from kkp.authn.federation import Federation
from kkp.certificates import is_workload
from kkp.clock import Clock
from kkp.errors import TokenExpiredError, TokenInvalidError, UnauthenticatedError
from kkp.issuers import Issuer
from kkp.jwk import PublicKey
from kkp.model import JSON, Credentials
from kkp.strict_json import refuse_duplicates

CACHE_SIZE: Final = 4096
# Media types are compared without regard to case (RFC 7515 section 4.1.9); what is meant for another use,
# such as a logout or a proof, has another.
_TYPES: Final = frozenset({None, "jwt", "jose", "at+jwt"})
_BRINGS_A_KEY: Final = ("crit", "jwk", "jku", "x5u", "x5c")
_MAX_KID_CHARACTERS: Final = 256


class Keys(Protocol):
    """One issuer's keys."""

    def current(self, kid: str) -> PublicKey | None:
        """Return a key that is known, as long as it is."""

    async def find(self, kid: str) -> PublicKey | None:
        """Return a key, and look for it if it is not known and that may be looked for now.

        Raises:
            IssuerUnavailableError: None of the issuer's keys is known.
        """


class Trusted(NamedTuple):
    """An issuer, by its name in the configuration, and its keys."""

    name: str
    issuer: Issuer
    audience: str
    keys: Keys


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str
    typ: str | None = None


class _Registered(msgspec.Struct, frozen=True):
    aud: str | list[str]
    exp: int
    nbf: int | None = None
    iat: int | None = None
    jti: str | None = None


class _Unverified(NamedTuple):
    header: _Header
    claims: Mapping[str, JSON]


class _Verified(NamedTuple):
    keys: Keys
    kid: str
    key: PublicKey
    exp: int
    proven: Proven


@final
class Assertions:
    """Verifies them; see `Method`.

    Args:
        trusted: The issuers.
        federation: Whom their tokens make callers.
        clock: What time it is.
        clock_error_seconds: S.
    """

    def __init__(
        self, trusted: Sequence[Trusted], federation: Federation, clock: Clock, *, clock_error_seconds: float
    ) -> None:
        self._by_issuer = {each.issuer.issuer: each for each in trusted if each.issuer.issuer}
        self._by_trust_domain = {
            each.issuer.trust_domain: each for each in trusted if each.issuer.trust_domain
        }
        self._federation = federation
        self._clock = clock
        self._clock_error_seconds = clock_error_seconds
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def prove(self, credentials: Credentials) -> Proven | None:
        """Return who is calling; None where the bearer is no configured issuer's."""
        token = credentials.unverified_bearer
        if token is None:
            return None
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known = self._verified.get(digest)
        if known is not None and known.keys.current(known.kid) is known.key:
            if self._clock.now() >= known.exp:
                raise _expired()
            return known.proven
        unverified = _read(token)
        trusted = self._issuer_of(unverified.claims) if unverified is not None else None
        if unverified is None or trusted is None:
            return None
        verified = await self._verify(token, unverified, trusted)
        self._remember(digest, verified)
        return verified.proven

    def _issuer_of(self, claims: Mapping[str, JSON]) -> Trusted | None:
        issuer, subject = claims.get("iss"), claims.get("sub")
        if isinstance(issuer, str) and issuer in self._by_issuer:
            return self._by_issuer[issuer]
        # One rule for both kinds of SVID: a path with dots would fit the pattern of another's beginning.
        if not isinstance(subject, str) or not is_workload(subject):
            return None
        return self._by_trust_domain.get(subject.removeprefix("spiffe://").partition("/")[0])

    async def _verify(self, token: str, unverified: _Unverified, trusted: Trusted) -> _Verified:
        header, issuer = unverified.header, trusted.issuer
        key = await trusted.keys.find(header.kid) if header.alg in issuer.algorithms else None
        if key is None:
            raise _unknown()
        try:
            tokens.verify_signature(token, key, header.alg)
        except TokenInvalidError:
            raise _unknown() from None
        claims = unverified.claims
        registered = self._checked(claims, trusted)
        proven = self._federation.prove(trusted.name, mappings.find(claims, issuer.subject), claims)
        if issuer.single_use:
            proven = msgspec.structs.replace(proven, once=(self._once(registered, issuer),))
        return _Verified(trusted.keys, header.kid, key, registered.exp, proven)

    def _checked(self, claims: Mapping[str, JSON], trusted: Trusted) -> _Registered:
        issuer, now = trusted.issuer, self._clock.now()
        try:
            registered = msgspec.convert(claims, _Registered)
        except msgspec.ValidationError:
            raise UnauthenticatedError(
                "The credential lacks `aud` or `exp`, or has a malformed claim."
            ) from None
        if now >= registered.exp:
            raise _expired()
        starts = max(registered.nbf or 0, registered.iat or 0)
        if starts > now + self._clock_error_seconds:
            raise UnauthenticatedError("The credential is not valid yet.")
        if registered.exp > now + issuer.max_lifetime_secs + self._clock_error_seconds:
            raise UnauthenticatedError("The credential lives longer than KKP takes from its issuer.")
        if registered.aud not in (trusted.audience, [trusted.audience]):
            raise UnauthenticatedError("The credential is not for KKP, or not for KKP alone.")
        if "cnf" in claims:
            raise UnauthenticatedError("The credential is bound to a key, which KKP would not check.")
        if not mappings.fits(claims, issuer.required):
            raise UnauthenticatedError("The credential lacks a claim that KKP wants of its issuer.")
        return registered

    def _once(self, registered: _Registered, issuer: Issuer) -> Once:
        if not registered.jti:
            raise UnauthenticatedError("The credential has no `jti`, and is good for one use.")
        value = msgspec.json.encode([issuer.who, registered.jti])
        # Whichever clock is furthest behind takes it for good no longer than that.
        return Once("assertion", value, registered.exp + 2 * self._clock_error_seconds)

    def _remember(self, digest: bytes, verified: _Verified) -> None:
        self._verified[digest] = verified
        self._verified.move_to_end(digest)
        if len(self._verified) > CACHE_SIZE:
            self._verified.popitem(last=False)


def _read(token: str) -> _Unverified | None:
    """Return what a token says, if it has the form of one that an issuer might have signed."""
    if len(token) > tokens.MAX_TOKEN_BYTES:
        return None
    header = _read_header(token.partition(".")[0])
    if header is None:
        return None
    try:
        _, payload, _ = tokens.decode_segments(token)
        refuse_duplicates(payload)
        return _Unverified(header, msgspec.json.decode(payload, type=dict[str, JSON]))
    except (TokenInvalidError, msgspec.DecodeError, ValueError, RecursionError):
        return None


@lru_cache(maxsize=64)  # those of KKP's own tokens come with most requests, and there are few at a time
def _read_header(segment: str) -> _Header | None:
    """Return a header that a token of an issuer's may have."""
    try:
        document = tokens.decode_segment(segment)
        refuse_duplicates(document)
        members = msgspec.json.decode(document, type=dict[str, JSON])
        header = msgspec.convert(members, _Header)
    except (TokenInvalidError, msgspec.DecodeError, ValueError, RecursionError):
        return None
    type_ = header.typ.lower() if header.typ is not None else None
    brings_a_key = any(name in members for name in _BRINGS_A_KEY)
    if type_ not in _TYPES or brings_a_key or len(header.kid) > _MAX_KID_CHARACTERS:
        return None
    return header


def _unknown() -> UnauthenticatedError:
    return UnauthenticatedError("The credential is not known.")


def _expired() -> TokenExpiredError:
    return TokenExpiredError("The credential has expired.")
