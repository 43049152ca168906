"""The road: the one place where an operation is authenticated, proposed, decided, recorded and run.

```
1 read           (web)  bounded bytes -> checked request
2 authenticate   who is calling?             Credentials -> Authenticated; not too often, and not again?
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
- What names something revoked is refused behind policy, in the same step: the epoch that the record's own
  transaction reads shows whether that is still so.
- What policy demands approval for is done only with a release, which is used up between steps 5 and 6.
  Without one, the request for it waits from step 5 on, and nothing else is done (`kkp.authz.approvals`).
- A failure after step 5 appends an outcome record that points to the first. Success needs no second one.
- Nothing else in KKP calls `Operation.run`.

A batch walks the same road with its items side by side, a slice of so many distinct questions at a time. Each
question is decided and recorded once, with how many items ask it and a digest of which. Only when every
record of a slice is durable, all at one epoch, do its items run; each then succeeds or fails by itself. The
caller is authenticated, from memory, for each slice. While its items run, the database's epoch and the
credential are looked at again and again: when either no longer is what it was, the items that have not begun
walk again from step 2. A batch uses no release: it is for one operation, which is asked for alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol, TypeVar, final

import msgspec

from kkp.approvals import Wanted
from kkp.audit.base import AuditEntry, Receipt
from kkp.authn.base import Authenticated, UsedOnce
from kkp.authz.base import PolicyEngine
from kkp.batch import Asked, Item, Result, Standing
from kkp.clock import Clock, rfc3339
from kkp.errors import (
    ApprovalInvalidError,
    ApprovalRequiredError,
    AuditUnavailableError,
    AuthenticationError,
    DPoPProofError,
    KeyringUnavailableError,
    KKPError,
    PolicyDeniedError,
    PolicyUnavailableError,
    StaleProposalError,
    TokenExpiredError,
)
from kkp.live_state import LiveState
from kkp.model import JSON, Action, ApprovalDemand, Caller, Credentials, Decision, PolicyInput
from kkp.operations.approvals import remarks_on
from kkp.operations.base import (
    BatchOperation,
    EnvelopeFacts,
    Operation,
    Proposal,
    Revoked,
    denied,
    refusal,
    revoked,
    wanted,
)
from kkp.pacing import Pace, Pacer, each
from kkp.tokens import Claims

RequestT = TypeVar("RequestT")
AnswerT = TypeVar("AnswerT")
ProposalT = TypeVar("ProposalT", bound=Proposal)

# A change that lands while a decision is under way costs one more walk, about a millisecond each.
_MOST_WALKS = 8
# A proposal goes stale when its decision takes longer than a second: that is tried once more.
_MOST_STALE = 2
# A change that lands while a batch is decided costs the work on so many of its questions.
_QUESTIONS_IN_SLICE = 64
# How many questions of a batch are decided, and records made, at a time.
_AT_ONCE = 32
# How many items run at a time: a quarter of a backend's slots, so that one batch leaves others theirs.
_ITEMS_AT_ONCE = 8
_CANCELLED = "cancelled"
_SUPERSEDED = "superseded"
_log = logging.getLogger(__name__)


class Authenticates(Protocol):
    """Tells who is calling, as a rule from memory."""

    async def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:
        """Return the caller, or raise an AuthenticationError; it may be asked often, and uses nothing up."""


class Records(Protocol):
    """The audit log, as the road uses it."""

    async def commit(self, entry: AuditEntry) -> Receipt:
        """Make a decision durable; AuditUnavailableError otherwise."""

    async def commit_outcome(self, receipt: Receipt, code: str, count: int | None = None) -> None:
        """Record how an operation failed; of a batch, for how many of its items."""


class CountsFailures(Protocol):
    """Counts failed authentications, which are recorded in aggregate."""

    def count(self, peer: str, reason: str) -> None:
        """Count one."""


class LimitsCallers(Protocol):
    """Bounds how often a caller is served."""

    def admit(self, caller: str, cost: int = 1) -> None:
        """Take note of one request, or of a batch of so many; RateLimitedError if that is too much."""


class Approves(Protocol):
    """What waits for approval, or was approved. Every method raises a KKPError where it can't be told."""

    def required(self, wanted: Wanted) -> ApprovalRequiredError:
        """Return what the caller is told who has no release."""

    async def ask(self, wanted: Wanted, required: ApprovalRequiredError) -> None:
        """Have the request wait that the caller is told of."""

    def released(self, unverified_release: str, wanted: Wanted, *, used: str | None) -> str:
        """Return the id of the approval that the release is for; ApprovalInvalidError unless it is good."""

    async def use(self, approval_id: str) -> None:
        """Use up an approval; ApprovalInvalidError for all but one who try."""


class _Release(msgspec.Struct):
    """The release that a request shows, if any.

    Attributes:
        unverified: As it stands in the request.
        used: The approval that it was used up for, by this request.
    """

    unverified: str | None = None
    used: str | None = None

    def __repr__(self) -> str:
        """Name what it was used for; as long as it was not, it is good for something."""
        return f"_Release(used={self.used!r})"


class Origin(msgspec.Struct):
    """Where a request came from, and what its answer is to be traced by.

    Attributes:
        request_id: Ours, never the caller's.
        client_ip: The peer.
        decision_id: Set once there is a decision.
        is_dpop: Whether a credential was shown as DPoP, and so is refused in its words.
    """

    request_id: str
    client_ip: str = ""
    decision_id: str | None = None
    is_dpop: bool = False


class _Request(msgspec.Struct, frozen=True):
    backend: str | None
    key_id: str | None
    context: Mapping[str, JSON]
    envelope: Mapping[str, JSON]
    ttl_seconds: JSON = msgspec.UNSET
    subject: JSON = msgspec.UNSET
    identity: JSON = msgspec.UNSET
    account: JSON = msgspec.UNSET
    kid: JSON = msgspec.UNSET
    revocation: JSON = msgspec.UNSET
    approval: JSON = msgspec.UNSET
    explain: JSON = msgspec.UNSET
    audit: JSON = msgspec.UNSET


class _Environment(msgspec.Struct, frozen=True):
    time: str
    client_ip: str


class _PolicyInput(msgspec.Struct, frozen=True):
    action: str
    caller: Caller
    claims: Claims | Mapping[str, JSON]
    request: _Request
    environment: _Environment


_KEEPS_CHANGING = "The state keeps changing; try again."
_encoder = msgspec.json.Encoder(order="deterministic")


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
        revocations: What is revoked; None where no operation names a key or a token.
        used_once: What was used, of all that may be used once; None where nothing is of that kind.
        approvals: What waits for approval; None where nothing that needs one is done.
        pace: Told how long a walk took that was in vain.
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
        revocations: Revoked | None = None,
        used_once: UsedOnce | None = None,
        approvals: Approves | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._state = state
        self._authenticator = authenticator
        self._policy = policy
        self._audit = audit
        self._failures = failures
        self._clock = clock
        self._limits = limits
        self._revocations = revocations
        self._used_once = used_once
        self._approvals = approvals
        self._pace = pace or Pace()

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
        stale, release = 0, _Release(credentials.unverified_release)
        for walk in range(_MOST_WALKS):
            began = time.monotonic()
            authenticated = await self.authenticate(credentials, origin)
            if walk == 0:
                await self._admit(authenticated, origin, operation.cost)
                operation.admit(request)
            proposal = operation.propose(authenticated, request)
            question = self._question(operation, proposal, origin, self._clock.now())
            decision_id = f"{origin.request_id}-{walk}"
            proposal, failure, receipt = await self._decide_on_record(
                operation, proposal, question, origin, decision_id, release
            )
            origin.decision_id = decision_id
            if receipt.epoch != authenticated.epoch or not await self._waits(proposal, failure, receipt):
                self._pace.overtaken_after(time.monotonic() - began)
                await self._audit.commit_outcome(receipt, _SUPERSEDED)
                await self._state.reach(receipt.epoch)
                continue
            if failure is not None:
                raise failure
            try:
                await self._use_release(proposal, release)
                return await self._operate(operation, proposal, request)
            except asyncio.CancelledError:
                await asyncio.shield(self._record_outcome(receipt, _CANCELLED))
                raise
            except StaleProposalError as error:
                await self._record_outcome(receipt, error.code)
                stale += 1
                if stale == _MOST_STALE:
                    raise
            except Exception as error:  # of whatever kind: it goes on record, and on to the caller
                await self._record_outcome(receipt, _code_of(error))
                raise
        raise KeyringUnavailableError(_KEEPS_CHANGING)

    async def run_batch(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        requests: Sequence[RequestT | Exception],
        credentials: Credentials,
        origin: Origin,
    ) -> Sequence[Result[AnswerT]]:
        """Do what each request asks, if this caller may, and return in their order what became of them.

        Args:
            operation: What is to be done.
            requests: What each item asks for, or why it could not be read.
            credentials: Those of all.
            origin: Where the batch came from.

        Raises:
            AuthenticationError: Who is calling could not be established.
            RateLimitedError: The caller asks too often; each item counts as a request.
            AuditUnavailableError: The first decisions could not be made durable, so nothing was done.
            Exception: Whatever else concerns all. Once an item was decided, that is an error of the others.
        """
        results: list[Result[AnswerT]] = [Result() for _ in requests]
        items: list[Item[RequestT, AnswerT]] = []
        for position, (request, result) in enumerate(zip(requests, results, strict=True)):
            if isinstance(request, Exception):
                result.fail(request)
            else:
                items.append(Item(position, request, result))
        try:
            for some in await self._slices(operation, items, credentials, origin, len(requests)):
                await self._walk_together(operation, some, credentials, origin)
        except Exception as error:
            if not any(result.decision_id for result in results):
                raise
            for result in results:
                if result.is_open:
                    result.fail(error)
        return results

    async def _slices(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        items: Sequence[Item[RequestT, AnswerT]],
        credentials: Credentials,
        origin: Origin,
        cost: int,
    ) -> Sequence[Sequence[Item[RequestT, AnswerT]]]:
        """Admit the caller, and return the items in slices; all that ask one question are in the same."""
        authenticated = await self.authenticate(credentials, origin)
        await self._admit(authenticated, origin, cost)
        groups = [one.items for one in await self._ask(operation, authenticated, items, origin)]
        starts = range(0, len(groups), _QUESTIONS_IN_SLICE)
        return [[*itertools.chain(*groups[start : start + _QUESTIONS_IN_SLICE])] for start in starts]

    async def _walk_together(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        items: Sequence[Item[RequestT, AnswerT]],
        credentials: Credentials,
        origin: Origin,
    ) -> None:
        """Walk until every item has its result, in steps that are those of `run`.

        While many items run, the state may change any number of times. Only walks on which no item ends are
        counted, and end in 503.
        """
        waiting, fruitless = items, 0
        for walk in itertools.count():
            began = time.monotonic()
            authenticated = await self.authenticate(credentials, origin)
            asked = await self._ask(operation, authenticated, waiting, origin, walk)
            receipts = await self._decide_all_on_record(operation, asked, origin)
            if any(receipt.epoch != authenticated.epoch for receipt in receipts):
                self._pace.overtaken_after(time.monotonic() - began)
                supersede = partial(self._audit.commit_outcome, code=_SUPERSEDED)
                await each(receipts, supersede, at_once=_AT_ONCE)
                await self._state.reach(max(receipt.epoch for receipt in receipts))
            else:
                await self._ask_for_approvals(asked)
                again = partial(self._authenticator.authenticate, credentials, epoch=authenticated.epoch)
                standing = Standing(self._state, again, authenticated.epoch)
                await self._operate_all(operation, asked, standing)
            left = [item for item in waiting if item.result.is_open]
            if not left:
                return
            fruitless = fruitless + 1 if len(left) == len(waiting) else 0
            if fruitless == _MOST_WALKS:
                raise KeyringUnavailableError(_KEEPS_CHANGING)
            waiting = left

    async def authenticate(self, credentials: Credentials, origin: Origin) -> Authenticated:
        """Tell who is calling; also asked before much is read. A failure is counted.

        Raises:
            AuthenticationError: Who is calling could not be established.
        """
        try:
            return await self._authenticate_now(credentials)
        except AuthenticationError as error:
            self.count_failure(origin, error)
            raise

    async def knows(self, credentials: Credentials) -> bool:
        """Tell whether somebody's are shown, as far as memory tells; nothing is counted or used up."""
        try:
            await self._authenticator.authenticate(credentials, epoch=self._state.epoch)
        except AuthenticationError:
            return False
        return True

    def count_failure(self, origin: Origin, error: AuthenticationError) -> None:
        """Count a failed authentication, also one that was refused before the road began."""
        self._failures.count(origin.client_ip, error.code)

    async def _admit(self, authenticated: Authenticated, origin: Origin, cost: int) -> None:
        """Take note of a request, the first time that its caller is known; use up what serves it alone.

        Raises:
            RateLimitedError: The caller asks too often.
            AuthenticationError: Something that may be used once was used before.
        """
        if self._limits is not None:
            self._limits.admit(authenticated.caller.id, cost)
        for kind, value, expires_at, refused in authenticated.once:
            if self._used_once is None or not await self._used_once.use(kind, value, expires_at):
                error = refused("The credential, or its proof, was used before, and is good for one use.")
                self.count_failure(origin, error)
                raise error

    async def _authenticate_now(self, credentials: Credentials) -> Authenticated:
        """Authenticate; before refusing, ask the database whether an unknown credential has become known."""
        epoch = self._state.epoch
        try:
            return await self._authenticator.authenticate(credentials, epoch=epoch)
        except (TokenExpiredError, DPoPProofError):
            raise  # whatever the database says
        except AuthenticationError:
            await self._state.refresh()
            if self._state.epoch == epoch:
                raise
        return await self._authenticator.authenticate(credentials, epoch=self._state.epoch)

    async def _ask(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        authenticated: Authenticated,
        items: Sequence[Item[RequestT, AnswerT]],
        origin: Origin,
        walk: int = 0,
    ) -> Collection[Asked[ProposalT, RequestT, AnswerT]]:
        """Propose every item, at one moment, and return the distinct questions that this makes.

        What code itself refuses differs from what it does not, though the question be the same.
        """
        pacer, now = Pacer(), self._clock.now()
        asked: dict[tuple[bytes, str], Asked[ProposalT, RequestT, AnswerT]] = {}
        for item in items:
            await pacer.pause()
            try:
                proposal = operation.propose(authenticated, item.request)
                question = self._question(operation, proposal, origin, now)
                item.trace = item.trace or (item.position, *operation.trace(item.request))
            except Exception as error:  # noqa: BLE001  whatever is wrong with one item, the others go on
                item.result.fail(error)
                continue
            refused = refusal(proposal, operation.scope)
            key = question, "" if refused is None else refused.code
            if key not in asked:
                decision_id = f"{origin.request_id}-{walk}-{item.position}"
                asked[key] = Asked(proposal, question, decision_id)
            asked[key].items.append(item)
        return asked.values()

    def _question(
        self,
        operation: Operation[ProposalT, RequestT, AnswerT],
        proposal: ProposalT,
        origin: Origin,
        now: float,
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
            environment=_Environment(time=rfc3339(int(now)), client_ip=origin.client_ip),
        )
        return _encoder.encode(document)

    async def _decide_all_on_record(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        asked: Collection[Asked[ProposalT, RequestT, AnswerT]],
        origin: Origin,
    ) -> Sequence[Receipt]:
        """Decide and record every question of a slice; all of it is durable when this returns."""

        async def decide(one: Asked[ProposalT, RequestT, AnswerT]) -> None:
            traces = [item.trace for item in one.items]
            one.proposal, one.failure, one.receipt = await self._decide_on_record(
                operation, one.proposal, one.question, origin, one.decision_id, _Release(), traces
            )

        try:
            await each(asked, decide, at_once=_AT_ONCE)
        except AuditUnavailableError:
            raise  # what is on record already is a record without an operation, like that of any lost commit
        except BaseException as error:
            for one in asked:
                one.outcomes[_code_of(error)] = len(one.items)
            await asyncio.shield(self._record_outcomes(asked))
            raise
        return [one.receipt for one in asked if one.receipt is not None]

    async def _decide_on_record(  # noqa: PLR0913, PLR0917  the record is about all of these
        self,
        operation: Operation[ProposalT, RequestT, AnswerT],
        proposal: ProposalT,
        question: bytes,
        origin: Origin,
        decision_id: str,
        release: _Release,
        traces: Sequence[Sequence[JSON]] | None = None,
    ) -> tuple[ProposalT, KKPError | None, Receipt]:
        """Return what was decided on, what the caller is told unless it was allowed, and the receipt."""
        proposal, decision, failure = await self._decide(operation, proposal, question, release)
        entry = _entry(operation, proposal, decision, failure, question, origin, decision_id, traces)
        return proposal, failure, await self._audit.commit(entry)

    async def _decide(
        self,
        operation: Operation[ProposalT, RequestT, AnswerT],
        proposal: ProposalT,
        question: bytes,
        release: _Release,
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
            stopped = None if self._revocations is None else revoked(proposal, self._revocations)
            if stopped is not None:
                return proposal, denied(decision, f"kkp.{stopped.code}"), stopped
            if decision.approval is None:
                return proposal, decision, None
            if operation.action is not Action.APPROVE and self._approvals is not None:
                return _with_approval(
                    self._approvals, proposal, decision, decision.approval, question, release
                )
            # Nobody could ever be the last to approve.
            decision = denied(decision, "kkp.obligation_not_applicable")
        return proposal, decision, PolicyDeniedError("The policy denies this.", decision.public_reasons)

    async def _waits(self, proposal: Proposal, failure: KKPError | None, receipt: Receipt) -> bool:
        """Have what takes approval wait for it; False if the same does by now, of another request."""
        try:
            if await self._ask_for_approval(proposal, failure):
                await self._note_own_change()
        except StaleProposalError:
            return False
        except KKPError as error:
            await self._record_outcome(receipt, error.code)
            raise
        return True

    async def _ask_for_approval(self, proposal: Proposal, failure: KKPError | None) -> bool:
        """Tell whether approval is needed; if it is, the request for it waits."""
        if not isinstance(failure, ApprovalRequiredError) or not self._approvals or not proposal.wanted:
            return False
        await self._approvals.ask(proposal.wanted, failure)
        return True

    async def _ask_for_approvals(self, asked: Collection[Asked[ProposalT, RequestT, AnswerT]]) -> None:
        """Have every question of a slice wait that needs approval; what can't wait is told why."""
        for one in asked:
            try:
                await self._ask_for_approval(one.proposal, one.failure)
            except KKPError as error:
                one.outcomes[error.code] = len(one.items)
                one.failure = error

    async def _use_release(self, proposal: Proposal, release: _Release) -> None:
        """Use up the approval that the operation takes, unless this request has on an earlier walk.

        Raises:
            ApprovalInvalidError: Somebody was faster.
        """
        approval = proposal.approval
        if not self._approvals or proposal.wanted is None or approval is None or approval == release.used:
            return
        await self._approvals.use(approval)
        release.used = approval
        # Known here, the new epoch tells this database from one that is restored to before the use.
        await self._note_own_change()

    async def _operate_all(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        asked: Collection[Asked[ProposalT, RequestT, AnswerT]],
        standing: Standing,
    ) -> None:
        """Run every item that was allowed, and record how those ended that did not succeed."""

        async def operate(
            step: tuple[Asked[ProposalT, RequestT, AnswerT], Item[RequestT, AnswerT]],
        ) -> None:
            one, item = step
            if one.failure is not None:
                item.result.fail(one.failure)
            else:
                outcome = await self._operate_item(operation, one.proposal, item, standing)
                one.outcomes.subtract((_CANCELLED,))
                one.outcomes.update(() if outcome is None else (outcome,))
            if not item.result.is_open:
                item.result.decision_id = one.decision_id

        for one in asked:  # an item that has not ended is one that was cancelled
            one.outcomes[_CANCELLED] = 0 if one.failure is not None else len(one.items)
        try:
            await each([(one, item) for one in asked for item in one.items], operate, at_once=_ITEMS_AT_ONCE)
        finally:
            await asyncio.shield(self._record_outcomes(asked))

    async def _operate_item(
        self,
        operation: BatchOperation[ProposalT, RequestT, AnswerT],
        proposal: ProposalT,
        item: Item[RequestT, AnswerT],
        standing: Standing,
    ) -> str | None:
        """Run one item of a batch; return the code to be recorded unless it succeeded."""
        if not await standing.holds():
            return _SUPERSEDED
        try:
            item.result.succeed(await self._operate(operation, proposal, item.request))
        except Exception as error:  # noqa: BLE001  of whatever kind: it is this item's, and goes on record
            item.result.fail(error)
            return _code_of(error)
        return None

    async def _operate(
        self, operation: Operation[ProposalT, RequestT, AnswerT], proposal: ProposalT, request: RequestT
    ) -> AnswerT:
        answer = await operation.run(proposal, request)
        if operation.changes_state:
            await self._note_own_change()
        return answer

    async def _note_own_change(self) -> None:
        """Load what was changed here. It is done, whatever this finds; the next request does the same."""
        with contextlib.suppress(KeyringUnavailableError):
            await self._state.refresh()

    async def _record_outcomes(self, asked: Collection[Asked[ProposalT, RequestT, AnswerT]]) -> None:
        """Append the outcomes of a batch, one for each question and code, until one can't be recorded."""
        outcomes = [
            (one.receipt, code, count)
            for one in asked
            if one.receipt is not None
            for code, count in one.outcomes.items()
            if count
        ]

        async def record(outcome: tuple[Receipt, str, int]) -> None:
            await self._audit.commit_outcome(*outcome)

        try:
            await each(outcomes, record, at_once=_AT_ONCE)
        except AuditUnavailableError:
            _log.warning("of %d outcomes of a batch some could not be recorded", len(outcomes))

    async def _record_outcome(self, receipt: Receipt, code: str) -> None:
        """Append the outcome. If even that fails, the error that is being raised still tells the caller."""
        try:
            await self._audit.commit_outcome(receipt, code)
        except AuditUnavailableError:
            # Without the exception: its context is the operation's, whose text may hold what it worked on.
            _log.warning("the outcome of %s:%d could not be recorded", receipt.chain, receipt.seq)


def _envelope_document(envelope: EnvelopeFacts | None) -> Mapping[str, JSON]:
    if envelope is None:
        return {}
    return {
        "backend": envelope.backend,
        "key_id": envelope.key_id,
        "context": envelope.context,
        "associated_data": envelope.associated_data,
    }


def _with_approval(  # noqa: PLR0913, PLR0917  the decision is about all of these
    approvals: Approves,
    proposal: ProposalT,
    decision: Decision,
    demand: ApprovalDemand,
    question: bytes,
    release: _Release,
) -> tuple[ProposalT, Decision, KKPError | None]:
    """Return what an allowing decision becomes that demands approval."""
    asked, remarks = wanted(proposal, question, demand), remarks_on(is_break_glass=demand.is_break_glass)
    if release.unverified is None:
        required = approvals.required(asked)
        proposal = msgspec.structs.replace(
            proposal, approval=required.approval_id, wanted=asked, remarks=remarks
        )
        return proposal, denied(decision, f"kkp.{required.code}"), required
    try:
        approval = approvals.released(release.unverified, asked, used=release.used)
    except ApprovalInvalidError as error:
        proposal = msgspec.structs.replace(proposal, approval=error.approval_id, remarks=remarks)
        return proposal, denied(decision, f"kkp.{error.code}"), error
    remarks = ("kkp.approved", *remarks)
    return msgspec.structs.replace(proposal, approval=approval, wanted=asked, remarks=remarks), decision, None


def _entry(  # noqa: PLR0913, PLR0917  the record is about all of these
    operation: Operation[ProposalT, RequestT, AnswerT],
    proposal: ProposalT,
    decision: Decision,
    failure: KKPError | None,
    question: bytes,
    origin: Origin,
    decision_id: str,
    traces: Sequence[Sequence[JSON]] | None,
) -> AuditEntry:
    claims, source = proposal.claims or proposal.session, proposal.source
    private = {**proposal.private, **({"sub": claims.sub} if claims is not None else {})}
    if traces is not None:
        private["items"] = msgspec.json.encode(traces).decode()
    return AuditEntry(
        action=operation.action,
        decision=_verdict(failure),
        reasons=(*decision.reasons, *proposal.remarks),
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
        approval=proposal.approval,
        context_names=tuple(proposal.envelope.context) if proposal.envelope is not None else (),
        result=failure.code if failure is not None else None,
        count=len(traces) if traces is not None else None,
        request_id=origin.request_id,
        peer=origin.client_ip,
        private=private,
        policy_input=question,
    )


def _code_of(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return _CANCELLED
    return error.code if isinstance(error, KKPError) else "internal"


def _verdict(failure: KKPError | None) -> Literal["allow", "deny", "error"]:
    if failure is None:
        return "allow"
    return "error" if isinstance(failure, PolicyUnavailableError) else "deny"
