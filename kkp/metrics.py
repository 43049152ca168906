"""What is counted and timed, for Prometheus: the one module that knows it.

Every label comes from a closed set: a route of the table, a status, an action, a verdict, an error's code, a
check, a configured backend. No caller, key, path text or address ever becomes one, so no caller can grow the
set or read another's name out of it.

The road is watched from outside: `policy`, `records` and `failures` wrap what the pipeline is handed, and
`request` and `audit_commit` are called back. A metric that is not watched costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from time import perf_counter
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from kkp.audit.base import AuditEntry, Receipt
from kkp.authz.base import PolicyEngine
from kkp.clock import Clock
from kkp.errors import KeyringUnavailableError
from kkp.keyring.rotation import Keyring
from kkp.keyring.state import KeyState
from kkp.kms.caching import Use
from kkp.kms.failing import FailingMembers
from kkp.kms.guarded import Guarded
from kkp.model import Decision, PolicyInput
from kkp.pipeline import CountsFailures, Records

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@final
class Metrics:
    """Everything that is measured in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = self._counter(
            "kkp_requests", "Answers, by route and status.", "method", "route", "status"
        )
        self._request_seconds = Histogram(
            "kkp_request_seconds",
            "From a request's head to its answer.",
            ("method", "route"),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._decisions = self._counter("kkp_decisions", "Decisions on record.", "action", "verdict")
        self._policy_seconds = self._histogram(
            "kkp_policy_seconds", "From a question to the policy's answer."
        )
        self._commit_seconds = self._histogram(
            "kkp_audit_commit_seconds", "From a group of audit records to its being durable."
        )
        self._commit_records = self._histogram(
            "kkp_audit_commit_records", "Audit records that became durable together.", _RECORDS
        )
        self._failures = self._counter(
            "kkp_failed_authentications", "Failed authentications, by the error's code.", "reason"
        )
        self._over_limit = self._counter(
            "kkp_over_limit", "Requests, and connections, that were one too many, by limit.", "limit"
        )
        self._kms_calls = self._counter(
            "kkp_kms_calls", "Calls to a backend, by `ok` or the error's code.", "backend", "outcome"
        )
        self._data_keys = self._counter(
            "kkp_data_keys",
            "Data keys of cached backends, by use and by where each came from.",
            "use",
            "source",
        )
        self._ready = Gauge(
            "kkp_ready", "Whether a check of /readyz succeeds.", ("check",), registry=self._registry
        )
        self._by_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._by_decision: dict[tuple[str, str], Counter] = {}
        self._by_kms_call: dict[tuple[str, str], Counter] = {}

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, text, registry=self._registry, buckets=buckets)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer. Method and route are the table's, or empty where no route was found."""
        found = self._by_request.get((method, route, status))
        if found is None:
            found = (
                self._requests.labels(method, route, str(status)),
                self._request_seconds.labels(method, route),
            )
            self._by_request[method, route, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def decision(self, action: str, verdict: str) -> None:
        """Count one decision on record."""
        counter = self._by_decision.get((action, verdict))
        if counter is None:
            counter = self._by_decision[action, verdict] = self._decisions.labels(action, verdict)
        counter.inc()

    def policy_answer(self, seconds: float) -> None:
        """Time one question to the policy, answered or not."""
        self._policy_seconds.observe(seconds)

    def audit_commit(self, records: int, seconds: float) -> None:
        """Time one group of audit records that became durable."""
        self._commit_seconds.observe(seconds)
        self._commit_records.observe(records)

    def kms_call(self, backend: str, outcome: str) -> None:
        """Count one call to a backend, attempted again or not."""
        counter = self._by_kms_call.get((backend, outcome))
        if counter is None:
            counter = self._by_kms_call[backend, outcome] = self._kms_calls.labels(backend, outcome)
        counter.inc()

    def failed_authentication(self, reason: str) -> None:
        """Count one failed authentication, by the error's code."""
        self._failures.labels(reason).inc()

    def over_limit(self, limit: str) -> None:
        """Count one request over the limit of its `caller` or `address`, or of an address's `connections`."""
        self._over_limit.labels(limit).inc()

    def data_key(self, use: Use, is_cached: bool) -> None:  # noqa: FBT001  called back
        """Count one data key that the cache had, or the backend gave in its place."""
        self._data_keys.labels(use, "cache" if is_cached else "backend").inc()

    def readiness(self, results: Mapping[str, bool]) -> None:
        """Note which checks succeed."""
        for name, succeeds in results.items():
            self._ready.labels(name).set(succeeds)

    def watch_keyring(self, keyring: Keyring, clock: Clock) -> None:
        """Show the keyring whenever metrics are read."""
        self._registry.register(_KeyringCollector(keyring, clock))

    def watch_backends(self, guards: Mapping[str, Guarded]) -> None:
        """Count the calls of each backend, and show whether its breaker is open."""
        is_open = Gauge(
            "kkp_kms_breaker_open",
            "Whether a backend is left alone because it keeps failing.",
            ("backend",),
            registry=self._registry,
        )
        for name, guard in guards.items():
            guard.watch(partial(self.kms_call, name))
            is_open.labels(name).set_function(guard.is_left_alone)

    def watch_composites(self, composites: Mapping[str, FailingMembers]) -> None:
        """Show how many members of each composite fail."""
        failing = Gauge(
            "kkp_kms_failing_members",
            "Members of a composite that failed when they were last asked.",
            ("backend",),
            registry=self._registry,
        )
        for name, members in composites.items():
            failing.labels(name).set_function(members.count)

    def watch_certificate(self, not_after: Callable[[], float]) -> None:
        """Show until when the TLS certificate in force is good, in Unix seconds."""
        gauge = Gauge(
            "kkp_tls_certificate_not_after_seconds",
            "Until when the TLS certificate in force is good, in Unix seconds.",
            registry=self._registry,
        )
        gauge.set_function(not_after)

    def policy(self, engine: PolicyEngine) -> PolicyEngine:
        """Return the engine, watched."""
        return _WatchedPolicy(engine, self)

    def records(self, records: Records) -> Records:
        """Return the audit log as the road uses it, watched."""
        return _WatchedRecords(records, self)

    def failures(self, failures: CountsFailures) -> CountsFailures:
        """Return the count of failed authentications, watched."""
        return _WatchedFailures(failures, self)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format, version 0.0.4."""
        return generate_latest(self._registry)


@final
class _WatchedPolicy:
    def __init__(self, engine: PolicyEngine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics
        self.ping = engine.ping
        self.close = engine.close

    @property
    def revision(self) -> str:
        return self._engine.revision

    async def decide(self, policy_input: PolicyInput) -> Decision:
        started = perf_counter()
        try:
            return await self._engine.decide(policy_input)
        finally:
            self._metrics.policy_answer(perf_counter() - started)


@final
class _WatchedRecords:
    def __init__(self, records: Records, metrics: Metrics) -> None:
        self._records = records
        self._metrics = metrics
        self.commit_outcome = records.commit_outcome

    async def commit(self, entry: AuditEntry) -> Receipt:
        receipt = await self._records.commit(entry)
        self._metrics.decision(entry.action, entry.decision)
        return receipt


@final
class _WatchedFailures:
    def __init__(self, failures: CountsFailures, metrics: Metrics) -> None:
        self._failures = failures
        self._metrics = metrics

    def count(self, peer: str, reason: str) -> None:
        self._failures.count(peer, reason)
        self._metrics.failed_authentication(reason)


@final
class _KeyringCollector(Collector):
    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._clock = clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        now = self._clock.now()
        states = GaugeMetricFamily("kkp_signing_keys", "Signing keys, by state.", labels=("state",))
        activation = GaugeMetricFamily(
            "kkp_next_activation_seconds", "Until the next signing key takes over; absent if there is none."
        )
        try:
            ring = self._keyring.view.ring
        except KeyringUnavailableError:
            return  # nothing is known of it, and kkp_ready says so
        found = [ring.state(key.kid, now) for key in ring.keys]
        for state in KeyState:
            states.add_metric((state,), found.count(state))
        upcoming = ring.next_key(now)
        if upcoming is not None:
            activation.add_metric((), upcoming.activate_at - now)
        yield from (states, activation)
