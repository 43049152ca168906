"""A process that crashes leaves no key behind: no core, and none in what it still says."""

from __future__ import annotations

import asyncio
import base64
import resource
import signal
from pathlib import Path

import pytest

from tests.databases import Place
from tests.integration.process import KKP, names, serving
from tests.integration.test_kill import signing_keys
from tests.integration.test_kill_rotation import Seen, check_nowhere_in_the_clear, spellings
from tests.postgres import PASSWORD

pytestmark = pytest.mark.promise(40)


CRASHES = [
    *(("sqlite", crash) for crash in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)),
    ("postgresql", signal.SIGSEGV),
]


@pytest.mark.parametrize(("place", "crash"), CRASHES, indirect=["place"])
async def test_a_crash_leaves_no_key_behind(tmp_path: Path, place: Place, crash: signal.Signals) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        environ = {"PYTHONFAULTHANDLER": "1", "KKP_DATABASE_URL": place.url}
        async with serving(tmp_path, executable=KKP, environ=environ) as server:
            token = await server.token()
            assert (await server.seal(token, "hello")).status == 200
            before, said = names(tmp_path), server.banner
            server.process.send_signal(crash)
            async with asyncio.timeout(60):
                assert await server.process.wait() == -crash
            assert names(tmp_path) == before  # no core
            assert server.banner == said
            assert "File " in server.log  # Python's own handler told where it was
            secrets = [base64.urlsafe_b64decode((server.data_dir / "master.key").read_text())]
            secrets += [server.root_key.encode(), PASSWORD.encode()]
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    private = await signing_keys(server.data_dir, place)
    assert len(private) == 2
    check_nowhere_in_the_clear(tmp_path, Seen(seeds=dict(zip(("active", "next"), private, strict=True))))
    for secret in secrets:
        assert not any(spelling in server.log.encode() for spelling in spellings(secret))
