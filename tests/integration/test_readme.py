"""The README's round trip does, as it stands there, what it says."""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import closing
from pathlib import Path

from tests.integration.process import environment, serving

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "127.0.0.1:8080"


def commands() -> list[str]:
    """Return the shell blocks between the markers, as they stand."""
    tested = re.search(r"<!-- tested: round trip -->(.*?)<!-- end -->", README.read_text(), re.DOTALL)
    assert tested is not None, "README.md has no `<!-- tested: round trip -->` … `<!-- end -->`"
    blocks = re.findall(r"^```sh\n(.*?)^```", tested[1], re.DOTALL | re.MULTILINE)
    assert blocks
    return blocks


def free_address() -> str:
    """Return the README's address, or, if another program has it, the same with another port."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def test_the_readmes_round_trip_gives_back_the_file(tmp_path: Path) -> None:
    address = free_address()
    script = "\n".join(commands()).replace(ADDRESS, address)
    async with serving(tmp_path, KKP_LISTEN_ADDR=address, KKP_ISSUER="") as server:
        shell = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", script,
            cwd=tmp_path, env=environment(),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(shell.communicate(), 60)
        assert shell.returncode == 0, (out.decode(), err.decode())
        assert await server.stop() == 0
    files = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    pairs = [
        (one.name, other.name)
        for one, content in files.items()
        for other, same in files.items()
        if one < other and content and content == same
    ]
    assert pairs, f"no file came back as it was: {sorted(path.name for path in files)}"
