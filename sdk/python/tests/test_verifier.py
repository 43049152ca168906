"""The verifier in asyncio, with real HTTP: what it fetches and when, and what it says when it can't."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kkp_client.dpop import DPoPKey, PresentedProof
from kkp_client.errors import ConfigurationError, KeysUnavailableError, KKPError, TokenError
from kkp_client.verifier import TokenVerifier
from tests.fake_clock import FakeClock
from tests.fake_kkp import KEYS, LIST, FakeKKP, Reply
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer

OURS = Issuer(1)
NEXT = Issuer(2)


@pytest.fixture
def kkp() -> Iterator[FakeKKP]:
    with FakeKKP(OURS) as kkp:
        yield kkp


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def make(kkp: FakeKKP, clock: FakeClock) -> Callable[..., TokenVerifier]:
    def verifier(**options: Any) -> TokenVerifier:
        return TokenVerifier(kkp.url, **{"audience": AUDIENCE, "issuer": ISSUER, "clock": clock, **options})

    return verifier


async def outcome(verifier: TokenVerifier, token: str, **shown: Any) -> tuple[str, str | None]:
    try:
        return (await verifier.verify(token, **shown)).sub, None
    except KKPError as error:
        return error.code, error.reason


async def settled(condition: Callable[[], bool]) -> None:
    """Wait until something in the background has come about."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  what happens in another thread sets no event of this loop
            await asyncio.sleep(0.005)


async def test_a_token_is_verified_with_keys_that_are_fetched_once(
    kkp: FakeKKP, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    claims = [await verifier.verify(OURS.token()) for _ in range(3)]
    assert claims[0].sub == "orders"
    assert kkp.asked == [KEYS, LIST]


async def test_a_thousand_tokens_at_once_cause_one_request(
    kkp: FakeKKP, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    await asyncio.gather(*(verifier.verify(OURS.token(jti=str(number))) for number in range(1000)))
    assert kkp.asked == [KEYS, LIST]


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", "malformed"),
        ("a.b.c", "malformed"),
        (OURS.sign({}, "kkp+jwt", alg="none"), "wrong_algorithm"),
        (OURS.sign({}, "jwt"), "wrong_type"),
        (OURS.token(sub=""), "wrong_claims"),
        (OURS.token(iss="https://other.example"), "wrong_issuer"),
        (OURS.token(aud="billing-db"), "wrong_audience"),
        (OURS.token(iat=0, nbf=0, exp=NOW - 5), "expired"),
        (OURS.token(nbf=NOW + 6), "not_yet_valid"),
    ],
)
async def test_a_token_that_is_refused_whatever_the_keys_are_causes_no_request(
    kkp: FakeKKP, make: Callable[..., TokenVerifier], token: str, reason: str
) -> None:
    assert (await outcome(make(), token))[1] == reason
    assert kkp.asked == []


async def test_offline_a_token_verifies_until_it_expires(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    token = OURS.token(exp=NOW + 500)
    await verifier.verify(token)
    kkp.stop()
    clock.wait(504.9)
    assert await outcome(verifier, token) == ("orders", None)
    clock.wait(0.1)
    assert await outcome(verifier, token) == ("token_expired", "expired")
    kkp.start()


async def test_offline_the_list_is_used_until_it_ends(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    token = OURS.token(exp=NOW + 500)
    await verifier.verify(token)
    kkp.stop()
    clock.wait(299.9)
    assert await outcome(verifier, token) == ("orders", None)
    clock.wait(0.1)
    assert await outcome(verifier, token) == ("revocations_unavailable", "list_too_old")
    kkp.start()


async def test_keys_are_used_for_ten_minutes_and_no_longer(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    token = OURS.token(exp=NOW + 5000)
    await verifier.verify(token)
    kkp.stop()
    clock.wait(599.9)
    assert await outcome(verifier, token) == ("orders", None)
    clock.wait(0.1)
    assert await outcome(verifier, token) == ("keys_unavailable", "keys_too_old")
    kkp.start()
    clock.wait(30)
    assert await outcome(verifier, token) == ("orders", None)


async def test_the_age_of_keys_is_not_that_of_the_wall_clock(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    await verifier.verify(OURS.token())
    kkp.stop()
    clock.wait(600)
    clock.step(-600)
    assert await outcome(verifier, OURS.token()) == ("keys_unavailable", "keys_too_old")
    kkp.start()


async def test_a_cold_start_without_kkp_says_what_is_missing_and_from_where(
    kkp: FakeKKP, make: Callable[..., TokenVerifier]
) -> None:
    kkp.stop()
    verifier = make()
    with pytest.raises(KeysUnavailableError) as refusal:
        await verifier.verify(OURS.token())
    assert (refusal.value.code, refusal.value.reason) == ("keys_unavailable", "no_keys")
    said = str(refusal.value)
    assert said.startswith(
        f"There is no key set of KKP's. GET {kkp.url}/keys/jwks: no connection could be made"
    )
    with pytest.raises(KeysUnavailableError, match="/keys/jwks: no connection"):
        await verifier.prepare()
    kkp.start()


async def test_a_start_without_a_list_says_that(kkp: FakeKKP, make: Callable[..., TokenVerifier]) -> None:
    kkp.replies[LIST] = lambda: (503, {}, b"")
    verifier = make()
    with pytest.raises(KKPError, match=f"no revocation list of KKP's. GET {kkp.url}{LIST}: it answered 503"):
        await verifier.verify(OURS.token())
    assert await outcome(verifier, OURS.token()) == ("revocations_unavailable", "no_list")
    with pytest.raises(KKPError, match="it answered 503"):
        await verifier.prepare()


async def test_what_is_prepared_need_not_be_fetched(kkp: FakeKKP, make: Callable[..., TokenVerifier]) -> None:
    verifier = make()
    await verifier.prepare()
    kkp.stop()
    assert await outcome(verifier, OURS.token()) == ("orders", None)
    kkp.start()


async def test_after_a_failure_nobody_asks_before_the_pause_is_over(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    kkp.replies[KEYS] = lambda: (500, {}, b"")
    verifier = make()
    for _ in range(20):
        assert await outcome(verifier, OURS.token()) == ("keys_unavailable", "no_keys")
    assert kkp.times(KEYS) == 1
    clock.wait(1)
    del kkp.replies[KEYS]
    assert await outcome(verifier, OURS.token()) == ("orders", None)


async def test_keys_are_fetched_anew_in_the_background_once_they_are_older_than_max_age(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    token = OURS.token(exp=NOW + 5000)
    await verifier.verify(token)
    clock.wait(299.9)
    await verifier.verify(token)
    assert kkp.times(KEYS) == 1
    clock.wait(0.1)
    kkp.gate.clear()
    assert await outcome(verifier, token) == ("orders", None), "it does not wait for the answer"
    kkp.gate.set()
    await settled(lambda: not verifier._keys.is_older_than(1))
    assert kkp.times(KEYS) == 2
    assert "if-none-match" in kkp.headers[-1]
    clock.wait(299.9)
    assert not verifier._is_due(), "a 304 made them young again"


async def test_a_key_that_is_not_in_the_set_is_fetched_and_waited_for(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    await verifier.verify(OURS.token())
    clock.wait(2)
    kkp.documents[KEYS] = NEXT.jwks(OURS)
    assert await outcome(verifier, NEXT.token()) == ("orders", None)
    assert kkp.times(KEYS) == 2


async def test_unknown_keys_cause_a_request_every_thirty_seconds_at_most(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    await verifier.verify(OURS.token())
    clock.wait(2)
    for seed in range(2, 40):
        assert (await outcome(verifier, Issuer(seed).token()))[1] == "unknown_key"
    assert kkp.times(KEYS) == 2
    clock.wait(29.9)
    assert (await outcome(verifier, NEXT.token()))[1] == "unknown_key"
    assert kkp.times(KEYS) == 2
    clock.wait(0.1)
    assert (await outcome(verifier, NEXT.token()))[1] == "unknown_key"
    assert kkp.times(KEYS) == 3


async def test_an_unknown_key_with_kkp_away_leaves_the_good_keys_in_place(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make(revocations=False)
    await verifier.verify(OURS.token())
    kkp.stop()
    clock.wait(2)
    assert (await outcome(verifier, NEXT.token()))[1] == "unknown_key"
    assert await outcome(verifier, OURS.token()) == ("orders", None)
    kkp.start()


def jwks_reply(document: bytes, status: int = 200, **headers: str) -> Callable[[], Reply]:
    return lambda: (status, {name.replace("_", "-"): value for name, value in headers.items()}, document)


BAD_ANSWERS: dict[str, tuple[Callable[[], Reply], str]] = {
    "an error": (jwks_reply(b"", 503), "it answered 503"),
    "a redirect, which is not followed": (
        jwks_reply(b"", 302, Location="http://127.0.0.1:1/keys"),
        "it answered 302",
    ),
    "a 304 that nobody asked for": (jwks_reply(b"", 304), "it answered 304"),
    "no JSON": (jwks_reply(b"<html>"), "the answer is no key set: not strict JSON"),
    "an empty set": (jwks_reply(b'{"keys":[]}'), "the answer is no key set: it has no key"),
    "a set with a key twice": (
        jwks_reply(json.dumps({"keys": [OURS.jwk, OURS.jwk]}).encode()),
        "the answer is no key set: it has a key twice",
    ),
    "a set that is too long": (
        jwks_reply(OURS.jwks() + b" " * 256 * 1024),
        "it answered more than 262144 bytes",
    ),
    "a compressed answer": (
        jwks_reply(b"", Content_Encoding="gzip"),
        "it answered in an encoding that nobody asked for",
    ),
    "an answer that breaks off": (
        jwks_reply(b"5\r\n12", Transfer_Encoding="chunked", Connection="close"),
        "the connection failed",
    ),
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_a_bad_answer_is_no_key_set_and_says_why(
    kkp: FakeKKP, make: Callable[..., TokenVerifier], name: str
) -> None:
    kkp.replies[KEYS], why = BAD_ANSWERS[name]
    with pytest.raises(KeysUnavailableError) as refusal:
        await make(revocations=False).verify(OURS.token())
    assert f"GET {kkp.url}/keys/jwks: {why}" in str(refusal.value)
    assert kkp.times(KEYS) == 1


@pytest.mark.parametrize("name", [name for name in BAD_ANSWERS if "304" not in name])
async def test_a_bad_answer_leaves_the_good_keys_in_place(
    kkp: FakeKKP,
    clock: FakeClock,
    make: Callable[..., TokenVerifier],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    kkp.cache_control[KEYS] = "max-age=0"
    verifier = make(revocations=False)
    await verifier.verify(OURS.token())
    kkp.replies[KEYS], why = BAD_ANSWERS[name]
    clock.wait(2)
    await verifier.verify(OURS.token())
    await settled(lambda: kkp.times(KEYS) == 2 and verifier._keys.failure != "")
    assert await outcome(verifier, OURS.token()) == ("orders", None)
    warned = [record.getMessage() for record in caplog.records if record.name == "kkp_client.remote_document"]
    assert len(warned) == 1, "who runs the service can see it"
    assert warned[0].startswith(f"GET {kkp.url}{KEYS}: {why}")


async def test_an_etag_that_can_not_be_sent_back_does_no_harm(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    kkp.replies[KEYS] = jwks_reply(OURS.jwks(), ETag='"\xe4"', Cache_Control="max-age=0")
    verifier = make(revocations=False)
    for _ in range(2):
        assert await outcome(verifier, OURS.token()) == ("orders", None)
        clock.wait(2)
    await settled(lambda: kkp.times(KEYS) == 2 and verifier._keys.failure == "")


async def test_a_set_as_long_as_the_limit_is_read(kkp: FakeKKP, make: Callable[..., TokenVerifier]) -> None:
    kkp.documents[KEYS] = OURS.jwks().ljust(256 * 1024)
    assert await outcome(make(), OURS.token()) == ("orders", None)


async def test_bytes_that_drip_in_are_not_waited_for_beyond_the_deadline(
    kkp: FakeKKP, make: Callable[..., TokenVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp_client.fetching.DEADLINE_SECONDS", 0.3)
    with dripping() as port:
        verifier = TokenVerifier(f"http://127.0.0.1:{port}", audience=AUDIENCE, issuer=ISSUER)
        begun = time.monotonic()
        with pytest.raises(KeysUnavailableError, match=r"no answer within 0\.3 s"):
            await verifier.verify(OURS.token(iat=0, nbf=0, exp=2**40))
        assert time.monotonic() - begun < 5


class dripping:  # noqa: N801  used as a function
    """Answers with a header that never ends, a byte at a time."""

    def __enter__(self) -> int:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self._thread.start()
        return int(self._listening.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._listening.close()

    def _drip(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not self._stopped.wait(0.02):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return


async def test_who_waits_may_be_cancelled_and_the_request_goes_on_for_the_others(
    kkp: FakeKKP, make: Callable[..., TokenVerifier]
) -> None:
    kkp.gate.clear()
    verifier = make()
    first, second = (asyncio.create_task(verifier.verify(OURS.token())) for _ in range(2))
    await settled(lambda: kkp.times(KEYS) == 1)
    first.cancel()
    kkp.gate.set()
    assert (await second).sub == "orders"
    assert first.cancelled()
    assert kkp.times(KEYS) == 1


def test_a_verifier_may_be_used_in_one_event_loop_after_another(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()

    async def begin_and_leave() -> None:
        kkp.gate.clear()
        task = asyncio.create_task(verifier.verify(OURS.token()))
        await settled(lambda: kkp.times(KEYS) == 1)
        task.cancel()

    asyncio.run(begin_and_leave())
    kkp.gate.set()
    clock.wait(2)
    assert asyncio.run(verifier.verify(OURS.token())).sub == "orders"


async def test_a_token_that_was_revoked_is_refused_within_max_age(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    token = OURS.token(jti="stolen")
    await verifier.verify(token)
    kkp.documents[LIST] = OURS.revocations(seq=42, tokens={"stolen": NOW + 300}).encode()
    clock.wait(60)
    assert await outcome(verifier, token) == ("token_invalid", "revoked")
    assert verifier.highest_revocation_seq == 42


async def test_the_list_is_fetched_early_in_the_background(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    await verifier.verify(OURS.token())
    clock.wait(29.9)
    assert not verifier._is_due()
    clock.wait(0.1)
    kkp.gate.clear()
    assert await outcome(verifier, OURS.token()) == ("orders", None), "it does not wait for the answer"
    kkp.gate.set()
    await settled(lambda: verifier._list is not None and not verifier._list.is_older_than(0.5))
    assert kkp.times(LIST) == 2


async def test_a_list_that_can_not_be_had_is_waited_for_once(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    await verifier.verify(OURS.token())
    kkp.replies[LIST] = lambda: (503, {}, b"")
    clock.wait(60)
    for _ in range(5):
        assert await outcome(verifier, OURS.token()) == ("orders", None), "the old list is good until its end"
    assert kkp.times(LIST) == 2
    kkp.gate.clear()
    clock.wait(30)
    assert await outcome(verifier, OURS.token()) == ("orders", None), "it does not wait for the next answer"
    await settled(lambda: kkp.times(LIST) == 3)
    del kkp.replies[LIST]
    kkp.documents[LIST] = OURS.revocations(seq=42, tokens={"stolen": NOW + 300}).encode()
    kkp.gate.set()
    await settled(lambda: verifier.highest_revocation_seq == 42)
    assert await outcome(verifier, OURS.token(jti="stolen")) == ("token_invalid", "revoked")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "malformed"),
        (b"\xff\xfe", "malformed"),
        (OURS.token().encode(), "of another type"),
        (OURS.revocations(iss="https://other.example").encode(), "another issuer's"),
        (OURS.revocations(exp=NOW).encode(), "too old"),
        (NEXT.revocations().encode(), "not in the issuer's key set"),
        (OURS.revocations(seq=40).encode(), "older than one that was accepted"),
    ],
)
async def test_a_list_that_is_refused_is_no_list_and_says_why(
    kkp: FakeKKP, make: Callable[..., TokenVerifier], document: bytes, why: str
) -> None:
    kkp.documents[LIST] = document
    verifier = make(highest_revocation_seq=41)
    with pytest.raises(KKPError) as refusal:
        await verifier.verify(OURS.token())
    assert refusal.value.code == "revocations_unavailable"
    assert f"GET {kkp.url}{LIST}: the list was refused: " in str(refusal.value)
    assert why in str(refusal.value)
    assert verifier.highest_revocation_seq == 41


async def test_an_old_list_that_is_put_back_leaves_the_newer_one_in_place(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    kkp.documents[LIST] = OURS.revocations(seq=42, tokens={"stolen": NOW + 300}).encode()
    verifier = make()
    assert await outcome(verifier, OURS.token(jti="stolen")) == ("token_invalid", "revoked")
    kkp.documents[LIST] = OURS.revocations(seq=41).encode()
    clock.wait(60)
    assert await outcome(verifier, OURS.token(jti="stolen")) == ("token_invalid", "revoked")
    assert kkp.times(LIST) == 2


async def test_a_list_by_a_key_that_is_not_in_the_set_has_the_keys_fetched(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    verifier = make()
    await verifier.verify(OURS.token())
    kkp.documents[KEYS] = NEXT.jwks(OURS)
    kkp.documents[LIST] = NEXT.revocations(seq=42).encode()
    clock.wait(60)
    assert await outcome(verifier, OURS.token()) == ("orders", None)
    assert verifier.highest_revocation_seq == 42
    assert kkp.times(KEYS) == 2


async def test_a_proof_is_taken_once_even_where_keys_must_be_fetched_for_it(
    make: Callable[..., TokenVerifier],
) -> None:
    verifier, key = make(), DPoPKey.generate()
    token = OURS.token(cnf={"jkt": key.thumbprint})
    url = "https://orders.example/rows"
    shown = PresentedProof(key.proof(method="GET", url=url, now=NOW, token=token), "GET", url)
    assert await outcome(verifier, token) == ("token_invalid", "proof_missing")
    assert await outcome(make(), token, proof=shown) == ("orders", None), "with keys that are fetched first"
    assert await outcome(verifier, token, proof=shown) == ("orders", None)
    assert await outcome(verifier, token, proof=shown) == ("token_invalid", "wrong_proof")


async def test_nothing_of_the_environment_changes_where_keys_come_from(
    kkp: FakeKKP, make: Callable[..., TokenVerifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await outcome(make(), OURS.token()) == ("orders", None)


async def test_a_cookie_is_not_kept(
    kkp: FakeKKP, clock: FakeClock, make: Callable[..., TokenVerifier]
) -> None:
    kkp.replies[KEYS] = jwks_reply(OURS.jwks(), Set_Cookie="a=b; Path=/", Cache_Control="max-age=0")
    verifier = make(revocations=False)
    await verifier.verify(OURS.token())
    clock.wait(2)
    await verifier.verify(OURS.token())
    await settled(lambda: kkp.times(KEYS) == 2)
    assert all("cookie" not in headers for headers in kkp.headers)


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://kkp.example", {}),
        ("https://user:secret@kkp.example", {}),
        ("https://kkp.example?tenant=1", {}),
        ("ftp://kkp.example", {}),
        ("https://kkp.example", {"audience": ""}),
        ("https://kkp.example", {"issuer": ""}),
        ("https://kkp.example", {"leeway_seconds": 61}),
        ("https://kkp.example", {"leeway_seconds": -1}),
        ("https://kkp.example", {"leeway_seconds": float("nan")}),
    ],
)
def test_a_verifier_that_can_not_work_is_not_made(url: str, options: Any) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        TokenVerifier(url, **{"audience": AUDIENCE, **options})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "allow_http"), [("http://127.0.0.1:8080", False), ("http://[::1]", False), ("http://kkp", True)]
)
def test_plain_http_is_for_this_machine_or_for_who_allows_it(url: str, *, allow_http: bool) -> None:
    assert TokenVerifier(url, audience=AUDIENCE, allow_http=allow_http).issuer == url


def test_a_verifier_over_tls_verifies_unless_it_is_told_by_what() -> None:
    verifier = TokenVerifier("https://kkp.example", audience=AUDIENCE)
    context = verifier._keys._ssl_context
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


async def test_a_verdict_is_an_error_that_holds_no_other(make: Callable[..., TokenVerifier]) -> None:
    verifier = make()
    await verifier.prepare()
    with pytest.raises(TokenError) as refusal:
        await verifier.verify(OURS.token()[:-4] + "AAAA")
    assert refusal.value.__context__ is None
