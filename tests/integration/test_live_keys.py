"""`kkp keys` beside a running server, and `kkp token inspect`, as a person at the machine uses them."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.integration.process import (
    KKP,
    NO_SETTINGS,
    TOKEN_REQUEST,
    Finished,
    Server,
    environment,
    kkp,
    records,
    serving,
)


def kid_of(token: str) -> str:
    kid: str = jwt.get_unverified_header(token)["kid"]
    return kid


async def keys(directory: Path, *arguments: str, code: int = 0) -> Finished:
    finished = await kkp(directory, "keys", *arguments)
    assert "Traceback" not in finished.err
    assert finished.code == code, finished
    return finished


async def listed(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((await keys(directory, "list", "--json", *arguments)).out)
    return found


async def published(server: Server) -> list[str]:
    return [key["kid"] for key in (await server.get("/keys/jwks")).json["keys"]]


async def test_the_list_shows_the_ring_on_a_line_of_time(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        upcoming, active = await published(server)
        told = await listed(tmp_path)
        drawn = (await keys(tmp_path, "list")).out
        assert await server.stop() == 0
    assert [(key["kid"], key["state"], key["generation"]) for key in told] == [
        (upcoming, "next", 2),
        (active, "active", 1),
    ]
    following, signing = told
    assert signing["retires_at"] == following["activates_at"] == signing["activates_at"] + 900
    assert following["retires_at"] is None
    assert signing["unpublished_at"] == signing["activates_at"] + 1800
    assert following["unpublished_at"] == following["activates_at"] + 1800
    assert {key["revoked_at"] for key in told} == {None}
    lines = drawn.splitlines()
    assert f"generation 2  NEXT  {upcoming}" in lines
    assert f"generation 1  ACTIVE  {active}" in lines
    assert any(line.split()[:2] == ["activates", "in"] for line in lines)
    # NEXT waits, then signs; ACTIVE signs, then is retired but published.
    bars = [line.strip().replace("|", "") for line in lines if line.startswith("  |")]
    assert [set(bar) for bar in bars] == [{".", "#"}, {"#", "-"}]


@pytest.mark.promise(10)
async def test_a_revoked_key_is_gone_from_the_server_at_its_next_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        token = await server.token()
        envelope = (await server.seal(token, "hello")).json["envelope"]
        upcoming, active = await published(server)
        assert kid_of(token) == active

        told = await keys(tmp_path, "revoke", active)
        assert active in told.out
        assert f"{upcoming} took over in that moment." in told.out
        assert active not in await published(server)
        assert (await server.open(token, envelope)).problem() == "token_invalid"
        assert kid_of(await server.token()) == upcoming

        again = await keys(tmp_path, "revoke", active)
        assert again.out.splitlines()[:2] == told.out.splitlines()[:2]
        revoked = next(key for key in await listed(tmp_path) if key["kid"] == active)
        assert (revoked["state"], revoked["unpublished_at"]) == ("revoked", revoked["revoked_at"])
        assert "REVOKED" in (await keys(tmp_path, "list")).out

        await keys(tmp_path, "revoke", "-" + "A" * 42, code=1)  # a kid may begin with a hyphen
        await keys(tmp_path, "revoke", "nope", code=2)
        log = records(server.data_dir / "kkp.db")
        assert await server.stop() == 0
    by_operator = [record for record in log if record.get("method") == "local_operator"]
    actions = {record["action"] for record in by_operator if record["action"] != "manage_identity"}
    assert actions == {"revoke_signing_key", "read_key"}
    assert active in {record.get("kid") for record in by_operator}
    assert (await kkp(tmp_path, "audit", "verify")).code == 0


@pytest.mark.promise(9)
async def test_rotating_at_the_machine_again_and_again_names_the_one_key_that_waits(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        upcoming, _active = before = await published(server)
        answers = [await keys(tmp_path, "rotate") for _ in range(3)]
        assert {answer.out.split()[0] for answer in answers} == {upcoming}
        assert await published(server) == before
        token = await server.token()
        assert (await server.verify_offline(token))["sub"] == "root"
        assert await server.stop() == 0


async def test_keys_can_be_revoked_while_no_server_runs(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        active = kid_of(await server.token())
        assert await server.stop() == 0
    await keys(tmp_path, "revoke", active)
    async with serving(tmp_path) as server:
        assert kid_of(await server.token()) != active
        assert active not in await published(server)
        assert await server.stop() == 0


async def test_without_a_database_there_is_nothing_to_list(tmp_path: Path) -> None:
    finished = await keys(tmp_path, "list", code=2)
    assert "start `kkp dev` there first" in finished.err


# `kkp token inspect`.


async def inspect(directory: Path, given: str, *arguments: str, code: int) -> str:
    """Run it with this on standard input, and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        KKP,
        "token",
        "inspect",
        *arguments,
        cwd=directory,
        env=environment(NO_SETTINGS),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate(given.encode("utf-8", "surrogateescape"))
    assert process.returncode == code, (out, err)
    assert b"Traceback" not in err
    if len(given) > 100:
        assert given.partition("\n")[0][-40:].encode() not in out + err  # of a token, from its signature
    return out.decode()


def claim(out: str, name: str) -> str:
    return next(line for line in out.splitlines() if line.startswith(f"{name} ")).split(None, 1)[1]


async def test_a_token_is_inspected_against_the_local_database(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        token = await server.token()
        out = await inspect(tmp_path, token + "\n", code=0)
        assert out.splitlines()[0] == f"verified with the key {kid_of(token)}"
        claims = jwt.decode(token, options={"verify_signature": False})
        assert claim(out, "jti") == json.dumps(claims["jti"])
        assert claim(out, "exp").startswith("in 4 min")
        assert claim(out, "ops") == '["encrypt", "decrypt"]'

        head, _, signature = token.rpartition(".")
        altered = f"{head}.{'A' * 10}{signature[10:]}"
        assert await first_line(tmp_path, altered) == "NOT VERIFIED: its signature is wrong"

        await server.post("/token/revoke", {"token": token}, credential=server.root_key)
        assert (
            await first_line(tmp_path, token)
            == "NOT VERIFIED: it was revoked, or its subject was since it was issued"
        )

        service_key = (await server.add("orders")).json["service_key"]
        orders = await server.token(service_key)
        await server.post("/identities/orders/disable", credential=server.root_key)
        assert (await first_line(tmp_path, orders)).endswith('its subject, "orders", is disabled')

        another = await server.token()
        await server.post(f"/keys/jwks/{kid_of(another)}/revoke", credential=server.root_key)
        assert "the key that it names was revoked" in await first_line(tmp_path, another)
        assert await server.stop() == 0


async def first_line(directory: Path, token: str) -> str:
    return (await inspect(directory, token, code=1)).splitlines()[0]


async def test_a_token_is_inspected_against_a_key_set_without_contacting_anybody(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    async with serving(tmp_path) as server:
        token = await server.token()
        document = json.dumps((await server.get("/keys/jwks")).json)
        assert await server.stop() == 0
    (elsewhere / "keys.json").write_text(document)
    (elsewhere / "empty.json").write_text('{"keys": []}')
    (elsewhere / "broken.json").write_text("{")
    good = f"verified with the key {kid_of(token)}"
    assert (await inspect(elsewhere, token, "--jwks", "keys.json", code=0)).startswith(good)
    assert (await inspect(elsewhere, f"{token}\n{document}", "--jwks", "-", code=0)).startswith(good)
    unknown = await inspect(elsewhere, token, "--jwks", "empty.json", code=1)
    assert unknown.startswith("NOT VERIFIED: its key is not among those that were given\n")
    none = await inspect(elsewhere, token, code=1)
    assert none.startswith("NOT VERIFIED: there is no database here")
    for out in (unknown, none):
        assert claim(out, "sub") == '"root"'
    assert list(elsewhere.glob(".kkp")) == []
    for arguments in (("--jwks", "broken.json"), ("--jwks", "missing.json"), ("--jwks", "-")):
        await inspect(elsewhere, token, *arguments, code=2)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        pytest.param("", 2, id="nothing"),
        pytest.param("\n", 2, id="an empty line"),
        pytest.param(".x" * (512 * 1024 + 1), 2, id="too much"),
        pytest.param("nonsense", 1, id="no token"),
        pytest.param("a.b.c", 1, id="something like one"),
        pytest.param("\udcff\udcfe", 1, id="bytes that are not UTF-8"),
    ],
)
async def test_what_is_no_token_is_not_verified(tmp_path: Path, given: str, code: int) -> None:
    out = await inspect(tmp_path, given, "--jwks", os.devnull, code=code)
    assert out == ("" if code == 2 else "NOT VERIFIED: this is not a token of the form that KKP mints\n")


async def test_claims_can_not_steer_the_terminal(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        request = {**TOKEN_REQUEST, "policy_claims": {"note": "\x1b[2J\u202egood\x07"}}
        answer = await server.post("/token", request, credential=server.root_key)
        assert answer.status == 200, answer.raw
        out = await inspect(tmp_path, answer.json["token"], code=0)
        assert await server.stop() == 0
    assert out.isascii()
    assert not set(out) & set("\x1b\x07")
