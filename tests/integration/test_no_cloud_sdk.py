"""What is not needed is not loaded: it would cost start-up time and memory, and widen what can be attacked.

`kkp dev` loads no cloud's SDK, and the commands beside a server load nothing that serves or asks over HTTP.
Only the commands that call KKP from outside load its client. Nothing loads what migrates a database, unless
there is an older one to be migrated.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.process import environment

PROGRAM = """
import asyncio, sys
from pathlib import Path
from tests.harness import running

async def main():
    async with running(Path(sys.argv[1])) as kkp:
        await kkp.seal(kkp.root_key)

asyncio.run(main())
print(*{name.partition(".")[0] for name in sys.modules})
"""
COMMANDS = """
import sys
from kkp.cli import main

for command in ("init", "identity add boss --role admin", "identity list", "keys list", "audit verify",
                "migrate"):
    assert main(command.split()) == 0, command
print(*sys.modules)
"""
CLIENT = {"httpcore", "httpx", "kkp_client"}
HTTP = {"aiohttp", "kkp.web.routes", "kkp.web.server", "opa_client", "prometheus_client"}
MIGRATES = {"alembic", "mako"}
SDKS = {"azure", "boto3", "botocore", "google", "grpc", "hvac", "msal", "requests"}


def test_kkp_dev_serves_without_any_cloud_sdk(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603  our own program

    loaded = set(done.stdout.split())
    assert "kkp" in loaded
    assert not loaded & (SDKS | MIGRATES | CLIENT)


def test_the_commands_beside_a_server_load_no_http(tmp_path: Path) -> None:
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = set(done.stdout.splitlines()[-1].split())
    assert "kkp.app" in loaded
    assert not loaded & (HTTP | MIGRATES | CLIENT)


WITHOUT_CLIENT = """
import sys
from kkp.cli import main

sys.modules["kkp_client"] = None
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "encrypt kkp.db --backend aws --key-id alias/orders",
        "decrypt kkp.db.kkp",
        "token mint --backend aws --key-id alias/orders --audience x",
    ],
)
def test_a_command_that_calls_kkp_says_what_brings_its_client(tmp_path: Path, arguments: str) -> None:
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", WITHOUT_CLIENT, *arguments.split()],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "this needs kkp-client" in done.stderr
    assert "`pip install ./sdk/python` brings it" in done.stderr
    assert "Traceback" not in done.stderr
