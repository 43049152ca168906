"""The Python client against a real KKP, in asyncio and in threads: each opens what the other seals.

What the client does by itself, against answers by script, is in the tests of sdk/python.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import pytest
from kkp_client.client import KKPClient
from kkp_client.dpop import DPoPKey
from kkp_client.errors import EnvelopeInvalidError, KKPError, ProblemError, TransportError
from kkp_client.local import LocalEnvelope, SyncLocalEnvelope
from kkp_client.messages import EncryptItem, Scope
from kkp_client.sync_client import SyncKKPClient

from tests.approving import policy_with, released
from tests.harness import ISSUER
from tests.integration.process import Server, kkp, records, serving


class Key(TypedDict):
    """What names a key in a call."""

    backend: str
    key_id: str


ORDERS: Key = {"backend": "aws", "key_id": "alias/orders"}
SCOPE = Scope(**ORDERS)
OTHERS: tuple[Key, ...] = ({"backend": "gcp", "key_id": "orders"}, {"backend": "azure", "key_id": "orders"})
CONTEXT = {"table": "orders", "\U00010000": "beyond", "\uffff": "the end of the plane"}
SIZE = 4096
CALLERS = 1000
EXAMPLES = Path(__file__).parents[2] / "sdk/python/examples"


# Of these, sdk/python/tests/conftest.py has its own: its tests run alone, and neither can import the other.
class InThread:
    """What blocks, each of its calls in a thread, so that one test is for both."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.blocking, name)
        return lambda *args, **kwargs: asyncio.to_thread(method, *args, **kwargs)


@asynccontextmanager
async def using(server: Server, world: str, *, key: str | None = None, **options: Any) -> AsyncIterator[Any]:
    """Give a client of a server, in asyncio or in threads."""
    given = {"audience": "orders-db", "issuer": ISSUER, **options}
    if world == "asyncio":
        async with KKPClient(server.url, key or server.root_key, **given) as client:
            yield client
    else:
        with SyncKKPClient(server.url, key or server.root_key, **given) as blocking:
            yield InThread(blocking)


def local(client: Any) -> Any:
    """Return what seals and opens here."""
    return (
        LocalEnvelope(client)
        if isinstance(client, KKPClient)
        else InThread(SyncLocalEnvelope(client.blocking))
    )


async def whole(pieces: Any) -> bytes:
    """Return all that a stream gives."""
    if hasattr(pieces, "__aiter__"):
        return b"".join([piece async for piece in pieces])
    return await asyncio.to_thread(b"".join, await pieces)


def bound(root: Path) -> Mapping[str, str]:
    """Have the bundled policy, but with bearer tokens as production has them."""
    policy = root / "policy"
    shutil.copytree(Path(__file__).parents[2] / "policy", policy)
    rules = policy / "kkp/envelopes/envelopes.rego"
    text = rules.read_text()
    assert 'data.kkp.settings.bearer_tokens == "any"' in text
    rules.write_text(text.replace('data.kkp.settings.bearer_tokens == "any"', "false"))
    return {"KKP_POLICY_PATH": str(policy)}


@pytest.mark.parametrize("world", ["asyncio", "threads"])
@pytest.mark.parametrize("binding", ["bearer", "dpop", "dpop with nonces"])
async def test_what_either_side_seals_the_other_opens(tmp_path: Path, world: str, binding: str) -> None:
    environ = {"KKP_DPOP_NONCE": "1"} if binding == "dpop with nonces" else {}
    dpop_key = None if binding == "bearer" else DPoPKey.generate()
    async with (
        serving(tmp_path, environ=environ) as server,
        using(server, world, dpop_key=dpop_key) as client,
    ):
        here = local(client)
        for plaintext in ("hällo", "", b"\xff\0", os.urandom(1_000_000)):
            asked: dict[str, Any] = {"context": CONTEXT, "associated_data": "row 7", **ORDERS}
            there, local_one = await client.encrypt(plaintext, **asked), await here.seal(plaintext, **asked)
            for envelope in (there, local_one):
                for opened in (await client.decrypt(envelope), await here.open(envelope)):
                    assert opened.plaintext == (
                        plaintext.encode() if isinstance(plaintext, str) else plaintext
                    )
                    assert opened.text == (plaintext if isinstance(plaintext, str) else None)
        moved = await client.rewrap(await here.seal("hello", **ORDERS), **OTHERS[0])
        assert (await here.open(await client.rewrap(moved, **OTHERS[1]))).text == "hello"
        kinds = {record["action"] for record in records(server.data_dir / "kkp.db") if "action" in record}
    assert {"issue_token", "generate_data_key", "release_data_key", "rewrap", "encrypt", "decrypt"} <= kinds


@pytest.mark.parametrize("world", ["asyncio", "threads"])
@pytest.mark.parametrize("binding", ["bearer", "dpop"])
async def test_what_somebody_else_approved_is_done_once(tmp_path: Path, world: str, binding: str) -> None:
    policy = policy_with(tmp_path, [{"actions": ["decrypt", "release_data_key"], "valid_minutes": 10}])
    dpop_key = None if binding == "bearer" else DPoPKey.generate()
    async with (
        serving(tmp_path, environ={"KKP_POLICY_PATH": str(policy)}) as server,
        using(server, world, dpop_key=dpop_key) as client,
    ):
        alice = await kkp(tmp_path, "identity", "add", "alice", "--role", "approver")
        envelope = await client.encrypt("hello", **ORDERS)
        for way in ("decrypt", "open"):

            async def opened(client: Any, way: str = way) -> Any:
                return await (client.decrypt if way == "decrypt" else local(client).open)(envelope)

            with pytest.raises(ProblemError, match="approval_required") as refused:
                await opened(client)
            assert refused.value.approval_expires_at is not None
            release = await released(server, str(refused.value.approval_id), alice.out.strip())
            assert (await opened(approved(client, release))).text == "hello"
            with pytest.raises(ProblemError, match="approval_invalid"):
                await opened(approved(client, release))


@pytest.mark.parametrize("world", ["asyncio", "threads"])
async def test_where_all_of_a_key_takes_approval_the_token_comes_first(tmp_path: Path, world: str) -> None:
    policy = policy_with(tmp_path, [{**ORDERS, "valid_minutes": 10}])
    async with (
        serving(tmp_path, environ={"KKP_POLICY_PATH": str(policy)}) as server,
        using(server, world) as client,
    ):
        alice = await kkp(tmp_path, "identity", "add", "alice", "--role", "approver")

        async def allowed(call: Callable[[Any], Awaitable[Any]]) -> str:
            """Have a call refused, and return the release of its approval."""
            with pytest.raises(ProblemError, match="approval_required") as refused:
                await call(client)
            return await released(server, str(refused.value.approval_id), alice.out.strip())

        release = await allowed(lambda client: client.encrypt("hello", **ORDERS))
        envelope = await approved(client, release).encrypt("hello", **ORDERS)
        release = await allowed(lambda client: client.decrypt(envelope))  # it is the token's
        await approved(client, release).token(SCOPE)
        release = await allowed(lambda client: client.decrypt(envelope))
        assert (await approved(client, release).decrypt(envelope)).text == "hello"


def approved(client: Any, release: str) -> Any:
    """Return a client of either world with an approval to show."""
    if isinstance(client, KKPClient):
        return client.approved(release)
    return InThread(client.blocking.approved(release))


@pytest.mark.parametrize("world", ["asyncio", "threads"])
async def test_streams_and_files_are_sealed_opened_and_moved(tmp_path: Path, world: str) -> None:
    async with serving(tmp_path) as server, using(server, world, dpop_key=DPoPKey.generate()) as client:
        here = local(client)
        for size in (0, 1, SIZE, 3 * SIZE, 100_001):
            data = os.urandom(size)
            sealed = await whole(
                here.seal_stream(io.BytesIO(data), chunk_size=SIZE, context=CONTEXT, **ORDERS)
            )
            assert await whole(here.open_stream([sealed])) == data
            line, end, chunks = sealed.partition(b"\n")
            moved = await client.rewrap(line, **OTHERS[0])
            assert await whole(here.open_stream([msgspec.json.encode(moved) + end, chunks])) == data
            plain, kept, back = (tmp_path / name for name in ("plain", "sealed", "back"))
            plain.write_bytes(data)
            await here.seal_file(plain, kept, **ORDERS)
            await here.open_file(kept, back)
            assert back.read_bytes() == data


async def test_a_stream_that_was_touched_is_refused_by_whom_it_concerns(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, using(server, "asyncio") as client:
        here = local(client)
        sealed = await whole(here.seal_stream([bytes(3 * SIZE)], chunk_size=SIZE, **ORDERS))
        line, _, chunks = sealed.partition(b"\n")
        for wrong, by_kkp in (
            (line.replace(b'"context":{}', b'"context":{"a":"b"}') + b"\n" + chunks, True),
            (line.replace(b'"chunk_size":4096', b'"chunk_size":8192') + b"\n" + chunks, True),
            (line + b"\n" + chunks[:-1], False),
            (line + b"\n" + chunks[: 2 * (SIZE + 16)], False),
            (line + b"\n" + chunks + b"\0", False),
            (line + b"\n" + chunks[SIZE + 16 :], False),
        ):
            with pytest.raises(EnvelopeInvalidError) as refused:
                await whole(here.open_stream([wrong]))
            assert (refused.value.status, refused.value.request_id is not None) == (
                422 if by_kkp else None,
                by_kkp,
            )


async def test_an_envelope_that_was_touched_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, using(server, "asyncio") as client:
        envelope = await client.encrypt("hello", context=CONTEXT, **ORDERS)
        spoilt = base64.urlsafe_b64encode(bytes(32)).decode().rstrip("=")
        for name in ("wrap_tag", "commitment", "message_id"):
            for call in (client.decrypt, local(client).open):
                with pytest.raises(EnvelopeInvalidError) as refused:
                    await call({**envelope, name: spoilt})
                assert refused.value.status == 422
        with pytest.raises(EnvelopeInvalidError):
            await local(client).open({**envelope, "nonce": "A" * 16})


@pytest.mark.parametrize("world", ["asyncio", "threads"])
async def test_many_are_sealed_opened_and_moved_each_with_its_own_result(tmp_path: Path, world: str) -> None:
    async with serving(tmp_path) as server, using(server, world) as client:
        items = [
            EncryptItem(plaintext=f"{number}", **key) for key in (ORDERS, OTHERS[0]) for number in range(600)
        ]
        wrong = EncryptItem(plaintext="x", backend="aws", key_id="alias/missing")
        sealed = await client.encrypt_many([*items, wrong])
        missing = sealed.pop()
        assert (missing.code, missing.status) == ("unknown_key", 404)
        moved = await client.rewrap_many(sealed, **OTHERS[1])
        opened = await client.decrypt_many([*moved, *sealed, {}])
        assert isinstance(opened.pop(), EnvelopeInvalidError)
        assert [each.text for each in opened] == [item.plaintext for item in items] * 2


async def test_a_thousand_callers_of_one_client_cause_one_token_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with using(server, "asyncio", deadline_seconds=60) as client:
            tokens = {
                held.token for held in await asyncio.gather(*(client.token(SCOPE) for _ in range(CALLERS)))
            }
        issued = [
            record for record in records(server.data_dir / "kkp.db") if record.get("action") == "issue_token"
        ]
    assert len(tokens) == len(issued) == 1


async def test_a_token_that_was_revoked_or_has_ended_is_replaced(tmp_path: Path) -> None:
    environ = {"KKP_MIN_TOKEN_TTL_SECS": "1"}
    async with serving(tmp_path, environ=environ) as server, using(server, "asyncio") as client:
        envelope = await client.encrypt("hello", **ORDERS)
        held = await client.token(SCOPE)
        assert (await client.introspect(held.token))["active"] is True
        await client.decrypt(envelope)
        await server.post("/token/revoke", {"token": held.token}, credential=server.root_key)
        assert (await client.decrypt(envelope)).text == "hello"
        replaced = await client.token(SCOPE)
        assert replaced.token != held.token
        await client.revoke(replaced.token)
        assert (await client.introspect(replaced.token)) == {"active": False}
        brief = Scope(ttl_seconds=2)
        for _ in range(3):
            assert (await client.decrypt(envelope, scope=brief)).text == "hello"
            await asyncio.sleep(1.2)


async def test_a_service_without_a_grant_and_one_that_is_disabled_are_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key = (await server.add("orders")).json["service_key"]
        async with using(server, "asyncio", key=key) as client:
            assert (await client.decrypt(await client.encrypt("hello", **ORDERS))).text == "hello"
            with pytest.raises(ProblemError) as denied:
                await client.encrypt("hello", **OTHERS[0])
            error = denied.value
            assert (error.code, error.status) == ("policy_denied", 403)
            assert error.reasons
            assert error.request_id
            assert error.decision_id
            await server.post("/identities/orders/disable", credential=server.root_key)
            with pytest.raises(ProblemError) as unknown:
                await client.encrypt("hello", **ORDERS)
            assert (unknown.value.code, unknown.value.status) == ("unauthenticated", 401)


@pytest.mark.parametrize("world", ["asyncio", "threads"])
async def test_production_s_policy_is_met_by_the_credential_beside_and_by_a_bound_token(
    tmp_path: Path, world: str
) -> None:
    async with serving(tmp_path, environ=bound(tmp_path)) as server:
        key = (await server.add("orders")).json["service_key"]
        async with (
            using(server, world, key=key) as client,
            using(server, world, key=key, dpop_key=DPoPKey.generate()) as proving,
        ):
            envelope = await client.encrypt("hello", **ORDERS)
            for each in (client, proving):
                assert (await each.decrypt(envelope)).text == "hello"
                assert (await local(each).open(envelope)).text == "hello"
            (opened,) = await proving.decrypt_many([envelope])
            assert opened.text == "hello"
            (refused,) = await client.decrypt_many([envelope])
            assert refused.code == "policy_denied"  # a batch has no place for a second credential


async def test_a_proof_for_another_issuer_is_refused(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as server,
        using(server, "asyncio", dpop_key=DPoPKey.generate(), issuer=None) as client,
    ):
        with pytest.raises(ProblemError, match="invalid_dpop_proof"):
            await client.encrypt("hello", **ORDERS)


@pytest.mark.parametrize("world", ["asyncio", "threads"])
async def test_a_kkp_that_has_stopped_is_unreachable_and_its_successor_is_not(
    tmp_path: Path, world: str
) -> None:
    async with serving(tmp_path) as server:
        address = server.url.removeprefix("http://")
        async with using(server, world) as client:
            envelope = await client.encrypt("hello", **ORDERS)
            await client.decrypt(envelope)
            assert await server.stop() == 0
            for call in (client.decrypt(envelope), client.encrypt("hello", **ORDERS)):
                with pytest.raises(TransportError) as failed:
                    await call
                assert failed.value.code == "unreachable"
            async with serving(tmp_path, environ={"KKP_LISTEN_ADDR": address}):
                assert (await client.decrypt(envelope)).text == "hello"


@pytest.mark.parametrize("world", ["asyncio", "threads"])
async def test_who_asks_too_often_waits_as_kkp_says_or_is_told(tmp_path: Path, world: str) -> None:
    environ = {"KKP_CALLER_RATE_PER_SEC": "1", "KKP_CALLER_BURST": "1"}
    async with serving(tmp_path, environ=environ) as server:
        async with using(server, world) as client:
            for _ in range(2):
                await client.encrypt("hello", **ORDERS)
        async with using(server, world, repeats=0) as client:
            with pytest.raises(ProblemError) as refused:
                await asyncio.gather(*(client.encrypt("hello", **ORDERS) for _ in range(3)))
            assert (refused.value.code, refused.value.status) == ("rate_limited", 429)
            assert (refused.value.retry_after_seconds or 0) >= 1
        async with using(server, world, deadline_seconds=0.9) as client:
            results = await asyncio.gather(
                *(client.encrypt("hello", **ORDERS) for _ in range(3)), return_exceptions=True
            )
    assert [error.code for error in results if isinstance(error, KKPError)].count("rate_limited") >= 2


async def test_a_backend_that_is_away_is_asked_for_again_and_then_said_to_be(tmp_path: Path) -> None:
    away = "local=local://,away=vault-transit://127.0.0.1:1/transit"
    environ = {"KKP_BACKENDS": away, "VAULT_TOKEN": "hvs.nobody"}
    async with serving(tmp_path, environ=environ) as server, using(server, "asyncio") as client:
        with pytest.raises(ProblemError) as failed:
            await client.encrypt("hello", backend="away", key_id="orders")
        assert (failed.value.code, failed.value.status) == ("kms_unavailable", 503)
        decided = [r for r in records(server.data_dir / "kkp.db") if r.get("action") == "encrypt"]
    assert len(decided) == 3  # once, and repeated twice


@pytest.mark.parametrize(
    ("example", "printed"),
    [
        ("seal_and_open", "opened: 4111 1111 1111 1111\nmoved to gcp and opened: 4111 1111 1111 1111\n"),
        ("bound", "DPoP token, opened: hello\n"),
        ("many", "row 0\nrow 1\nrow 2\n"),
    ],
)
async def test_an_example_of_the_client_runs_against_kkp(tmp_path: Path, example: str, printed: str) -> None:
    async with serving(tmp_path) as server:
        environ = {
            **os.environ, "KKP_URL": server.url, "KKP_SERVICE_KEY": server.root_key, "KKP_ISSUER": ISSUER,
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, EXAMPLES / f"{example}.py", env=environ, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert (process.returncode, out.decode()) == (0, printed)
