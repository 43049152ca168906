"""A pipeline over a real audit log, with a scripted policy, and an operation that does what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kkp.audit.log import AuditLog
from kkp.authn.base import Authenticated, Once
from kkp.batch import Result
from kkp.errors import InvalidRequestError, KKPError, TokenExpiredError, UnauthenticatedError
from kkp.limits import RateLimits
from kkp.live_state import LiveState
from kkp.master_key import MasterKey
from kkp.model import Action, Caller, Credentials, Decision, PolicyInput
from kkp.operations.base import BatchOperation, Proposal
from kkp.pipeline import Origin, Pipeline
from kkp.tokens import Claims
from tests.fakes.audit_store import FakeAuditStore
from tests.fakes.clock import FakeClock

ALLOW = Decision(allow=True, reasons=("test.allowed",), revision="r1")
DENY = Decision(allow=False, reasons=("test.secret", "test.public"), public_reasons=("test.public",))
CALLER = Caller(id="orders", kind="service", roles=("service",), issuer="kkp", method="service_key")


class ScriptedPolicy:
    """Answers what it is told to, and remembers what it was asked."""

    revision = "r1"

    def __init__(self) -> None:
        self.answer: Decision | KKPError = ALLOW
        self.questions: list[Any] = []
        self.meanwhile: Callable[[], None] = lambda: None

    async def decide(self, policy_input: PolicyInput) -> Decision:
        self.questions.append(json.loads(policy_input.encoded))
        self.meanwhile()
        if isinstance(self.answer, KKPError):
            raise self.answer
        return self.answer

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


class Directory:
    """Knows callers by credential, as of an epoch that lives in the audit store's database."""

    def __init__(self, store: FakeAuditStore) -> None:
        self.epoch = store.epoch
        self.known = {"key": CALLER}
        self.loads = 0
        self.asked = 0
        self.all_expired = False
        self.once: tuple[Once, ...] = ()
        self._stored = dict(self.known)
        self._store = store

    def write(self, **stored: Caller) -> None:
        """Change what is stored, as another replica would."""
        self._stored = stored
        self._store.epoch += 1

    async def load(self) -> None:
        self.loads += 1
        self.known, self.epoch = dict(self._stored), self._store.epoch

    async def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:
        self.asked += 1
        if self.all_expired or credentials.unverified_bearer == "expired":
            raise TokenExpiredError("expired")
        caller = self.known.get(credentials.unverified_bearer or "")
        if caller is None:
            raise UnauthenticatedError("unknown")
        return Authenticated(caller, epoch, once=self.once)


class RevokedKeys(set[str | None]):
    """Keys that are revoked, as the road asks about them."""

    def is_stopped(self, backend: str, key_id: str | None) -> bool:
        assert backend == "aws"
        return key_id in self

    def is_held(self, *identities: str) -> bool:
        raise NotImplementedError  # nothing is signed here

    def is_void(self, claims: Claims) -> bool:
        raise NotImplementedError


@dataclass
class Failures:
    counted: list[tuple[str, str]] = field(default_factory=list)

    def count(self, peer: str, reason: str) -> None:
        self.counted.append((peer, reason))


class Work(BatchOperation[Proposal, str, str]):
    """An operation that says what it is told to."""

    action: ClassVar[Action] = Action.ENCRYPT
    scope: ClassVar[str | None] = "encrypt"

    def __init__(self) -> None:
        self.runs = 0
        self.errors: list[Exception] = []
        self.token: Claims | None = None

    def propose(self, authenticated: Authenticated, request: str) -> Proposal:
        if request == "malformed":
            raise InvalidRequestError("malformed")
        authenticated = Authenticated(authenticated.caller, authenticated.epoch, self.token)
        return Proposal(authenticated=authenticated, backend="aws", key_id=request)

    async def run(self, proposal: Proposal, request: str) -> str:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"{proposal.caller.id} did {request}"

    def trace(self, request: str) -> Sequence[str]:
        return (request,)


@dataclass
class Road:
    """A pipeline and everything around it."""

    pipeline: Pipeline
    policy: ScriptedPolicy
    store: FakeAuditStore
    directory: Directory
    failures: Failures
    state: LiveState
    epoch_reads: list[int]
    work: Work = field(default_factory=Work)
    origin: Origin = field(default_factory=lambda: Origin("request-1", "192.0.2.7"))

    async def walk(self, request: str = "alias/orders", credential: str = "key") -> str:
        return await self.pipeline.run(self.work, request, Credentials(credential), self.origin)

    def records(self) -> list[dict[str, Any]]:
        """Return what was recorded behind the chain's first record, short."""
        bodies = [json.loads(body) for body in self.store.bodies()]
        names = ("type", "decision", "reasons", "result", "ref", "count")
        return [{name: body[name] for name in names if name in body} for body in bodies[1:]]

    async def walk_together(
        self, *requests: str | Exception, credential: str = "key"
    ) -> Sequence[Result[str]]:
        return await self.pipeline.run_batch(self.work, requests, Credentials(credential), self.origin)


@asynccontextmanager
async def built_road() -> AsyncIterator[Road]:
    """Build the road and what is around it, and close it in the end."""
    store, clock, policy, failures = FakeAuditStore(), FakeClock(), ScriptedPolicy(), Failures()
    audit = AuditLog(store, MasterKey(bytes(32)), clock, "chain")
    await audit.start()
    directory, reads = Directory(store), []

    async def read_epoch() -> int:
        reads.append(store.epoch)
        await asyncio.sleep(0)
        return store.epoch

    state = LiveState(read_epoch, [directory])
    pipeline = Pipeline(
        state=state, authenticator=directory, policy=policy, audit=audit, failures=failures, clock=clock
    )
    yield Road(pipeline, policy, store, directory, failures, state, reads)
    await audit.close()


def limit(road: Road, burst: int) -> list[str]:
    """Put a limit on every caller of the road; return who is refused for it."""
    refused: list[str] = []
    road.pipeline._limits = RateLimits(1, burst, FakeClock().now, refused.append)
    return refused
