"""The policy of the command line on the machine itself.

Whoever holds the data directory and the master key could do all of this by hand, so a policy could not stop
them; the road is travelled all the same, because it leaves a record. No network caller is ever asked about
here: the composition root hands this engine to the command line only.
"""

from __future__ import annotations

from typing import final

from kkp.model import Decision, PolicyInput


@final
class OperatorPolicy:
    """Allows the local operator everything, and everyone else nothing."""

    revision = "operator"

    async def decide(self, policy_input: PolicyInput) -> Decision:
        """Allow exactly the caller whose kind and method are those of the local operator."""
        caller = policy_input.document.get("caller")
        if isinstance(caller, dict) and _is_local_operator(caller.get("kind"), caller.get("method")):
            return Decision(allow=True, reasons=("operator.local",), revision=self.revision)
        return Decision(allow=False, reasons=("operator.not_local",), revision=self.revision)

    async def ping(self) -> None:
        """Answer: there is nothing that could be away."""

    async def close(self) -> None:
        """Do nothing: nothing is held."""


def _is_local_operator(kind: object, method: object) -> bool:
    return kind == "operator" and method == "local_operator"
