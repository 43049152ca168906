"""The person at the machine: whoever can read the data directory and the master key.

The command line acts for them. They need no credential, because they hold every key already; what they do
is recorded like anybody's, under the name of their operating system account.
"""

from __future__ import annotations

import os
import pwd
from typing import final

from kkp.authn.base import Authenticated
from kkp.model import Caller, Credentials


@final
class LocalOperator:
    """Authenticates everybody as the account that the process runs under.

    Attributes:
        caller: That account.
    """

    def __init__(self) -> None:
        self.caller = Caller(
            id=f"operator:{account()}",
            kind="operator",
            roles=("admin",),
            issuer="kkp",
            method="local_operator",
        )

    async def authenticate(self, credentials: Credentials, *, epoch: int) -> Authenticated:  # noqa: ARG002  none is needed
        """Return the operator."""
        return Authenticated(self.caller, epoch)


def account() -> str:
    """Return the name of the account that the process runs under, or its number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
