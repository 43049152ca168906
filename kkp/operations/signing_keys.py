"""Listing, rotating and revoking the signing keys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from kkp.authn.base import Authenticated
from kkp.clock import Clock
from kkp.keyring.rotation import Keyring, Revocation, Rotation
from kkp.keyring.state import KeyState, RingKey
from kkp.model import Action
from kkp.operations.base import Operation, Proposal

_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")  # RFC 7638 with SHA-256, in base64url


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key of the ring as it stands now.

    Attributes:
        key: Its public half and its times.
        state: What it may do now.
        retires_at: When its successor takes over; None while there is none.
        publish_until: When it leaves the JWKS if nobody revokes it.
    """

    key: RingKey
    state: KeyState
    retires_at: float | None
    publish_until: float


def is_kid(text: str) -> bool:
    """Tell whether a text has the form of a kid."""
    return _THUMBPRINT.fullmatch(text) is not None


@final
class ListSigningKeys(Operation[Proposal, None, Sequence[SigningKey]]):
    """`kkp keys list`: every key that the ring ever had, the newest first.

    Args:
        keyring: The signing keyring.
        clock: What time it is.
    """

    action: ClassVar[Action] = Action.READ_KEY

    def __init__(self, keyring: Keyring, clock: Clock) -> None:
        self._keyring = keyring
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: None) -> Proposal:  # noqa: ARG002  there is no body
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated)

    async def run(self, proposal: Proposal, request: None) -> Sequence[SigningKey]:  # noqa: ARG002  there is no body
        """Read the ring."""
        await self._keyring.load()
        ring, now = self._keyring.view.ring, self._clock.now()
        newest_first = sorted(ring.keys, key=lambda key: key.generation, reverse=True)
        return [
            SigningKey(key, ring.state(key.kid, now), ring.retires_at(key), ring.publish_until(key))
            for key in newest_first
        ]


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


@final
class RevokeSigningKey(Operation[Proposal, str, Revocation]):
    """`POST /keys/jwks/{kid}/revoke`: end a key at once, and every token that it signed.

    Args:
        keyring: The signing keyring.
    """

    action: ClassVar[Action] = Action.REVOKE_SIGNING_KEY
    changes_state: ClassVar[bool] = True

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def propose(self, authenticated: Authenticated, request: str) -> Proposal:
        """Name the key. The audit keeps in clear what can be a kid, and seals everything else."""
        kid = request if is_kid(request) else None
        return Proposal(authenticated=authenticated, kid=kid, details={"kid": request})

    async def run(self, proposal: Proposal, request: str) -> Revocation:  # noqa: ARG002  all is in the request
        """Revoke it; idempotent.

        Raises:
            NotFoundError: There is no such key.
        """
        return await self._keyring.revoke(request)
