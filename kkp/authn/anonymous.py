"""Whoever is at the door: signing up and logging in have no caller yet.

Nobody is authenticated here, whatever credential is presented: it is not even looked at.
"""

from __future__ import annotations

from typing import Final, final

from kkp.authn.base import Authenticated
from kkp.model import Caller, Credentials

NAME: Final = "anonymous"
ANONYMOUS: Final = Caller(id=NAME, kind="anonymous", roles=(NAME,), issuer="kkp", method="none")


@final
class Anonymous:
    """Takes everybody for nobody in particular."""

    async def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:  # noqa: ARG002  none is looked at
        """Return the caller that stands for whoever it is."""
        return Authenticated(ANONYMOUS, epoch)
