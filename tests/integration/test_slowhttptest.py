"""A real `kkp dev` under slowhttptest: the attacks of Slowloris, R-U-Dead-Yet and Slow Read, all at once."""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.integration.process import serving
from tests.scale import SCALE

TOOL = shutil.which("slowhttptest")
CONNECTIONS = 250  # of each attack: together they stay below what one address may have
SECONDS = 5 + min(SCALE, 40)
PATIENCE_SECONDS = 5.0  # of the tool itself as well, and many times what a token takes
ATTACKS = {
    "Slowloris": ["-H", "-u", "/healthz"],
    "R-U-Dead-Yet": ["-B", "-s", "65536", "-f", "application/json", "-u", "/envelope/decrypt"],
    "Slow Read": ["-X", "-k", "2", "-n", "1", "-w", "512", "-y", "1024", "-z", "32", "-u", "/openapi.json"],
}


async def attack(url: str, options: list[str]) -> str:
    """Run one attack and return what the tool says of it."""
    assert TOOL is not None
    *before, path = options
    size = f"-c {CONNECTIONS} -r 100 -i 1 -l {SECONDS} -p {PATIENCE_SECONDS:.0f}".split()
    process = await asyncio.create_subprocess_exec(
        TOOL, *size, *before, url + path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode())


@pytest.mark.promise(36)
@pytest.mark.skipif(TOOL is None, reason="no slowhttptest here: the distribution's package has it")
async def test_a_tool_that_attacks_slowly_leaves_everybody_else_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        attacks = asyncio.gather(*(attack(server.url, options) for options in ATTACKS.values()))
        answered, longest = 0, 0.0
        while not attacks.done():
            began = time.monotonic()
            await server.token(server.root_key)
            answered, longest = answered + 1, max(longest, time.monotonic() - began)
            await asyncio.sleep(0.05)
        for said in await attacks:
            assert re.findall(r"service available: +(\w+)", said)[-1] == "YES", said
    assert answered >= SECONDS
    assert longest < PATIENCE_SECONDS
