"""Tokens of others as credentials: what is taken, what is refused, and that nothing is taken for another."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from kkp.authn.assertions import CACHE_SIZE, Assertions, Trusted
from kkp.authn.base import Once, Proven
from kkp.authn.federation import Federation
from kkp.authn.jwks import GivenKeys
from kkp.errors import AuthenticationError, IssuerUnavailableError, TokenExpiredError, UnauthenticatedError
from kkp.issuers import Issuer
from kkp.jwk import PublicKey, of_members
from kkp.mappings import Rule, Source
from kkp.model import Caller, Credentials
from kkp.tokens import Federated
from tests.fakes.clock import FakeClock
from tests.issuer import AUDIENCE, ISSUER, FakeIssuer, private_key, segment
from tests.promises import Recorder

CLOCK_ERROR = 5
NOW = 1_750_000_000
RULES = {"all": Rule(match={"sub": "*"}, roles=["service"])}


@dataclass
class World:
    """Assertions of one issuer, `k8s`, and how often a key was looked for."""

    issuer: FakeIssuer = field(default_factory=FakeIssuer)
    table: dict[str, Any] = field(default_factory=dict)
    clock: FakeClock = field(default_factory=lambda: FakeClock(NOW))
    looked_for: list[str] = field(default_factory=list)
    keys: dict[str, PublicKey] = field(default_factory=dict)
    is_unavailable: bool = False

    def __post_init__(self) -> None:
        self.keys = dict(of_members(self.issuer.jwk_list()))
        members = {"issuer": ISSUER, "rules": RULES, "algorithms": ["ES256"], **self.table}
        trusted = [Trusted("k8s", Issuer(**members), AUDIENCE, self)]
        federation = Federation([Source("k8s", "jwt", members["rules"])])
        self.assertions = Assertions(trusted, federation, self.clock, clock_error_seconds=CLOCK_ERROR)

    def current(self, kid: str) -> PublicKey | None:
        return self.keys.get(kid)

    async def find(self, kid: str) -> PublicKey | None:
        self.looked_for.append(kid)
        if self.is_unavailable:
            raise IssuerUnavailableError("away")
        return self.keys.get(kid)

    async def prove(self, token: str | None) -> Proven | None:
        return await self.assertions.prove(Credentials(token))


@pytest.fixture
def world() -> World:
    return World()


async def test_a_good_token_makes_the_caller_that_its_rule_says(world: World) -> None:
    proven = await world.prove(world.issuer.sign())
    assert proven == Proven(
        Caller("k8s:orders", "service", ("service",), "k8s", "jwt", {}, ()),
        federated=Federated("k8s/all", {}),
    )


KINDS = {
    "RS256": "RSA",
    "RS384": "RSA",
    "RS512": "RSA",
    "PS256": "RSA",
    "PS384": "RSA",
    "PS512": "RSA",
    "ES256": "P-256",
    "ES384": "P-384",
    "ES512": "P-521",
    "EdDSA": "Ed25519",
}


@pytest.mark.parametrize("algorithm", KINDS)
async def test_every_algorithm_is_verified_and_none_in_the_place_of_another(algorithm: str) -> None:
    issuer = FakeIssuer({"key-1": KINDS[algorithm]})
    token = issuer.sign(algorithm=algorithm)
    assert await World(issuer, {"algorithms": [algorithm]}).prove(token) is not None
    others = sorted(KINDS.keys() - {algorithm})
    with pytest.raises(UnauthenticatedError):
        await World(issuer, {"algorithms": others}).prove(token)
    altered = f"{token.rpartition('.')[0]}.{segment(bytes(64))}"
    with pytest.raises(UnauthenticatedError):
        await World(issuer, {"algorithms": [algorithm]}).prove(altered)


async def test_a_key_with_an_algorithm_of_its_own_serves_no_other_of_its_type() -> None:
    issuer = FakeIssuer({"key-1": "RSA"})
    world = World(issuer, {"algorithms": ["RS256", "PS256"]})
    world.keys = dict(of_members(issuer.jwk_list(alg="RS256")))
    assert await world.prove(issuer.sign(algorithm="RS256")) is not None
    with pytest.raises(UnauthenticatedError):
        await world.prove(issuer.sign(algorithm="PS256"))


# What is none of an issuer's, and so is left to whoever comes next.

_header, _payload, _signature = FakeIssuer().sign().split(".")


def with_header(**members: Any) -> Callable[[FakeIssuer], str]:
    return lambda issuer: issuer.sign(header=members)


def raw(header: str, payload: str | None = None) -> Callable[[FakeIssuer], str]:
    """Return a token, well signed, whose header or claims are written so."""

    def sign(issuer: FakeIssuer) -> str:
        claims = json.dumps(issuer.claims()) if payload is None else payload
        return issuer.sign_raw(header.encode(), claims.encode())

    return sign


HEADER = '{"alg":"ES256","kid":"key-1"}'
SELF_MADE = {"kty": "oct", "k": "c2VjcmV0"}
NONE_OF_OURS: dict[str, Callable[[FakeIssuer], str | None]] = {
    "nothing": lambda _: None,
    "a service key": lambda _: "kkp_sk_x",
    "two segments": lambda _: "a.b",
    "four segments": lambda issuer: f"{issuer.sign()}.a",
    "padding": lambda issuer: issuer.sign() + "=",
    "a space": lambda issuer: f" {issuer.sign()}",
    "a line break": lambda issuer: f"{issuer.sign()}\n",
    "an empty signature": lambda issuer: f"{issuer.sign().rpartition('.')[0]}.",
    "more than 8 KiB": lambda issuer: issuer.sign(issuer.claims(more="x" * 8192)),
    "JSON in place of a compact form": lambda issuer: json.dumps({"payload": issuer.sign()}),
    "an issuer that is not configured": lambda issuer: issuer.sign(issuer.claims(iss="https://evil.example")),
    "an issuer in capitals": lambda issuer: issuer.sign(issuer.claims(iss=ISSUER.upper())),
    "an issuer with a slash more": lambda issuer: issuer.sign(issuer.claims(iss=f"{ISSUER}/")),
    "an issuer of which ours begins": lambda issuer: issuer.sign(issuer.claims(iss=f"{ISSUER}.evil.example")),
    "no issuer": lambda issuer: issuer.sign(issuer.claims(iss=...)),
    "two issuers": raw(HEADER, f'{{"iss":["{ISSUER}"],"sub":"orders","aud":"{AUDIENCE}","exp":9999999999}}'),
    "an issuer given twice": raw(HEADER, f'{{"iss":"{ISSUER}","iss":"{ISSUER}","exp":9999999999}}'),
    "a claim given twice, further in": raw(HEADER, f'{{"iss":"{ISSUER}","a":{{"b":1,"b":1}}}}'),
    "claims that are a list": raw(HEADER, "[]"),
    "claims that are no JSON": raw(HEADER, "{"),
    "claims that end in more": raw(HEADER, f'{{"iss":"{ISSUER}"}} {{}}'),
    "claims with a number that is none": raw(HEADER, f'{{"iss":"{ISSUER}","exp":NaN}}'),
    "claims with a number beyond all": raw(HEADER, f'{{"iss":"{ISSUER}","exp":1e400}}'),
    "claims that are nested without end": raw(HEADER, f'{{"iss":"{ISSUER}","a":{"[" * 2500}'),
    "a header without a kid": raw('{"alg":"ES256"}'),
    "a kid that is a number": raw('{"alg":"ES256","kid":1}'),
    "a kid that is null": raw('{"alg":"ES256","kid":null}'),
    "a kid that is too long": raw(f'{{"alg":"ES256","kid":"{"k" * 257}"}}'),
    "a kid given twice": raw('{"alg":"ES256","kid":"key-2","kid":"key-1"}'),
    "no algorithm": raw('{"kid":"key-1"}'),
    "algorithms": raw('{"alg":["ES256"],"kid":"key-1"}'),
    "a header that is a list": raw("[]"),
    "a header that is no JSON": raw("{"),
    "a header with a key": with_header(jwk=SELF_MADE),
    "a header with the place of a key": with_header(jku="https://evil.example/keys"),
    "a header with a certificate": with_header(x5c=["MIIB"]),
    "a header with the place of a certificate": with_header(x5u="https://evil.example/cert"),
    "a header with something critical": raw('{"alg":"ES256","kid":"key-1","crit":["exp"],"exp":1}'),
    "a header with nothing critical": raw('{"alg":"ES256","kid":"key-1","crit":[]}'),
    "a payload that is not encoded": raw('{"alg":"ES256","kid":"key-1","crit":["b64"],"b64":false}'),
    "a KKP token's type": with_header(typ="kkp+jwt"),
    "a session's type": with_header(typ="kkp-session+jwt"),
    "a proof's type": with_header(typ="dpop+jwt"),
    "a logout's type": with_header(typ="logout+jwt"),
    "a type that is no text": raw('{"alg":"ES256","kid":"key-1","typ":1}'),
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("make", NONE_OF_OURS.values(), ids=NONE_OF_OURS.keys())
async def test_it_is_no_token_of_an_issuer_s_that_has(
    world: World, make: Callable[[FakeIssuer], str | None]
) -> None:
    assert await world.prove(make(world.issuer)) is None
    assert world.looked_for == []


@pytest.mark.parametrize("typ", ["JWT", "jwt", "JOSE", "at+jwt"])
async def test_a_type_that_tokens_have_is_taken(world: World, typ: str) -> None:
    assert await world.prove(world.issuer.sign(header={"typ": typ})) is not None


async def test_a_token_without_a_type_is_taken(world: World) -> None:
    assert await world.prove(raw(HEADER)(world.issuer)) is not None


# What an issuer is named by and did not sign.


def public_pem(kind: str) -> bytes:
    """Return what an attacker has to sign with: the public key, as text."""
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    pem: bytes = private_key(kind).public_key().public_bytes(encoding, form)
    return pem


def unsigned(algorithm: str) -> Callable[[FakeIssuer], str]:
    def make(issuer: FakeIssuer) -> str:
        header = json.dumps({"alg": algorithm, "kid": "key-1"}).encode()
        return f"{segment(header)}.{segment(json.dumps(issuer.claims()).encode())}.{segment(b'x')}"

    return make


def by_the_public_key(issuer: FakeIssuer) -> str:
    """Sign by HS256, with the public key for a secret (CVE-2022-29217)."""
    secret = base64.b64encode(public_pem("P-256"))  # PyJWT refuses the PEM itself
    return jwt.encode(issuer.claims(), secret, algorithm="HS256", headers={"kid": "key-1"})


def by_another_of_the_same_name(issuer: FakeIssuer) -> str:
    return FakeIssuer({"key-1": "Ed25519"}).sign(issuer.claims(), algorithm="EdDSA")


def with_another_payload(issuer: FakeIssuer) -> str:
    header, _, signature = issuer.sign().split(".")
    return f"{header}.{segment(json.dumps(issuer.claims(sub='admin')).encode())}.{signature}"


NOT_SIGNED: dict[str, Callable[[FakeIssuer], str]] = {
    "by nobody": unsigned("none"),
    "by nobody, in capitals": unsigned("None"),
    "by nobody, in mixed letters": unsigned("NoNe"),
    "by an algorithm of which nobody has heard": unsigned("XY256"),
    "by ES256, and not at all": unsigned("ES256"),
    "by the public key for a secret": by_the_public_key,
    "by another key of that name": by_another_of_the_same_name,
    "over other claims": with_another_payload,
    "by a key that it has not": raw('{"alg":"ES256","kid":"key-2"}'),
    "by a key named by a path": raw('{"alg":"ES256","kid":"../../etc/passwd"}'),
    "by a key named by a URL": raw('{"alg":"ES256","kid":"https://evil.example/key"}'),
    "by a key named in SQL": raw('{"alg":"ES256","kid":"x\' OR \'1\'=\'1"}'),
    "by a key without a name": raw('{"alg":"ES256","kid":""}'),
}


@pytest.mark.promise(13)
@pytest.mark.parametrize("make", NOT_SIGNED.values(), ids=NOT_SIGNED.keys())
async def test_who_shows_what_an_issuer_did_not_sign_learns_nothing(
    world: World, make: Callable[[FakeIssuer], str]
) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        await world.prove(make(world.issuer))
    assert str(refused.value) == "The credential is not known."


@pytest.mark.promise(17)
@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "ES384"])
async def test_no_key_is_looked_for_where_the_algorithm_is_none_of_the_issuer_s(
    world: World, algorithm: str
) -> None:
    with pytest.raises(UnauthenticatedError):
        await world.prove(unsigned(algorithm)(world.issuer))
    assert world.looked_for == []


@pytest.mark.promise(13)
async def test_no_token_that_differs_in_one_byte_is_taken(world: World, record_promise: Recorder) -> None:
    token, accepted = world.issuer.sign(), 0
    others = [*mutations(token)]
    for other in others:
        try:
            accepted += await world.prove(other) is not None
        except AuthenticationError:
            continue
    record_promise(13, "mutations", len(others), accepted=accepted)
    assert accepted == 0
    assert await world.prove(token) is not None


def mutations(token: str) -> Iterator[str]:
    """Yield the token with one character changed, dropped or doubled."""
    for place, character in enumerate(token):
        other = "B" if character != "B" else "C"
        yield token[:place] + other + token[place + 1 :]
        yield token[:place] + token[place + 1 :]
        yield token[:place] + character + token[place:]


# What an issuer signed that is not for KKP, or not now.

WRONG: dict[str, dict[str, Any]] = {
    "no audience": {"aud": ...},
    "another audience": {"aud": "https://other.example"},
    "an audience in capitals": {"aud": AUDIENCE.upper()},
    "an audience that begins like ours": {"aud": f"{AUDIENCE}.evil.example"},
    "the beginning of our audience": {"aud": AUDIENCE[:-1]},
    "an audience with a space more": {"aud": f"{AUDIENCE} "},
    "our audience and another": {"aud": [AUDIENCE, "https://other.example"]},
    "our audience twice": {"aud": [AUDIENCE, AUDIENCE]},
    "a list without an audience": {"aud": []},
    "an audience that is null": {"aud": None},
    "an audience within a list of lists": {"aud": [[AUDIENCE]]},
    "an audience that is a number": {"aud": 1},
    "no end": {"exp": ...},
    "an end that is text": {"exp": str(NOW + 600)},
    "an end that is a fraction": {"exp": NOW + 600.5},
    "an end that is null": {"exp": None},
    "an end that is true": {"exp": True},
    "a beginning that is text": {"nbf": str(NOW)},
    "a beginning in the future": {"nbf": NOW + CLOCK_ERROR + 1},
    "an issuing in the future": {"iat": NOW + CLOCK_ERROR + 1},
    "an issuing that is text": {"iat": str(NOW)},
    "a life that is too long": {"exp": NOW + 86_400 + CLOCK_ERROR + 1},
    "a key that it is bound to": {"cnf": {"jkt": "x"}},
    "no subject": {"sub": ...},
    "an empty subject": {"sub": ""},
    "a subject that is a number": {"sub": 1},
    "a subject that is a list": {"sub": ["orders"]},
    "a subject with a space": {"sub": "or ders"},
    "a subject with a line break": {"sub": "orders\n"},
    "a subject beyond ASCII": {"sub": "ordérs"},
    "a subject that is too long": {"sub": "o" * 253},
}


@pytest.mark.promise(15, 16)
@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG.keys())
async def test_a_token_is_refused_that_has(
    world: World, changes: Mapping[str, Any], record_promise: Recorder
) -> None:
    with pytest.raises(UnauthenticatedError) as refused:
        await world.prove(world.issuer.sign(world.issuer.claims(**changes)))
    assert str(refused.value) != "The credential is not known."
    assert "orders" not in str(refused.value)
    record_promise(15, "claims", 1, accepted=0)


RIGHT: dict[str, dict[str, Any]] = {
    "our audience in a list": {"aud": [AUDIENCE]},
    "no issuing and no beginning": {"iat": ..., "nbf": ...},
    "a beginning within the clocks' error": {"nbf": NOW + CLOCK_ERROR},
    "an issuing within the clocks' error": {"iat": NOW + CLOCK_ERROR},
    "an end a second away": {"exp": NOW + 1},
    "the longest life": {"exp": NOW + 86_400 + CLOCK_ERROR},
    "no id": {"jti": ...},
    "the longest subject": {"sub": "o" * 252},
    "claims of its own": {"kubernetes.io": {"namespace": "shop"}, "groups": ["a", "b"]},
}


@pytest.mark.promise(15)
@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT.keys())
async def test_a_token_is_taken_that_has(
    world: World, changes: Mapping[str, Any], record_promise: Recorder
) -> None:
    assert await world.prove(world.issuer.sign(world.issuer.claims(**changes))) is not None
    record_promise(15, "claims", 1, refused=0)


@pytest.mark.promise(15)
async def test_a_token_ends_to_the_second_also_once_it_was_verified(world: World) -> None:
    token = world.issuer.sign()
    world.clock.advance(599)
    assert await world.prove(token) is not None
    assert await world.prove(token) is not None
    world.clock.advance(1)
    with pytest.raises(TokenExpiredError):
        await world.prove(token)
    fresh = World(world.issuer, clock=world.clock)
    with pytest.raises(TokenExpiredError):
        await fresh.prove(token)


async def test_what_the_issuer_must_claim_of_everybody_is_claimed() -> None:
    world = World(table={"required": {"kubernetes.io/namespace": "shop"}})
    good = world.issuer.claims(**{"kubernetes.io": {"namespace": "shop"}})
    assert await world.prove(world.issuer.sign(good)) is not None
    for other in ({}, {"kubernetes.io": {"namespace": "shopping"}}, {"kubernetes.io/namespace": "shop"}):
        with pytest.raises(UnauthenticatedError):
            await world.prove(world.issuer.sign(world.issuer.claims(**other)))


async def test_another_claim_may_name_the_caller() -> None:
    world = World(table={"subject": "kubernetes.io/serviceaccount/name"})
    claims = world.issuer.claims(**{"kubernetes.io": {"serviceaccount": {"name": "billing"}}})
    proven = await world.prove(world.issuer.sign(claims))
    assert proven is not None
    assert proven.caller.id == "k8s:billing"


async def test_whom_no_rule_fits_is_nobody() -> None:
    world = World(table={"rules": {"one": Rule(match={"sub": "orders"}, roles=["service"])}})
    assert await world.prove(world.issuer.sign()) is not None
    with pytest.raises(UnauthenticatedError):
        await world.prove(world.issuer.sign(world.issuer.claims(sub="billing")))


# What serves one request.


@pytest.mark.promise(16)
async def test_a_token_for_one_use_is_named_by_its_issuer_and_its_jti() -> None:
    world = World(table={"single_use": True})
    once: list[Once] = []
    for claims in (world.issuer.claims(), world.issuer.claims(sub="billing"), world.issuer.claims(jti="2")):
        proven = await world.prove(world.issuer.sign(claims))
        assert proven is not None
        once += proven.once
    # Until the clock that is furthest behind has seen it end.
    until = NOW + 600 + 2 * CLOCK_ERROR
    first = Once("assertion", b'["https://issuer.example","1"]', until)
    assert once == [first, first, Once("assertion", b'["https://issuer.example","2"]', until)]


@pytest.mark.promise(16)
@pytest.mark.parametrize("jti", [..., "", None])
async def test_a_token_for_one_use_without_an_id_is_refused(jti: object) -> None:
    world = World(table={"single_use": True})
    with pytest.raises(UnauthenticatedError):
        await world.prove(world.issuer.sign(world.issuer.claims(jti=jti)))


async def test_a_token_for_many_uses_is_used_up_by_none(world: World) -> None:
    proven = await world.prove(world.issuer.sign())
    assert proven is not None
    assert proven.once == ()


# SPIFFE.

SVID: dict[str, Any] = {
    "iss": ...,
    "sub": "spiffe://example.org/shop/orders",
    "iat": ...,
    "nbf": ...,
    "jti": ...,
}


def spiffe() -> World:
    return World(table={"issuer": "", "trust_domain": "example.org"})


async def test_a_jwt_svid_needs_no_issuer() -> None:
    world = spiffe()
    for iss in (..., "https://spire.example"):
        proven = await world.prove(world.issuer.sign(world.issuer.claims(**{**SVID, "iss": iss})))
        assert proven is not None
        assert proven.caller.id == "k8s:spiffe://example.org/shop/orders"


@pytest.mark.parametrize(
    "sub",
    [
        "spiffe://evil.example/shop/orders",
        "spiffe://example.org.evil.example/shop",
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://Example.org/shop",
        "spiffe:example.org/shop",
        "spiffe://example.org/shop/../pay/orders",
        "spiffe://example.org/shop//orders",
        "spiffe://example.org/shop/orders?a",
        "http://example.org/shop",
        "example.org/shop",
        7,
        ...,
    ],
)
async def test_what_is_no_workload_s_id_in_this_trust_domain_is_nobody_s(sub: object) -> None:
    world = spiffe()
    assert await world.prove(world.issuer.sign(world.issuer.claims(**{**SVID, "sub": sub}))) is None


async def test_a_spiffe_id_in_another_issuer_s_token_is_that_issuer_s_word(world: World) -> None:
    proven = await world.prove(world.issuer.sign(world.issuer.claims(sub="spiffe://example.org/shop")))
    assert proven is not None
    assert proven.caller.id == "k8s:spiffe://example.org/shop"


# What was verified once.


async def test_one_verification_serves_every_further_use(world: World) -> None:
    token = world.issuer.sign()
    first = await world.prove(token)
    assert await world.prove(token) is first
    assert world.looked_for == ["key-1"]


@pytest.mark.promise(17)
async def test_a_verified_token_dies_with_its_key(world: World) -> None:
    token = world.issuer.sign()
    await world.prove(token)
    del world.keys["key-1"]
    with pytest.raises(UnauthenticatedError):
        await world.prove(token)
    world.is_unavailable = True
    with pytest.raises(IssuerUnavailableError):
        await world.prove(token)


async def test_a_verified_token_is_verified_again_where_its_key_is_another(world: World) -> None:
    token = world.issuer.sign()
    await world.prove(token)
    world.keys["key-1"] = of_members(FakeIssuer({"key-1": "Ed25519"}).jwk_list())["key-1"]
    with pytest.raises(UnauthenticatedError):
        await world.prove(token)


async def test_the_cache_is_bounded_and_what_is_forged_pushes_nothing_out(world: World) -> None:
    token = world.issuer.sign()
    await world.prove(token)
    for number in range(CACHE_SIZE + 100):
        with pytest.raises(UnauthenticatedError):
            await world.prove(f"{token.rpartition('.')[0]}.{segment(number.to_bytes(64, 'big'))}")
    assert next(iter(world.assertions._verified.values())).exp == NOW + 600
    for number in range(CACHE_SIZE + 1):
        world.assertions._remember(f"{number}".encode(), next(iter(world.assertions._verified.values())))
    assert len(world.assertions._verified) == CACHE_SIZE


@pytest.mark.promise(21)
async def test_of_pairs_of_tokens_that_differ_in_one_claim_none_gets_the_others(
    record_promise: Recorder,
) -> None:
    world = World(
        table={
            "rules": {"all": Rule(match={"sub": "*"}, roles=["service"], attributes_from={"team": "team"})}
        }
    )
    pairs = 200
    for number in range(pairs):
        name = ("sub", "team")[number % 2]
        claims = world.issuer.claims(sub=f"a{number}", team="one")
        tokens = [world.issuer.sign(claims), world.issuer.sign({**claims, name: "other"})]
        for token, expected in zip(
            [*tokens, tokens[0]], [claims, {**claims, name: "other"}, claims], strict=True
        ):
            proven = await world.prove(token)
            assert proven is not None
            assert proven.caller.id == f"k8s:{expected['sub']}"
            assert proven.caller.attributes == {"team": expected["team"]}
    record_promise(21, "pairs", pairs)


async def test_given_keys_are_all_that_there_are() -> None:
    keys = GivenKeys(of_members(FakeIssuer().jwk_list()))
    assert keys.current("key-1") is await keys.find("key-1")
    assert keys.current("key-2") is await keys.find("key-2") is None
