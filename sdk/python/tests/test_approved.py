"""What somebody else must approve first: what is told of it, and how it is asked for once more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kkp_client.approval import with_approval
from kkp_client.client import KKPClient
from kkp_client.dpop import DPoPKey
from kkp_client.errors import ConfigurationError, KKPError, ProblemError
from kkp_client.messages import EncryptItem, Scope
from kkp_client.protocol import Core, Send, Settings
from tests.conftest import InThread, Make, local, whole
from tests.scripted_kkp import CREDENTIAL, KEY, Asked, Scripted, ScriptedKKP, problem, with_header
from tests.test_client import everything_of
from tests.test_envelope import WHOLE

RELEASE = "eyJ0eXAiOiJra3AtYXBwcm92YWwrand0In0.e30.c2lnbmF0dXJl"
NOT_YET = problem(
    403, "approval_required", approval_id="q1u7vS3Xn0o5b0p8m9l2kA", approval_expires_at=1_750_003_600
)
SCOPE = Scope(backend="aws", key_id="alias/orders")


def approved(client: Any, release: str = RELEASE) -> Any:
    """Return a client of either world with an approval to show."""
    if isinstance(client, KKPClient):
        return client.approved(release)
    return InThread(client.blocking.approved(release))


def shown(asked: list[Asked]) -> list[str | None]:
    return [each.headers.get("kkp-approval") for each in asked]


async def test_what_waits_for_approval_says_what_to_hand_on(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    kkp.script("/envelope/encrypt", NOT_YET)
    with pytest.raises(ProblemError) as refused:
        await client.encrypt("hello", **KEY)
    error = refused.value
    assert (error.code, error.approval_id) == ("approval_required", "q1u7vS3Xn0o5b0p8m9l2kA")
    assert error.approval_expires_at == 1_750_003_600
    kkp.script("/envelope/encrypt/batch", Scripted(body={"items": [NOT_YET.body]}))
    (each,) = await client.encrypt_many([EncryptItem(plaintext="hello", **KEY)])
    assert (each.code, each.approval_id) == ("approval_required", "q1u7vS3Xn0o5b0p8m9l2kA")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, (None, None)),
        ({"approval_id": 7, "approval_expires_at": "soon"}, (None, None)),
        ({"approval_id": "a b", "approval_expires_at": True}, (None, None)),
        ({"approval_id": "x" * 129, "approval_expires_at": 1.5}, (None, None)),
        ({"approval_id": "x", "approval_expires_at": 0}, ("x", 0)),
    ],
)
async def test_what_is_no_id_and_no_time_is_left_out(
    client_of: Make, kkp: ScriptedKKP, members: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    kkp.script("/envelope/encrypt", problem(403, "approval_required", **members))
    with pytest.raises(ProblemError) as refused:
        await client_of(kkp).encrypt("hello", **KEY)
    assert (refused.value.approval_id, refused.value.approval_expires_at) == expected


async def test_an_approval_is_shown_by_its_call_and_not_by_the_token_on_the_way(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    envelope = await client.encrypt("hello", **KEY)
    assert (await approved(client).decrypt(envelope)).text == "hello"
    assert (await client.decrypt(envelope)).text == "hello"
    assert shown(kkp.asked_at("/envelope/decrypt")) == [RELEASE, None]
    assert shown(kkp.asked_at("/token")) == [None]  # and both calls used it
    await approved(client).encrypt("hello", **KEY)
    await approved(client).rewrap(envelope, backend="gcp", key_id="orders")
    await approved(client).introspect("a.b.c")
    await approved(client).revoke("a.b.c")
    for path in ("/envelope/rewrap", "/token/introspect", "/token/revoke"):
        assert shown(kkp.asked_at(path)) == [RELEASE]
    assert shown(kkp.asked_at("/envelope/encrypt")) == [None, RELEASE]


async def test_it_is_shown_again_where_the_call_is_repeated(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp, dpop_key=DPoPKey.generate())
    envelope = await client.encrypt("hello", **KEY)
    kkp.script("/envelope/decrypt", problem(503, "kms_unavailable"), problem(401, "token_expired"))
    assert (await approved(client).decrypt(envelope)).text == "hello"
    assert shown(kkp.asked_at("/envelope/decrypt")) == [RELEASE] * 3
    assert set(shown(kkp.asked_at("/token"))) == {None}


async def test_what_failed_behind_an_approval_that_it_spent_is_the_error(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    failed = with_header(problem(503, "kms_unavailable"), "Retry-After", "0")
    kkp.script("/envelope/encrypt", failed, problem(403, "approval_invalid"))
    with pytest.raises(ProblemError) as refused:
        await approved(client).encrypt("hello", **KEY)
    assert (refused.value.code, refused.value.status) == ("kms_unavailable", 503)
    kkp.script(
        "/envelope/encrypt",
        with_header(problem(429, "rate_limited"), "Retry-After", "0"),
        problem(403, "approval_invalid"),
    )
    with pytest.raises(ProblemError, match="approval_invalid"):  # by what asked too often, nothing was spent
        await approved(client).encrypt("hello", **KEY)


async def test_a_refused_approval_is_the_calls_error(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    kkp.script("/envelope/encrypt", problem(403, "approval_invalid"))
    with pytest.raises(ProblemError) as refused:
        await approved(client).encrypt("hello", **KEY)
    assert refused.value.code == "approval_invalid"
    assert len(kkp.asked) == 1


async def test_a_token_takes_approval_itself_where_it_is_what_is_asked_for(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    kkp.script("/token", NOT_YET)
    with pytest.raises(ProblemError, match="approval_required"):
        await client.token(SCOPE)
    held = await approved(client).token(SCOPE)
    assert (await client.token(SCOPE)).token == held.token
    assert shown(kkp.asked_at("/token")) == [None, RELEASE]


async def test_a_token_with_an_approval_is_asked_for_although_one_is_kept(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    before = await client.token(SCOPE)
    held = await approved(client).token(SCOPE)
    assert before.token != held.token == (await client.token(SCOPE)).token


async def test_a_token_that_took_approval_is_used_to_its_end_and_never_renewed_behind_ones_back(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    kkp.life_seconds = 2
    held = await approved(client).token(SCOPE)
    async with asyncio.timeout(10):
        while (await client.token(SCOPE)).token == held.token:
            assert shown(kkp.asked_at("/token")) == [RELEASE]
            await asyncio.sleep(0.05)
    assert shown(kkp.asked_at("/token")) == [RELEASE, None]
    assert held.renew_at < held.ends_at  # so that it would have been renewed before


async def test_where_the_token_takes_approval_too_it_is_asked_for_first(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    envelope = await client.encrypt("hello", **KEY)
    kkp.script("/token", NOT_YET)
    with pytest.raises(ProblemError, match="approval_required"):
        await client.decrypt(envelope)
    await approved(client, "for-the-token").token(SCOPE)
    assert (await approved(client).decrypt(envelope)).text == "hello"
    assert shown(kkp.asked_at("/token")) == [None, "for-the-token"]
    assert shown(kkp.asked_at("/envelope/decrypt")) == [RELEASE]


async def test_message_keys_take_approval_as_well(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    envelope = await local(approved(client)).seal("hello", **KEY)
    assert (await local(approved(client)).open(envelope)).text == "hello"
    for path in ("/envelope/data-key", "/envelope/data-key/unwrap"):
        assert shown(kkp.asked_at(path)) == [RELEASE]
    stream = await whole(local(approved(client)).seal_stream([b"hello"], **KEY))
    assert await whole(local(approved(client)).open_stream([stream])) == b"hello"
    for path in ("/envelope/data-key", "/envelope/data-key/unwrap"):
        assert shown(kkp.asked_at(path)) == [RELEASE] * 2


@pytest.mark.parametrize("binding", ["bearer", "dpop"])
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.encrypt_many([EncryptItem(plaintext="hello", **KEY)]),
        lambda client: client.encrypt_many([]),
        lambda client: client.decrypt_many([{**WHOLE, **KEY}]),
        lambda client: client.decrypt_many([{}]),
        lambda client: client.rewrap_many([{**WHOLE, **KEY}], backend="gcp", key_id="orders"),
    ],
)
async def test_a_batch_takes_none_and_nothing_is_asked_for_it(
    client_of: Make, kkp: ScriptedKKP, call: Callable[[Any], Awaitable[Any]], binding: str
) -> None:
    asked: list[str] = []

    def credential() -> str:
        asked.append("a credential")
        return CREDENTIAL

    client = client_of(kkp, credential, dpop_key=DPoPKey.generate() if binding == "dpop" else None)
    with pytest.raises(ConfigurationError, match="A batch takes no approval"):
        await call(approved(client))
    assert (asked, kkp.asked) == ([], [])


@pytest.mark.parametrize(
    "release", ["", "two words", f"{RELEASE}\n", "ä", "x" * 8193, "x" * 8192 + "=", None, 7]
)
async def test_what_can_be_no_approval_is_refused_and_not_repeated(
    client_of: Make, kkp: ScriptedKKP, release: Any
) -> None:
    client = client_of(kkp)
    with pytest.raises(ConfigurationError) as refused:
        approved(client, release)
    assert "approval" in str(refused.value)
    assert not isinstance(release, str) or not release or release not in str(refused.value)


async def test_it_is_the_same_client_which_ends_with_either(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    await client.encrypt("hello", **KEY)
    await approved(client).close()
    with pytest.raises(ConfigurationError, match="closed"):
        await client.encrypt("hello", **KEY)


async def test_who_stops_waiting_ends_the_call(kkp: ScriptedKKP) -> None:
    began = asyncio.Event()

    async def never() -> str:
        began.set()
        await asyncio.Event().wait()
        return ""

    async with KKPClient(kkp.url, never) as client:
        call = asyncio.create_task(client.approved(RELEASE).encrypt("hello", **KEY))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert kkp.asked == []


async def test_what_the_callers_function_raises_reaches_it_as_it_is(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    def credential() -> str:
        raise LookupError("no file")

    with pytest.raises(LookupError, match="no file"):
        await approved(client_of(kkp, credential)).encrypt("hello", **KEY)


async def test_no_error_no_log_and_no_repr_shows_it(
    client_of: Make, kkp: ScriptedKKP, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = approved(client_of(kkp, repeats=0))
    said = [repr(client), repr(getattr(client, "blocking", None))]
    for scripted in (
        problem(403, "approval_invalid", detail=RELEASE),
        Scripted(500, b"no"),
        Scripted(body=None),
    ):
        kkp.script("/envelope/encrypt", scripted)
        with pytest.raises(KKPError) as failed:
            await client.encrypt("hello", **KEY)
        said.append(everything_of(failed.value))
    assert "/envelope/encrypt" in caplog.text  # it did log
    assert shown(kkp.asked) == [RELEASE] * 3
    assert RELEASE not in "".join(said) + caplog.text


def test_a_step_that_shows_it_does_not_tell_it() -> None:
    core = Core(Settings(url="https://kkp.example"))
    steps = with_approval(core.encrypt(EncryptItem(plaintext="hello", **KEY), Scope()), RELEASE)
    next(steps)
    send = steps.send(CREDENTIAL)
    assert isinstance(send, Send)
    assert send.headers["KKP-Approval"] == RELEASE
    assert RELEASE not in repr(send)
