"""What authentication yields."""

from __future__ import annotations

import msgspec

from kkp.model import Caller
from kkp.tokens import Claims


class Authenticated(msgspec.Struct, frozen=True):
    """A proven caller, and the KKP token that was presented, if one was.

    Attributes:
        caller: Who is calling.
        token: The verified token's claims. Where it came alone, the caller is its subject.
        epoch: The state that this was looked up in.
    """

    caller: Caller
    epoch: int
    token: Claims | None = None

    def __repr__(self) -> str:
        """Name the caller, and nothing of the token."""
        return f"Authenticated({self.caller!r}, epoch={self.epoch})"
