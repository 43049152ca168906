"""Service keys as credentials: the identity that holds one."""

from __future__ import annotations

from typing import final

from kkp.authn.base import Proven
from kkp.authn.identities import IdentityDirectory, caller_of, is_service_key
from kkp.errors import UnauthenticatedError
from kkp.model import Credentials


@final
class ServiceKeys:
    """Looks keys up in memory; no I/O.

    Args:
        directory: Local identities.
    """

    def __init__(self, directory: IdentityDirectory) -> None:
        self._directory = directory

    async def prove(self, credentials: Credentials) -> Proven | None:
        """Return the identity that holds the key; see `Method`."""
        bearer = credentials.unverified_bearer
        if bearer is None or not is_service_key(bearer):
            return None
        identity = self._directory.by_service_key(bearer)
        if identity is None:
            raise UnauthenticatedError("The credential is not known.")
        return Proven(caller_of(identity, "service_key"))
