"""Metrics: what they count, that their labels come from closed sets, and who can read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kkp.app import development
from kkp.errors import AuditUnavailableError, KMSUnavailableError
from kkp.keyring.rotation import Keyring
from kkp.keyring.state import KeyState
from kkp.kms.guarded import Guarded
from kkp.master_key import MasterKey
from kkp.metrics import Metrics
from kkp.model import Action, BackendLimits
from kkp.ring_times import RingTimes
from kkp.web import problems
from kkp.web.metrics import serving_metrics
from kkp.web.routes import ROUTES, make_application
from kkp.web.server import edge_of, serving
from tests.approving import asked, decide, policy_with, released, shown
from tests.fakes.clock import FakeClock
from tests.fakes.ring_store import FakeRingStore
from tests.fakes.scripted_kms import ScriptedKMS, raising
from tests.harness import KKP, settings_for

CANARY = "canary7f3a"


@dataclass(frozen=True)
class Measured:
    """A running server and the place of its metrics."""

    kkp: KKP
    url: str

    async def text(self) -> str:
        """Read the metrics as a scraper does."""
        async with self.kkp.session.get(self.url) as response:
            assert response.status == 200
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            return await response.text()

    async def samples(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Read every sample, by its name and the values of its labels."""
        samples: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(await self.text()):
            for sample in family.samples:
                samples.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
        return samples


@asynccontextmanager
async def measured(directory: Path, **environ: str) -> AsyncIterator[Measured]:
    settings = settings_for(directory, KKP_METRICS_ADDR="127.0.0.1:0", **environ)
    async with development(settings) as services:
        assert services.metrics is not None
        async with (
            serving(make_application(services), settings.listen, edge_of(services)) as address,
            serving_metrics(services, settings.metrics_listen) as metrics,
            aiohttp.ClientSession(f"http://{address}") as session,
        ):
            yield Measured(
                KKP(session, settings.data_dir, settings, services, address.host, address.port),
                f"http://{metrics}/metrics",
            )


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Measured]:
    async with measured(tmp_path) as running:
        yield running


async def test_answers_are_counted_by_route_and_status(server: Measured) -> None:
    kkp = server.kkp
    await kkp.token(kkp.root_key)
    await kkp.token(kkp.root_key)
    await kkp.post("/token", {}, credential=kkp.root_key)
    await kkp.post("/token", {})
    await kkp.get("/nowhere")
    await kkp.get("/token")
    await kkp.post("/identities/x/disable", credential=kkp.root_key)
    samples = await server.samples()
    assert samples["kkp_requests_total"] == {
        ("POST", "/token", "200"): 2,
        ("POST", "/token", "400"): 1,
        ("POST", "/token", "401"): 1,
        ("", "", "404"): 1,
        ("", "", "405"): 1,
        ("POST", "/identities/{id}/disable", "404"): 1,
    }
    assert samples["kkp_request_seconds_count"][("POST", "/token")] == 4


async def test_data_keys_are_counted_by_use_and_by_where_they_came_from(tmp_path: Path) -> None:
    cached = {"KKP_DATA_KEY_CACHE_SECS": "60", "KKP_DATA_KEY_CACHE_ENCRYPT": "1"}
    async with measured(tmp_path, **cached) as server:
        kkp = server.kkp
        token = await kkp.token(kkp.root_key)
        envelopes = [await kkp.seal(token) for _ in range(3)]
        for _ in range(4):
            await kkp.post("/envelope/decrypt", {"envelope": envelopes[0], "token": token})
        assert 'kkp_data_keys_total{source="cache",use="decrypt"} 3.0' in await server.text()
        assert (await server.samples())["kkp_data_keys_total"] == {
            ("backend", "encrypt"): 1,
            ("cache", "encrypt"): 2,
            ("backend", "decrypt"): 1,
            ("cache", "decrypt"): 3,
        }


async def test_decisions_questions_records_and_failures_are_counted(server: Measured) -> None:
    kkp = server.kkp
    service = await kkp.add_identity("orders")
    await kkp.token(kkp.root_key)
    assert (await kkp.get("/identities", credential=service)).status == 403
    await kkp.get("/identities", credential="kkp_sk_" + "x" * 43)
    await kkp.get("/identities")
    samples = await server.samples()
    assert samples["kkp_decisions_total"] == {
        ("issue_token", "allow"): 1,
        ("manage_identity", "allow"): 1,
        ("manage_identity", "deny"): 1,
    }
    assert samples["kkp_policy_seconds_count"][()] == 3
    assert samples["kkp_audit_commit_records_sum"][()] == 3
    assert samples["kkp_audit_commit_seconds_count"][()] >= 1
    assert samples["kkp_failed_authentications_total"] == {("unauthenticated",): 2}


async def test_approvals_are_counted_by_step_and_emergencies_apart(tmp_path: Path) -> None:
    rules = [
        {"actions": ["issue_token"], "valid_minutes": 5, "break_glass": True},
        {"actions": ["rotate_signing_key"], "valid_minutes": 5},
    ]
    async with measured(tmp_path, KKP_POLICY_PATH=str(policy_with(tmp_path, rules))) as server:
        kkp = server.kkp
        alice = await kkp.add_identity("alice", roles=("approver",))
        minting = {"audience": "orders-db", "backend": "aws", "key_id": "alias/orders"}
        urgent = await asked(kkp, "/token", minting, kkp.root_key)
        await shown(kkp, "/token", minting, kkp.root_key, await released(kkp, urgent, alice, reason="INC-1"))
        ordinary = await asked(kkp, "/keys/rotate", None, kkp.root_key)
        await decide(kkp, ordinary, alice, decision="deny")
        assert 'kkp_approvals_total{break_glass="true",step="asked"} 1.0' in await server.text()
        assert (await server.samples())["kkp_approvals_total"] == {
            ("true", "asked"): 1,
            ("true", "approved"): 1,
            ("true", "used"): 1,
            ("false", "asked"): 1,
            ("false", "denied"): 1,
        }


async def test_the_keyring_and_the_checks_are_shown_as_they_are(server: Measured) -> None:
    samples = await server.samples()
    assert samples["kkp_signing_keys"] == {
        ("next",): 1, ("active",): 1, ("retired",): 0, ("gone",): 0, ("revoked",): 0,
    }  # fmt: skip
    lead = server.kkp.settings.ring_times.rotation
    assert 0 < samples["kkp_next_activation_seconds"][()] <= lead
    assert set(samples["kkp_ready"].values()) == {1}
    assert samples["process_resident_memory_bytes"][()] > 0


async def test_a_check_that_fails_shows(server: Measured) -> None:
    async def fail() -> None:
        raise AuditUnavailableError("The audit log is not open.")

    server.kkp.services.public.checks["audit"] = fail
    samples = await server.samples()
    assert samples["kkp_ready"][("audit",)] == 0
    assert samples["kkp_ready"][("policy",)] == 1


async def test_the_log_says_once_that_a_check_fails_and_once_that_it_succeeds_again(
    server: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise AuditUnavailableError("The audit log is not open.")

    caplog.set_level("INFO", "kkp.web.public")
    public = server.kkp.services.public
    good = public.checks["audit"]
    for check in (good, fail, fail, good, good, fail):
        public.checks["audit"] = check
        await server.kkp.get("/readyz")
    told = [(record.levelname, record.message) for record in caplog.records]
    failing = ("ERROR", "audit: not ready: The audit log is not open.")
    assert told == [failing, ("INFO", "audit: ready again"), failing]


async def test_a_check_with_a_fault_of_its_own_fails_alone_and_says_nothing_foreign(
    server: Measured, caplog: pytest.LogCaptureFixture
) -> None:
    async def fault() -> None:
        raise OSError("canary of what it worked on")

    server.kkp.services.public.checks["audit"] = fault
    for _ in range(2):
        answer = await server.kkp.get("/readyz")
        assert answer.status == 503
        failing = {name: told for name, told in answer.json["checks"].items() if told != "ok"}
        assert failing == {"audit": "the check failed (OSError)"}
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "audit: not ready: the check failed (OSError)"
    assert second.startswith("the check audit failed inside\nOSError\n")
    assert 'in fault\n    raise OSError("canary of what it worked on")' in second  # the code's own line
    assert caplog.text.count("canary") == 1


async def test_a_fault_does_not_end_the_watch_of_a_check(server: Measured) -> None:
    asked = asyncio.Semaphore(0)

    async def fault() -> None:
        asked.release()
        raise OSError

    public = server.kkp.services.public
    public.checks["audit"] = fault
    watch = asyncio.create_task(public.watch("audit", 0))
    async with asyncio.timeout(10):
        for _ in range(3):
            await asked.acquire()
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch


def test_a_keyring_that_nobody_could_read_is_left_out_and_breaks_nothing() -> None:
    metrics, clock = Metrics(), FakeClock()
    metrics.watch_keyring(Keyring(FakeRingStore(), MasterKey(bytes(32)), RingTimes(), clock), clock)
    text = metrics.render().decode()
    assert "kkp_signing_keys" not in text
    assert "process_cpu_seconds_total" in text


async def test_attack_no_caller_makes_a_label(server: Measured) -> None:
    kkp = server.kkp
    service = await kkp.add_identity(CANARY)
    await kkp.token(kkp.root_key, key_id=f"alias/{CANARY}", audience=CANARY, policy_claims={CANARY: CANARY})
    await kkp.post("/token", {CANARY: CANARY}, credential=service)
    for path in (f"/{CANARY}", f"/identities/{CANARY}", f"/identities?{CANARY}={CANARY}", f"/token/{CANARY}"):
        await kkp.request("GET", path, credential=CANARY, headers={f"X-{CANARY}": CANARY, "Host": CANARY})
        await kkp.request(CANARY.upper(), path)
    await kkp.post(f"/identities/{CANARY}/disable", credential=kkp.root_key)
    text = await server.text()
    assert CANARY not in text.lower()
    known: dict[str, set[str]] = {
        "method": {"GET", "HEAD", "POST", ""},
        "route": {route.path for route in ROUTES}
        | {"", "/keys/jwks", "/.well-known/jwks.json", "/healthz", "/readyz"},
        "status": {str(status.value) for status in problems.STATUS.values()} | {"200", "201"},
        "action": {action.value for action in Action},
        "verdict": {"allow", "deny", "error"},
        "reason": set(problems.STATUS),
        "check": set(kkp.services.public.checks),
        "state": {state.value for state in KeyState},
        "backend": set(kkp.settings.backends),
        "outcome": {"ok", *problems.STATUS},
        "limit": {"address", "caller", "connections"},
    }
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for name, value in sample.labels.items():
                assert name == "le" or value in known[name], sample


async def test_what_is_one_too_many_is_counted_by_the_limit_that_it_was_over(tmp_path: Path) -> None:
    limits = {"KKP_CALLER_RATE_PER_SEC": "1", "KKP_CALLER_BURST": "5"}
    of_address = {"KKP_ADDRESS_RATE_PER_SEC": "1", "KKP_ADDRESS_BURST": "40", "KKP_ADDRESS_CONNECTIONS": "2"}
    async with measured(tmp_path, **limits, **of_address) as server:
        kkp = server.kkp
        listed = [await kkp.get("/identities", credential=kkp.root_key) for _ in range(20)]
        strangers = [await kkp.get("/identities") for _ in range(60)]
        opened = [await asyncio.open_connection(kkp.host, kkp.port) for _ in range(4)]
        for reader, writer in opened[1:]:  # the client of the requests above has one, too
            assert await reader.read() == b""
            writer.close()
        counted = (await server.samples())["kkp_over_limit_total"]
        opened[0][1].close()
    assert counted == {
        ("caller",): sum(answer.status == 429 for answer in listed),
        ("address",): sum(answer.status == 429 for answer in strangers),
        ("connections",): 3,
    }
    assert min(counted.values()) >= 3


async def test_calls_to_a_backend_are_counted_by_outcome_and_a_breaker_is_shown(server: Measured) -> None:
    kkp = server.kkp
    await kkp.seal(kkp.root_key)
    await kkp.seal(kkp.root_key)
    missing = {"backend": "gcp", "key_id": "missing", "plaintext": "hello"}
    await kkp.post("/envelope/encrypt", missing, credential=kkp.root_key)
    samples = await server.samples()

    assert samples["kkp_kms_calls_total"] == {("aws", "ok"): 2, ("gcp", "unknown_key"): 1}
    assert samples["kkp_kms_breaker_open"] == {(name,): 0 for name in kkp.settings.backends}


async def test_a_backend_that_is_left_alone_shows() -> None:
    limits = BackendLimits(attempts=1, breaker_failures=1)
    guard = Guarded(ScriptedKMS(raising(KMSUnavailableError("It is away."))), "aws", limits)
    metrics = Metrics()
    metrics.watch_backends({"aws": guard})
    for _ in range(2):
        with pytest.raises(KMSUnavailableError):
            await guard.ping()

    text = metrics.render().decode()
    assert 'kkp_kms_breaker_open{backend="aws"} 1.0' in text
    assert 'kkp_kms_calls_total{backend="aws",outcome="kms_unavailable"} 2.0' in text


async def test_a_member_of_a_composite_that_fails_shows_and_readiness_warns_without_a_name(
    tmp_path: Path,
) -> None:
    backends = {
        "aws": "memory://aws",
        "gcp": "memory://gcp",
        "multi": "any-of://?min_members=1&key.orders=aws:alias/orders&key.orders=gcp:missing",
        "both": "all-of://?key.orders=aws:alias/orders&key.orders=gcp:orders",
    }
    listed = ",".join(f"{name}={uri}" for name, uri in backends.items())
    async with measured(tmp_path, KKP_BACKENDS=listed) as server:
        kkp = server.kkp
        assert (await server.samples())["kkp_kms_failing_members"] == {("multi",): 0, ("both",): 0}
        assert (await kkp.get("/readyz")).json["warnings"] == {}
        for backend in ("multi", "both"):
            await kkp.seal(kkp.root_key, backend=backend, key_id="orders")

        assert (await server.samples())["kkp_kms_failing_members"] == {("multi",): 1, ("both",): 0}
        ready = await kkp.get("/readyz")
        assert (ready.status, ready.json["status"]) == (200, "ok")
        warning = "1 of 4 members of composites failed when last asked; the log says which"
        assert ready.json["warnings"] == {"composites": warning}
        assert not any(name in ready.raw for name in (b"multi", b"gcp", b"missing"))


async def test_the_api_does_not_serve_them(server: Measured) -> None:
    assert (await server.kkp.get("/metrics")).status == 404


async def test_nothing_is_measured_where_nobody_asked_for_it(kkp: KKP) -> None:
    assert kkp.services.metrics is None
    async with serving_metrics(kkp.services, kkp.settings.metrics_listen) as address:
        assert address is None
