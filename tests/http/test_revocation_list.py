"""The signed list of what is revoked, as one reads it who verifies tokens offline and has nothing of KKP.

`OfflineVerifier` is written after docs/formats.md, with PyJWT alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from kkp.errors import KeyringUnavailableError
from kkp.keyring import revocation_list
from kkp.revocations import entry_id
from tests.fakes.clock import FakeClock
from tests.harness import ISSUER, KKP, grant, running

LIFETIME_SECONDS, REFRESH_SECONDS = 50, 10
LEEWAY_SECONDS = 60
BACKENDS = (
    "aws=memory://aws,gcp=memory://gcp,"
    "both=any-of://?key.orders=aws:alias/orders&key.orders=gcp:orders&former.orders=gcp:old"
)
KEYS = {"aws": "alias/orders", "gcp": "orders", "both": "orders"}


class RefusedError(Exception):
    """The verifier does not take the token, or has no list that it may rely on."""


def digest(*names: str) -> str:
    text = json.dumps(names, separators=(",", ":"))
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@dataclass
class OfflineVerifier:
    """Verifies tokens with a copy of the JWKS and of the list, each fetched when its max-age is over.

    Attributes:
        origin: Where KKP is.
        now: What time it is.
        documents: The copies, by path: the text, and when it is to be fetched again.
    """

    origin: str
    now: Callable[[], float]
    documents: dict[str, tuple[str, float]] = field(default_factory=dict)
    revoked: dict[str, Any] = field(default_factory=dict)

    async def verify(self, token: str, audience: str = "orders-db") -> dict[str, Any]:
        await self._refresh()
        claims = self._signed(token, "kkp+jwt", audience)
        if self.now() >= claims["exp"] + LEEWAY_SECONDS:
            raise RefusedError("expired")
        if self.now() >= self.revoked["exp"]:
            raise RefusedError("the list is too old")
        if self._is_revoked(claims):
            raise RefusedError("revoked")
        return claims

    def _is_revoked(self, claims: dict[str, Any]) -> bool:
        revoked, speakers = self.revoked, {claims["sub"], claims.get("act", claims)["sub"]}
        before = revoked["subjects"].get(digest("subject", claims["sub"]))
        return (
            claims["jti"] in revoked["tokens"]
            or (before is not None and claims["iat"] <= before)
            or any(digest("identity", name) in revoked["identities"] for name in speakers)
            or digest("key", claims["backend"], claims["key_id"]) in revoked["keys"]
            or digest("backend", claims["backend"]) in revoked["backends"]
        )

    async def _refresh(self) -> None:
        await self._fetch("/keys/jwks")
        if await self._fetch("/revocations/list"):
            self.take(self.documents["/revocations/list"][0])

    def take(self, text: str) -> None:
        """Put a list in the place of the one before it."""
        taken = self._signed(text, "kkp-revocations+jwt", None)
        if taken["seq"] < self.revoked.get("seq", 0):
            raise RefusedError("an older list")
        self.revoked = taken

    async def _fetch(self, path: str) -> bool:
        if path in self.documents and self.now() < self.documents[path][1]:
            return False
        try:
            async with aiohttp.ClientSession() as session, session.get(self.origin + path) as answer:
                if answer.status != 200:
                    return False
                max_age = re.fullmatch(r"private, max-age=(\d+)", answer.headers["Cache-Control"])
                assert max_age is not None
                self.documents[path] = (await answer.text(), self.now() + int(max_age[1]))
        except aiohttp.ClientConnectionError:
            return False  # the copy is used for as long as it is good
        return True

    def _signed(self, text: str, typ: str, audience: str | None) -> dict[str, Any]:
        header = jwt.get_unverified_header(text)
        keys = {key["kid"]: key for key in json.loads(self.documents["/keys/jwks"][0])["keys"]}
        if header["typ"] != typ or header["kid"] not in keys:
            raise RefusedError("another type or key")
        options: Any = {
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
            "require": ["exp", "iat"],
        }
        return jwt.decode(
            text, jwt.PyJWK(keys[header["kid"]]), ["EdDSA"], options, audience=audience, issuer=ISSUER
        )


@dataclass
class World:
    kkp: KKP
    clock: FakeClock
    service_key: str
    verifier: OfflineVerifier

    async def mint(self, backend: str = "aws", **members: Any) -> str:
        credential = members.pop("credential", self.service_key)
        return await self.kkp.token(credential, backend=backend, key_id=KEYS[backend], **members)

    async def revoke(self, **body: Any) -> str:
        answer = await self.kkp.post("/revocations", body, credential=self.kkp.root_key)
        assert answer.status == 200, answer.raw
        revoked: str = answer.json["id"]
        return revoked

    async def list(self) -> dict[str, Any]:
        raw = (await self.kkp.get("/revocations/list")).raw
        return jwt.decode(raw, options={"verify_signature": False})


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = FakeClock()
    settings = {"KKP_BACKENDS": BACKENDS, "KKP_REVOCATION_LIST_SECS": str(LIFETIME_SECONDS)}
    async with running(tmp_path, clock=clock, peers=None, **settings) as kkp:
        grants = (grant(key_id, backend=backend) for backend, key_id in KEYS.items())
        service_key = await kkp.add_identity("orders", *grants)
        verifier = OfflineVerifier(f"http://{kkp.host}:{kkp.port}", clock.now)
        yield World(kkp, clock, service_key, verifier)


async def _token(world: World) -> tuple[str, str]:
    ended, other = await world.mint(), await world.mint()
    await world.revoke(kind="token", name=jwt.decode(ended, options={"verify_signature": False})["jti"])
    return ended, other


async def _own_token(world: World) -> tuple[str, str]:
    ended, other = await world.mint(), await world.mint()
    await world.kkp.post("/token/revoke", {"token": ended}, credential=world.service_key)
    return ended, other


async def _subject(world: World) -> tuple[str, str]:
    ended, other = await world.mint(), await world.mint(credential=world.kkp.root_key)
    await world.revoke(kind="subject", name="orders")
    return ended, other


async def _identity(world: World) -> tuple[str, str]:
    ended, other = await world.mint(), await world.mint(credential=world.kkp.root_key)
    await world.revoke(kind="identity", name="orders")
    return ended, other


async def _who_asked(world: World) -> tuple[str, str]:
    broker = await world.kkp.add_identity("broker", roles=("admin",))
    ended = await world.mint(credential=broker, subject="orders")
    other = await world.mint()
    await world.revoke(kind="identity", name="broker")
    return ended, other


async def _disabled(world: World) -> tuple[str, str]:
    ended, other = await world.mint(), await world.mint(credential=world.kkp.root_key)
    await world.kkp.post("/identities/orders/disable", credential=world.kkp.root_key)
    return ended, other


async def _key(world: World) -> tuple[str, str]:
    ended, other = await world.mint(), await world.mint("gcp")
    await world.revoke(kind="key", backend="aws", name="alias/orders")
    return ended, other


async def _former_member(world: World) -> tuple[str, str]:
    ended, other = await world.mint("both"), await world.mint("gcp")
    await world.revoke(kind="key", backend="gcp", name="old")
    return ended, other


async def _backend(world: World) -> tuple[str, str]:
    ended, other = await world.mint("gcp"), await world.mint()
    await world.revoke(kind="backend", name="gcp")
    return ended, other


async def _members_backend(world: World) -> tuple[str, str]:
    ended, other = await world.mint("both"), await world.mint()
    await world.revoke(kind="backend", name="gcp")
    return ended, other


@pytest.mark.promise(10)
@pytest.mark.parametrize(
    "revoke",
    [
        _token, _own_token, _subject, _identity, _who_asked, _disabled, _key, _former_member, _backend,
        _members_backend,
    ],
    ids=[
        "a token", "a token at /token/revoke", "a subject", "an identity", "an identity that asked",
        "an identity that is disabled", "a key", "a former member of a composite's key", "a backend",
        "the backend of a composite's member",
    ],
)  # fmt: skip
async def test_an_offline_verifier_honours_within_its_refresh_time(
    world: World, revoke: Callable[[World], Awaitable[tuple[str, str]]]
) -> None:
    await world.verifier.verify(await world.mint("gcp"))
    ended, other = await revoke(world)
    await world.verifier.verify(ended)  # by the copies of before, which it may use for that long
    world.clock.advance(REFRESH_SECONDS)
    with pytest.raises(RefusedError, match=r"^revoked$"):
        await world.verifier.verify(ended)
    await world.verifier.verify(other)


async def test_what_was_lifted_is_off_the_list(world: World) -> None:
    token = await world.mint()
    revoked = await world.revoke(kind="backend", name="aws")
    with pytest.raises(RefusedError, match=r"^revoked$"):
        await world.verifier.verify(token)
    await world.kkp.request("DELETE", f"/revocations/{revoked}", credential=world.kkp.root_key)
    world.clock.advance(REFRESH_SECONDS)
    await world.verifier.verify(token)


async def test_a_verifier_without_a_list_that_is_good_takes_nothing(world: World) -> None:
    token = await world.mint()
    await world.verifier.verify(token)
    world.verifier.origin = "http://127.0.0.1:1"
    world.clock.advance(LIFETIME_SECONDS - 1)
    await world.verifier.verify(token)
    world.clock.advance(1)
    with pytest.raises(RefusedError, match="too old"):
        await world.verifier.verify(token)


async def test_the_list_is_not_taken_for_a_token_nor_a_token_for_the_list(world: World) -> None:
    listed, token = (await world.kkp.get("/revocations/list")).raw.decode(), await world.mint()
    await world.verifier.verify(token)
    with pytest.raises(RefusedError, match="another type"):
        await world.verifier.verify(listed)
    with pytest.raises(RefusedError, match="another type"):
        world.verifier.take(token)
    body = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    answer = await world.kkp.post("/envelope/encrypt", body, credential=listed)
    assert (answer.status, answer.problem()) == (401, "token_invalid")


async def test_the_sequence_rises_with_every_change_and_an_older_list_is_seen_to_be_older(
    world: World,
) -> None:
    older = (await world.kkp.get("/revocations/list")).raw.decode()
    before = (await world.list())["seq"]
    await world.revoke(kind="backend", name="aws")
    world.clock.advance(1)
    assert (await world.list())["seq"] == before + 1
    await world.verifier.verify(await world.mint("gcp"))
    with pytest.raises(RefusedError, match="older"):
        world.verifier.take(older)


async def test_the_list_says_what_the_format_says_and_shows_no_name(world: World) -> None:
    jti = "A" * 22
    await world.revoke(kind="token", name=jti)
    await world.revoke(kind="subject", name="orders")
    await world.revoke(kind="key", backend="aws", name="alias/orders")
    answer = await world.kkp.get("/revocations/list")
    assert answer.headers["Content-Type"].startswith("application/jwt")
    assert answer.headers["Cache-Control"] == f"private, max-age={REFRESH_SECONDS}"
    assert jwt.get_unverified_header(answer.raw).keys() == {"alg", "kid", "typ"}
    now = int(world.clock.now())
    claims = jwt.decode(answer.raw, options={"verify_signature": False})
    assert claims | {"seq": 0} == {
        "iss": ISSUER,
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        "seq": 0,
        "tokens": {jti: now + 1800},
        "subjects": {digest("subject", "orders"): now + 11},
        "identities": [],
        "keys": sorted([digest("key", "aws", "alias/orders"), digest("key", "both", "orders")]),
        "backends": [],
    }


async def test_one_list_is_served_while_nothing_changes_and_a_fresh_one_before_it_is_old(
    world: World,
) -> None:
    first = await world.kkp.get("/revocations/list")
    etag = {"If-None-Match": first.headers["ETag"]}
    world.clock.advance(REFRESH_SECONDS - 1)
    again = await world.kkp.request("GET", "/revocations/list", headers=etag)
    assert (again.status, again.raw) == (304, b"")
    world.clock.advance(1)
    fresh = await world.kkp.request("GET", "/revocations/list", headers=etag)
    assert fresh.status == 200
    told = [jwt.decode(each.raw, options={"verify_signature": False}) for each in (first, fresh)]
    assert told[1]["exp"] == told[0]["exp"] + REFRESH_SECONDS
    assert told[1]["seq"] == told[0]["seq"]


async def test_however_often_the_state_changes_one_list_is_signed_in_a_second(world: World) -> None:
    """Anybody may ask, and at its bounds the list is megabytes long."""
    first = await world.list()
    for name in ("aws", "gcp"):
        await world.revoke(kind="backend", name=name)
        world.clock.advance(0.4)
        assert await world.list() == first
    world.clock.advance(0.2)
    assert len((await world.list())["backends"]) == 2


async def test_the_list_is_put_together_beside_the_event_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set[int]()

    def noting(*names: Any) -> str:
        threads.add(threading.get_ident())
        return entry_id(*names)

    monkeypatch.setattr(revocation_list, "entry_id", noting)
    await world.revoke(kind="key", backend="aws", name="alias/orders")
    assert digest("key", "aws", "alias/orders") in (await world.list())["keys"]
    assert threads
    assert threading.get_ident() not in threads


async def test_nobody_keeps_a_list_for_longer_than_it_is_good(world: World) -> None:
    listing = world.kkp.services.public.revocation_list
    signed = await listing.current()
    for left, max_age in ((50, 10), (10, 10), (9, 9), (0, 0), (-1, 0)):
        assert listing.max_age(signed._replace(exp=int(world.clock.now()) + left)) == max_age


async def test_a_revoked_token_stays_on_the_list_until_no_verifier_takes_it(world: World) -> None:
    token = await world.mint(ttl_seconds=60)
    await world.kkp.post("/token/revoke", {"token": token}, credential=world.service_key)
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    world.clock.advance(50)
    assert jti in (await world.list())["tokens"]


async def test_the_discovery_document_says_where_the_list_is(world: World) -> None:
    found = (await world.kkp.get("/.well-known/oauth-authorization-server")).json
    assert found["revocation_list_uri"] == f"{ISSUER}/revocations/list"


async def test_another_key_signs_the_list_once_the_ring_has_one(world: World) -> None:
    first = jwt.get_unverified_header((await world.kkp.get("/revocations/list")).raw)["kid"]
    revoked = await world.kkp.post(f"/keys/jwks/{first}/revoke", credential=world.kkp.root_key)
    second = jwt.get_unverified_header((await world.kkp.get("/revocations/list")).raw)["kid"]
    assert second == revoked.json["successor"] != first


async def test_there_is_no_list_rather_than_an_old_or_an_empty_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await world.kkp.get("/revocations/list")).status == 200
    await world.revoke(kind="backend", name="aws")
    database = world.kkp.services.revoke._revocations._store._database  # type: ignore[attr-defined]

    def alter(connection: Any) -> None:
        connection.exec_driver_sql("UPDATE revocations SET name = 'gcp'")
        connection.exec_driver_sql("UPDATE state SET epoch = epoch + 1")

    await database.write(alter)
    for _attempt in range(2):
        refused = await world.kkp.get("/revocations/list")
        assert (refused.status, refused.problem()) == (503, "keyring_unavailable")
    monkeypatch.setattr(type(database), "read", _fail)
    refused = await world.kkp.get("/revocations/list")
    assert (refused.status, refused.problem()) == (503, "keyring_unavailable")


async def _fail(*_: object) -> None:
    raise KeyringUnavailableError("The state database is not available.")
