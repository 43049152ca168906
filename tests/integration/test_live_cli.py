"""`kkp identity` beside a running server: what it does holds from the server's next request on."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.process import ORDERS, Finished, Server, kkp, names, records, serving

PROCESSES = 4
ARN = "arn:aws:kms:eu-west-1:111122223333:alias/orders"


async def identity(directory: Path, *arguments: str) -> Finished:
    """Run `kkp identity`; it never ends with a traceback."""
    finished = await kkp(directory, "identity", *arguments)
    assert "Traceback" not in finished.err
    return finished


async def add(directory: Path, name: str, *arguments: str) -> str:
    """Add a service for aws alias/orders and return its key, which is all that stands on stdout."""
    given = arguments or ("--grant", ORDERS, "--audience", "orders-db")
    finished = await identity(directory, "add", name, "--role", "service", *given)
    assert finished.code == 0, finished
    key = finished.out.removesuffix("\n")
    assert key.startswith("kkp_sk_")
    assert key not in finished.err
    return key


async def listed(directory: Path) -> dict[str, dict[str, Any]]:
    finished = await identity(directory, "list", "--json")
    assert finished.code == 0
    return {entry["id"]: entry for entry in json.loads(finished.out)}


async def test_an_identity_works_at_once_and_stops_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key = await add(tmp_path, "orders")
        token = await server.token(key)
        envelope = (await server.seal(token, "hello")).json["envelope"]
        assert (await server.open(token, envelope)).json["plaintext"] == "hello"

        assert (await identity(tmp_path, "disable", "orders")).code == 0
        assert (await server.mint(key)).problem() == "unauthenticated"
        assert (await server.open(token, envelope)).problem() == "token_invalid"
        assert (await server.seal(token, "hello")).problem() == "token_invalid"
        assert (await server.open(await server.token(), envelope)).json["plaintext"] == "hello"
        assert await server.stop() == 0


async def test_what_is_done_at_the_machine_is_recorded_in_chains_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        await server.token()
        await add(tmp_path, "orders")
        await identity(tmp_path, "disable", "orders")
        await server.token()
        log = records(server.data_dir / "kkp.db")
        assert await server.stop() == 0
    done_here = [record for record in log if record.get("method") == "local_operator"]
    served = {record["chain"] for record in log if record.get("action") == "issue_token"}
    by_operator = [record for record in done_here if record["chain"] not in served]
    assert [record["action"] for record in by_operator] == ["manage_identity", "manage_identity"]
    assert len({record["chain"] for record in by_operator} | served) == 3
    assert {record["decision"] for record in by_operator} == {"allow"}
    verdict = await kkp(tmp_path, "audit", "verify")
    assert verdict.code == 0
    assert verdict.out.endswith("chains: 3\n")


async def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key = await add(tmp_path, "orders")
        again = ("add", "orders", "--role", "service", "--grant", ORDERS)
        refused = await identity(tmp_path, *again)
        assert (refused.code, refused.out) == (1, "")
        assert "conflict" in refused.err
        assert "kkp identity rotate-key orders" in refused.err
        assert (await server.mint(key)).status == 200

        await identity(tmp_path, "disable", "orders")
        assert (await identity(tmp_path, *again)).code == 1
        assert (await server.mint(key)).status == 401
        assert (await identity(tmp_path, "disable", "orders")).code == 1
        assert (await identity(tmp_path, "disable", "nobody")).code == 1
        assert await server.stop() == 0


async def test_the_list_shows_everybody_and_no_secret(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        grants = ("--grant", f"aws:{ARN}:encrypt,decrypt", "--grant", "local:default:decrypt")
        limits = ("--audience", "orders-db", "--claim", "environment=prod", "--max-ttl", "60")
        key = await add(tmp_path, "orders", *grants, *limits, "--attribute", "team=shop")
        await add(tmp_path, "billing")
        await identity(tmp_path, "disable", "billing")
        plain = await identity(tmp_path, "list")
        everybody = await listed(tmp_path)
        assert await server.stop() == 0
    assert everybody.keys() == {"root", "orders", "billing"}
    common = {"audiences": ["orders-db"], "policy_claims": {"environment": ["prod"]}, "max_ttl": 60}
    assert everybody["orders"]["grants"] == [
        {"backend": "aws", "key_id": ARN, "ops": ["encrypt", "decrypt"], **common},
        {"backend": "local", "key_id": "default", "ops": ["decrypt"], **common},
    ]
    assert everybody["orders"]["attributes"] == {"team": "shop"}
    assert everybody["billing"]["disabled_at"] is not None
    for name in everybody:
        assert name in plain.out
    assert key not in plain.out + json.dumps(everybody)


async def test_a_grant_on_an_arn_is_a_grant_on_that_key(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        key = await add(tmp_path, "orders", "--grant", f"aws:{ARN}:decrypt", "--audience", "orders-db")
        request = {"audience": "orders-db", "backend": "aws", "key_id": ARN, "ops": ["decrypt"]}
        assert (await server.post("/token", request, credential=key)).status == 200
        other = {**request, "key_id": "alias/orders"}
        assert (await server.post("/token", other, credential=key)).problem() == "policy_denied"
        assert await server.stop() == 0


BAD_FLAGS = {
    "no role": (["orders"], "--role"),
    "a grant without a key": (["orders", "--role", "service", "--grant", "aws"], "--grant aws"),
    "a grant without ops": (["orders", "--role", "service", "--grant", "aws:alias/orders"], "--grant"),
    "an op that there is not": (
        ["orders", "--role", "service", "--grant", "aws:alias/orders:destroy"],
        "there are encrypt, decrypt, rewrap",
    ),
    "a claim without a value": (["orders", "--role", "service", "--claim", "environment"], "environment"),
    "an attribute without a value": (["orders", "--role", "service", "--attribute", "team"], "team"),
    "a lifetime that is no number": (["orders", "--role", "service", "--max-ttl", "soon"], "--max-ttl"),
    "a role with a space": (["orders", "--role", "two words"], "$.roles[0]"),
    "a role that the policy does not have": (
        ["orders", "--role", "servce"],
        "admin, anonymous, approver, auditor",
    ),
    "an expiry that is no time": (["orders", "--role", "service", "--expires-in", "soon"], "soon"),
    "an expiry of nothing": (["orders", "--role", "service", "--expires-in", "0"], "$.key_ttl_seconds"),
    "a flag that there is not": (["orders", "--role", "service", "--grants", ORDERS], "--grants"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
async def test_a_bad_flag_is_named_and_nothing_is_touched(tmp_path: Path, case: str) -> None:
    arguments, named = BAD_FLAGS[case]
    finished = await identity(tmp_path, "add", *arguments)
    assert finished.code == 2, finished
    assert named in finished.err
    assert finished.out == ""
    assert not names(tmp_path)


@pytest.mark.parametrize("verb", [["audit", "verify"], ["audit", "export"], ["keys", "list"]], ids=" ".join)
async def test_in_a_wrong_directory_every_command_says_the_same(tmp_path: Path, verb: list[str]) -> None:
    finished = await kkp(tmp_path, *verb)
    assert (finished.code, finished.out) == (2, "")
    assert "KKP_DATA_DIR: .kkp does not exist; start `kkp dev` there first" in finished.err


@pytest.mark.parametrize("command", [[], ["keys"]], ids=["kkp", "kkp keys"])
async def test_a_command_that_is_not_whole_names_its_help(tmp_path: Path, command: list[str]) -> None:
    finished = await kkp(tmp_path, *command)
    assert finished.code == 2
    assert finished.err.endswith(f"see {' '.join(['kkp', *command])} --help\n")


async def test_a_log_verified_without_a_checkpoint_is_not_said_to_be_whole(tmp_path: Path) -> None:
    doubt = "no checkpoints were given: a log cut at its end can't be told from a whole one\n"
    async with serving(tmp_path) as server:
        assert await server.stop() == 0
    exported = await kkp(tmp_path, "audit", "export")
    (tmp_path / "audit.jsonl").write_text(exported.out)
    cut = await kkp(tmp_path, "audit", "verify", "audit.jsonl")
    assert (cut.code, cut.out.startswith(f"{doubt}clean: ")) == (0, True)
    whole = await kkp(tmp_path, "audit", "verify")
    assert (whole.code, doubt in whole.out) == (0, False)
    told = (await kkp(tmp_path, "audit", "verify", "--help")).out
    assert re.findall(r"\b([0-9])\s", told.partition("Exit codes: ")[2]) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    "verb", [["list"], ["disable", "orders"], ["add", "orders", "--role", "service"]], ids=" ".join
)
async def test_without_a_data_directory_it_says_where_to_start(tmp_path: Path, verb: list[str]) -> None:
    finished = await identity(tmp_path, *verb)
    assert finished.code == 2
    assert "KKP_DATA_DIR: .kkp does not exist; start `kkp dev` there first" in finished.err
    assert not names(tmp_path)


async def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for name in ("../orders", "user:7"):
            finished = await identity(tmp_path, "add", name, "--role", "service")
            assert finished.code in {1, 2}
            assert finished.out == ""
        assert (await listed(tmp_path)).keys() == {"root"}
        assert await server.stop() == 0


async def test_a_rotated_key_works_at_once_and_the_old_one_for_as_long_as_it_was_given(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        first = await add(tmp_path, "orders")
        rotated = await identity(tmp_path, "rotate-key", "orders", "--overlap", "1h")
        second = rotated.out.strip()
        assert (rotated.code, second[:7]) == (0, "kkp_sk_")
        assert "works until " in rotated.err
        assert {first, second}.isdisjoint(rotated.err.split())
        for key in (first, second):
            assert (await server.mint(key)).status == 200

        rotated = await identity(tmp_path, "rotate-key", "orders", "--expires-in", "30d")
        third = rotated.out.strip()
        assert "is dead." in rotated.err
        assert re.search(r"The key before it, which was to work until .*Z, is dead now", rotated.err)
        assert [(await server.mint(key)).status for key in (first, second, third)] == [401, 401, 200]
        (key_times,) = (await listed(tmp_path))["orders"]["service_keys"]
        assert key_times["expires_at"] == pytest.approx(key_times["created_at"] + 30 * 86400)
        assert ", expires 2" in (await identity(tmp_path, "list")).out

        for arguments, code, named in (
            (("nobody",), 1, "not_found"),
            (("orders", "--overlap", "31d"), 2, "--overlap 31d: give 30d at most"),
            (("orders", "--overlap", "-1"), 2, "-1"),
            (("orders", "--overlap", "a while"), 2, "a while"),
        ):
            refused = await identity(tmp_path, "rotate-key", *arguments)
            assert (refused.code, refused.out) == (code, "")
            assert named in refused.err
        assert (await server.mint(third)).status == 200
        assert await server.stop() == 0


async def test_a_root_key_that_was_rotated_is_to_be_put_into_its_file(tmp_path: Path) -> None:
    complaint = "root.key is no working key of root"
    async with serving(tmp_path) as server:
        assert complaint not in server.log
        rotated = await identity(tmp_path, "rotate-key", "root")
        assert "Put it into .kkp/root.key" in rotated.err
        assert await server.stop() == 0
    async with serving(tmp_path) as server:
        assert f"WARNING kkp.app .kkp/{complaint}" in server.log
        told = await kkp(tmp_path, "doctor")
        assert (told.code, complaint in told.out) == (0, True)
        (server.data_dir / "root.key").write_text(rotated.out)
        assert complaint not in (await kkp(tmp_path, "doctor")).out
        assert (await server.mint(server.root_key)).status == 200
        assert await server.stop() == 0


POLICY_WITH_ROLES = "package kkp.authz\n\ndefault allow := true\n"


@pytest.mark.parametrize(
    ("data", "warned"),
    [('{"clerk": {}}', True), ('{"writer": {}}', False), (None, False), ("no JSON", False)],
    ids=["roles without it", "roles with it", "no roles", "broken"],
)
async def test_of_a_role_that_another_policy_may_know_it_only_warns(
    tmp_path: Path,
    data: str | None,
    warned: bool,  # noqa: FBT001  a column of the table
) -> None:
    async with serving(tmp_path) as server:
        assert await server.stop() == 0
    roles = tmp_path / "own/kkp/roles"
    roles.mkdir(parents=True)
    (tmp_path / "own/authz.rego").write_text(POLICY_WITH_ROLES)
    if data is not None:
        (roles / "data.json").write_text(data)
    arguments = ("identity", "add", "orders", "--role", "writer")
    finished = await kkp(tmp_path, *arguments, environ={"KKP_POLICY_PATH": "own"})
    assert (finished.code, finished.out[:7]) == (0, "kkp_sk_")
    assert ("has no role writer; it has clerk" in finished.err) is warned


async def test_of_a_role_that_opa_may_know_it_only_warns(tmp_path: Path) -> None:
    assert (await kkp(tmp_path, "init")).code == 0
    environ = {"KKP_OPA_URL": "http://127.0.0.1:9"}
    for name, role, is_warned in (("orders", "servic", True), ("billing", "service", False)):
        finished = await kkp(tmp_path, "identity", "add", name, "--role", role, environ=environ)
        assert (finished.code, finished.out[:7]) == (0, "kkp_sk_")
        assert (f"no role {role}; whether OPA's has can't be looked up" in finished.err) is is_warned


async def test_four_processes_adding_at_once_under_load_lose_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        load = asyncio.ensure_future(mint_until_cancelled(server))
        added = [f"svc-{os.urandom(4).hex()}" for _ in range(PROCESSES + 2)]
        keys: dict[str, str] = {}
        waiting = iter(added)

        async def one_after_another() -> None:
            for name in waiting:
                keys[name] = await add(tmp_path, name)

        await asyncio.gather(*(one_after_another() for _ in range(PROCESSES)))
        load.cancel()
        minted = await load
        assert minted > 0
        for name in added:
            assert (await server.mint(keys[name])).status == 200
        assert (await listed(tmp_path)).keys() == {"root", *added}
        assert await server.stop() == 0
    assert (await kkp(tmp_path, "audit", "verify")).code == 0


async def mint_until_cancelled(server: Server) -> int:
    """Mint from four clients at once; every answer is a token, or says that the state was changing."""
    minted = 0

    async def client() -> None:
        nonlocal minted
        while True:
            answer = await server.mint(server.root_key)
            if answer.status == 503:
                assert answer.problem() == "keyring_unavailable"
                continue
            assert answer.status == 200, answer.raw
            minted += 1

    try:
        await asyncio.gather(*(client() for _ in range(4)))
    except asyncio.CancelledError:
        return minted
    raise AssertionError("the clients go on until they are cancelled")
