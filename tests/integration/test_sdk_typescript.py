"""The TypeScript SDK beside a real server and the Python SDK: what one seals the others open."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kkp_client.client import KKPClient
from kkp_client.local import LocalEnvelope

from tests.approving import policy_with, released
from tests.harness import ISSUER
from tests.integration.process import ORDERS, Server, kkp, names, serving
from tests.typescript import program

UNDER: Mapping[str, Any] = {
    "backend": "aws",
    "keyId": "alias/orders",
    "context": {"table": "ordérs", "10": "😀"},
}
MESSAGE = {**UNDER, "plaintext": "hello", "associatedData": "row 7"}
TARGET = {"backend": "gcp", "keyId": "orders"}
CHUNK = 4096
AUDIENCE = "orders-db"
GRANT = ("--grant", ORDERS, "--audience", AUDIENCE)


@dataclass(frozen=True, slots=True)
class Session:
    """A TypeScript client that does what it is told."""

    process: asyncio.subprocess.Process

    async def does(self, what: str, **more: Any) -> dict[str, Any]:
        """Have it do something, and return what it says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": what, **more}).encode() + b"\n")
        line = await self.process.stdout.readline()
        assert line, "the program ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def session(server: Server, credential: str, **more: Any) -> AsyncIterator[Session]:
    options = {"url": server.url, "credential": credential, "audience": AUDIENCE, "issuer": ISSUER, **more}
    process = await asyncio.create_subprocess_exec(
        *program("test/session.js"),
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
    )
    try:
        yield Session(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert await process.wait() == 0


@asynccontextmanager
async def both(directory: Path, **more: Any) -> AsyncIterator[tuple[Server, Session]]:
    async with serving(directory) as server, session(server, server.root_key, **more) as typescript:
        yield server, typescript


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("binding", ["bearer", "DPoP"])
async def test_what_typescript_seals_the_server_opens_and_the_other_way_round(
    tmp_path: Path, binding: str
) -> None:
    async with both(tmp_path, isBound=binding == "DPoP") as (server, typescript):
        token = await server.token()
        for made in ("encrypt", "seal"):
            sealed = await typescript.does(made, message=MESSAGE)
            opened = await server.open(token, sealed["envelope"])
            assert opened.json["plaintext"] == "hello"
            for done in ("decrypt", "open"):
                answer = await typescript.does(done, envelope=sealed["envelope"])
                assert (answer["text"], answer["plaintextB64"]) == ("hello", text_of(b"hello"))
        answer = await typescript.does("open", envelope=(await server.seal(token, "hello")).json["envelope"])
        assert (answer["text"], answer["claims"]) == ("hello", None)
        bytes_sealed = await typescript.does("seal", message={**UNDER, "plaintextB64": text_of(b"\x00\xff")})
        answer = await typescript.does("decrypt", envelope=bytes_sealed["envelope"])
        assert (answer["text"], answer["plaintextB64"]) == (None, text_of(b"\x00\xff"))
        assert ("cnf" in answer["claims"]) == (binding == "DPoP")
        scope = {"backend": "aws", "keyId": "alias/orders", "ops": []}
        asked = await typescript.does("token", scope=scope)
        claims = await server.verify_offline(asked["token"])
        assert (claims["ops"], "cnf" in claims) == ([], binding == "DPoP")


@pytest.mark.parametrize("binding", ["bearer", "DPoP"])
async def test_envelopes_move_and_go_many_at_once(tmp_path: Path, binding: str) -> None:
    async with both(tmp_path, isBound=binding == "DPoP") as (_, typescript):
        sealed = await typescript.does("encrypt", message=MESSAGE)
        moved = await typescript.does("rewrap", envelope=sealed["envelope"], target=TARGET)
        assert (await typescript.does("open", envelope=moved["envelope"]))["text"] == "hello"

        messages = [{**MESSAGE, "plaintext": f"hello {number}"} for number in range(3)]
        many = (await typescript.does("encryptMany", messages=messages))["results"]
        envelopes = [each["envelope"] for each in many]
        spoilt = {**envelopes[1], "ciphertext": envelopes[2]["ciphertext"]}
        moved = await typescript.does("rewrapMany", envelopes=[envelopes[0], envelopes[2]], target=TARGET)
        envelopes = [moved["results"][0]["envelope"], spoilt, moved["results"][1]["envelope"]]
        first, second, third = (await typescript.does("decryptMany", envelopes=envelopes))["results"]
        assert (first["text"], third["text"]) == ("hello 0", "hello 2")
        assert second["error"] == {"code": "envelope_invalid", "status": 422}


async def test_an_envelope_is_opened_and_moved_as_it_was_stored(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, typescript):
        sealed = await typescript.does("encrypt", message=MESSAGE)
        stored = json.dumps(sealed["envelope"], indent=2)
        for done in ("decrypt", "open"):
            assert (await typescript.does(done, envelope=stored))["text"] == "hello"
        moved = await typescript.does("rewrap", envelope=stored, target=TARGET)
        assert (await typescript.does("open", envelope=json.dumps(moved["envelope"])))["text"] == "hello"


@pytest.mark.parametrize("binding", ["Bearer", "DPoP"])
async def test_what_kkp_knows_of_a_token_is_told_until_it_is_revoked(tmp_path: Path, binding: str) -> None:
    async with both(tmp_path, isBound=binding == "DPoP") as (server, typescript):
        scope = {"backend": "aws", "keyId": "alias/orders"}
        token = (await typescript.does("token", scope=scope))["token"]
        known = await typescript.does("introspect", token=token)
        claims = await server.verify_offline(token)
        assert known == {"active": True, "token_type": binding, "context": {}, **claims}
        assert await typescript.does("revoke", token=token) == {}
        assert await typescript.does("introspect", token=token) == {"active": False}
        assert (await typescript.does("token", scope=scope))["token"] != token


async def test_with_nonces_demanded_proofs_have_them(tmp_path: Path) -> None:
    environ = {"KKP_DPOP_NONCE": "1"}
    async with (
        serving(tmp_path, environ=environ) as server,
        session(server, server.root_key, isBound=True) as typescript,
    ):
        sealed = await typescript.does("seal", message=MESSAGE)
        assert (await typescript.does("open", envelope=sealed["envelope"]))["text"] == "hello"


@pytest.mark.parametrize("binding", ["bearer", "DPoP"])
async def test_what_somebody_else_approved_is_done_once(tmp_path: Path, binding: str) -> None:
    policy = policy_with(tmp_path, [{"actions": ["decrypt", "release_data_key"], "valid_minutes": 10}])
    async with (
        serving(tmp_path, environ={"KKP_POLICY_PATH": str(policy)}) as server,
        session(server, server.root_key, isBound=binding == "DPoP") as typescript,
    ):
        alice = await kkp(tmp_path, "identity", "add", "alice", "--role", "approver")
        asked = await typescript.does("encrypt", message=MESSAGE)
        for way in ("decrypt", "open"):
            refused = (await typescript.does(way, **asked))["error"]
            assert refused["code"] == "approval_required"
            release = await released(server, refused["approvalId"], alice.out.strip())
            assert (await typescript.does(way, **asked, approval=release))["text"] == "hello"
            used = await typescript.does(way, **asked, approval=release)
            assert used["error"]["code"] == "approval_invalid"


async def test_what_policy_refuses_is_its_code_and_reasons(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        added = await kkp(tmp_path, "identity", "add", "orders", "--role", "service", *GRANT)
        assert added.code == 0, added.err
        async with session(server, added.out.strip()) as typescript:
            sealed = await typescript.does("seal", message=MESSAGE)
            assert (await typescript.does("decrypt", envelope=sealed["envelope"]))["text"] == "hello"
            refused = await typescript.does("encrypt", message={**MESSAGE, "keyId": "alias/billing"})
            assert (refused["error"]["code"], refused["error"]["status"]) == ("policy_denied", 403)
            assert refused["error"]["reasons"]
        async with session(server, "kkp_sk_unknown") as typescript:
            refused = await typescript.does("encrypt", message=MESSAGE)
            assert refused["error"] == {"code": "unauthenticated", "status": 401}


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 300_000])
async def test_streams_of_one_sdk_open_with_the_other(tmp_path: Path, size: int) -> None:
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(size))
    sealing = {"chunkSize": CHUNK, **UNDER}
    async with (
        both(tmp_path) as (server, typescript),
        KKPClient(server.url, server.root_key, audience=AUDIENCE) as client,
    ):
        python = LocalEnvelope(client)
        done = await typescript.does("sealFile", **{"from": str(plain), "to": str(sealed)}, **sealing)
        assert done == {}
        await python.open_file(sealed, opened)
        assert opened.read_bytes() == plain.read_bytes()
        assert await typescript.does("openFile", **{"from": str(sealed), "to": str(opened)}) == {}
        assert opened.read_bytes() == plain.read_bytes()

        under = {"backend": "aws", "key_id": "alias/orders", "context": UNDER["context"]}
        await python.seal_file(plain, sealed, **under, chunk_size=CHUNK)
        assert await typescript.does("openFile", **{"from": str(sealed), "to": str(opened)}) == {}
        assert opened.read_bytes() == plain.read_bytes()


async def test_envelopes_of_one_sdk_open_with_the_other(tmp_path: Path) -> None:
    under = {"backend": "aws", "key_id": "alias/orders", "context": UNDER["context"]}
    async with (
        both(tmp_path) as (server, typescript),
        KKPClient(server.url, server.root_key, audience=AUDIENCE) as client,
    ):
        python = LocalEnvelope(client)
        for plaintext in ("hellø 😀", b"\x00\xff"):
            envelope = await python.seal(plaintext, **under)
            answer = await typescript.does("open", envelope=envelope)
            expected = plaintext.encode() if isinstance(plaintext, str) else plaintext
            assert base64.b64decode(answer["plaintextB64"]) == expected
            payload = (
                {"plaintext": plaintext}
                if isinstance(plaintext, str)
                else {"plaintextB64": text_of(plaintext)}
            )
            sealed = await typescript.does("seal", message={**UNDER, **payload})
            opened = await python.open(sealed["envelope"])
            assert (opened.plaintext, opened.text) == (
                expected,
                plaintext if isinstance(plaintext, str) else None,
            )


async def test_a_stream_that_was_cut_or_changed_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(3 * CHUNK + 100))
    async with both(tmp_path) as (_, typescript):
        await typescript.does("sealFile", **{"from": str(plain), "to": str(sealed)}, **UNDER, chunkSize=CHUNK)
        whole = sealed.read_bytes()
        end = whole.index(b"\n") + 1
        chunk = CHUNK + 16
        spoilt = {
            "without its end": whole[:-1],
            "without its last chunk": whole[: end + 3 * chunk],
            "without a chunk within": whole[: end + chunk] + whole[end + 2 * chunk :],
            "without any chunk": whole[:end],
            "without the end of its line": whole[: end - 1],
            "with two chunks exchanged": whole[:end]
            + whole[end + chunk : end + 2 * chunk]
            + whole[end : end + chunk]
            + whole[end + 2 * chunk :],
            "with a byte behind it": whole + b"\0",
            "with a bit changed in a chunk": _flipped(whole, end + chunk + 1),
            "with a bit changed in its last tag": _flipped(whole, len(whole) - 1),
            "with another context": whole.replace(b'"table"', b'"tables"'),
            "with another commitment": _changed(whole, "commitment"),
            "with another wrap": _changed(whole, "encrypted_data_key"),
            "with other chunks": whole.replace(b'"chunk_size":4096', b'"chunk_size":4112'),
        }
        for name, stream in spoilt.items():
            sealed.write_bytes(stream)
            answer = await typescript.does("openFile", **{"from": str(sealed), "to": str(opened)})
            assert answer["error"]["code"] == "envelope_invalid", name
            assert not opened.exists(), name
    assert {name for name in names(tmp_path) if name.startswith("opened")} == set()


async def test_a_stream_moves_by_its_line(tmp_path: Path) -> None:
    plain, sealed, opened = (tmp_path / name for name in ("plain", "sealed", "opened"))
    plain.write_bytes(os.urandom(2 * CHUNK))
    async with both(tmp_path) as (_, typescript):
        await typescript.does("sealFile", **{"from": str(plain), "to": str(sealed)}, **UNDER, chunkSize=CHUNK)
        line, _, chunks = sealed.read_bytes().partition(b"\n")
        moved = await typescript.does("rewrap", envelope=json.loads(line), target=TARGET)
        assert (moved["envelope"]["backend"], moved["envelope"]["key_id"]) == ("gcp", "orders")
        sealed.write_bytes(json.dumps(moved["envelope"]).encode() + b"\n" + chunks)
        assert await typescript.does("openFile", **{"from": str(sealed), "to": str(opened)}) == {}
        assert opened.read_bytes() == plain.read_bytes()


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def _changed(stream: bytes, member: str) -> bytes:
    line, _, chunks = stream.partition(b"\n")
    envelope = json.loads(line)
    text = envelope[member]
    envelope[member] = ("A" if text[0] != "A" else "B") + text[1:]
    return json.dumps(envelope).encode() + b"\n" + chunks
