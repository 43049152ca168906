"""Who is calling: every combination of credentials, and what a cached token must not outlive."""

from __future__ import annotations

import hashlib
import os
import pwd
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from nacl.signing import SigningKey

from kkp.authn.authenticator import Authenticator
from kkp.authn.base import Authenticated, Method, Once, Proven
from kkp.authn.dpop import Proofs
from kkp.authn.federation import Federation
from kkp.authn.identities import IdentityDirectory
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.authn.operator import LocalOperator
from kkp.authn.service_keys import ServiceKeys
from kkp.errors import (
    AuthenticationError,
    DPoPProofError,
    InvalidRequestError,
    ProofRequiredError,
    StateUntrustedError,
    TokenExpiredError,
    TokenInvalidError,
    UnauthenticatedError,
)
from kkp.mappings import Rule, Source
from kkp.master_key import MasterKey
from kkp.model import Caller, Credentials, Grant, Identity, PresentedCertificate
from kkp.store.identities import IdentityStore
from kkp.store.sqlite import SQLiteDatabase
from kkp.tokens import Actor, Claims, Confirmation, Federated, encode_claims, sign
from tests.fakes.clock import FakeClock
from tests.promises import Recorder
from tests.proofs import Holder, base64url

NOW = 1_750_000_000
CLOCK_ERROR = 5
ISSUER = "https://kkp.test"
SIGNER = SigningKey(b"s" * 32)
GRANT = Grant("aws", "alias/orders", ("encrypt", "decrypt"))
CLAIMS = Claims(
    iss=ISSUER,
    sub="orders",
    aud="orders-db",
    iat=NOW,
    nbf=NOW,
    exp=NOW + 300,
    jti="1",
    backend="aws",
    key_id="alias/orders",
    ops=["decrypt"],
    policy_claims={},
)
ORDERS_KEY, BILLING_KEY, GONE_KEY = "kkp_sk_orders", "kkp_sk_billing", "kkp_sk_gone"
KEYS = {"orders": ORDERS_KEY, "billing": BILLING_KEY, "gone": GONE_KEY}


def mint(kid: str = "key-1", **changes: object) -> str:
    claims = msgspec.structs.replace(CLAIMS, **changes)
    return sign(encode_claims(claims), kid, lambda data: bytes(SIGNER.sign(data).signature))


class RevokedIds(set[str]):
    """What is revoked by now: ids of tokens, names of identities, and keys as `backend/key_id`."""

    def is_void(self, claims: Claims) -> bool:
        return claims.jti in self

    def is_held(self, *identities: str) -> bool:
        return not self.isdisjoint(identities)

    def is_stopped(self, backend: str, key_id: str | None) -> bool:
        return f"{backend}/{key_id}" in self


class PublishedKeys:
    """What the ring publishes now; a key that is taken out is revoked or gone."""

    def __init__(self, *kids: str) -> None:
        self.keys = {kid: bytes(SIGNER.verify_key) for kid in kids}

    def public_keys(self, now: float) -> Mapping[str, bytes]:
        assert now >= NOW - CLOCK_ERROR
        return self.keys


@dataclass
class World:
    """An authenticator over a real database, and the hands that change what it sees."""

    store: IdentityStore
    directory: IdentityDirectory
    ring: PublishedKeys
    revoked: RevokedIds
    clock: FakeClock
    authenticator: Authenticator

    async def authenticate(self, bearer: str | None = None, token: str | None = None) -> Authenticated:
        return await self.authenticator.authenticate(Credentials(bearer, token), epoch=7)


def authenticator_of(
    directory: IdentityDirectory, verifier: TokenVerifier, revoked: RevokedIds
) -> Authenticator:
    proofs = Proofs(FakeClock(NOW), issuer=ISSUER, clock_error_seconds=CLOCK_ERROR)
    return Authenticator(directory, verifier, revoked, Federation(()), proofs, (ServiceKeys(directory),))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """`orders` and `billing` are enabled, `gone` is disabled, nobody else exists."""
    database = await SQLiteDatabase.open(f"sqlite:///{tmp_path / 'kkp.db'}", master_key_check=b"check")
    store = IdentityStore(database)
    ring, clock = PublishedKeys("key-1", "key-2"), FakeClock(NOW)
    directory = IdentityDirectory(store, MasterKey(b"m" * 32), clock)
    await directory.load()
    for name, key in KEYS.items():
        identity = Identity(name, ("service",), (GRANT,), {"team": name}, NOW)
        await directory.add(identity, service_key=key)
    await directory.disable("gone", at=NOW)
    ring = PublishedKeys("key-1", "key-2")
    revoked = RevokedIds()
    verifier = TokenVerifier(ring, revoked, clock, issuer=ISSUER, clock_error_seconds=CLOCK_ERROR)
    yield World(store, directory, ring, revoked, clock, authenticator_of(directory, verifier, revoked))
    await database.close()


# Every combination of what a request can present.

GOOD, OTHER_GOOD = mint(), mint(jti="2")
ANOTHER_SUBJECT = mint(sub="billing")
ACTED, ACTED_BY_GONE = mint(act=Actor("billing")), mint(act=Actor("gone"))
ACTED_BY_NOBODY = mint(act=Actor("nobody"))
EXPIRED, EARLY = mint(exp=NOW), mint(nbf=NOW + CLOCK_ERROR + 1)
OF_GONE, OF_NOBODY = mint(sub="gone"), mint(sub="nobody")
OF_GONE_FOR_ORDERS = mint(sub="gone", act=Actor("orders"))
UNKNOWN_KEY = mint(kid="key-9")
FORGED = GOOD[:-4] + "AAAA"
FOREIGN = mint(iss="https://elsewhere.test")


class LetIn(NamedTuple):
    """What is presented, and who that is."""

    bearer: str | None
    token: str | None
    caller: str
    method: str


LET_IN = {
    "a service key": LetIn(ORDERS_KEY, None, "orders", "service_key"),
    "a token as bearer": LetIn(GOOD, None, "orders", "kkp_token"),
    "a token in the body": LetIn(None, GOOD, "orders", "kkp_token"),
    "one token in both places": LetIn(GOOD, GOOD, "orders", "kkp_token"),
    "a token of another subject": LetIn(ANOTHER_SUBJECT, None, "billing", "kkp_token"),
    "a token that another asked for": LetIn(ACTED, None, "orders", "kkp_token"),
    "a service key beside its own token": LetIn(ORDERS_KEY, GOOD, "orders", "service_key"),
    "the asker's key beside the token": LetIn(BILLING_KEY, ACTED, "billing", "service_key"),
    # Whether that token is any use to the caller is asked, and recorded, further down the road.
    "a key beside another's token": LetIn(BILLING_KEY, GOOD, "billing", "service_key"),
}
REFUSED: dict[str, tuple[str | None, str | None, type[Exception]]] = {
    "nothing": (None, None, UnauthenticatedError),
    "an unknown service key": ("kkp_sk_unknown", None, UnauthenticatedError),
    "a service key's prefix alone": ("kkp_sk_", None, UnauthenticatedError),
    "a service key that is not Unicode": ("kkp_sk_\ud800", None, UnauthenticatedError),
    "a disabled service's key": (GONE_KEY, None, UnauthenticatedError),
    "an unknown service key beside a good token": ("kkp_sk_unknown", GOOD, UnauthenticatedError),
    "a disabled service's key beside a good token": (GONE_KEY, GOOD, UnauthenticatedError),
    "two different good tokens": (GOOD, OTHER_GOOD, InvalidRequestError),
    "a good and a bad token": (GOOD, FORGED, InvalidRequestError),
    "a good token and an empty one": (GOOD, "", InvalidRequestError),
    "an empty bearer and a good token": ("", GOOD, InvalidRequestError),
    "an empty bearer": ("", None, TokenInvalidError),
    "an empty token": (None, "", TokenInvalidError),
    "a word": ("letmein", None, TokenInvalidError),
    "a service key in the wrong case": (ORDERS_KEY.upper(), None, TokenInvalidError),
    "a service key in the body": (None, ORDERS_KEY, TokenInvalidError),
    "a service key in both places": (ORDERS_KEY, ORDERS_KEY, TokenInvalidError),
    "a token that is not Unicode": (None, "\ud800", TokenInvalidError),
    "an expired token": (EXPIRED, None, TokenExpiredError),
    "a token of the future": (EARLY, None, TokenInvalidError),
    "a forged token": (FORGED, None, TokenInvalidError),
    "a token of an unknown key": (UNKNOWN_KEY, None, TokenInvalidError),
    "a token of another issuer": (FOREIGN, None, TokenInvalidError),
    "a disabled subject": (OF_GONE, None, TokenInvalidError),
    "an unknown subject": (OF_NOBODY, None, TokenInvalidError),
    "a disabled actor": (ACTED_BY_GONE, None, TokenInvalidError),
    "an unknown actor": (ACTED_BY_NOBODY, None, TokenInvalidError),
    "a disabled subject and a good actor": (OF_GONE_FOR_ORDERS, None, TokenInvalidError),
    "a service key beside an expired token": (ORDERS_KEY, EXPIRED, TokenExpiredError),
    "a service key beside a forged token": (ORDERS_KEY, FORGED, TokenInvalidError),
    "a service key beside an empty token": (ORDERS_KEY, "", TokenInvalidError),
    "a service key beside a disabled subject's token": (ORDERS_KEY, OF_GONE, TokenInvalidError),
    "a service key beside a disabled actor's token": (ORDERS_KEY, ACTED_BY_GONE, TokenInvalidError),
}


@pytest.mark.parametrize("case", LET_IN.values(), ids=LET_IN.keys())
async def test_good_credentials_say_who_is_calling(world: World, case: LetIn) -> None:
    authenticated = await world.authenticate(case.bearer, case.token)
    presented_a_token = case.token is not None or case.method == "kkp_token"
    assert authenticated.caller == Caller(
        id=case.caller,
        kind="service",
        roles=("service",),
        issuer="kkp",
        method=case.method,
        attributes={"team": case.caller},
        grants=(GRANT,),
    )
    assert (authenticated.token is not None) == presented_a_token
    assert authenticated.epoch == 7


@pytest.mark.parametrize(("bearer", "token", "error"), REFUSED.values(), ids=REFUSED.keys())
async def test_bad_credentials_are_refused(
    world: World, bearer: str | None, token: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error) as refusal:
        await world.authenticate(bearer, token)
    assert type(refusal.value) is error
    for secret in (bearer, token):
        assert not secret or secret not in str(refusal.value)


async def refusals(world: World, *presented: str) -> set[tuple[type[Exception], str]]:
    seen: set[tuple[type[Exception], str]] = set()
    for bearer in presented:
        with pytest.raises(AuthenticationError) as refusal:
            await world.authenticate(bearer)
        seen.add((type(refusal.value), str(refusal.value)))
    return seen


async def test_an_unknown_and_a_disabled_key_get_one_answer(world: World) -> None:
    assert len(await refusals(world, "kkp_sk_unknown", GONE_KEY, "kkp_sk_")) == 1


async def test_tokens_of_unknown_and_disabled_subjects_and_forged_ones_get_one_answer(world: World) -> None:
    presented = (OF_NOBODY, OF_GONE, ACTED_BY_GONE, ACTED_BY_NOBODY, FORGED, UNKNOWN_KEY, FOREIGN, "x")
    assert len(await refusals(world, *presented)) == 1


async def test_a_disabled_service_is_out_at_once_with_key_and_cached_token(world: World) -> None:
    await world.authenticate(ORDERS_KEY)
    await world.authenticate(GOOD)
    await world.authenticate(ACTED)
    await world.directory.disable("orders", at=NOW)
    with pytest.raises(UnauthenticatedError):
        await world.authenticate(ORDERS_KEY)
    with pytest.raises(TokenInvalidError):
        await world.authenticate(GOOD)


async def test_a_disabled_actor_s_cached_token_is_out_at_once(world: World) -> None:
    await world.authenticate(ACTED)
    await world.directory.disable("billing", at=NOW)
    with pytest.raises(TokenInvalidError):
        await world.authenticate(ACTED)
    assert (await world.authenticate(GOOD)).caller.id == "orders"


@pytest.mark.parametrize("credential", [ORDERS_KEY, GOOD, "kkp_sk_unknown", FORGED, None])
async def test_with_untrusted_identities_nobody_is_let_in_by_anything(
    world: World, credential: str | None
) -> None:
    await world.authenticate(GOOD)
    stranger = IdentityDirectory(world.store, MasterKey(b"n" * 32), world.clock)
    with pytest.raises(StateUntrustedError):
        await stranger.load()
    verifier = TokenVerifier(
        world.ring, world.revoked, world.clock, issuer=ISSUER, clock_error_seconds=CLOCK_ERROR
    )
    with pytest.raises(StateUntrustedError):
        await authenticator_of(stranger, verifier, world.revoked).authenticate(
            Credentials(credential), epoch=1
        )


CHANGES: tuple[tuple[str, object], ...] = (
    ("sub", "billing"),
    ("aud", "others-db"),
    ("jti", "2"),
    ("key_id", "alias/billing"),
    ("backend", "gcp"),
    ("ops", ["encrypt"]),
    ("exp", NOW + 200),
    ("policy_claims", {"environment": "prod"}),
    ("context", {"table": "orders"}),
)


@pytest.mark.promise(21)
async def test_of_5000_pairs_of_tokens_that_differ_in_one_claim_none_gets_the_others(
    world: World, record_promise: Recorder
) -> None:
    """Far more tokens than are remembered, each asked about before and after its neighbour."""
    for number in range(5000):
        name, value = CHANGES[number % len(CHANGES)]
        one = mint(jti=f"{number}")
        other = mint("key-1", **{"jti": f"{number}", name: value})
        for token in (one, other, one):
            claims = (await world.authenticate(token)).token
            assert claims is not None
            assert (getattr(claims, name) == value) is (token == other)
    record_promise(21, "pairs", 5000)


async def test_credentials_and_claims_show_in_no_repr(world: World) -> None:
    assert GOOD not in repr(Credentials(GOOD, GOOD))
    assert ORDERS_KEY not in repr(Credentials(ORDERS_KEY))
    authenticated = await world.authenticate(ORDERS_KEY, GOOD)
    assert CLAIMS.jti + "'" not in repr(authenticated)
    assert "alias/orders'" in repr(authenticated)  # the grant of the caller, not the token
    assert "orders-db" not in repr(authenticated)


# Other ways to prove who is calling.


class Knocking:
    """A method that knows one bearer, or whoever asks."""

    def __init__(self, proven: Proven, bearer: str | None) -> None:
        self.proven = proven
        self.bearer = bearer
        self.asked = 0

    async def prove(self, credentials: Credentials) -> Proven | None:
        self.asked += 1
        return self.proven if credentials.unverified_bearer == self.bearer or self.bearer is None else None


def another_way(world: World, *methods: Method, federation: Federation | None = None) -> Authenticator:
    keys = ServiceKeys(world.directory)
    verifier = verifier_of(world.ring, world.clock, world.revoked)
    federation = federation or Federation(())
    proofs = Proofs(FakeClock(NOW), issuer=ISSUER, clock_error_seconds=CLOCK_ERROR)
    return Authenticator(world.directory, verifier, world.revoked, federation, proofs, (keys, *methods))


ANN = Caller("k8s:ann", "service", ("service",), "k8s", "jwt")


async def test_the_methods_are_asked_in_their_order_and_the_first_that_knows_answers(world: World) -> None:
    first, second = Knocking(Proven(ANN), "ann"), Knocking(Proven(ANN), None)
    authenticator = another_way(world, first, second)
    authenticated = await authenticator.authenticate(Credentials("ann"), epoch=7)
    assert (authenticated.caller, first.asked, second.asked) == (ANN, 1, 0)
    assert (await authenticator.authenticate(Credentials(ORDERS_KEY), epoch=7)).caller.id == "orders"
    assert (first.asked, second.asked) == (1, 0)
    assert (await authenticator.authenticate(Credentials("bob"), epoch=7)).caller == ANN
    assert (first.asked, second.asked) == (2, 1)


async def test_what_a_method_proves_goes_with_the_caller(world: World) -> None:
    proven = Proven(ANN, once=(Once("a", b"1", 2.0),), federated=Federated("k8s/all", {}))
    authenticated = await another_way(world, Knocking(proven, "ann")).authenticate(
        Credentials("ann"), epoch=7
    )
    assert (authenticated.once, authenticated.federated) == (proven.once, proven.federated)
    assert authenticated.token is None


async def test_beside_a_credential_that_is_no_bearer_the_bearer_is_a_token(world: World) -> None:
    authenticator = another_way(world, Knocking(Proven(ANN, by_bearer=False), None))
    for credentials in (Credentials(GOOD), Credentials(None, GOOD), Credentials(GOOD, GOOD)):
        authenticated = await authenticator.authenticate(credentials, epoch=7)
        assert authenticated.caller == ANN
        assert authenticated.token == CLAIMS
    assert (await authenticator.authenticate(Credentials(), epoch=7)).token is None
    with pytest.raises(TokenInvalidError):
        await authenticator.authenticate(Credentials(FORGED), epoch=7)
    with pytest.raises(InvalidRequestError):
        await authenticator.authenticate(Credentials(GOOD, OTHER_GOOD), epoch=7)


async def test_beside_a_credential_that_is_the_bearer_a_token_stands_in_the_body(world: World) -> None:
    authenticator = another_way(world, Knocking(Proven(ANN), "ann"))
    authenticated = await authenticator.authenticate(Credentials("ann", GOOD), epoch=7)
    assert (authenticated.caller, authenticated.token) == (ANN, CLAIMS)


async def test_whoever_is_revoked_is_nobody_by_whatever_method(world: World) -> None:
    authenticator = another_way(world, Knocking(Proven(ANN), "ann"))
    world.revoked.add("k8s:ann")
    with pytest.raises(UnauthenticatedError, match="not known"):
        await authenticator.authenticate(Credentials("ann"), epoch=7)


RULE = Rule(match={"sub": "*"}, roles=["auditor"])
OF_ANN = {"sub": "k8s:ann", "federated": Federated("k8s/all", {"team": "shop"})}
FOR_ORDERS_BY_ANN = {**OF_ANN, "sub": "orders", "act": Actor("k8s:ann")}
FEDERATED: dict[str, tuple[dict[str, object], str | None]] = {
    "a caller's whom an issuer vouches for": (OF_ANN, "k8s:ann"),
    "one that such a caller asked for": (FOR_ORDERS_BY_ANN, "orders"),
    "one without a rule": ({"sub": "k8s:ann"}, None),
    "one of a rule that is gone": ({**OF_ANN, "federated": Federated("k8s/gone")}, None),
    "one of another issuer's rule": ({**OF_ANN, "federated": Federated("github/all")}, None),
    "one of a rule for a local identity": ({**OF_ANN, "sub": "orders"}, None),
    "one for an unknown subject": ({**FOR_ORDERS_BY_ANN, "sub": "nobody"}, None),
    "one for a disabled subject": ({**FOR_ORDERS_BY_ANN, "sub": "gone"}, None),
    "one for another whom an issuer vouches for": ({**FOR_ORDERS_BY_ANN, "sub": "k8s:bob"}, None),
    "one asked for by a rule that is gone": ({**FOR_ORDERS_BY_ANN, "federated": Federated("k8s/gone")}, None),
    "one asked for by a local identity's rule": ({**FOR_ORDERS_BY_ANN, "act": Actor("billing")}, None),
}


@pytest.mark.parametrize(("changes", "caller"), FEDERATED.values(), ids=FEDERATED.keys())
async def test_a_token_speaks_for_whom_its_rule_vouches_now(
    world: World, changes: dict[str, object], caller: str | None
) -> None:
    federation = Federation([Source("k8s", "jwt", {"all": RULE}), Source("github", "jwt", {"all": RULE})])
    authenticator, token = another_way(world, federation=federation), mint("key-1", **changes)
    if caller is None:
        with pytest.raises(TokenInvalidError):
            await authenticator.authenticate(Credentials(token), epoch=7)
        with pytest.raises(TokenInvalidError):
            authenticator.accepted(token)
        return
    authenticated = await authenticator.authenticate(Credentials(token), epoch=7)
    assert (authenticated.caller.id, authenticated.caller.method) == (caller, "kkp_token")
    assert authenticator.accepted(token).asked_by == "k8s:ann"
    world.revoked.add("k8s:ann")
    with pytest.raises(TokenInvalidError):
        await authenticator.authenticate(Credentials(token), epoch=7)


# What is accepted, whoever shows it.


@pytest.mark.parametrize(
    ("token", "accepted"),
    [
        pytest.param(GOOD, True, id="a good token"),
        pytest.param(ANOTHER_SUBJECT, True, id="another subject's"),
        pytest.param(ACTED, True, id="one that was asked for by another"),
        pytest.param(ACTED_BY_GONE, False, id="one that was asked for by somebody disabled since"),
        pytest.param(mint(sub="gone"), False, id="a disabled subject's"),
        pytest.param(mint(sub="nobody"), False, id="an unknown subject's"),
        pytest.param(FORGED, False, id="a forged one"),
        pytest.param(mint(exp=NOW), False, id="an expired one"),
        pytest.param(mint(jti="revoked"), False, id="a revoked one"),
        pytest.param(ORDERS_KEY, False, id="a service key"),
        pytest.param("", False, id="nothing"),
        pytest.param("\ud800", False, id="half a character"),
    ],
)
async def test_a_token_is_accepted(world: World, token: str, *, accepted: bool) -> None:
    world.revoked.add("revoked")
    if accepted:
        assert world.authenticator.accepted(token).iss == ISSUER
    else:
        with pytest.raises(AuthenticationError):
            world.authenticator.accepted(token)


# What is revoked for the time being.


# Tokens that are bound to a key. What stands for the proof is verified elsewhere; here it is what it opens.

HOLDER, THIEF = Holder(), Holder()
CERTIFICATE, ANOTHERS = (PresentedCertificate(hashlib.sha256(der).digest()) for der in (b"one", b"another"))
BOUND = mint(cnf=Confirmation(jkt=HOLDER.jkt))
OF_CERTIFICATE = mint(cnf=Confirmation(x5t_s256=base64url(CERTIFICATE.sha256)))
PATH = "/envelope/decrypt"


def shows(token: str, holder: Holder | None = HOLDER, **changes: Any) -> Credentials:
    """Return the credentials of a request that shows a token in its header, with a proof."""
    proofs = () if holder is None else (holder.proof(PATH, token, iat=NOW),)
    presented = Credentials(token, None, "dpop", proofs, "POST", PATH)
    return msgspec.structs.replace(presented, **changes)


PROVEN: dict[str, tuple[Credentials, str, Confirmation]] = {
    "its holder": (shows(BOUND), "kkp_token", Confirmation(jkt=HOLDER.jkt)),
    "its holder, in the body": (
        shows(BOUND, unverified_bearer=None, unverified_token=BOUND, scheme="bearer"),
        "kkp_token",
        Confirmation(jkt=HOLDER.jkt),
    ),
    "its holder, in the body beside a key": (
        shows(BOUND, unverified_bearer=ORDERS_KEY, unverified_token=BOUND, scheme="bearer"),
        "service_key",
        Confirmation(jkt=HOLDER.jkt),
    ),
    "whoever has the certificate": (
        Credentials(OF_CERTIFICATE, certificate=CERTIFICATE),
        "kkp_token",
        Confirmation(x5t_s256=base64url(CERTIFICATE.sha256)),
    ),
    "its holder, with a certificate besides": (
        shows(BOUND, certificate=CERTIFICATE),
        "kkp_token",
        Confirmation(jkt=HOLDER.jkt, x5t_s256=base64url(CERTIFICATE.sha256)),
    ),
}
UNPROVEN: dict[str, tuple[Credentials, type[Exception]]] = {
    "a bearer": (Credentials(BOUND), ProofRequiredError),
    "a bearer with a proof": (shows(BOUND, scheme="bearer"), ProofRequiredError),
    "the body alone": (Credentials(None, BOUND), ProofRequiredError),
    "the body beside a key": (Credentials(ORDERS_KEY, BOUND), ProofRequiredError),
    "the body beside a bearer of its own": (Credentials(BOUND, BOUND), ProofRequiredError),
    "no proof": (shows(BOUND, None), ProofRequiredError),
    "another's proof": (shows(BOUND, THIEF), ProofRequiredError),
    "a certificate instead of the proof": (shows(BOUND, None, certificate=CERTIFICATE), ProofRequiredError),
    "a proof for another token": (
        shows(BOUND, unverified_proofs=(HOLDER.proof(PATH, GOOD, iat=NOW),)),
        DPoPProofError,
    ),
    "an expired token with a proof": (
        shows(mint(exp=NOW, cnf=Confirmation(jkt=HOLDER.jkt))),
        TokenExpiredError,
    ),
    "an unbound token as DPoP": (shows(GOOD), TokenInvalidError),
    "an unbound token as DPoP without a proof": (shows(GOOD, None), TokenInvalidError),
    "a service key as DPoP": (shows(ORDERS_KEY, None), UnauthenticatedError),
    "no certificate": (Credentials(OF_CERTIFICATE), TokenInvalidError),
    "another's certificate": (Credentials(OF_CERTIFICATE, certificate=ANOTHERS), TokenInvalidError),
    "a proof instead of the certificate": (shows(OF_CERTIFICATE, scheme="bearer"), TokenInvalidError),
    "the certificate's token as DPoP": (shows(OF_CERTIFICATE, certificate=CERTIFICATE), TokenInvalidError),
    "the certificate's token in the body": (Credentials(ORDERS_KEY, OF_CERTIFICATE), TokenInvalidError),
}


@pytest.mark.parametrize(("credentials", "method", "proven"), PROVEN.values(), ids=PROVEN)
async def test_a_bound_token_speaks_for_its_subject_when_shown_by(
    world: World, credentials: Credentials, method: str, proven: Confirmation
) -> None:
    authenticated = await world.authenticator.authenticate(credentials, epoch=7)
    assert (authenticated.caller.id, authenticated.caller.method) == ("orders", method)
    assert authenticated.proven == proven
    assert [once.kind for once in authenticated.once] == ["dpop"] * len(credentials.unverified_proofs)


@pytest.mark.parametrize(("credentials", "error"), UNPROVEN.values(), ids=UNPROVEN)
async def test_a_bound_token_is_nothing_when_shown_by(
    world: World, credentials: Credentials, error: type[Exception]
) -> None:
    with pytest.raises(error) as refusal:
        await world.authenticator.authenticate(credentials, epoch=7)
    assert type(refusal.value) is error


async def test_a_service_key_with_a_proof_has_proven_the_key(world: World) -> None:
    """A token that it asks for can be bound; which token the proof names is looked at where one is shown."""
    for proof in (HOLDER.proof(PATH, iat=NOW), HOLDER.proof(PATH, BOUND, iat=NOW)):
        credentials = Credentials(ORDERS_KEY, unverified_proofs=(proof,), method="POST", path=PATH)
        authenticated = await world.authenticator.authenticate(credentials, epoch=7)
        assert authenticated.proven == Confirmation(jkt=HOLDER.jkt)


async def test_what_needs_no_proof_to_be_asked_about_is_told_of_all_the_same(world: World) -> None:
    assert world.authenticator.accepted(BOUND).cnf == Confirmation(jkt=HOLDER.jkt)
    assert world.authenticator.revocable(BOUND).cnf == Confirmation(jkt=HOLDER.jkt)


@pytest.mark.parametrize(
    ("held", "bearer", "token", "error"),
    [
        ("orders", ORDERS_KEY, None, UnauthenticatedError),
        ("orders", None, GOOD, TokenInvalidError),
        ("orders", BILLING_KEY, GOOD, TokenInvalidError),
        ("billing", BILLING_KEY, GOOD, UnauthenticatedError),
        ("billing", None, ACTED, TokenInvalidError),
        ("orders", None, ACTED, TokenInvalidError),
        ("billing", None, GOOD, None),
        ("orders", BILLING_KEY, None, None),
    ],
)
async def test_an_identity_that_is_revoked_is_nobody_and_its_tokens_are_nothing(
    world: World, held: str, bearer: str | None, token: str | None, error: type[AuthenticationError] | None
) -> None:
    before = await world.authenticate(bearer, token)
    world.revoked.add(held)
    if error is None:
        assert await world.authenticate(bearer, token) == before
    else:
        with pytest.raises(error):
            await world.authenticate(bearer, token)


@pytest.mark.parametrize("revoked", ["orders", "aws/alias/orders"])
async def test_what_is_not_accepted_while_something_is_revoked_can_be_ended_all_the_same(
    world: World, revoked: str
) -> None:
    world.revoked.add(revoked)
    with pytest.raises(TokenInvalidError):
        world.authenticator.accepted(GOOD)
    assert world.authenticator.revocable(GOOD).jti == CLAIMS.jti
    world.revoked.add(CLAIMS.jti)
    with pytest.raises(TokenInvalidError):
        world.authenticator.revocable(GOOD)


# The cache of verified tokens.


def verifier_of(ring: PublishedKeys, clock: FakeClock, revoked: RevokedIds | None = None) -> TokenVerifier:
    revoked = RevokedIds() if revoked is None else revoked
    return TokenVerifier(ring, revoked, clock, issuer=ISSUER, clock_error_seconds=CLOCK_ERROR)


@pytest.mark.promise(21)
def test_a_cached_token_ends_when_it_is_revoked() -> None:
    revoked = RevokedIds()
    verifier = verifier_of(PublishedKeys("key-1"), FakeClock(NOW), revoked)
    assert verifier.verify(GOOD) == CLAIMS
    revoked.add("2")
    assert verifier.verify(GOOD) == CLAIMS
    revoked.add(CLAIMS.jti)
    with pytest.raises(TokenInvalidError):
        verifier.verify(GOOD)


@pytest.mark.promise(21)
def test_a_cached_token_expires_to_the_second() -> None:
    clock = FakeClock(NOW)
    verifier = verifier_of(PublishedKeys("key-1"), clock)
    verifier.verify(GOOD)
    clock.advance(299)
    assert verifier.verify(GOOD) == CLAIMS
    clock.advance(1)
    with pytest.raises(TokenExpiredError):
        verifier.verify(GOOD)


def test_a_token_seen_too_early_is_good_once_its_time_has_come() -> None:
    clock = FakeClock(NOW)
    verifier = verifier_of(PublishedKeys("key-1"), clock)
    with pytest.raises(TokenInvalidError):
        verifier.verify(EARLY)
    clock.advance(1)
    assert verifier.verify(EARLY).nbf == NOW + CLOCK_ERROR + 1


@pytest.mark.promise(21)
def test_a_cached_token_dies_with_its_key() -> None:
    ring = PublishedKeys("key-1", "key-2")
    verifier = verifier_of(ring, FakeClock(NOW))
    verifier.verify(GOOD)
    del ring.keys["key-1"]
    with pytest.raises(TokenInvalidError):
        verifier.verify(GOOD)
    assert verifier.verify(mint(kid="key-2")) == CLAIMS


def test_a_refused_token_is_not_remembered_as_anything() -> None:
    ring = PublishedKeys()
    verifier = verifier_of(ring, FakeClock(NOW))
    with pytest.raises(TokenInvalidError):
        verifier.verify(GOOD)
    ring.keys["key-1"] = bytes(SIGNER.verify_key)
    assert verifier.verify(GOOD) == CLAIMS


@pytest.mark.promise(21)
def test_a_cached_token_vouches_for_no_other_spelling_of_itself() -> None:
    verifier = verifier_of(PublishedKeys("key-1"), FakeClock(NOW))
    verifier.verify(GOOD)
    for other in (GOOD + "=", GOOD[:-1] + chr(ord(GOOD[-1]) + 1), " " + GOOD, FORGED, GOOD + "\ud800"):
        with pytest.raises(TokenInvalidError):
            verifier.verify(other)


def test_one_verification_serves_every_further_use() -> None:
    ring = PublishedKeys("key-1")
    verifier = verifier_of(ring, FakeClock(NOW))
    verifier.verify(GOOD)
    ring.keys["key-1"] = bytes(32)  # a key that verifies nothing: only the cache can answer now
    assert verifier.verify(GOOD) == CLAIMS


def test_the_cache_is_bounded_and_forgets_the_oldest_first() -> None:
    ring = PublishedKeys("key-1")
    verifier = verifier_of(ring, FakeClock(NOW))
    tokens = [mint(jti=f"j{number}") for number in range(4097)]
    for token in tokens:
        verifier.verify(token)
    ring.keys["key-1"] = bytes(32)
    with pytest.raises(TokenInvalidError):
        verifier.verify(tokens[0])
    assert verifier.verify(tokens[1]).jti == "j1"
    assert verifier.verify(tokens[-1]).jti == "j4096"


def test_forged_tokens_push_nothing_out_of_the_cache() -> None:
    ring = PublishedKeys("key-1")
    verifier = verifier_of(ring, FakeClock(NOW))
    verifier.verify(GOOD)
    for number in range(5000):
        with pytest.raises(TokenInvalidError):
            verifier.verify(f"forged-{number}")
    ring.keys["key-1"] = bytes(32)
    assert verifier.verify(GOOD) == CLAIMS


# The person at the machine.


@pytest.mark.parametrize("credentials", [Credentials(), Credentials("kkp_sk_x"), Credentials(None, "x")])
async def test_the_operator_is_the_account_of_the_process_and_needs_no_credential(
    credentials: Credentials,
) -> None:
    authenticated = await LocalOperator().authenticate(credentials, epoch=3)
    assert authenticated.caller.id == f"operator:{pwd.getpwuid(os.getuid()).pw_name}"
    assert authenticated.caller.kind == "operator"
    assert authenticated.caller.method == "local_operator"
    assert authenticated.caller.roles == ("admin",)
    assert (authenticated.token, authenticated.epoch) == (None, 3)


async def test_an_operator_without_an_account_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert (await LocalOperator().authenticate(Credentials(), epoch=1)).caller.id == "operator:uid-4000000"
