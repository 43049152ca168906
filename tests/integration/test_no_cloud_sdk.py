"""`kkp dev` loads no cloud's SDK: it would cost start-up time and memory, and widen what can be attacked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
SDKS = {"azure", "boto3", "botocore", "google", "grpc", "hvac", "msal", "requests"}


def test_kkp_dev_serves_without_any_cloud_sdk(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)  # noqa: S603  our own program

    loaded = set(done.stdout.split())
    assert "kkp" in loaded
    assert not loaded & SDKS
