"""`kkp serve` when its OPA lies, is slow, is gone: it hands out nothing, says so, and recovers by itself.

The faults are those of `test_opa_faults.py`, met here by a whole server over HTTP; the OPA that is killed and
stopped under load is a real one, whose own decision log says what it has allowed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from tests import opa
from tests.harness import Answer
from tests.integration.process import Server, records, serving
from tests.integration.test_health import alive, becomes
from tests.integration.test_opa_faults import ANSWERED, SILENT, FaultyOPA, faulty_opa
from tests.integration.test_serve import LOCAL, SEAL, initialise, settings
from tests.scale import SCALE

OPA_TIMEOUT_SECONDS = 1.0
HANG_SECONDS = 30.0  # beyond OPA's time, on a machine as busy as it likes
TIMES = 2 * SCALE
AT_ONCE = 4


# An OPA that lies, or says nothing.


@dataclass
class Scene:
    """A server, what stands in for its OPA, and what an administrator may do while that answers well."""

    server: Server
    opa: FaultyOPA
    key: str = field(repr=False)
    opening: Mapping[str, Any]

    async def mint(self) -> Answer:
        return await self.server.post("/token", LOCAL, credential=self.key)

    async def open(self) -> Answer:
        return await self.server.post("/envelope/decrypt", self.opening, credential=self.key)

    def record_of(self, answer: Answer) -> dict[str, Any]:
        """Return the one audit record of the decision that an answer names."""
        kept = records(self.server.data_dir / "kkp.db")
        (record,) = [each for each in kept if each.get("decision_id") == answer.json["decision_id"]]
        return record


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """One server for all faults: what one of them does to it, the next ones meet."""
    directory = tmp_path_factory.mktemp("faults")
    path = directory / "opa.sock"
    environ = settings(f"unix://{path}", KKP_OPA_TIMEOUT_MS=str(int(OPA_TIMEOUT_SECONDS * 1000)))
    key = await initialise(directory, environ)
    async with faulty_opa(path) as faulty, serving(directory, command="serve", environ=environ) as server:
        token = (await server.post("/token", LOCAL, credential=key)).json["token"]
        sealed = await server.post("/envelope/encrypt", SEAL, credential=key)
        yield Scene(server, faulty, key, {**sealed.json, "token": token})
        assert await server.stop() == 0
        assert "Traceback" not in server.log


def test_there_are_enough_faults() -> None:
    assert len(ANSWERED) + len(SILENT) >= 30


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", [*ANSWERED, *SILENT])
async def test_nothing_is_minted_or_opened_where_opa(name: str, scene: Scene) -> None:
    scene.opa.fault = {**ANSWERED, **SILENT}[name]
    async with asyncio.timeout(OPA_TIMEOUT_SECONDS + HANG_SECONDS):
        minted, opened, ready, healthy = await asyncio.gather(
            scene.mint(), scene.open(), scene.server.get("/readyz"), scene.server.get("/healthz")
        )
    for refused in (minted, opened):
        assert (refused.status, refused.problem()) == (503, "policy_unavailable")
        assert ("in time" in refused.json["detail"]) is (name in SILENT)
        record = scene.record_of(refused)
        assert (record["decision"], record["result"]) == ("error", "policy_unavailable")
    assert (ready.status, healthy.status) == (503, 200)
    assert {check for check, result in ready.json["checks"].items() if result != "ok"} == {"policy"}

    scene.opa.fault = None
    assert (await scene.mint()).status == 200
    assert (await scene.open()).json["plaintext"] == SEAL["plaintext"]
    assert (await scene.server.get("/readyz")).status == 200


# A real OPA that dies, stops and comes back while tokens are asked for.


@dataclass
class Load:
    """Callers who never let up, and what each of them was answered, with the time at which he had asked."""

    server: Server
    key: str = field(repr=False)
    answers: list[tuple[float, Answer]] = field(default_factory=list)

    async def ask(self) -> None:
        while True:
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(HANG_SECONDS):
                answer = await self.server.post("/token", LOCAL, credential=self.key)
            assert answer.status == 200 or answer.problem() == "policy_unavailable"
            self.answers.append((began, answer))
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.ask()) for _ in range(AT_ONCE)]
        try:
            yield
            assert not [task for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def goes_on(self) -> None:
        """Wait until every caller has asked anew and been answered."""
        count = len(self.answers) + 2 * AT_ONCE
        await opa.until(lambda: len(self.answers) >= count)

    def statuses_since(self, began: float) -> set[int]:
        return {answer.status for asked_at, answer in self.answers if asked_at >= began}

    @property
    def minted(self) -> list[str]:
        """The ids of all tokens."""
        tokens = [answer.json["token"] for _, answer in self.answers if answer.status == 200]
        return [jwt.decode(token, options={"verify_signature": False})["jti"] for token in tokens]


class Sidecar:
    """A real OPA on one socket, that logs what it decides; at most one at a time."""

    def __init__(self, directory: Path) -> None:
        self.url = f"unix://{directory}/opa.sock"
        self.log_file = directory / "opa.log"
        self._directory = directory
        self._pid = 0
        self._running = ExitStack()

    def start(self, *arguments: str) -> None:
        console = ("--set", "decision_logs.console=true")
        serving_opa = opa.serving(self._directory, *console, *arguments, url=self.url)
        self._pid = self._running.enter_context(serving_opa).pid

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._running.close()

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        os.kill(self._pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    @property
    def allowed(self) -> set[str]:
        """The ids of all decisions in its log that allow."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()]
        decisions = [line for line in lines if line["msg"] == "Decision Log"]
        return {line["decision_id"] for line in decisions if line.get("result", {}).get("allow") is True}


POLICY = ("--bundle", str(opa.POLICY))


@contextmanager
def stopped(sidecar: Sidecar) -> Iterator[None]:
    sidecar.stop()
    yield
    sidecar.go_on()


@contextmanager
def killed(sidecar: Sidecar) -> Iterator[None]:
    sidecar.kill()
    yield
    sidecar.start(*POLICY)


@contextmanager
def replaced_by_one_without_a_policy(sidecar: Sidecar) -> Iterator[None]:
    sidecar.kill()
    sidecar.start()
    yield
    sidecar.kill()
    sidecar.start(*POLICY)


BREAKS = {
    "is stopped": stopped,
    "is killed": killed,
    "is replaced by one without a policy": replaced_by_one_without_a_policy,
}


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    """A real OPA with the bundled policy."""
    running = Sidecar(tmp_path)
    running.start(*POLICY)
    yield running
    running.kill()


@pytest.mark.parametrize("name", BREAKS)
async def test_under_load_nothing_is_minted_but_by_an_answer_of_an_opa_that(
    name: str, tmp_path: Path, sidecar: Sidecar
) -> None:
    environ = settings(sidecar.url, KKP_OPA_TIMEOUT_MS="1000")
    key = await initialise(tmp_path, environ)
    async with serving(tmp_path, command="serve", environ=environ) as server:
        load = Load(server, key)
        async with alive(server), load.running():
            for _ in range(TIMES):
                await load.goes_on()
                with BREAKS[name](sidecar):
                    broken_at = asyncio.get_running_loop().time()
                    checks = await becomes(server, 503)
                    assert checks["policy"] != "ok"
                    await load.goes_on()
                    assert load.statuses_since(broken_at) == {503}
                assert set((await becomes(server, 200)).values()) == {"ok"}
                mended_at = asyncio.get_running_loop().time()
                await load.goes_on()
                assert load.statuses_since(mended_at) == {200}
        assert await server.stop() == 0
        told = re.findall(r" policy: (not ready|ready again)", server.log)
        assert told == ["not ready", "ready again"] * TIMES
        assert "Traceback" not in server.log
    kept = [each for each in records(tmp_path / ".kkp/kkp.db") if each.get("action") == "issue_token"]
    granted = {each["jti"]: each["policy_decision_id"] for each in kept if each["decision"] == "allow"}
    assert set(load.minted) <= granted.keys()
    assert set(granted.values()) <= sidecar.allowed
    assert {each["decision"] for each in kept} == {"allow", "error"}
