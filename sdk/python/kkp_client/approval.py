"""Calls that somebody else has approved, as the clients of both worlds make them.

Rules that hold here:
- The release of an approval is shown with every request of a call, but not with those for a token on the way:
  all who want a token of that scope share it.
- A batch takes none, which is said before anything is asked for it.
- A client with an approval to show is the client that it was made from: tokens, connections and its end are
  shared.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Final, Self, TypeVar

from kkp_client.errors import ConfigurationError
from kkp_client.protocol import Send, Steps, checked_credential

ResultT = TypeVar("ResultT")

_HEADER: Final = "KKP-Approval"


class ShowsApproval:
    """What a client has for it; it gives each call's steps to one of the methods below."""

    _release: str | None = None

    def approved(self, release: str) -> Self:
        """Return this client with an approval to show by each call: make the one that was refused, as it was.

        It is the same client, and ends with it. No token on the way is asked for with the approval, and no
        batch takes one.

        Args:
            release: What whoever approved was given for the `approval_id` of the error `approval_required`.

        Raises:
            ConfigurationError: It can't be one.
        """
        client = copy(self)
        client._release = checked_credential(release, "approval")  # noqa: SLF001  the copy's own: nobody has it yet
        return client

    @property
    def _is_approved(self) -> bool:
        return self._release is not None

    def _with_approval(self, steps: Steps[ResultT]) -> Steps[ResultT]:
        """Return the steps of a call, by which the approval is shown where there is one."""
        return steps if self._release is None else with_approval(steps, self._release)

    def _without_approval(self, steps: Steps[ResultT]) -> Steps[ResultT]:
        """Return the steps of a call for many.

        Raises:
            ConfigurationError: There is an approval to show.
        """
        if self._is_approved:
            raise ConfigurationError("A batch takes no approval: send what was approved alone.")
        return steps


def with_approval(steps: Steps[ResultT], release: str) -> Steps[ResultT]:
    """Walk the same steps, and show the release of an approval with each request."""
    came: object = None
    failure: Exception | None = None
    try:
        while True:
            step = steps.send(came) if failure is None else steps.throw(failure)
            came, failure = None, None
            if isinstance(step, Send):
                step = replace(step, headers={**step.headers, _HEADER: release})
            try:
                came = yield step
            except Exception as error:  # noqa: BLE001  of any kind: it is thrown on, to the steps themselves
                failure = error
    except StopIteration as end:
        result: ResultT = end.value
        return result
    finally:
        steps.close()
