"""Adding, listing and disabling local identities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

from kkp.authn.base import Authenticated
from kkp.authn.identities import IdentityDirectory, check_name
from kkp.clock import Clock
from kkp.model import Action, Grant, Identity
from kkp.operations.base import Operation, Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRequest:
    """A new identity: its name, its roles, and on what it may use them.

    Attributes:
        service_key: A key made beforehand, where it had to be on disk first; never from the network.
    """

    id: str
    roles: tuple[str, ...]
    grants: tuple[Grant, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    service_key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NewIdentity:
    """A service key, shown once and stored nowhere."""

    id: str
    service_key: str = field(repr=False)


@final
class AddIdentity(Operation[Proposal, IdentityRequest, NewIdentity]):
    """`POST /identities` and `kkp identity add`."""

    action: ClassVar[Action] = Action.MANAGE_IDENTITY
    changes_state: ClassVar[bool] = True

    def __init__(self, directory: IdentityDirectory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: IdentityRequest) -> Proposal:
        """Name the identity and what it would be able to do."""
        check_name(request.id)
        details = {
            "operation": "add",
            "id": request.id,
            "roles": request.roles,
            "grants": request.grants,
            "attributes": request.attributes,
        }
        return Proposal(authenticated=authenticated, details={"identity": details})

    async def run(self, proposal: Proposal, request: IdentityRequest) -> NewIdentity:  # noqa: ARG002  all is in the request
        """Store it under a new service key."""
        identity = Identity(
            request.id, request.roles, request.grants, dict(request.attributes), self._clock.now()
        )
        return NewIdentity(request.id, await self._directory.add(identity, service_key=request.service_key))


@final
class ListIdentities(Operation[Proposal, None, list[Identity]]):
    """`GET /identities` and `kkp identity list`."""

    action: ClassVar[Action] = Action.MANAGE_IDENTITY

    def __init__(self, directory: IdentityDirectory) -> None:
        self._directory = directory

    def propose(self, authenticated: Authenticated, request: None) -> Proposal:  # noqa: ARG002  there is no body
        """Nothing but who asks."""
        return Proposal(authenticated=authenticated, details={"identity": {"operation": "list"}})

    async def run(self, proposal: Proposal, request: None) -> list[Identity]:  # noqa: ARG002  there is no body
        """Return every identity, disabled ones too."""
        return self._directory.all()


@final
class DisableIdentity(Operation[Proposal, str, None]):
    """`POST /identities/{id}/disable` and `kkp identity disable`."""

    action: ClassVar[Action] = Action.MANAGE_IDENTITY
    changes_state: ClassVar[bool] = True

    def __init__(self, directory: IdentityDirectory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: str) -> Proposal:
        """Name the identity."""
        return Proposal(
            authenticated=authenticated, details={"identity": {"operation": "disable", "id": request}}
        )

    async def run(self, proposal: Proposal, request: str) -> None:  # noqa: ARG002  all is in the request
        """Disable it for good: its keys and tokens stop at the next request."""
        await self._directory.disable(request, at=self._clock.now())
