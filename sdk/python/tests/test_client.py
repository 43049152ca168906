from __future__ import annotations

import asyncio
import logging
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from kkp_client import sync_client
from kkp_client.client import KKPClient
from kkp_client.dpop import DPoPKey
from kkp_client.errors import ConfigurationError, EnvelopeInvalidError, KKPError, ProblemError, TransportError
from kkp_client.messages import EncryptItem, Scope
from kkp_client.sync_client import SyncKKPClient
from tests import scripted_kkp
from tests.conftest import Make, until
from tests.scripted_kkp import CREDENTIAL, KEY, Scripted, ScriptedKKP, problem, with_header
from tests.test_envelope import WHOLE

CALLERS = 1000
SECRET = "plaintext-that-nobody-may-see"


async def test_what_was_sealed_opens_moves_and_opens_again(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    envelope = await client.encrypt("hello", context={"table": "orders"}, associated_data="row 7", **KEY)
    opened = await client.decrypt(envelope)
    assert (opened.plaintext, opened.text, opened.claims.sub) == (b"hello", "hello", "orders")
    moved = await client.rewrap(envelope, backend="gcp", key_id="orders")
    assert (await client.decrypt(moved)).plaintext == b"hello"
    assert (await client.decrypt(await client.encrypt(b"\xff\0", **KEY))).text is None


async def test_many_are_sealed_opened_and_moved_at_once(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    envelopes = await client.encrypt_many([EncryptItem(plaintext=str(number), **KEY) for number in range(5)])
    moved = await client.rewrap_many([*envelopes, "{}"], backend="gcp", key_id="orders")
    assert isinstance(moved.pop(), EnvelopeInvalidError)
    opened = await client.decrypt_many([*moved, *envelopes])
    assert [each.text for each in opened] == [str(number) for number in range(5)] * 2
    assert sorted(kkp.paths()) == [
        *["/envelope/decrypt/batch"] * 2,
        "/envelope/encrypt/batch",
        "/envelope/rewrap/batch",
        *["/token"] * 3,
    ]


async def test_with_kkp_away_each_of_many_has_that_error_and_nothing_is_raised(client_of: Make) -> None:
    client = client_of("http://127.0.0.1:1", repeats=0)
    item = EncryptItem(plaintext="hello", **KEY)
    envelope = {**WHOLE, **KEY}
    results = [
        *await client.encrypt_many([item]),
        *await client.decrypt_many([envelope, envelope]),
        *await client.rewrap_many([envelope], backend="gcp", key_id="orders"),
    ]
    assert [(type(each), each.code) for each in results] == [(TransportError, "unreachable")] * 4


async def test_a_token_is_asked_for_once_and_used_for_all_that_say_the_same(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp)
    scope = Scope(backend="aws", key_id="alias/orders")
    first, second = await client.token(scope), await client.token(scope)
    other = await client.token(Scope(backend="aws", key_id="alias/orders", audience="another"))
    assert first.token == second.token != other.token
    assert len(kkp.asked_at("/token")) == 2


async def test_a_thousand_callers_in_asyncio_cause_one_token_request_for_each_scope(kkp: ScriptedKKP) -> None:
    scopes = [Scope(backend="aws", key_id=key_id, ttl_seconds=60) for key_id in ("a", "b")]
    async with KKPClient(kkp.url, CREDENTIAL, audience="orders-db", deadline_seconds=60) as client:
        held = await asyncio.gather(*(client.token(scopes[number % 2]) for number in range(CALLERS)))
        sealed = await client.encrypt("hello", **KEY)
        opened = await asyncio.gather(*(client.decrypt(sealed) for _ in range(100)))
    assert len({each.token for each in held[::2]}) == len({each.token for each in held[1::2]}) == 1
    assert [each.text for each in opened] == ["hello"] * 100
    assert len(kkp.asked_at("/token")) == 3


def test_a_thousand_callers_in_threads_cause_one_token_request_for_each_scope(kkp: ScriptedKKP) -> None:
    scopes = [Scope(backend="aws", key_id=key_id) for key_id in ("alias/orders", "alias/others")]
    waiting = threading.Barrier(100)
    go_on = threading.Event()
    with SyncKKPClient(kkp.url, CREDENTIAL, audience="orders-db", deadline_seconds=60) as client:

        def ask(number: int) -> str:
            if not go_on.is_set():
                waiting.wait(30)  # a hundred at a time begin together
                go_on.set()
            return client.token(scopes[number % 2]).token

        with ThreadPoolExecutor(100) as pool:
            tokens = set(pool.map(ask, range(CALLERS)))
    assert len(tokens) == len(kkp.asked_at("/token")) == 2


def client_tokens(client: Any) -> set[str]:
    """Return the tokens that a client keeps."""
    core = getattr(client, "blocking", client)._core
    return {held.token for held in core.tokens._held.values()}


async def test_a_token_that_is_due_is_renewed_while_the_old_one_is_used(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    kkp.life_seconds = 2  # due after one
    go_on = threading.Event()
    scope = Scope(backend="aws", key_id="alias/orders")
    client = client_of(kkp)
    first = await client.token(scope)
    minted = kkp._mint(scripted_kkp.Asked("/token", {}, b""))
    kkp.script("/token", Scripted(body=minted.body, waits_for=go_on))
    await asyncio.sleep(1.05)
    assert {(await client.token(scope)).token for _ in range(5)} == {first.token}
    go_on.set()
    await until(lambda: len(client_tokens(client)) == 1 and first.token not in client_tokens(client))
    assert len(kkp.asked_at("/token")) >= 2


async def test_a_token_that_kkp_refuses_is_asked_for_once_more(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    envelope = await client.encrypt("hello", **KEY)
    await client.decrypt(envelope)
    kkp.script("/envelope/decrypt", problem(401, "token_expired"))
    assert (await client.decrypt(envelope)).text == "hello"
    tokens = [asked.json["token"] for asked in kkp.asked_at("/envelope/decrypt")]
    assert tokens[0] == tokens[1] != tokens[2]
    assert len(kkp.asked_at("/token")) == 2


async def test_a_credential_that_is_a_function_is_asked_each_time(client_of: Make, kkp: ScriptedKKP) -> None:
    given = iter(["one", "two", "three"])
    client = client_of(kkp, lambda: next(given))
    await client.encrypt("a", **KEY)
    await client.encrypt("b", **KEY)
    assert [asked.headers["authorization"] for asked in kkp.asked] == ["Bearer one", "Bearer two"]


async def test_a_credential_may_be_a_coroutine_function(kkp: ScriptedKKP) -> None:
    async def credential() -> str:
        await asyncio.sleep(0)
        return "waited-for"

    async with KKPClient(kkp.url, credential) as client:
        await client.encrypt("a", **KEY)
    assert kkp.asked[0].headers["authorization"] == "Bearer waited-for"


async def test_a_credential_that_does_not_come_ends_the_call_and_no_later_one(kkp: ScriptedKKP) -> None:
    comes = asyncio.Event()

    async def credential() -> str:
        await comes.wait()
        return "late"

    async with KKPClient(kkp.url, credential, audience="orders-db", deadline_seconds=0.2) as client:
        for _ in range(2):
            with pytest.raises(TransportError) as failed:
                await client.token(Scope(**KEY))
            assert failed.value.code == "timeout"
        comes.set()
        await until(lambda: not client._tasks)
        assert (await client.token(Scope(**KEY))).token


async def test_a_timeout_of_the_callers_own_is_raised_as_it_is(kkp: ScriptedKKP) -> None:
    async def credential() -> str:
        raise TimeoutError("mine")

    async with KKPClient(kkp.url, credential) as client:
        with pytest.raises(TimeoutError, match="mine"):
            await client.encrypt("a", **KEY)


async def test_what_the_callers_function_raises_reaches_all_who_wait(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    def credential() -> str:
        raise LookupError("no identity here")

    client = client_of(kkp, credential)
    calls = [client.token(Scope(backend="aws", key_id="k")) for _ in range(3)]
    for result in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(result, LookupError)
    with pytest.raises(LookupError):
        await client.encrypt("a", **KEY)
    assert kkp.asked == []


async def test_a_credential_function_that_ends_its_thread_holds_nobody_up(kkp: ScriptedKKP) -> None:
    is_ready = iter([False, True])

    def credential() -> str:
        if not next(is_ready):
            raise SystemExit("not yet")
        return "key"

    with SyncKKPClient(kkp.url, credential, audience="orders-db") as client:
        with pytest.raises(SystemExit, match="not yet"):
            await asyncio.to_thread(client.token, Scope(**KEY))
        assert (await asyncio.to_thread(client.token, Scope(**KEY))).token


async def test_with_a_dpop_key_a_nonce_is_taken_up_and_every_request_proved(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    client = client_of(kkp, dpop_key=DPoPKey.generate(), issuer="https://kkp.test")
    kkp.script("/token", with_header(problem(401, "use_dpop_nonce"), "DPoP-Nonce", "n-1"))
    kkp.script("/envelope/encrypt", with_header(problem(401, "use_dpop_nonce"), "DPoP-Nonce", "n-2"))
    envelope = await client.encrypt("hello", **KEY)
    assert kkp.paths() == [*["/token"] * 2, *["/envelope/encrypt"] * 2]
    await client.decrypt(envelope)
    proofs = [asked.headers["dpop"] for asked in kkp.asked]
    assert len(set(proofs)) == len(proofs)
    assert kkp.asked[-1].headers["authorization"].startswith("DPoP ")


async def test_a_busy_kkp_is_asked_again_and_a_closed_one_is_not_reached(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    kkp.script(
        "/envelope/encrypt",
        with_header(problem(429, "rate_limited"), "Retry-After", "0"),
        with_header(problem(503, "overloaded"), "Retry-After", "0"),
    )
    await client_of(kkp).encrypt("hello", **KEY)
    assert len(kkp.asked) == 3
    with pytest.raises(TransportError) as failed:
        await client_of("http://127.0.0.1:1", repeats=1).encrypt("hello", **KEY)
    assert failed.value.code == "unreachable"


async def test_a_connection_that_breaks_after_it_was_made_is_not_used_again(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    kkp.script("/envelope/encrypt", Scripted(body=None))
    with pytest.raises(TransportError) as failed:
        await client_of(kkp).encrypt("hello", **KEY)
    assert (failed.value.code, len(kkp.asked)) == ("unreachable", 1)


async def test_an_answer_that_does_not_come_is_a_timeout(client_of: Make, kkp: ScriptedKKP) -> None:
    go_on = threading.Event()
    kkp.script("/envelope/encrypt", Scripted(waits_for=go_on))
    kkp.script("/token", Scripted(waits_for=go_on))
    client = client_of(kkp, deadline_seconds=0.3)
    for call in (client.encrypt("hello", **KEY), client.token(Scope(backend="aws", key_id="k"))):
        with pytest.raises(TransportError) as failed:
            await call
        assert failed.value.code == "timeout"
    go_on.set()


async def test_whoever_stops_waiting_for_a_token_ends_nothing_for_the_others(kkp: ScriptedKKP) -> None:
    go_on = threading.Event()
    minted = kkp._mint(scripted_kkp.Asked("/token", {}, b""))
    kkp.script("/token", Scripted(body=minted.body, waits_for=go_on))
    scope = Scope(backend="aws", key_id="alias/orders")
    async with KKPClient(kkp.url, CREDENTIAL, audience="orders-db") as client:
        first = asyncio.create_task(client.token(scope))
        other = asyncio.create_task(client.token(scope))
        await until(lambda: kkp.asked != [])
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        go_on.set()
        assert (await other).token
    assert len(kkp.asked) == 1


async def test_closing_ends_what_waits_and_nothing_is_asked_afterwards(
    client_of: Make, kkp: ScriptedKKP
) -> None:
    go_on = threading.Event()
    kkp.script("/token", Scripted(waits_for=go_on))
    client = client_of(kkp)
    waiting = asyncio.ensure_future(client.token(Scope(backend="aws", key_id="k")))
    await until(lambda: kkp.asked != [])
    await client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await waiting
    go_on.set()
    for call in (client.encrypt("a", **KEY), client.token(Scope(backend="aws", key_id="k"))):
        with pytest.raises(ConfigurationError, match="closed"):
            await call


async def test_closing_ends_a_request_that_is_under_way(client_of: Make, kkp: ScriptedKKP) -> None:
    go_on = threading.Event()
    kkp.script("/envelope/encrypt", Scripted(waits_for=go_on))
    client = client_of(kkp)
    waiting = asyncio.ensure_future(client.encrypt("hello", **KEY))
    await until(lambda: kkp.asked != [])
    await client.close()
    with pytest.raises(TransportError) as failed:
        await waiting
    assert failed.value.code == "unreachable"
    go_on.set()


FORKED = """
import os, sys
from kkp_client import ConfigurationError, Scope, SyncKKPClient
client = SyncKKPClient(sys.argv[1], "kkp_sk_0", audience="orders-db")
client.token(Scope(backend="aws", key_id="k"))
child = os.fork()
if child == 0:
    try:
        client.token(Scope(backend="aws", key_id="another"))
    except ConfigurationError as error:
        print(error, flush=True)
    client.close()
    os._exit(0)
os.waitpid(child, 0)
print(client.introspect("a"))
client.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no processes that fork")
def test_a_fork_of_a_client_that_was_used_leaves_its_connections_alone(kkp: ScriptedKKP) -> None:
    """It would speak on them, too: either process could read the other's answer."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, kkp.url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)  # noqa: S603  our own
    assert done.stdout.splitlines() == [
        "The client was used before a fork: make one in each process.",
        "{'active': True}",
    ]
    assert kkp.paths() == ["/token", "/token/introspect"]


def test_where_no_thread_can_be_begun_nobody_waits_for_a_token_for_ever(
    kkp: ScriptedKKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = Scope(backend="aws", key_id="k")

    class NeverBegun(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with SyncKKPClient(kkp.url, CREDENTIAL, audience="orders-db") as client:
        with monkeypatch.context() as patched:
            patched.setattr(sync_client, "Thread", NeverBegun)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                client.token(scope)
        assert client.token(scope).token


async def test_a_revoked_token_is_used_no_longer(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    scope = Scope(backend="aws", key_id="k")
    held = await client.token(scope)
    assert await client.introspect(held.token) == {"active": True}
    await client.revoke(held.token)
    assert (await client.token(scope)).token != held.token
    assert [asked.json for asked in kkp.asked_at("/token/revoke")] == [{"token": held.token}]


async def test_a_redirect_is_not_followed(client_of: Make, kkp: ScriptedKKP) -> None:
    for status in (301, 302, 303, 307, 308):
        kkp.script("/envelope/encrypt", Scripted(status, headers={"Location": f"{kkp.url}/elsewhere"}))
        with pytest.raises(TransportError) as failed:
            await client_of(kkp).encrypt("hello", **KEY)
        assert (failed.value.code, failed.value.status) == ("bad_answer", status)
    assert set(kkp.paths()) == {"/envelope/encrypt"}


async def test_a_cookie_is_not_kept(client_of: Make, kkp: ScriptedKKP) -> None:
    client = client_of(kkp)
    kkp.script("/envelope/encrypt", with_header(problem(400, "invalid_request"), "Set-Cookie", "a=b; Path=/"))
    with pytest.raises(ProblemError):
        await client.encrypt("hello", **KEY)
    await client.encrypt("hello", **KEY)
    assert "cookie" not in kkp.asked[1].headers


async def test_no_proxy_of_the_environment_is_asked(
    client_of: Make, kkp: ScriptedKKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    await client_of(kkp).encrypt("hello", **KEY)
    assert len(kkp.asked) == 1


async def test_an_answer_is_read_no_further_than_its_limit(client_of: Make, kkp: ScriptedKKP) -> None:
    kkp.script("/token", Scripted(body=b" " * 300_000), Scripted(body=b"{" + b" " * 200_000 + b"}"))
    client = client_of(kkp)
    messages = []
    for _ in range(2):
        with pytest.raises(TransportError) as failed:
            await client.token(Scope(backend="aws", key_id="k"))
        messages.append((failed.value.code, "longer" in str(failed.value)))
    assert messages == [("bad_answer", True), ("bad_answer", False)]


async def test_an_answer_that_is_compressed_is_not_read(client_of: Make, kkp: ScriptedKKP) -> None:
    kkp.script("/envelope/encrypt", Scripted(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(TransportError, match="encoding") as failed:
        await client_of(kkp).encrypt("hello", **KEY)
    assert failed.value.code == "bad_answer"
    assert kkp.asked[0].headers["accept-encoding"] == "identity"


@contextmanager
def behind_tls(directory: Path) -> Iterator[tuple[ScriptedKKP, ssl.SSLContext]]:
    """Run a KKP with a certificate that only the context knows."""
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kkp")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    pem = directory / "kkp.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with scripted_kkp.running(context=context) as kkp:
        yield kkp, ssl.create_default_context(cadata=certificate.public_bytes(Encoding.PEM).decode())


async def test_whoever_answers_must_have_a_certificate_that_is_trusted(
    client_of: Make, tmp_path: Path
) -> None:
    with behind_tls(tmp_path) as (kkp, trusting):
        await client_of(kkp, ssl_context=trusting).encrypt("hello", **KEY)
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED") as failed:
            await client_of(kkp, repeats=0).encrypt("hello", **KEY)
        assert failed.value.code == "unreachable"
        assert len(kkp.asked) == 1


def everything_of(error: BaseException) -> str:
    """Return all that an error, and whatever hangs from it, says."""
    said = []
    seen: BaseException | None = error
    while seen is not None:
        said += [repr(seen), str(seen), repr(vars(seen)), repr(seen.args)]
        seen = seen.__cause__ or seen.__context__
    return "".join(said)


async def test_no_error_no_log_and_no_repr_holds_a_secret(
    client_of: Make, kkp: ScriptedKKP, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = client_of(kkp, dpop_key=DPoPKey.generate(), repeats=0, deadline_seconds=5)
    held = await client.token(Scope(backend="aws", key_id="alias/orders", ops=["encrypt"]))
    envelope = await client.encrypt(SECRET, **KEY)
    opened = await client.decrypt(envelope)
    said = [repr(held), repr(opened), repr(client), repr(getattr(client, "blocking", None))]
    said += [repr(EncryptItem(plaintext=SECRET, **KEY))]
    for scripted in (
        problem(403, "policy_denied", detail=SECRET),
        problem(422, "envelope_invalid", detail=held.token),
        Scripted(500, SECRET.encode()),
        Scripted(200, {"envelope": SECRET}),
        Scripted(200, SECRET.encode(), {"Content-Encoding": "gzip"}),
        Scripted(body=None),
    ):
        kkp.script("/envelope/encrypt", scripted)
        with pytest.raises(KKPError) as failed:
            await client.encrypt(SECRET, **KEY)
        said.append(everything_of(failed.value))
    everything = "".join(said) + caplog.text
    assert "/envelope/encrypt" in caplog.text  # it did log
    proofs = [asked.headers["dpop"] for asked in kkp.asked]
    for secret in (SECRET, CREDENTIAL, held.token, *proofs):
        assert secret not in everything
