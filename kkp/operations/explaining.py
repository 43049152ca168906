"""Explaining what the policy would decide.

A question to the policy is put as if somebody asked for it to be done: nothing is done, no backend is asked,
no token is verified. Whose question it is, is either written out or looked up now, by an identity's name. The
answer tells what an operator needs and callers are not told: all reasons, those that are not public too, and
the rules that fired. It shows neither roles nor grants of an identity that was looked up, and no secret:
there is none in what policy is asked.

It is about the policy alone. What KKP's own code refuses beside it, whatever it says (a token's scope, a
context that contradicts the envelope's, what is revoked), is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, final

import msgspec

from kkp.authn.base import Authenticated
from kkp.authz.base import ExplainingEngine
from kkp.clock import Clock, rfc3339
from kkp.errors import NotFoundError
from kkp.model import JSON, Action, Caller, Explanation, PolicyInput
from kkp.operations.base import Operation, Proposal

_SAID_ALWAYS: Mapping[str, JSON] = {"backend": None, "key_id": None, "context": {}, "envelope": {}}
_OF_ENVELOPES = frozenset(
    {Action.ENCRYPT, Action.DECRYPT, Action.REWRAP, Action.GENERATE_DATA_KEY, Action.RELEASE_DATA_KEY}
)
_encoder = msgspec.json.Encoder(order="deterministic")


class IdentityNamed(msgspec.Struct, frozen=True):
    """A caller to be looked up: an identity's name, and how it is supposed to have proven itself."""

    id: str
    method: str


class ExplainRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A question to the policy, as `policy/README.md` describes it; `time` None means now."""

    action: str
    caller: Caller | IdentityNamed
    claims: Mapping[str, JSON] = {}
    request: Mapping[str, JSON] = {}
    time: str | None = None
    client_ip: str = ""


class ExplainProposal(Proposal, frozen=True, kw_only=True):
    """The question that would be put; None where its caller is not known."""

    question: PolicyInput | None


class LooksUpCallers(Protocol):
    """Knows the identities."""

    def __call__(self, identity_id: str, method: str) -> Caller | None:
        """Return who an identity is now, if it is known and enabled, as if proven by this method."""


@final
class ExplainPolicy(Operation[ExplainProposal, ExplainRequest, Explanation]):
    """`POST /policy/explain`.

    Args:
        engine: The policy.
        look_up: Who identities are.
        clock: What time it is.
    """

    action: ClassVar[Action] = Action.EXPLAIN_POLICY
    cost: ClassVar[int] = 20

    def __init__(self, engine: ExplainingEngine, look_up: LooksUpCallers, clock: Clock) -> None:
        self._engine = engine
        self._look_up = look_up
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: ExplainRequest) -> ExplainProposal:
        """Write the question down; policy sees which action would be explained, whose, and for which key."""
        about = {
            "action": request.action,
            "caller": request.caller.id,
            "backend": _text(request.request.get("backend")),
            "key_id": _text(request.request.get("key_id")),
        }
        return ExplainProposal(
            authenticated=authenticated, details={"explain": about}, question=self._question(request)
        )

    async def run(self, proposal: ExplainProposal, request: ExplainRequest) -> Explanation:  # noqa: ARG002  all is in the proposal
        """Put the question, and do nothing else.

        Raises:
            NotFoundError: Its caller is not known.
            PolicyUnavailableError: The policy gave no usable answer to it.
        """
        if proposal.question is None:
            raise NotFoundError("There is no such identity, or it is disabled; write its caller out.")
        return await self._engine.explain(proposal.question)

    def _question(self, request: ExplainRequest) -> PolicyInput | None:
        caller = request.caller
        if isinstance(caller, IdentityNamed):
            found = self._look_up(caller.id, caller.method)
            if found is None:
                return None
            caller = found
        claims, asked = _completed(request, caller)
        document = {
            "action": request.action,
            "caller": caller,
            "claims": claims,
            "request": asked,
            "environment": {
                "time": request.time or rfc3339(int(self._clock.now())),
                "client_ip": request.client_ip,
            },
        }
        return PolicyInput(_encoder.encode(document))


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None


def _completed(request: ExplainRequest, caller: Caller) -> tuple[Mapping[str, JSON], Mapping[str, JSON]]:
    """Return claims and request with what KKP itself would say there where nothing was said."""
    claims, asked = request.claims, {**_SAID_ALWAYS, **request.request}
    labels = {"backend": asked["backend"], "key_id": asked["key_id"]}
    if request.action in _OF_ENVELOPES and isinstance(asked["envelope"], dict):
        asked["envelope"] = {**labels, "context": {}, "associated_data": None, **asked["envelope"]}
    if request.action == Action.ISSUE_TOKEN:
        claims = {"sub": caller.id, **labels, "ops": ["decrypt"], "policy_claims": {}, **claims}
        asked = {"ttl_seconds": None, "subject": claims["sub"], **asked}
    return claims, asked
