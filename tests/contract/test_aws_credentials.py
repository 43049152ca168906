"""Where AWS's credentials come from may hang, fail or refuse, and harms nobody but those who need them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kkp.errors import (
    CredentialsExpiredError,
    KKPError,
    KMSDeniedError,
    KMSUnavailableError,
)
from kkp.kms._aws_credentials import AWSCredentials
from kkp.kms.aws import AWSKMS
from kkp.kms.base import Resources
from kkp.kms.guarded import Guarded
from kkp.master_key import MasterKey
from kkp.model import BackendLimits
from tests.emulators import sts
from tests.emulators.aws import AWSEmulator, emulated
from tests.emulators.listener import Listener
from tests.fakes.local_keys import LocalKeysInMemory
from tests.integration.process import refuses_connections, serving

DATA_KEY = bytes(range(200, 232))
LIMITS = BackendLimits(timeout_seconds=0.5, concurrency=4, attempts=1, breaker_failures=1000)


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that another thread or process does."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.01)


@pytest.fixture
def token_service() -> Iterator[Listener]:
    """A token service that accepts connections and says nothing, until it is told what."""
    with Listener() as listener:
        yield listener


@pytest.fixture
async def aws(
    tmp_path: Path, token_service: Listener, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AWSEmulator]:
    """AWS KMS, with a web identity in the place of the emulator's own credentials."""
    async with emulated() as emulator:
        for name, value in sts.environment(tmp_path, token_service.url).items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture
async def kms(aws: AWSEmulator) -> AsyncIterator[AWSKMS]:
    adaptor = await AWSKMS.connect(aws.uri, Resources(MasterKey(b"m" * 32), LocalKeysInMemory(), LIMITS))
    yield adaptor
    await adaptor.close()


async def test_a_web_identity_is_shown_once_for_all_who_wait(token_service: Listener, kms: AWSKMS) -> None:
    token_service.answer = sts.granting()
    wraps = await asyncio.gather(*(kms.wrap("alias/orders", DATA_KEY, {}) for _ in range(4)))

    assert len({wrapped.key_version for wrapped in wraps}) == 1
    assert len(token_service.requests) == 1
    assert b"Action=AssumeRoleWithWebIdentity" in token_service.requests[0].body


async def test_a_silent_token_service_holds_no_slot_beyond_the_deadline(
    token_service: Listener, kms: AWSKMS
) -> None:
    guard = Guarded(kms, "aws", LIMITS)
    for _ in range(3):  # more calls than slots: one that a call had kept would be missing in the next round
        calls = [guard.wrap("alias/orders", DATA_KEY, {}) for _ in range(LIMITS.concurrency)]
        async with asyncio.timeout(10 * LIMITS.timeout_seconds):
            refusals = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(refusal) for refusal in refusals} == {KMSUnavailableError}
        await until(lambda: guard._slots._value == LIMITS.concurrency, LIMITS.timeout_seconds)

    token_service.answer = sts.granting()
    async with asyncio.timeout(20):
        while True:  # one fetch may still wait for its own timeout
            try:
                await guard.wrap("alias/orders", DATA_KEY, {})
                break
            except KMSUnavailableError:
                continue


async def test_a_silent_token_service_is_an_outage_at_the_deadline_without_a_guard_too(kms: AWSKMS) -> None:
    async with asyncio.timeout(20):
        for use in (kms.ping(), kms.describe("alias/orders")):
            with pytest.raises(KMSUnavailableError):
                await use


async def test_a_silent_token_service_does_not_hold_up_the_end(
    tmp_path: Path, token_service: Listener
) -> None:
    settings = {
        "KKP_BACKENDS": "aws=aws-kms://eu-west-1",
        "KKP_KMS_TIMEOUT_MS": "2000",
        **sts.environment(tmp_path, token_service.url),
    }
    async with serving(tmp_path, environ=settings) as server:
        token = await server.token()
        sealing = asyncio.create_task(server.seal(token, "secret"))
        await until(lambda: bool(token_service.requests))
        server.process.terminate()
        await refuses_connections(int(server.url.rpartition(":")[2]))
        sealing.cancel()
        async with asyncio.timeout(20):
            await server.process.wait()


REFUSALS: Mapping[str, tuple[str, int, type[KKPError]]] = {
    "the role does not trust the identity": ("AccessDenied", 403, KMSDeniedError),
    "the identity's token is none": ("InvalidIdentityToken", 400, KMSDeniedError),
    "the identity provider rejects it": ("IDPRejectedClaim", 403, KMSDeniedError),
    "the identity's token has expired": ("ExpiredTokenException", 400, CredentialsExpiredError),
    "the identity provider can't be reached": ("IDPCommunicationError", 400, KMSUnavailableError),
    "a refusal that nobody knows": ("SomethingNew", 400, KMSUnavailableError),
    "it failed": ("InternalFailure", 500, KMSUnavailableError),
}


@pytest.mark.parametrize(("code", "status", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
async def test_a_refusal_by_the_token_service_is_one_of_the_credentials_for_a_ping_as_well(
    token_service: Listener, kms: AWSKMS, code: str, status: int, expected: type[KKPError]
) -> None:
    token_service.answer = sts.refusing(code, status)
    for use in (kms.ping(), kms.wrap("alias/orders", DATA_KEY, {}), kms.describe("alias/orders")):
        with pytest.raises(KKPError) as caught:
            await use
        assert type(caught.value) is expected
        assert "hunter2" not in str(caught.value)


class _Chain:
    """Credentials that end when they are told to, and are fetched when they are let."""

    def __init__(self) -> None:
        self.fetches = 0
        self.seconds_left = 0.0
        self.failure: Exception | None = None
        self.let_go = threading.Event()
        self.let_go.set()

    def refresh_needed(self, seconds: float | None = None) -> bool:
        return self.seconds_left < (900 if seconds is None else seconds)

    def get_frozen_credentials(self) -> object:
        self.fetches += 1
        self.let_go.wait()
        if self.failure is not None:
            raise self.failure
        self.seconds_left = 3600
        return f"number {self.fetches}"


class _Endless:
    """Credentials that never end, as those of a file."""

    def get_frozen_credentials(self) -> object:
        return "for ever"


async def test_credentials_that_never_end_are_taken_once() -> None:
    credentials = AWSCredentials(_Endless(), 5)
    await credentials.ready()
    await credentials.ready()
    assert credentials.get_frozen_credentials() == "for ever"


async def test_credentials_are_fetched_in_good_time_and_nobody_waits_for_it() -> None:
    chain = _Chain()
    credentials = AWSCredentials(chain, 5)
    await credentials.ready()
    await until(lambda: credentials._fetching is not None and credentials._fetching.done())
    chain.seconds_left = 899
    chain.let_go.clear()
    await credentials.ready()
    await credentials.ready()
    assert credentials.get_frozen_credentials() == "number 1"
    chain.let_go.set()
    await until(lambda: credentials.get_frozen_credentials() == "number 2")
    await credentials.ready()
    assert chain.fetches == 2


@pytest.mark.parametrize(("seconds_left", "waits"), [(4.9, True), (5.0, False)])
async def test_credentials_that_end_within_the_deadline_are_waited_for(
    seconds_left: float,
    waits: bool,  # noqa: FBT001  a column of the table
) -> None:
    chain = _Chain()
    credentials = AWSCredentials(chain, 5)
    await credentials.ready()
    await until(lambda: credentials._fetching is not None and credentials._fetching.done())
    chain.seconds_left = seconds_left
    chain.let_go.clear()
    waiting = asyncio.create_task(credentials.ready())
    done, _ = await asyncio.wait({waiting}, timeout=0.1)
    assert bool(done) is not waits
    chain.let_go.set()
    await waiting


async def test_a_fetch_that_failed_is_told_to_all_who_wait_and_tried_again_by_the_next() -> None:
    chain = _Chain()
    credentials = AWSCredentials(chain, 5)
    chain.failure = RuntimeError("no")
    refusals = await asyncio.gather(*(credentials.ready() for _ in range(3)), return_exceptions=True)
    assert refusals == [chain.failure] * 3
    assert chain.fetches == 1
    chain.failure = None
    await credentials.ready()
    assert chain.fetches == 2


async def test_a_fetch_that_never_ends_costs_each_call_its_deadline_and_one_thread_in_all() -> None:
    chain = _Chain()
    credentials = AWSCredentials(chain, 0.05)
    chain.let_go.clear()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await credentials.ready()
    assert chain.fetches == 1
    chain.let_go.set()
