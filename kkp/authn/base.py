"""What authentication yields."""

from __future__ import annotations

from dataclasses import dataclass, field

from kkp.model import Caller
from kkp.tokens import Claims


@dataclass(frozen=True, slots=True)
class Authenticated:
    """A proven caller, and the KKP token that was presented, if one was.

    Attributes:
        caller: Who is calling.
        token: The verified token's claims. Where it came alone, the caller is its subject.
        epoch: The state that this was looked up in.
    """

    caller: Caller
    epoch: int
    token: Claims | None = field(default=None, repr=False)
