"""Rotating the signing keyring."""

from __future__ import annotations

from typing import ClassVar, final

from kkp.authn.base import Authenticated
from kkp.keyring.rotation import Keyring, Rotation
from kkp.model import Action
from kkp.operations.base import Operation, Proposal


@final
class RotateSigningKey(Operation[Proposal, None, Rotation]):
    """`POST /keys/rotate`: promote the next key now, or say when it will be.

    Args:
        keyring: The signing keyring.
    """

    action: ClassVar[Action] = Action.ROTATE_SIGNING_KEY
    changes_state: ClassVar[bool] = True

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def propose(self, authenticated: Authenticated, request: None) -> Proposal:  # noqa: ARG002  there is no body
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: None) -> Rotation:  # noqa: ARG002  there is no body
        """Rotate; idempotent until the next key signs."""
        return await self._keyring.rotate()
