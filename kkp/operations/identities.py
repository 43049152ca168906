"""Adding, listing and disabling local identities, and changing their service keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

from kkp.authn.base import Authenticated
from kkp.authn.identities import IdentityDirectory, check_name, new_service_key
from kkp.clock import Clock
from kkp.errors import InvalidRequestError
from kkp.model import Action, Grant, Identity, KeyTimes
from kkp.operations.base import Operation, Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRequest:
    """A new identity: its name, its roles, and on what it may use them.

    Attributes:
        service_key: A key made beforehand, where it had to be on disk first; never from the network.
        key_ttl_seconds: How long its service key lives; None: until it is rotated.
    """

    id: str
    roles: tuple[str, ...]
    grants: tuple[Grant, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    service_key: str | None = field(default=None, repr=False)
    key_ttl_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class NewIdentity:
    """A service key, shown once and stored nowhere, and from when on it is dead, if ever."""

    id: str
    service_key: str = field(repr=False)
    expires_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateKeyRequest:
    """Whose service key is to be replaced.

    Attributes:
        overlap_seconds: How long the key in use stays alive beside the new one; 0: it is dead at once.
        key_ttl_seconds: How long the new key lives; None: as long as the one before it was made to.
    """

    id: str
    overlap_seconds: int = 0
    key_ttl_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class RotatedKey:
    """The new service key, shown once and stored nowhere; when it dies, and when the one before it does.

    Attributes:
        dropped_expires_at: Until when an older key was to live that is dead now, because only two may; None
            if there was none.
    """

    id: str
    service_key: str = field(repr=False)
    expires_at: float | None
    former_expires_at: float
    dropped_expires_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownNames:
    """What a new identity may name. Its own name is used up by a slip in another, so none is taken.

    Attributes:
        backends: The configured ones.
        roles: Returns those of the policy in force; none where they can't be known.
    """

    backends: Collection[str]
    roles: Callable[[], Collection[str]]

    def check(self, request: IdentityRequest) -> None:
        """Refuse what names something else.

        Raises:
            InvalidRequestError: It does; the message says where, and what there is, and repeats nothing.
        """
        roles = self.roles()
        strange_backends = [
            f"`$.grants[{number}].backend`"
            for number, grant in enumerate(request.grants)
            if grant.backend not in self.backends
        ]
        strange_roles = [
            f"`$.roles[{number}]`" for number, role in enumerate(request.roles) if role not in roles
        ]
        if strange_backends:
            raise InvalidRequestError(_nothing_called("backend", strange_backends, self.backends))
        if roles and strange_roles:
            raise InvalidRequestError(_nothing_called("role", strange_roles, roles))


def _nothing_called(what: str, places: Sequence[str], known: Collection[str]) -> str:
    return f"No {what} has this name - at {', '.join(places)}; there are {', '.join(sorted(known))}"


@final
class AddIdentity(Operation[Proposal, IdentityRequest, NewIdentity]):
    """`POST /identities` and `kkp identity add`.

    Args:
        directory: Of the identities.
        clock: What time it is.
        names: What it may name; None where the caller has seen to that.
    """

    action: ClassVar[Action] = Action.MANAGE_IDENTITY
    changes_state: ClassVar[bool] = True

    def __init__(self, directory: IdentityDirectory, clock: Clock, names: KnownNames | None = None) -> None:
        self._directory = directory
        self._clock = clock
        self._names = names

    def propose(self, authenticated: Authenticated, request: IdentityRequest) -> Proposal:
        """Name the identity and what it would be able to do."""
        check_name(request.id)
        details = {
            "operation": "add",
            "id": request.id,
            "roles": request.roles,
            "grants": request.grants,
            "attributes": request.attributes,
            "key_ttl_seconds": request.key_ttl_seconds,
        }
        return Proposal(authenticated=authenticated, details={"identity": details})

    async def run(self, proposal: Proposal, request: IdentityRequest) -> NewIdentity:  # noqa: ARG002  all is in the request
        """Store it under a new service key.

        Raises:
            InvalidRequestError: It names what does not exist; told only now, so that names can't be probed.
            ConflictError: There is, or was, one of this name.
        """
        if self._names is not None:
            self._names.check(request)
        now, ttl = self._clock.now(), request.key_ttl_seconds
        expires_at = None if ttl is None else now + ttl
        identity = Identity(request.id, request.roles, request.grants, dict(request.attributes), now)
        service_key = await self._directory.add(
            identity, service_key=request.service_key, key_expires_at=expires_at
        )
        return NewIdentity(request.id, service_key, expires_at)


@final
class RotateServiceKey(Operation[Proposal, RotateKeyRequest, RotatedKey]):
    """`POST /identities/{id}/rotate-key` and `kkp identity rotate-key`."""

    action: ClassVar[Action] = Action.MANAGE_IDENTITY
    changes_state: ClassVar[bool] = True

    def __init__(self, directory: IdentityDirectory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    def propose(self, authenticated: Authenticated, request: RotateKeyRequest) -> Proposal:
        """Name the identity, and how long its keys would live."""
        details = {
            "operation": "rotate_key",
            "id": request.id,
            "overlap_seconds": request.overlap_seconds,
            "key_ttl_seconds": request.key_ttl_seconds,
        }
        return Proposal(authenticated=authenticated, details={"identity": details})

    async def run(self, proposal: Proposal, request: RotateKeyRequest) -> RotatedKey:  # noqa: ARG002  all is in the request
        """Make the new key, and let the one before it end."""
        service_key, now = new_service_key(), self._clock.now()
        change = await self._directory.rotate_key(
            request.id,
            service_key,
            at=now,
            overlap_seconds=request.overlap_seconds,
            ttl_seconds=request.key_ttl_seconds,
        )
        dead_from = _end(change.former)
        return RotatedKey(
            request.id,
            service_key,
            change.new.expires_at,
            now if dead_from is None else dead_from,
            _end(change.dropped),
        )


def _end(key: KeyTimes | None) -> float | None:
    return None if key is None else key.expires_at


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
