"""The port to a policy engine, and the one reading of its answer that every engine shares.

A policy has one of two rules: `data.kkp.authz.decision`, an object, or `data.kkp.authz.allow`, a boolean.
Which one is asked is fixed when the policy is loaded. Only the literal `true` allows. An answer of any other
shape, be it undefined, null, a number or an object with a member too many, is no answer: nothing is done.

An obligation binds KKP, so an allow that carries one KKP does not know, or can't read, is a denial.
"""

from __future__ import annotations

import re
from typing import Protocol

from kkp.errors import PolicyUnavailableError
from kkp.model import JSON, Decision, Explanation, PolicyInput

UNKNOWN_OBLIGATION = "kkp.unknown_obligation"

_REQUIRED = frozenset({"allow", "reasons", "obligations"})
_OPTIONAL = frozenset({"public"})
# Reasons stand in clear in the audit, so a policy can't put sentences, or the input, there.
_REASON = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")


class PolicyEngine(Protocol):
    """Answers one question at a time, and never guesses."""

    async def decide(self, policy_input: PolicyInput) -> Decision:
        """Return the policy's decision.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer.
        """

    async def ping(self) -> None:
        """Ask a question of no consequence.

        Raises:
            PolicyUnavailableError: The engine does not answer.
        """

    async def close(self) -> None:
        """Release what the engine holds; it answers nothing afterwards."""

    @property
    def revision(self) -> str:
        """Which policy decides, for the audit."""


class ExplainingEngine(PolicyEngine, Protocol):
    """A policy engine that also tells how it comes by a decision; that costs many times as much."""

    async def explain(self, policy_input: PolicyInput) -> Explanation:
        """Decide, and say by which rules.

        Raises:
            PolicyUnavailableError: The policy gave no usable answer.
        """


def interpret(rule: str, value: JSON, revision: str) -> Decision:
    """Read the value of `data.kkp.authz.<rule>`.

    Raises:
        PolicyUnavailableError: It is not a usable answer.
    """
    if rule == "allow":
        return _read_boolean(value, revision)
    if rule == "decision":
        return _read_document(value, revision)
    raise PolicyUnavailableError("The policy was asked for a rule that KKP does not know.")


def _read_boolean(value: JSON, revision: str) -> Decision:
    if value is True:
        return Decision(allow=True, reasons=("authz.allow",), revision=revision)
    if value is False:
        return Decision(allow=False, reasons=("authz.deny",), revision=revision)
    raise PolicyUnavailableError("The policy's answer is not a boolean.")


def _read_document(value: JSON, revision: str) -> Decision:
    if not isinstance(value, dict) or not _REQUIRED <= value.keys() <= _REQUIRED | _OPTIONAL:
        raise PolicyUnavailableError("The policy's answer does not have the members of a decision.")
    allow, obligations = value["allow"], value["obligations"]
    if not isinstance(allow, bool) or not isinstance(obligations, dict):
        raise PolicyUnavailableError("A member of the policy's answer has another type.")
    reasons, public = _read_reasons(value["reasons"]), _read_reasons(value.get("public", []))
    if not reasons or not set(public) <= set(reasons):
        raise PolicyUnavailableError("The policy's reasons are empty, or it makes others public.")
    if not allow:
        return Decision(allow=False, reasons=reasons, public_reasons=public, revision=revision)
    if not all(_is_known(name, value) for name, value in obligations.items()):
        return Decision(
            allow=False, reasons=(*reasons, UNKNOWN_OBLIGATION), public_reasons=public, revision=revision
        )
    demands = {name: value for name, value in obligations.items() if value is not False}
    return Decision(
        allow=True, reasons=reasons, public_reasons=public, obligations=demands, revision=revision
    )


def _read_reasons(value: JSON) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PolicyUnavailableError("The policy's reasons are not a list.")
    if not all(isinstance(code, str) and _REASON.fullmatch(code) for code in value):
        raise PolicyUnavailableError("A reason of the policy is not a code.")
    return tuple(value)


def _is_known(obligation: str, value: JSON) -> bool:
    """Tell whether KKP knows an obligation, and can read it."""
    if obligation == "max_ttl":
        # In Python a bool is an int, and `True` would be a lifetime of one second.
        return type(value) is int and value > 0
    return obligation == "require_binding" and isinstance(value, bool)
