"""What callers see when a cloud is in trouble, over its own wire: 503 in time, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web

from kkp.pacing import each
from tests.emulators import aws, azure, gcp, vault
from tests.harness import KKP, running
from tests.promises import Recorder
from tests.scale import SCALE

TIMEOUT_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
AT_ONCE = 100
OTHER_ARN = f"arn:aws:kms:{aws.REGION}:123456789012:key/00000000-0000-4000-8000-000000000000"
SEALED = {"backend": "cloud", "plaintext": "secret", "context": {"table": "orders"}}


@dataclass
class Cloud:
    """A running emulator, and how it gets into trouble.

    Attributes:
        faults: By name; each lasts until `heal`.
        heal: Makes it well again.
    """

    uri: str
    key_id: str
    faults: Mapping[str, Callable[[], None]]
    heal: Callable[[], None]


def _setting(emulator: Any, fault: Any) -> Callable[[], None]:
    """Return what gives an emulator this fault."""
    return lambda: setattr(emulator, "fault", fault)


def _another_arn(document: dict[str, Any]) -> None:
    document["KeyId"] = OTHER_ARN


@asynccontextmanager
async def _aws(_directory: Path, _monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    async with aws.emulated() as emulator:

        def another_key(operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
            return aws.altering(operation, _another_arn)(operation, answer)

        faults = {
            "throttling": aws.refusing("ThrottlingException"),
            "failing": aws.refusing("KMSInternalException", 500),
            "hanging": emulator.hang,
            "a corrupted answer": aws.saying(aws.Reply(200, b'{"KeyId": "arn:aws', missing=100)),
            "another key in the answer": another_key,
        }
        given = {name: _setting(emulator, fault) for name, fault in faults.items()}
        yield Cloud(emulator.uri, "alias/orders", given, _setting(emulator, None))


@asynccontextmanager
async def _azure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    async with azure.running(directory, monkeypatch) as emulator:
        kid = f"https://{azure.VAULT_HOST}/keys/billing/{emulator.keys['billing'][0].name}"
        faults = {
            "throttling": azure.throttled(),
            "failing": azure.failing(500),
            "hanging": azure.hanging,
            "a corrupted answer": azure.cut_short,
            "another key in the answer": azure.altered(lambda document: document.update(kid=kid)),
        }
        given = {name: _setting(emulator, fault) for name, fault in faults.items()}
        yield Cloud(azure.URI, "orders", given, _setting(emulator, None))


def _corrupt(answer: Any) -> None:
    for name in ("ciphertext", "plaintext"):
        if name in type(answer).pb(answer).DESCRIPTOR.fields_by_name:
            setattr(answer, name, b"\0" + getattr(answer, name)[1:] + b"\0")


def _name_another_key(answer: Any) -> None:
    if "name" in type(answer).pb(answer).DESCRIPTOR.fields_by_name:
        answer.name = f"{gcp.RING}/cryptoKeys/billing/cryptoKeyVersions/1"


@asynccontextmanager
async def _gcp(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    async with gcp.cloud_kms(directory, monkeypatch) as emulator:
        faults = {
            "throttling": lambda: emulator.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED),
            "failing": lambda: emulator.refuse(grpc.StatusCode.INTERNAL),
            "hanging": emulator.hang,
            "a corrupted answer": lambda: setattr(emulator, "on_answer", _corrupt),
            "another key in the answer": lambda: setattr(emulator, "on_answer", _name_another_key),
        }
        yield Cloud(emulator.uri, "orders", faults, emulator.recover)


@asynccontextmanager
async def _vault(_directory: Path, _monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    async with vault.emulated() as emulator:

        async def another_version(request: web.Request, answer: vault.Answer) -> web.StreamResponse:
            response = await answer()
            assert isinstance(response, web.Response)
            assert isinstance(response.body, bytes)
            body = response.body.replace(b'"key_version": 1', b'"key_version": 2')
            return await vault.saying(body, response.status)(request, answer)

        faults = {
            "throttling": vault.refusing(429),
            "failing": vault.refusing(500),
            "hanging": vault.hang,
            "a corrupted answer": vault.saying(b'{"data": {"ciphertext": "vault:'),
            "another key in the answer": another_version,
        }
        given = {name: _setting(emulator, fault) for name, fault in faults.items()}
        yield Cloud(emulator.uri, "orders", given, _setting(emulator, None))


Running = Callable[[Path, pytest.MonkeyPatch], AbstractAsyncContextManager[Cloud]]
CLOUDS: Mapping[str, Running] = {"aws": _aws, "azure": _azure, "gcp": _gcp, "vault": _vault}
FAULTS = ("throttling", "failing", "hanging", "a corrupted answer", "another key in the answer")
# Neither names the key in the answer to an unwrap.
NAMELESS = {("gcp", "another key in the answer"), ("vault", "another key in the answer")}


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await holds():  # noqa: ASYNC110  what is waited for is another server's state
            await asyncio.sleep(0.02)


async def _opens(kkp: KKP, envelope: Any, token: str) -> bool:
    opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token})
    return opened.status == 200 and opened.json["plaintext"] == "secret"


@pytest.mark.promise(27)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("cloud_name", CLOUDS)
async def test_trouble_is_503_in_time_and_never_a_denial_and_passes_by_itself(
    cloud_name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_promise: Recorder
) -> None:
    async with (
        CLOUDS[cloud_name](tmp_path, monkeypatch) as cloud,
        running(
            tmp_path,
            KKP_BACKENDS=f"cloud={cloud.uri}",
            KKP_KMS_TIMEOUT_MS=f"{TIMEOUT_SECONDS * 1000:.0f}",
            KKP_KMS_BREAKER_FAILURES="3",
            KKP_KMS_BREAKER_SECS="0.5",
        ) as kkp,
    ):
        token = await kkp.token(kkp.root_key, backend="cloud", key_id=cloud.key_id)
        sealing = {**SEALED, "key_id": cloud.key_id}
        envelope = (await kkp.post("/envelope/encrypt", sealing, credential=token)).json["envelope"]
        opening = {"envelope": envelope, "token": token}
        cloud.faults[fault]()

        asked = [("/envelope/encrypt", sealing), ("/envelope/decrypt", opening)]
        for path, document in asked[:1] if (cloud_name, fault) in NAMELESS else asked:
            for _ in range(3):  # the last of them while the backend is left alone
                began = time.monotonic()
                answer = await kkp.post(path, document, credential=token)
                record_promise(27, "seconds to an answer", time.monotonic() - began)
                assert (answer.status, answer.problem()) == (503, "kms_unavailable")
                assert time.monotonic() - began < TIMEOUT_SECONDS + PATIENCE_SECONDS
        cloud.heal()

        await _until(lambda: _opens(kkp, envelope, token))
        assert (await kkp.post("/envelope/encrypt", sealing, credential=token)).status == 200
        assert {record["decision"] for record in await kkp.records() if "decision" in record} == {"allow"}


@pytest.mark.promise(27)
async def test_messages_of_every_key_version_open_although_the_backend_keeps_failing(
    tmp_path: Path, record_promise: Recorder
) -> None:
    turns = itertools.count()
    troubles = itertools.cycle([vault.refusing(429), vault.refusing(500), vault.close])

    async def unsteady(request: web.Request, answer: vault.Answer) -> web.StreamResponse:
        return await (next(troubles)(request, answer) if next(turns) % 5 == 0 else answer())

    async with (
        vault.emulated() as emulator,
        running(tmp_path, KKP_BACKENDS=f"cloud={emulator.uri}", KKP_KMS_ATTEMPTS="10") as kkp,
    ):
        emulator.fault = unsteady
        token = await kkp.token(kkp.root_key, backend="cloud", key_id="orders")
        sealing = {**SEALED, "key_id": "orders"}
        envelopes: list[Any] = []
        opened: list[bool] = []

        async def seal(_number: int) -> None:
            envelopes.append(await kkp.seal(token, **sealing))

        async def open_again(envelope: Any) -> None:
            opened.append(await _opens(kkp, envelope, token))

        for _ in range(5):
            await each(range(20 * SCALE), seal, at_once=AT_ONCE)
            emulator.rotate("orders")
        await each(envelopes, open_again, at_once=AT_ONCE)

    assert {envelope["key_version"] for envelope in envelopes} == {"1", "2", "3", "4", "5"}
    record_promise(27, "messages", len(opened), unreadable=opened.count(False))
    assert all(opened)


async def test_a_backend_that_is_left_alone_is_a_warning_without_its_name_and_kkp_stays_ready(
    tmp_path: Path,
) -> None:
    async with (
        vault.emulated() as emulator,
        running(
            tmp_path,
            KKP_BACKENDS=f"cloud={emulator.uri},own=local://",
            KKP_KMS_BREAKER_FAILURES="1",
            KKP_KMS_BREAKER_SECS="0.2",
        ) as kkp,
    ):
        assert (await kkp.get("/readyz")).json["warnings"] == {}
        emulator.fault = vault.refusing(503)
        sealing = {**SEALED, "key_id": "orders"}

        async def seals() -> bool:
            return (await kkp.post("/envelope/encrypt", sealing, credential=kkp.root_key)).status == 200

        assert not await seals()

        ready = await kkp.get("/readyz")
        assert (ready.status, ready.json["status"]) == (200, "ok")
        warning = "1 of 2 backends can't be used at the moment; the log says which"
        assert ready.json["warnings"] == {"backends": warning}
        assert b"cloud" not in ready.raw

        emulator.fault = None
        await _until(seals)
        assert (await kkp.get("/readyz")).json["warnings"] == {}


async def test_a_backend_whose_threads_hang_takes_nothing_from_another(tmp_path: Path) -> None:
    concurrency, requests = 4, 36  # as many as may be there at once
    let_go = threading.Event()
    under_way: set[int] = set()

    def hold(_operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
        under_way.add(threading.get_ident())
        let_go.wait()
        return answer()

    async def every_thread_hangs() -> bool:
        return len(under_way) == concurrency

    async with (
        aws.emulated() as emulator,
        running(
            tmp_path,
            KKP_BACKENDS=f"cloud={emulator.uri},own=memory://aws",
            KKP_KMS_TIMEOUT_MS="60000",
            KKP_KMS_CONCURRENCY=str(concurrency),
        ) as kkp,
    ):
        emulator.fault = hold
        sealing = {**SEALED, "key_id": "alias/orders"}
        waiting = [
            asyncio.create_task(kkp.post("/envelope/encrypt", sealing, credential=kkp.root_key))
            for _ in range(requests)
        ]
        try:
            await _until(every_thread_hangs)
            for _ in range(50):
                own = await kkp.post(
                    "/envelope/encrypt", {**sealing, "backend": "own"}, credential=kkp.root_key
                )
                assert own.status == 200
            assert not any(task.done() for task in waiting)
            assert len(under_way) == concurrency
        finally:
            let_go.set()
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {200}
