"""What the README tells a reader to type does, as it stands there, what it says."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
from contextlib import closing
from pathlib import Path

from kkp.model import Grant, Identity
from tests.harness import running
from tests.integration.process import environment, names, serving

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "127.0.0.1:8080"
_HANG_SECONDS = 60


def commands(marker: str) -> list[str]:
    """Return the shell blocks between a marker and its end, as they stand."""
    tested = re.search(rf"<!-- tested: {marker} -->(.*?)<!-- end -->", README.read_text(), re.DOTALL)
    assert tested is not None, f"README.md has no `<!-- tested: {marker} -->` … `<!-- end -->`"
    blocks = re.findall(r"^```sh\n(.*?)^```", tested[1], re.DOTALL | re.MULTILINE)
    assert blocks
    return blocks


def free_address() -> str:
    """Return the README's address with another port: other tests run at the same time."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def run(directory: Path, blocks: list[str]) -> str:
    """Run shell blocks beside a server, from where a checkout would be, and return what they print."""
    (directory / ".venv").symlink_to(sys.prefix)
    address = free_address()
    async with serving(directory, environ={"KKP_LISTEN_ADDR": address, "KKP_ISSUER": ""}) as server:
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            "\n".join(blocks).replace(ADDRESS, address),
            cwd=directory,
            env=environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(shell.communicate(), _HANG_SECONDS)
        finally:
            if shell.returncode is None:
                shell.kill()
                await shell.wait()
        assert shell.returncode == 0, (out.decode(), err.decode())
        assert await server.stop() == 0
    return out.decode()


def content(path: Path) -> bytes:
    return path.read_bytes()


async def test_the_round_trip_gives_back_the_file(tmp_path: Path) -> None:
    blocks = commands("round trip")
    await run(tmp_path, blocks)
    source = re.search(r"base64 -w0 (/[^\s)]+)\)", "".join(blocks))
    assert source is not None
    opened = {name: content(tmp_path / name) for name in names(tmp_path) if name.startswith("opened-")}
    expected = content(Path(source[1]))
    assert opened == {f"opened-{backend}": expected for backend in ("aws", "azure", "gcp")}


async def test_a_token_of_it_verifies_offline_and_the_audit_log_is_clean(tmp_path: Path) -> None:
    printed = await run(tmp_path, commands("round trip") + commands("offline"))
    claims, verdict = printed.splitlines()[-2:]
    assert "'sub': 'root'" in claims
    assert verdict.startswith("clean: ")


async def test_a_service_of_its_own_gets_a_token_within_its_grant(tmp_path: Path) -> None:
    token, *listed = (await run(tmp_path, commands("identity"))).splitlines()
    assert json.loads(token)["kid"]
    assert listed[0].startswith("orders ")
    assert listed[1] == "    aws:alias/orders:encrypt,decrypt audience=orders-db environment=prod"
    assert re.fullmatch(r"    service key of [\d: -]+Z, does not expire", listed[2])
    assert listed[3].startswith("root ")


async def test_the_sample_policy_keeps_to_the_grants(tmp_path: Path) -> None:
    sample = re.search(r"^```rego\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert sample is not None
    (tmp_path / "sample.rego").write_text(sample[1])
    wish = {
        "audience": "orders-db",
        "backend": "aws",
        "key_id": "alias/orders",
        "policy_claims": {"environment": "prod"},
        "request_context": {"environment": "prod"},
    }
    async with running(tmp_path, KKP_POLICY_PATH=str(tmp_path / "sample.rego")) as kkp:
        granted = Identity("granted", ("service",), (Grant("aws", "alias/orders", ("decrypt",)),), {}, 0.0)
        stranger = Identity("stranger", ("service",), (), {}, 0.0)
        directory = kkp.services.add_identity._directory
        keys = {identity.id: await directory.add(identity) for identity in (granted, stranger)}
        assert (await kkp.post("/token", wish, credential=keys["granted"])).status == 200
        for name, changes in (
            ("stranger", {}),
            ("granted", {"key_id": "alias/billing"}),
            ("granted", {"request_context": {"environment": "dev"}}),
        ):
            refused = await kkp.post("/token", {**wish, **changes}, credential=keys[name])
            assert refused.problem() == "policy_denied"
