"""The road: the one place where an operation is authenticated, proposed, decided, recorded and run.

```
1 read           (web)  bounded bytes -> checked request
2 authenticate   who is calling?             Credentials -> Authenticated; not too often?
3 propose        what exactly would be done? Proposal, pure
4 decide         may they?                   code's own refusals first, then policy
5 record         the decision is durable     and the same transaction reads the epoch
6 operate        mint / wrap / unwrap / …    the only step that touches keys or a backend
7 answer         (web)  result or problem document
```

Rules that hold here:
- No policy answer, no operation. No durable record, no operation. A denial is recorded like an approval.
- The epoch tells whether anything that the decision rested on (the ring, an identity, a grant) has changed
  since it was read. If it has, the state is reloaded and the road is walked again from step 2: a revocation
  holds from the next request on, on every replica.
- A failure after step 5 appends an outcome record that points to the first. Success needs no second one.
- Nothing else in KKP calls `Operation.run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import Literal, Protocol, TypeVar, final

import msgspec

from kkp.audit.base import AuditEntry, Receipt
from kkp.authn.base import Authenticated
from kkp.authz.base import PolicyEngine
from kkp.clock import Clock
from kkp.errors import (
    AuditUnavailableError,
    AuthenticationError,
    KeyringUnavailableError,
    KKPError,
    PolicyDeniedError,
    PolicyUnavailableError,
    StaleProposalError,
    TokenExpiredError,
)
from kkp.model import JSON, Caller, Credentials, Decision, PolicyInput
from kkp.operations.base import EnvelopeFacts, Operation, Proposal, refusal
from kkp.tokens import Claims

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")
ProposalT = TypeVar("ProposalT", bound=Proposal)

# A change that lands while a decision is under way costs one more walk, about a millisecond each.
_MOST_WALKS = 8
# A proposal goes stale when its decision takes longer than a second: that is tried once more.
_MOST_STALE = 2
_log = logging.getLogger(__name__)


class Authenticates(Protocol):
    """Tells who is calling, from memory."""

    def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:
        """Return the caller, or raise an AuthenticationError."""


class Records(Protocol):
    """The audit log, as the road uses it."""

    async def commit(self, entry: AuditEntry) -> Receipt:
        """Make a decision durable; AuditUnavailableError otherwise."""

    async def commit_outcome(self, receipt: Receipt, code: str) -> None:
        """Record how an operation failed."""


class CountsFailures(Protocol):
    """Counts failed authentications, which are recorded in aggregate."""

    def count(self, peer: str, reason: str) -> None:
        """Count one."""


class LimitsCallers(Protocol):
    """Bounds how often a caller is served."""

    def admit(self, caller: str) -> None:
        """Take note of one request; RateLimitedError if it is one too many."""


class Loads(Protocol):
    """A part of the state that is held in memory as of an epoch."""

    @property
    def epoch(self) -> int:
        """The epoch it was loaded at."""

    async def load(self) -> None:
        """Read it again."""


@final
class LiveState:
    """Everything held in memory that a decision rests on, and the epoch that it is at.

    Args:
        read_epoch: Reads the database's epoch.
        parts: What to load again when it moves.
    """

    def __init__(self, read_epoch: Callable[[], Awaitable[int]], parts: Sequence[Loads]) -> None:
        self._read_epoch = read_epoch
        self._parts = parts
        self._loading = asyncio.Lock()
        self._checking = asyncio.Lock()
        self._checks_begun = 0
        self._last_check_done = 0
        self._last_check_failed = False

    @property
    def epoch(self) -> int:
        """The epoch that every part has reached."""
        reached: int = min(map(_epoch_of, self._parts))
        return reached

    async def reach(self, epoch: int) -> None:
        """Load whatever is older than this epoch.

        Raises:
            KeyringUnavailableError: The database can't be read, or its rows can't be believed.
        """
        async with self._loading:
            for part in self._parts:
                if part.epoch < epoch:
                    await part.load()

    async def refresh(self) -> None:
        """Look at the epoch, and load what it says has changed.

        Everybody who asks while a look is under way shares the next one: what was committed before the
        question is seen, and a flood of unknown credentials costs one small read at a time.
        """
        needed = self._checks_begun + 1
        async with self._checking:
            if self._last_check_done < needed:
                await self._check()
            elif self._last_check_failed:
                raise KeyringUnavailableError("The state database is not available.")

    async def _check(self) -> None:
        self._checks_begun += 1
        self._last_check_failed = True
        try:
            await self.reach(await self._read_epoch())
            self._last_check_failed = False
        finally:
            self._last_check_done = self._checks_begun


@dataclass(slots=True)
class Origin:
    """Where a request came from, and what its answer is to be traced by.

    Attributes:
        request_id: Ours, never the caller's.
        client_ip: The peer.
        decision_id: Set once there is a decision.
    """

    request_id: str
    client_ip: str = ""
    decision_id: str | None = None


class _Request(msgspec.Struct, frozen=True):
    backend: str | None
    key_id: str | None
    context: Mapping[str, JSON]
    envelope: Mapping[str, JSON]
    ttl_seconds: JSON = msgspec.UNSET
    subject: JSON = msgspec.UNSET
    identity: JSON = msgspec.UNSET
    kid: JSON = msgspec.UNSET


class _Environment(msgspec.Struct, frozen=True):
    time: str
    client_ip: str


class _PolicyInput(msgspec.Struct, frozen=True):
    action: str
    caller: Caller
    claims: Claims | Mapping[str, JSON]
    request: _Request
    environment: _Environment


_encoder = msgspec.json.Encoder(order="deterministic")
_epoch_of = attrgetter("epoch")


@final
class Pipeline:
    """Walks the road.

    Args:
        state: What is held in memory, and its epoch.
        authenticator: Step 2.
        policy: Step 4.
        audit: Step 5.
        failures: Where failed authentications are counted.
        clock: What time it is.
        limits: How often a caller may ask; None for as often as it likes.
    """

    def __init__(  # noqa: PLR0913  one argument for each step of the road
        self,
        *,
        state: LiveState,
        authenticator: Authenticates,
        policy: PolicyEngine,
        audit: Records,
        failures: CountsFailures,
        clock: Clock,
        limits: LimitsCallers | None = None,
    ) -> None:
        self._state = state
        self._authenticator = authenticator
        self._policy = policy
        self._audit = audit
        self._failures = failures
        self._clock = clock
        self._limits = limits

    async def run(
        self,
        operation: Operation[ProposalT, RequestT, AnswerT],
        request: RequestT,
        credentials: Credentials,
        origin: Origin,
    ) -> AnswerT:
        """Do what the request asks, if this caller may, and return the answer.

        Raises:
            AuthenticationError: Who is calling could not be established.
            RateLimitedError: The caller asks too often; it is counted, and nothing else is done.
            DeniedError: Code or policy refused; the refusal is on record.
            PolicyUnavailableError: The policy engine gave no usable answer.
            AuditUnavailableError: The decision could not be made durable.
            KKPError: Whatever the operation itself raises.
        """
        stale = 0
        for walk in range(_MOST_WALKS):
            authenticated = await self._authenticate(credentials, origin)
            if walk == 0 and self._limits is not None:
                self._limits.admit(authenticated.caller.id)
            proposal = operation.propose(authenticated, request)
            question = self._question(operation, proposal, origin)
            proposal, decision, failure = await self._decide(operation, proposal, question)
            decision_id = f"{origin.request_id}-{walk}"
            receipt = await self._audit.commit(
                _entry(operation, proposal, decision, failure, question, origin, decision_id)
            )
            origin.decision_id = decision_id
            if receipt.epoch != authenticated.epoch:
                await self._audit.commit_outcome(receipt, "superseded")
                await self._state.reach(receipt.epoch)
                continue
            if failure is not None:
                raise failure
            try:
                return await self._operate(operation, proposal, request)
            except asyncio.CancelledError:
                await asyncio.shield(self._record_outcome(receipt, "cancelled"))
                raise
            except StaleProposalError as error:
                await self._record_outcome(receipt, error.code)
                stale += 1
                if stale == _MOST_STALE:
                    raise
            except Exception as error:  # of whatever kind: it goes on record, and on to the caller
                await self._record_outcome(receipt, error.code if isinstance(error, KKPError) else "internal")
                raise
        raise KeyringUnavailableError("The state keeps changing; try again.")

    async def _authenticate(self, credentials: Credentials, origin: Origin) -> Authenticated:
        try:
            return await self._authenticate_now(credentials)
        except AuthenticationError as error:
            self.count_failure(origin, error)
            raise

    def count_failure(self, origin: Origin, error: AuthenticationError) -> None:
        """Count a failed authentication, also one that was refused before the road began."""
        self._failures.count(origin.client_ip, error.code)

    async def _authenticate_now(self, credentials: Credentials) -> Authenticated:
        """Authenticate; before refusing, ask the database whether an unknown credential has become known."""
        epoch = self._state.epoch
        try:
            return self._authenticator.authenticate(credentials, epoch=epoch)
        except TokenExpiredError:
            raise
        except AuthenticationError:
            await self._state.refresh()
            if self._state.epoch == epoch:
                raise
        return self._authenticator.authenticate(credentials, epoch=self._state.epoch)

    def _question(
        self, operation: Operation[ProposalT, RequestT, AnswerT], proposal: ProposalT, origin: Origin
    ) -> bytes:
        """Return the policy input in canonical JSON: what policy is asked is what the audit seals."""
        document = _PolicyInput(
            action=operation.action,
            caller=proposal.caller,
            claims=proposal.claims if proposal.claims is not None else {},
            request=_Request(
                backend=proposal.backend,
                key_id=proposal.key_id,
                context=proposal.request_context,
                envelope=_envelope_document(proposal.envelope),
                **proposal.details,
            ),
            environment=_Environment(time=_rfc3339(int(self._clock.now())), client_ip=origin.client_ip),
        )
        return _encoder.encode(document)

    async def _decide(
        self, operation: Operation[ProposalT, RequestT, AnswerT], proposal: ProposalT, question: bytes
    ) -> tuple[ProposalT, Decision, KKPError | None]:
        """Return the decision and, unless it allows, what the caller is to be told."""
        refused = refusal(proposal, operation.scope)
        if refused is not None:
            return proposal, Decision(allow=False, reasons=(f"kkp.{refused.code}",)), refused
        try:
            decision = await self._policy.decide(PolicyInput(question))
        except PolicyUnavailableError as error:
            return proposal, Decision(allow=False, reasons=(f"kkp.{error.code}",)), error
        if decision.allow:
            proposal, decision = operation.oblige(proposal, decision)
        if decision.allow:
            return proposal, decision, None
        return proposal, decision, PolicyDeniedError("The policy denies this.", decision.public_reasons)

    async def _operate(
        self, operation: Operation[ProposalT, RequestT, AnswerT], proposal: ProposalT, request: RequestT
    ) -> AnswerT:
        answer = await operation.run(proposal, request)
        if operation.changes_state:
            # It is done, whatever this finds; unless it succeeds, the next request does the same.
            with contextlib.suppress(KeyringUnavailableError):
                await self._state.refresh()
        return answer

    async def _record_outcome(self, receipt: Receipt, code: str) -> None:
        """Append the outcome. If even that fails, the error that is being raised still tells the caller."""
        try:
            await self._audit.commit_outcome(receipt, code)
        except AuditUnavailableError:
            # Without the exception: its context is the operation's, whose text may hold what it worked on.
            _log.warning("the outcome of %s:%d could not be recorded", receipt.chain, receipt.seq)


@lru_cache(maxsize=1)  # thousands of requests share a second
def _rfc3339(now: int) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _envelope_document(envelope: EnvelopeFacts | None) -> Mapping[str, JSON]:
    if envelope is None:
        return {}
    return {
        "backend": envelope.backend,
        "key_id": envelope.key_id,
        "context": envelope.context,
        "associated_data": envelope.associated_data,
    }


def _entry(  # noqa: PLR0913, PLR0917  the record is about all of these
    operation: Operation[ProposalT, RequestT, AnswerT],
    proposal: ProposalT,
    decision: Decision,
    failure: KKPError | None,
    question: bytes,
    origin: Origin,
    decision_id: str,
) -> AuditEntry:
    claims, source = proposal.claims, proposal.source
    return AuditEntry(
        action=operation.action,
        decision=_verdict(failure),
        reasons=decision.reasons,
        caller=proposal.caller.id,
        method=proposal.caller.method,
        policy_revision=decision.revision or None,
        policy_decision_id=decision.policy_decision_id,
        decision_id=decision_id,
        epoch=proposal.authenticated.epoch,
        backend=proposal.backend,
        key_id=proposal.key_id,
        source_backend=source.backend if source is not None else None,
        source_key_id=source.key_id if source is not None else None,
        kid=proposal.kid,
        jti=claims.jti if claims is not None else None,
        iat=claims.iat if claims is not None else None,
        exp=claims.exp if claims is not None else None,
        aud=claims.aud if claims is not None else None,
        claims_digest=proposal.claims_digest,
        context_names=tuple(proposal.envelope.context) if proposal.envelope is not None else (),
        result=failure.code if failure is not None else None,
        request_id=origin.request_id,
        peer=origin.client_ip,
        private={"sub": claims.sub} if claims is not None else {},
        policy_input=question,
    )


def _verdict(failure: KKPError | None) -> Literal["allow", "deny", "error"]:
    if failure is None:
        return "allow"
    return "error" if isinstance(failure, PolicyUnavailableError) else "deny"
