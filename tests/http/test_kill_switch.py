"""The kill switch: what is revoked at one process stops at the next request of another, which was not told.

Two servers on one database, be it SQLite or PostgreSQL. One is asked to do everything once, so that it holds
verified tokens and data keys. Then each operation in turn is the first request that it gets after the other
one has revoked something.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from kkp.authz.base import PolicyEngine
from kkp.model import Decision, PolicyInput
from kkp.revocations import RevocationKind, entry_id
from tests.fakes.clock import FakeClock
from tests.harness import KKP, Answer, detached, grant, running
from tests.http.test_only_road import refusal
from tests.postgres import PostgreSQL
from tests.promises import Recorder

OPS = ["encrypt", "decrypt", "rewrap"]
KEYS = {"aws": "alias/orders", "gcp": "orders", "both": "orders", "local": "default"}
BACKENDS = (
    "aws=memory://aws,gcp=memory://gcp,local=local://,"
    "both=any-of://?key.orders=aws:alias/orders&key.orders=gcp:orders"
)
CACHING = {"KKP_DATA_KEY_CACHE_SECS": "60", "KKP_DATA_KEY_CACHE_ENCRYPT": "1"}
WINDOW_SECONDS = 12  # 2S, one for the write, and one that is over


@dataclass
class World:
    """Two servers, and a service with grants on keys of three backends."""

    here: KKP
    there: KKP
    clock: FakeClock
    service_key: str
    tokens: dict[str, str]
    envelopes: dict[str, dict[str, Any]]

    async def mint(self) -> None:
        """Take new tokens, from the server that is not told."""
        self.tokens = {
            backend: await self.there.token(self.service_key, backend=backend, key_id=key_id, ops=OPS)
            for backend, key_id in KEYS.items()
        }

    async def revoke(self, kind: str, name: str, backend: str | None = None) -> dict[str, Any]:
        body = {"kind": kind, "name": name, "reason": "INC-1", **({"backend": backend} if backend else {})}
        answer = await self.here.post("/revocations", body, credential=self.here.root_key)
        assert answer.status == 200, answer.raw
        revoked: dict[str, Any] = answer.json
        return revoked

    async def lift(self, revoked: Mapping[str, Any]) -> Answer:
        path = f"/revocations/{revoked['id']}"
        return await self.here.request("DELETE", path, credential=self.here.root_key)


@asynccontextmanager
async def two_servers(directory: Path, **environ: str) -> AsyncIterator[World]:
    clock = FakeClock()
    settings = {"KKP_BACKENDS": BACKENDS, **environ}
    async with (
        running(directory, clock=clock, peers=None, **settings) as here,
        running(directory, clock=clock, peers=None, **settings) as there,
    ):
        grants = (grant(key_id, backend=backend, ops=OPS) for backend, key_id in KEYS.items())
        service_key = await here.add_identity("orders", *grants)
        world = World(here, there, clock, service_key, {}, {})
        await world.mint()
        for backend, key_id in KEYS.items():
            world.envelopes[backend] = await there.seal(service_key, backend=backend, key_id=key_id)
        yield world


@pytest.fixture(params=["sqlite", "postgresql"])
async def world(request: pytest.FixtureRequest, tmp_path: Path, patience: None) -> AsyncIterator[World]:
    where = {}
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgres_server")
        where = {"KKP_DATABASE_URL": server.url(server.empty_database())}
    async with two_servers(tmp_path, **CACHING, **where) as found:
        yield found


class Operation(NamedTuple):
    """Something to ask the other server for.

    Attributes:
        ask: Asks.
        uses: The backends whose keys it names.
        by: Whose token it shows, by its backend; None where the service key is the credential.
    """

    ask: Callable[[World], Awaitable[Answer]]
    uses: frozenset[str]
    by: str | None = None


def _mint(backend: str) -> Operation:
    body = {"audience": "orders-db", "backend": backend, "key_id": KEYS[backend]}
    return Operation(lambda w: w.there.post("/token", body, credential=w.service_key), frozenset({backend}))


def _seal(backend: str, by: str | None = None, path: str = "/envelope/encrypt") -> Operation:
    body: dict[str, Any] = {"backend": backend, "key_id": KEYS[backend]}
    body |= {} if path.endswith("data-key") else {"plaintext": "hello"}
    sent = {"items": [body] * 3} if path.endswith("batch") else body

    async def ask(world: World) -> Answer:
        credential = world.service_key if by is None else world.tokens[by]
        return await world.there.post(path, sent, credential=credential)

    return Operation(ask, frozenset({backend}), by)


def _open(backend: str, path: str = "/envelope/decrypt", *, beside: bool = False) -> Operation:
    async def ask(world: World) -> Answer:
        envelope, token = world.envelopes[backend], world.tokens[backend]
        if path.endswith("batch"):
            items = {"items": [{"envelope": envelope}] * 3}
            return await world.there.post(path, items, credential=token)
        shown = detached(envelope) if path.endswith("unwrap") else envelope
        credential = world.service_key if beside else None
        return await world.there.post(path, {"envelope": shown, "token": token}, credential=credential)

    return Operation(ask, frozenset({backend}), backend)


def _move(source: str, target: str, path: str = "/envelope/rewrap") -> Operation:
    async def ask(world: World) -> Answer:
        item = {"envelope": world.envelopes[source], "backend": target, "key_id": KEYS[target]}
        body = {"items": [item] * 3} if path.endswith("batch") else item
        return await world.there.post(path, body, credential=world.tokens[source])

    return Operation(ask, frozenset({source, target}), source)


OPERATIONS: Mapping[str, Operation] = {
    "minting": _mint("aws"),
    "minting for a composite": _mint("both"),
    "minting for another key": _mint("local"),
    "sealing by service key": _seal("aws"),
    "sealing by token": _seal("aws", by="aws"),
    "sealing under another key": _seal("local"),
    "opening": _open("aws"),
    "opening with a token beside the service key": _open("aws", beside=True),
    "opening what is under another key": _open("local"),
    "moving away": _move("aws", "local"),
    "moving in": _move("local", "aws"),
    "taking a data key": _seal("aws", path="/envelope/data-key"),
    "having a data key released": _open("aws", "/envelope/data-key/unwrap"),
    "sealing a batch": _seal("aws", path="/envelope/encrypt/batch"),
    "opening a batch": _open("aws", "/envelope/decrypt/batch"),
    "moving a batch away": _move("aws", "local", "/envelope/rewrap/batch"),
    "moving a batch in": _move("local", "aws", "/envelope/rewrap/batch"),
    "sealing under a composite": _seal("both"),
    "opening what is under a composite": _open("both"),
    "moving into a composite": _move("local", "both"),
    "moving out of a composite": _move("both", "local"),
}


async def outcome(world: World, operation: Operation) -> tuple[int, str] | None:
    """Return the refusal, or None if it was done, every item of it."""
    answer = await operation.ask(world)
    items = answer.json.get("items", [])
    if answer.status == 200 and not any("code" in item for item in items):
        return None
    return refusal(answer)


REVOKED, TOKEN_INVALID, UNKNOWN = (403, "revoked"), (401, "token_invalid"), (401, "unauthenticated")
HELD: Mapping[str, tuple[tuple[str, str, str | None], frozenset[str]]] = {
    "a key, and the composite that it is in": (("key", "alias/orders", "aws"), frozenset({"aws", "both"})),
    "a key that is only a composite's member": (("key", "orders", "gcp"), frozenset({"both"})),
    "a composite's key": (("key", "orders", "both"), frozenset({"both"})),
    "a backend, and the composite that has a key of it": (
        ("backend", "aws", None),
        frozenset({"aws", "both"}),
    ),
    "a composite": (("backend", "both", None), frozenset({"both"})),
}


@pytest.mark.promise(10)
@pytest.mark.parametrize(("named", "stops"), HELD.values(), ids=HELD)
async def test_a_key_or_a_backend_stops_at_the_next_request_elsewhere_until_it_is_lifted(
    world: World,
    named: tuple[str, str, str | None],
    stops: frozenset[str],
    record_promise: Recorder,
) -> None:
    for name, operation in OPERATIONS.items():
        assert await outcome(world, operation) is None, name  # and from here on, all is warm
        revoked = await world.revoke(*named)
        expected = REVOKED if operation.uses & stops else None
        assert await outcome(world, operation) == expected, name
        assert (await world.lift(revoked)).status == 200
        assert await outcome(world, operation) is None, name
    record_promise(10, "revocations", len(OPERATIONS))


@pytest.mark.promise(10)
async def test_an_identity_stops_at_the_next_request_elsewhere_until_it_is_lifted(
    world: World, record_promise: Recorder
) -> None:
    for name, operation in OPERATIONS.items():
        assert await outcome(world, operation) is None, name
        revoked = await world.revoke("identity", "orders")
        is_alone = operation.by is not None and operation.ask is not BESIDE.ask
        assert await outcome(world, operation) == (TOKEN_INVALID if is_alone else UNKNOWN), name
        assert (await world.lift(revoked)).status == 200
        assert await outcome(world, operation) is None, name
    record_promise(10, "revocations", len(OPERATIONS))


BESIDE = OPERATIONS["opening with a token beside the service key"]


@pytest.mark.promise(10)
async def test_a_token_stops_at_the_next_request_elsewhere_and_no_other_does(
    world: World, record_promise: Recorder
) -> None:
    for name, operation in OPERATIONS.items():
        assert await outcome(world, operation) is None, name
        token = world.tokens[operation.by or "aws"]
        await world.revoke("token", jwt.decode(token, options={"verify_signature": False})["jti"])
        assert await outcome(world, operation) == (TOKEN_INVALID if operation.by else None), name
        await world.mint()
        assert await outcome(world, operation) is None, name
    record_promise(10, "revocations", len(OPERATIONS))


@pytest.mark.promise(10)
async def test_a_subjects_tokens_stop_at_the_next_request_elsewhere_and_later_ones_do_not(
    world: World, record_promise: Recorder
) -> None:
    for name, operation in OPERATIONS.items():
        assert await outcome(world, operation) is None, name
        await world.revoke("subject", "orders")
        if operation.by is not None:
            assert await outcome(world, operation) == TOKEN_INVALID, name
        else:  # its credentials go on, but what they would be issued now would be void
            assert await outcome(world, operation) == (REVOKED if "minting" in name else None), name
        world.clock.advance(WINDOW_SECONDS)
        await world.mint()
        assert await outcome(world, operation) is None, name
    record_promise(10, "revocations", len(OPERATIONS))


@pytest.mark.parametrize(("seconds", "is_issued"), [(WINDOW_SECONDS - 1, False), (WINDOW_SECONDS, True)])
async def test_what_a_clock_that_is_ahead_may_have_issued_before_is_void(
    tmp_path: Path,
    seconds: int,
    is_issued: bool,  # noqa: FBT001  a column of the table
) -> None:
    """It may be 2S ahead of the one that stamps the revocation, which may wait a second to be written."""
    async with two_servers(tmp_path) as world:
        await world.revoke("subject", "orders")
        world.clock.advance(seconds)
        assert await outcome(world, OPERATIONS["minting"]) == (None if is_issued else REVOKED)


async def test_nobody_is_issued_a_token_for_an_identity_that_is_revoked(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        await world.revoke("identity", "orders")
        asked = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "subject": "orders"}
        answer = await world.there.post("/token", asked, credential=world.there.root_key)
        assert (answer.status, answer.problem()) == REVOKED


async def test_what_an_identity_had_issued_for_another_stops_with_it(tmp_path: Path) -> None:
    async with two_servers(tmp_path) as world:
        broker = await world.here.add_identity("broker", roles=("admin",))
        token = await world.there.token(broker, subject="orders")
        own = await world.there.token(world.service_key)
        opening = {"envelope": world.envelopes["aws"]}
        assert (await world.there.post("/envelope/decrypt", opening, credential=token)).status == 200
        await world.revoke("identity", "broker")
        assert (
            refusal(await world.there.post("/envelope/decrypt", opening, credential=token)) == TOKEN_INVALID
        )
        assert (await world.there.post("/envelope/decrypt", opening, credential=own)).status == 200


VERSION = "0123456789abcdef0123456789abcdef"
SPELLINGS = ("orders", "ORDERS", f"orders/{VERSION}", "https://kkp-test.vault.azure.net/keys/Orders")


@pytest.mark.parametrize("spelled", SPELLINGS)
async def test_a_key_that_is_revoked_stops_under_every_spelling_that_its_backend_takes(
    tmp_path: Path, spelled: str
) -> None:
    backends = (
        "az=azure-keyvault://kkp-test.vault.azure.net,aws=memory://aws,"
        "both=any-of://?key.orders=az:Orders&key.orders=aws:x&key.other=az:other"
    )
    async with running(tmp_path, KKP_BACKENDS=backends) as kkp:
        keys = [*(("az", name) for name in (*SPELLINGS, "other")), ("both", "orders"), ("both", "other")]
        grants = [grant(key_id, backend=backend, ops=OPS) for backend, key_id in keys]
        service_key = await kkp.add_identity("orders", *grants)
        body = {"kind": "key", "backend": "az", "name": spelled, "reason": ""}
        assert (await kkp.post("/revocations", body, credential=kkp.root_key)).status == 200
        for backend, key_id in keys:
            asked = {"audience": "orders-db", "backend": backend, "key_id": key_id}
            answer = await kkp.post("/token", asked, credential=service_key)
            assert (answer.status == 200) is (key_id == "other"), (backend, key_id)
            assert answer.status == 200 or refusal(answer) == REVOKED
        listed = jwt.decode((await kkp.get("/revocations/list")).raw, options={"verify_signature": False})
        named = {("az", spelled), ("az", "orders"), ("both", "orders")}
        assert listed["keys"] == sorted(entry_id(RevocationKind.KEY, *key) for key in named)


class SlowPolicy:
    """A policy engine that takes its time for whoever seals."""

    def __init__(self, policy: PolicyEngine, seconds: float) -> None:
        self._policy = policy
        self._seconds = seconds

    @property
    def revision(self) -> str:
        return self._policy.revision

    async def decide(self, policy_input: PolicyInput) -> Decision:
        if b'"action":"encrypt"' in policy_input.encoded:
            await asyncio.sleep(self._seconds)
        return await self._policy.decide(policy_input)

    async def ping(self) -> None:
        await self._policy.ping()

    async def close(self) -> None:
        await self._policy.close()


@pytest.mark.parametrize(("many", "at_once", "deciding_seconds"), [(400, 16, 0), (60, 4, 0.15)])
async def test_a_burst_of_one_services_revocations_does_not_refuse_others(
    tmp_path: Path, many: int, at_once: int, deciding_seconds: float
) -> None:
    """Each that bumped the epoch alone would have every request decided anew, until it is refused.

    So would all together, if the next came before what others ask for is decided.
    """
    async with two_servers(tmp_path) as world:
        tokens = [
            await world.here.token(world.service_key, backend="aws", key_id=KEYS["aws"], ops=OPS)
            for _ in range(many)
        ]
        for each in (world.here, world.there):
            pipeline = each.services.pipeline
            pipeline._policy = SlowPolicy(pipeline._policy, deciding_seconds)
        state, answers = world.here.services.pipeline._state, Counter[int]()
        before, is_over = state.epoch, asyncio.Event()

        async def seal(kkp: KKP) -> None:
            body = {"backend": "aws", "key_id": KEYS["aws"], "plaintext": "hello"}
            while not is_over.is_set():
                answer = await kkp.post("/envelope/encrypt", body, credential=kkp.root_key)
                answers[answer.status] += 1

        async def revoke(some: list[str]) -> None:
            for token in some:
                answer = await world.here.post(
                    "/token/revoke", {"token": token}, credential=world.service_key
                )
                assert answer.status == 200, answer.raw

        async with asyncio.TaskGroup() as group:
            for kkp in [world.here, world.there] * 2:
                group.create_task(seal(kkp))
            await asyncio.gather(*(revoke(tokens[n::at_once]) for n in range(at_once)))
            is_over.set()
        assert answers.keys() == {200}
        await state.refresh()
        assert state.epoch - before < len(tokens) / 2  # how many come together is the machine's affair
