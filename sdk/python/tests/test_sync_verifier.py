"""The verifier for threads: the same verdicts, one request at a time, and none that a warm cache needs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kkp_client.dpop import DPoPKey, PresentedProof
from kkp_client.errors import KeysUnavailableError, KKPError
from kkp_client.sync_verifier import SyncTokenVerifier
from tests.fake_clock import FakeClock
from tests.fake_kkp import KEYS, LIST, FakeKKP
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer

OURS = Issuer(1)
NEXT = Issuer(2)
THREADS = 32


@pytest.fixture
def kkp() -> Iterator[FakeKKP]:
    with FakeKKP(OURS) as kkp:
        yield kkp


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(kkp: FakeKKP, clock: FakeClock) -> Iterator[Callable[..., SyncTokenVerifier]]:
    made: list[SyncTokenVerifier] = []

    def verifier(**options: Any) -> SyncTokenVerifier:
        options = {"audience": AUDIENCE, "issuer": ISSUER, "clock": clock, **options}
        made.append(SyncTokenVerifier(kkp.url, **options))
        return made[-1]

    yield verifier
    kkp.gate.set()
    for each in made:
        each.close()


def outcome(verifier: SyncTokenVerifier, token: str, **shown: Any) -> tuple[str, str | None]:
    try:
        return verifier.verify(token, **shown).sub, None
    except KKPError as error:
        return error.code, error.reason


def at_once(work: Callable[[int], Any], times: int = THREADS) -> list[Any]:
    """Do something in many threads, which begin together."""
    barrier = threading.Barrier(times)

    def wait_and_work(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(times) as threads:
        return list(threads.map(wait_and_work, range(times)))


def settle(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.005)


def test_a_warm_cache_needs_nothing(kkp: FakeKKP, make: Callable[..., SyncTokenVerifier]) -> None:
    verifier = make()
    verifier.prepare()
    kkp.stop()
    assert [outcome(verifier, OURS.token(jti=str(number)))[0] for number in range(3)] == ["orders"] * 3
    assert kkp.asked == [KEYS, LIST]
    kkp.start()


def test_many_threads_that_begin_cold_cause_one_request(
    kkp: FakeKKP, make: Callable[..., SyncTokenVerifier]
) -> None:
    verifier = make()
    outcomes = at_once(lambda number: outcome(verifier, OURS.token(jti=str(number))))
    assert outcomes == [("orders", None)] * THREADS
    assert kkp.asked == [KEYS, LIST]
    assert kkp.most_at_once == 1


def test_many_threads_with_old_keys_cause_one_request_and_wait_for_none(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., SyncTokenVerifier]
) -> None:
    verifier = make(revocations=False)
    verifier.prepare()
    clock.wait(300)
    kkp.gate.clear()
    outcomes = at_once(lambda number: outcome(verifier, OURS.token(jti=str(number), exp=NOW + 900)))
    assert outcomes == [("orders", None)] * THREADS
    kkp.gate.set()
    settle(lambda: not verifier._verifier._keys.is_older_than(1))
    assert kkp.times(KEYS) == 2


def test_many_threads_with_unknown_keys_cause_one_request(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., SyncTokenVerifier]
) -> None:
    verifier = make(revocations=False)
    verifier.prepare()
    clock.wait(2)
    outcomes = at_once(lambda number: outcome(verifier, Issuer(number + 2).token()))
    assert outcomes == [("token_invalid", "unknown_key")] * THREADS
    assert kkp.times(KEYS) == 2


def test_a_key_that_is_not_in_the_set_is_fetched_and_waited_for(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., SyncTokenVerifier]
) -> None:
    verifier = make(revocations=False)
    verifier.prepare()
    clock.wait(2)
    kkp.documents[KEYS] = NEXT.jwks(OURS)
    assert outcome(verifier, NEXT.token()) == ("orders", None)


def test_of_many_threads_that_show_one_proof_one_is_let_in(make: Callable[..., SyncTokenVerifier]) -> None:
    verifier, key = make(), DPoPKey.generate()
    token, url = OURS.token(cnf={"jkt": key.thumbprint}), "https://orders.example/rows"
    shown = PresentedProof(key.proof(method="GET", url=url, now=NOW, token=token), "GET", url)
    outcomes = at_once(lambda _: outcome(verifier, token, proof=shown))
    assert sorted(outcomes) == [("orders", None), *[("token_invalid", "wrong_proof")] * (THREADS - 1)]


def test_a_token_that_was_revoked_is_refused_within_max_age(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., SyncTokenVerifier]
) -> None:
    verifier = make()
    token = OURS.token(jti="stolen")
    assert outcome(verifier, token) == ("orders", None)
    kkp.documents[LIST] = OURS.revocations(seq=42, tokens={"stolen": NOW + 300}).encode()
    clock.wait(60)
    assert outcome(verifier, token) == ("token_invalid", "revoked")
    assert verifier.highest_revocation_seq == 42


def test_a_cold_start_without_kkp_says_what_is_missing_and_from_where(
    kkp: FakeKKP, make: Callable[..., SyncTokenVerifier]
) -> None:
    kkp.stop()
    with pytest.raises(KeysUnavailableError, match=f"GET {kkp.url}/keys/jwks: no connection could be made"):
        make().verify(OURS.token())
    kkp.start()


def test_a_refused_token_is_refused_without_a_thread(make: Callable[..., SyncTokenVerifier]) -> None:
    before = threading.active_count()
    assert outcome(make(), "abc") == ("token_invalid", "malformed")
    assert threading.active_count() == before


def test_it_ends_its_thread_and_begins_another_if_it_is_needed(
    kkp: FakeKKP, make: Callable[..., SyncTokenVerifier]
) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with make() as verifier:
        verifier.prepare()
        assert "kkp-client" in {thread.name for thread in threading.enumerate()} - before
    assert "kkp-client" not in {thread.name for thread in threading.enumerate()}
    verifier.close()
    verifier.prepare()


FORKED = """
import os, sys, threading, time
from kkp_client.sync_verifier import SyncTokenVerifier
url, audience, issuer, token = sys.argv[1:]
verifier = SyncTokenVerifier(url, audience=audience, issuer=issuer)
asking = threading.Thread(target=verifier.verify, args=[token])
asking.start()
sys.stdin.readline()  # the request is on its way
child = os.fork()
if child == 0:
    time.sleep(1)  # in which no other request may be begun
    try:
        print(verifier.verify(token).sub, flush=True)
    finally:
        os._exit(0)
print("forked", flush=True)
asking.join()
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no processes that fork")
def test_a_process_that_was_forked_has_a_thread_and_requests_of_its_own(kkp: FakeKKP) -> None:
    now = int(time.time())
    kkp.documents[LIST] = OURS.revocations(iat=now, exp=now + 300).encode()
    token = OURS.token(iat=now, nbf=now, exp=now + 300)
    command = [sys.executable, "-W", "ignore", "-c", FORKED, kkp.url, AUDIENCE, ISSUER, token]
    kkp.gate.clear()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        settle(lambda: kkp.times(KEYS) == 1)
        process.stdin.write("fork\n")
        process.stdin.flush()
        assert process.stdout.readline() == "forked\n"
        kkp.gate.set()
        assert process.communicate(timeout=60)[0] == "orders\n"
    assert kkp.times(KEYS) == 2
