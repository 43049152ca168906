"""The examples, and the page's own lines, do what they say."""

from __future__ import annotations

import asyncio
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from kkp_client import DPoPKey, KeysUnavailableError, TokenError
from tests.fake_kkp import KEYS, LIST, FakeKKP
from tests.issuer import AUDIENCE, Issuer

ROOT = Path(__file__).parent.parent
OURS = Issuer(1)
URL = "https://orders.example"


@pytest.fixture
def kkp() -> Iterator[FakeKKP]:
    with FakeKKP(OURS) as kkp:
        kkp.documents[LIST] = OURS.revocations(iss=kkp.url, **lasting()).encode()
        yield kkp


def lasting() -> dict[str, int]:
    now = int(time.time())
    return {"iat": now, "exp": now + 300}


def token_of(kkp: FakeKKP, **claims: Any) -> str:
    times = lasting()
    return OURS.token(iss=kkp.url, nbf=times["iat"], **times | claims)


def verify(kkp: FakeKKP, token: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "examples/verify.py", kkp.url, AUDIENCE]
    return subprocess.run(  # noqa: S603
        command, input=token, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_program_that_verifies_prints_the_claims(kkp: FakeKKP) -> None:
    done = verify(kkp, token_of(kkp))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"sub": "orders"' in done.stdout


def test_the_program_that_verifies_says_why_it_refuses(kkp: FakeKKP) -> None:
    done = verify(kkp, token_of(kkp, aud="billing-db"))
    assert done.returncode == 1
    assert done.stderr == "audience_mismatch (wrong_audience): The token is for another audience.\n"


def test_the_program_that_verifies_says_what_it_lacks(kkp: FakeKKP) -> None:
    kkp.replies[KEYS] = lambda: (503, {}, b"")
    done = verify(kkp, token_of(kkp))
    assert done.returncode == 2
    assert f"GET {kkp.url}{KEYS}: it answered 503" in done.stderr


async def answers_of(app: Any, path: str, token: str, **headers: str) -> list[tuple[int, Any]]:
    """Return what an application of either framework answers with a token, and without one."""
    if not isinstance(app, web.Application):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:
            return await _answers(client, path, token, headers)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client:
            return await _answers(client, path, token, headers)
    finally:
        await runner.cleanup()


async def _answers(
    client: httpx.AsyncClient, path: str, token: str, headers: dict[str, str]
) -> list[tuple[int, Any]]:
    with_token = await client.get(path, headers={"Authorization": f"Bearer {token}"} | headers)
    without = await client.get(path)
    return [(with_token.status_code, with_token.json()), (without.status_code, None)]


async def test_the_service_of_aiohttp_tells_callers_who_they_are(kkp: FakeKKP) -> None:
    make_app = runpy.run_path(str(ROOT / "examples/aiohttp_service.py"))["make_app"]
    app, key = make_app(kkp.url, AUDIENCE, URL), DPoPKey.generate()
    token = token_of(kkp, cnf={"jkt": key.thumbprint})
    proof = key.proof(method="GET", url=f"{URL}/who-am-i", now=time.time(), token=token)
    answers = await answers_of(app, "/who-am-i", token, Authorization=f"DPoP {token}", DPoP=proof)
    assert answers == [(200, {"subject": "orders", "asked_by": "orders"}), (401, None)]


async def test_the_service_of_fastapi_tells_callers_who_they_are(
    kkp: FakeKKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"KKP": kkp.url, "AUDIENCE": AUDIENCE, "URL": URL}.items():
        monkeypatch.setenv(name, value)
    app = runpy.run_path(str(ROOT / "examples/fastapi_service.py"))["app"]
    token = token_of(kkp, act={"sub": "batch"})
    answers = await answers_of(app, "/who-am-i", token)
    assert answers == [(200, {"subject": "orders", "asked_by": "batch"}), (401, None)]


def page(kkp: FakeKKP) -> list[Any]:
    """Return the page's blocks, compiled, with this KKP in the place of the example's."""
    text = (ROOT / "README.md").read_text().replace("https://kkp.example", kkp.url)
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [compile(block, f"README.md, block {number}", "exec") for number, block in enumerate(blocks)]


def run(block: Any, **names: Any) -> dict[str, Any]:
    names["__name__"] = "readme"
    exec(block, names)  # noqa: S102  the page's own lines
    return names


def test_the_page_begins_with_ten_lines_that_work(kkp: FakeKKP) -> None:
    lines = (ROOT / "README.md").read_text().split("\n\n```python\n")[1].split("\n```\n")[0].splitlines()
    assert len(lines) == 10
    names = run(page(kkp)[0])
    assert names["caller"](token_of(kkp)) == "orders"
    assert names["caller"](token_of(kkp, aud="billing-db")) == "nobody: wrong_audience"
    names["verifier"].close()


def test_the_pages_bound_token_needs_its_proof(kkp: FakeKKP) -> None:
    first, second, *_ = page(kkp)
    verifier, key = run(first)["verifier"], DPoPKey.generate()
    token = token_of(kkp, cnf={"jkt": key.thumbprint})
    proof = key.proof(method="GET", url=f"{URL}/rows", now=time.time(), token=token)
    names = {"verifier": verifier, "token": token, "headers": {"DPoP": proof}}
    assert run(second, **names)["claims"].sub == "orders"
    with pytest.raises(TokenError):
        run(second, **names)
    verifier.close()


@pytest.mark.parametrize("number", [2, 3])
def test_the_pages_services_are_guarded(kkp: FakeKKP, number: int) -> None:
    app = run(page(kkp)[number])["app"]
    answers = asyncio.run(answers_of(app, "/rows", token_of(kkp)))
    assert answers == [(200, {"caller": "orders"}), (401, None)]


def test_a_page_without_kkp_says_what_is_missing(kkp: FakeKKP) -> None:
    verifier = run(page(kkp)[0])["verifier"]
    kkp.replies[KEYS] = lambda: (503, {}, b"")
    with pytest.raises(KeysUnavailableError, match="it answered 503"):
        verifier.verify(token_of(kkp))
    verifier.close()


def test_the_benchmark_works(kkp: FakeKKP) -> None:
    command = [sys.executable, "-m", "benchmarks.verifying", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (0, "")
    assert "SyncTokenVerifier" in done.stdout
