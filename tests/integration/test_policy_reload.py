"""A real `kkp dev` whose policy changes on disk: its decisions follow, and a broken policy never does."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.integration.process import Server, kkp, records, serving, show

# By when an old policy decides nothing any more.
DEAD_WITHIN_SECONDS = 1.0
POLICY = """package kkp.authz

default allow := false

allow if input.caller.id == "root"

allow if {{
	input.action == "issue_token"
	input.caller.id == "{allowed}"
}}
"""


def put(path: Path, text: str) -> None:
    """Rename a complete file into place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def link(path: Path, target: str) -> None:
    """Let a link lead there, from one moment to the next."""
    new = path.with_name(f"{path.name}_tmp")
    new.symlink_to(target)
    new.replace(path)


async def services(server: Server) -> dict[str, str]:
    return {name: (await server.add(name)).json["service_key"] for name in ("orders", "billing")}


async def minters(server: Server, keys: dict[str, str]) -> set[str]:
    """Return who may mint now."""
    return {name for name, key in keys.items() if (await server.mint(key)).status == 200}


async def warned(server: Server) -> bool:
    """Tell whether the server, which is ready, says that the policy on disk was refused."""
    ready = await server.get("/readyz")
    assert ready.status == 200
    return "policy" in ready.json["warnings"]


@pytest.mark.promise(21)
async def test_an_old_policy_is_dead_within_a_second_and_a_broken_one_never_lives(tmp_path: Path) -> None:
    path = tmp_path / "policy.rego"
    put(path, POLICY.format(allowed="orders"))
    async with serving(tmp_path, environ={"KKP_POLICY_PATH": str(path)}) as server:
        keys = await services(server)
        assert await minters(server, keys) == {"orders"}
        for allowed in ("billing", "orders", "billing"):
            put(path, POLICY.format(allowed=allowed))
            await asyncio.sleep(DEAD_WITHIN_SECONDS)
            assert await minters(server, keys) == {allowed}
            assert not await warned(server)

        for broken in ("", "package kkp.authz\n", POLICY.format(allowed="orders")[:-2]):
            put(path, broken)
            await asyncio.sleep(DEAD_WITHIN_SECONDS)
            assert await minters(server, keys) == {"billing"}
            assert await warned(server)
        path.unlink()
        await asyncio.sleep(DEAD_WITHIN_SECONDS)
        assert await minters(server, keys) == {"billing"}
        assert await warned(server)

        put(path, POLICY.format(allowed="orders"))
        await asyncio.sleep(DEAD_WITHIN_SECONDS)
        assert await minters(server, keys) == {"orders"}
        assert not await warned(server)
        assert server.log.count("ERROR kkp.authz.reloading policy refused") == 4
        assert await server.stop() == 0
        decided = [r for r in records(server.data_dir / "kkp.db") if r.get("action") == "issue_token"]
        assert "Traceback" not in server.log
    by_revision = {(r["policy_revision"], r["caller"]) for r in decided if r["decision"] == "allow"}
    assert len(by_revision) == 2
    assert len({revision for revision, _ in by_revision}) == 2
    assert (await kkp(tmp_path, "audit", "verify")).code == 0


@pytest.mark.promise(21)
async def test_under_load_each_answer_is_one_policys_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "policy.rego"
    put(path, POLICY.format(allowed="orders"))
    async with serving(tmp_path, environ={"KKP_POLICY_PATH": str(path)}) as server:
        keys = await services(server)
        swaps = asyncio.ensure_future(swap(path, 6))
        asked = 0
        while not swaps.done():
            answers = await asyncio.gather(*(server.mint(key) for key in keys.values()))
            assert {answer.status for answer in answers} <= {200, 403}
            asked += len(answers)
        await asyncio.sleep(DEAD_WITHIN_SECONDS)
        assert await minters(server, keys) == {"billing"}
        show(f"{asked} decisions beside 6 exchanges of the policy")
        assert await server.stop() == 0
        log = records(server.data_dir / "kkp.db")
    asked_of = [(r["policy_revision"], r["caller"], r["decision"]) for r in log if r.get("policy_revision")]
    minted = {who for who in asked_of if who[1] in keys}
    # Under each of the two revisions one may and the other may not, always.
    assert len(minted) == 4
    assert len({revision for revision, _, _ in minted}) == 2


async def swap(path: Path, times: int) -> None:
    for turn in range(times):
        put(path, POLICY.format(allowed=("orders", "billing")[turn % 2]))
        await asyncio.sleep(DEAD_WITHIN_SECONDS)


async def test_a_mounted_configmap_is_followed(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    for version, allowed in (("..1", "orders"), ("..2", "billing")):
        (mount / version).mkdir(parents=True)
        put(mount / version / "policy.rego", POLICY.format(allowed=allowed))
    link(mount / "..data", "..1")
    link(mount / "policy.rego", "..data/policy.rego")
    async with serving(tmp_path, environ={"KKP_POLICY_PATH": str(mount)}) as server:
        keys = await services(server)
        assert await minters(server, keys) == {"orders"}
        link(mount / "..data", "..2")
        shutil.rmtree(mount / "..1")
        await asyncio.sleep(DEAD_WITHIN_SECONDS)
        assert await minters(server, keys) == {"billing"}
        assert await server.stop() == 0
