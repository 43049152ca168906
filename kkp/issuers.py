"""Whose tokens are taken as credentials: the tables `[issuers.NAME]` of `kkp.toml`, checked. Pure.

```
[issuers.k8s]
issuer = "https://kubernetes.default.svc.cluster.local"
jwks_url = "https://kubernetes.default.svc/openid/v1/jwks"
jwks_ca_file = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
jwks_token_file = "/var/run/secrets/kubernetes.io/serviceaccount/token"
algorithms = ["RS256"]

[issuers.spire]
trust_domain = "example.org"
keys = [{ kty = "EC", crv = "P-256", kid = "…", x = "…", y = "…" }]
```

with the rules of `kkp.mappings` under each. In the environment the same tables are a JSON object. Names are
repeated in what is told, as whoever mends the file needs them; values are not, but for a rule's backend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from kkp import destinations, jwk, mappings
from kkp.mappings import ClaimPath, Rule, Wanted
from kkp.model import JSON
from kkp.names import Audience

GOOD: Final = 'tables such as [issuers.k8s], or a JSON object {"k8s": {…}}'
_MIN_KEYS_SECONDS, _MAX_KEYS_SECONDS = 600, 86_400
_MAX_LIFETIME_SECONDS: Final = 366 * 86_400
_AT_PLACE: Final = re.compile(r" - at `\$\.?(?P<place>[^`]*)`\Z")


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One issuer.

    Attributes:
        issuer: The exact `iss` of its tokens; empty where a trust domain tells them.
        trust_domain: Of SPIFFE: its JWT-SVIDs need have no `iss`, and their `sub` is an ID of this domain.
        audience: The one `aud` that its tokens must have; empty for KKP_ISSUER.
        algorithms: Those that are taken from it.
        jwks_url: Where its keys are fetched; empty where they are given.
        jwks_ca_file: PEM certificates of who vouches for that place; empty for the system's.
        jwks_token_file: A file with the bearer token that the place asks for; empty for none.
        keys: Its keys, as JWKs, where they are not fetched.
        keys_secs: How long a set of keys serves, once it was fetched.
        max_lifetime_secs: How far ahead the `exp` of its tokens may lie.
        required: What every token of it must claim.
        subject: The claim that names who is calling.
        single_use: Whether a token opens one request alone, by its `jti`.
        rules: Who may do what, by name; the first that fits counts.
    """

    issuer: Annotated[str, msgspec.Meta(max_length=512)] = ""
    trust_domain: str = ""
    audience: Audience | None = None
    algorithms: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = ("RS256", "ES256")
    jwks_url: str = ""
    jwks_ca_file: str = ""
    jwks_token_file: str = ""
    keys: list[dict[str, Any]] = []
    keys_secs: int = 3600
    max_lifetime_secs: int = 86_400
    required: Wanted = {}
    subject: ClaimPath = "sub"
    single_use: bool = False
    rules: dict[str, Rule] = {}

    def __repr__(self) -> str:
        """Name it; a private key may have been put among its keys by mistake."""
        return f"Issuer({self.who!r})"

    @property
    def who(self) -> str:
        """Who it is, in the eyes of everybody: two tables about one issuer are about one."""
        return self.issuer or f"spiffe://{self.trust_domain}"

    @property
    def ca_file(self) -> Path | None:
        """The file of `jwks_ca_file`."""
        return Path(self.jwks_ca_file) if self.jwks_ca_file else None

    @property
    def token_file(self) -> Path | None:
        """The file of `jwks_token_file`."""
        return Path(self.jwks_token_file) if self.jwks_token_file else None


def read(text: str) -> dict[str, Issuer]:
    """Return the issuers of a JSON object.

    Raises:
        ValueError: It is none, or one of them has not the right form.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Issuer]) if text else {}
    except msgspec.DecodeError:
        raise ValueError("not issuers") from None


def form_problems(kind: str, form: type[msgspec.Struct], page: str, tables: JSON) -> Iterator[str]:
    """Yield what is wrong with the form of a member of the file that is tables, each with its cure.

    Args:
        kind: The member's name.
        form: What each table must be.
        page: Of the documentation.
        tables: The member.
    """
    if not isinstance(tables, dict):
        yield f"`{kind}` is a table for each of them: [{kind}.NAME]"
        return
    for name, table in tables.items():
        try:
            msgspec.convert(table, form)
        except msgspec.ValidationError as error:
            yield f"[{kind}.{name}]{_told(str(error))}; see docs/callers/{page}"


def _told(message: str) -> str:
    """Return what msgspec says, with the place first; it quotes no value."""
    place = _AT_PLACE.search(message)
    if place is None:
        return f": {message}"
    return f" {place['place']}: {message[: place.start()]}"


def problems(
    issuers: Mapping[str, Issuer], own_issuer: str, backends: Mapping[str, str] | None
) -> Iterator[str]:
    """Yield what is wrong with issuers that have the right form, each with its cure.

    Args:
        issuers: By name.
        own_issuer: KKP_ISSUER.
        backends: Those that there are; None where they could not be read.
    """
    seen: dict[str, str] = {}
    for name, issuer in issuers.items():
        title = f"[issuers.{name}]"
        yield from (f"{title}: {problem}" for problem in _of_issuer(name, issuer, own_issuer))
        yield from mappings.problems(title, issuer.rules, backends)
        if issuer.who in seen:
            yield f"{title}: it is the issuer of [issuers.{seen[issuer.who]}] as well; make one table of both"
        seen[issuer.who] = name


def _of_issuer(name: str, issuer: Issuer, own_issuer: str) -> Iterator[str]:
    if not mappings.NAME.match(name) or name in mappings.RESERVED:
        yield (
            "an issuer's name is 1 to 32 of a-z, 0-9, - and _, begins with a letter or digit, and is none of "
            f"{', '.join(sorted(mappings.RESERVED))}"
        )
    if bool(issuer.issuer) == bool(issuer.trust_domain):
        yield "it takes issuer, the exact `iss`, or trust_domain, of SPIFFE; give one of them"
    if issuer.issuer and issuer.issuer == own_issuer:
        yield "its issuer is KKP itself, whose tokens are taken anyway; take it out"
    if issuer.trust_domain:
        yield from _of_trust_domain(issuer)
    unknown = sorted(set(issuer.algorithms) - jwk.ALGORITHMS)
    if unknown:
        known = ", ".join(sorted(jwk.ALGORITHMS))
        yield f"algorithms: {', '.join(unknown)[:80]} is not taken; there are {known}"
    if not _MIN_KEYS_SECONDS <= issuer.keys_secs <= _MAX_KEYS_SECONDS:
        yield f"keys_secs: give seconds from {_MIN_KEYS_SECONDS} to {_MAX_KEYS_SECONDS}"
    if not 0 < issuer.max_lifetime_secs <= _MAX_LIFETIME_SECONDS:
        yield f"max_lifetime_secs: give seconds from 1 to {_MAX_LIFETIME_SECONDS}"
    yield from _of_keys(issuer)


def _of_trust_domain(issuer: Issuer) -> Iterator[str]:
    if not mappings.TRUST_DOMAIN.match(issuer.trust_domain):
        yield "trust_domain: it is the host of its SPIFFE IDs, such as example.org"
    if issuer.subject != "sub":
        yield "subject: a JWT-SVID names its holder by `sub`; take it out"


def _of_keys(issuer: Issuer) -> Iterator[str]:
    if bool(issuer.jwks_url) == bool(issuer.keys):
        yield "it takes jwks_url, or keys; give one of them"
    if issuer.jwks_url:
        problem = destinations.url_problem(issuer.jwks_url)
        if problem is not None:
            yield f"jwks_url: {problem}"
    elif issuer.jwks_ca_file or issuer.jwks_token_file:
        yield "jwks_ca_file and jwks_token_file are for a jwks_url; take them out"
    if any("d" in key for key in issuer.keys):
        yield "keys: a private half stands there, and is known now; make a new pair, and give the public half"
    elif issuer.keys:
        try:
            jwk.of_members(issuer.keys)
        except ValueError as error:
            yield f"keys: {error}; give public keys with kty and kid"


def warnings(issuers: Mapping[str, Issuer]) -> Iterator[str]:
    """Yield what is not wrong with issuers but looks unintended."""
    for name, issuer in issuers.items():
        yield from mappings.loose(f"[issuers.{name}] required", issuer.required)
        for rule_name, rule in issuer.rules.items():
            yield from mappings.loose(f"[issuers.{name}.rules.{rule_name}] match", rule.match)
