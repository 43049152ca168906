"""What authentication yields, and what a way to prove who is calling is."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from kkp.errors import AuthenticationError, UnauthenticatedError
from kkp.model import Caller, Credentials
from kkp.tokens import Claims, Confirmation, Federated


class Once(NamedTuple):
    """Something that was presented, and is good for one request alone, on whichever replica.

    Attributes:
        kind: What it is; values of different kinds have nothing to do with each other.
        value: What tells it from every other of its kind.
        expires_at: From when on nobody could present it anyway, in Unix seconds.
        refusal: What whoever presents it again is told.
    """

    kind: str
    value: bytes
    expires_at: float
    refusal: type[AuthenticationError] = UnauthenticatedError

    def __repr__(self) -> str:
        """Name the kind: what was presented is no matter for a log."""
        return f"Once({self.kind!r}, …)"


class UsedOnce(Protocol):
    """What was used, of all that may be used once."""

    async def use(self, kind: str, value: bytes, expires_at: float) -> bool:
        """Tell whether this is the first use; of all callers on all replicas one is told so.

        Raises:
            KKPError: It can't be told.
        """


class Authenticated(msgspec.Struct, frozen=True):
    """A proven caller, and the KKP token that was presented, if one was.

    Attributes:
        caller: Who is calling.
        token: The verified token's claims. Where it came alone, the caller is its subject.
        epoch: The state that this was looked up in.
        once: What of it serves this request and no other.
        proven: The keys that the request has proven to come from; a token can be bound to them.
        federated: What a token of this caller's says of it, where no identity of KKP's does.
    """

    caller: Caller
    epoch: int
    token: Claims | None = None
    once: tuple[Once, ...] = ()
    proven: Confirmation = Confirmation()
    federated: Federated | None = None

    def __repr__(self) -> str:
        """Name the caller, and nothing of the token."""
        return f"Authenticated({self.caller!r}, epoch={self.epoch})"


class Proven(msgspec.Struct, frozen=True):
    """Who is calling, by something other than a KKP token.

    Attributes:
        caller: Who it is.
        by_bearer: Whether the bearer credential proves it, so that a KKP token can stand in the body alone.
        once: What of the proof serves one request alone.
        federated: What a token of this caller's is to say of it, where no identity of KKP's does.
    """

    caller: Caller
    by_bearer: bool = True
    once: tuple[Once, ...] = ()
    federated: Federated | None = None


class Method(Protocol):
    """A way to prove who is calling, other than a KKP token."""

    async def prove(self, credentials: Credentials) -> Proven | None:
        """Return who is calling; None where nothing of this kind was presented.

        It may be asked many times about one request, and so uses nothing up.

        Raises:
            AuthenticationError: Something of this kind was presented, and proves nothing.
        """
