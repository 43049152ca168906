"""Client certificates as credentials: whom the names in one make a caller.

That a certificate is good was verified where the request was read. Here it is asked who issued it, because
the authorities of one table's bundle vouch for nobody of another's; and which name in it a rule fits. If
rules fit more than one, it says nothing of who is calling, and is refused.

A certificate that no rule fits makes nobody a caller. It may come with every connection of a client that
proves who it is by something else, and a token may be bound to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, final

import msgspec

from kkp.authn.base import Proven
from kkp.authn.federation import Federation
from kkp.certificates import GENERAL, Certificates
from kkp.errors import UnauthenticatedError
from kkp.model import Credentials, PresentedCertificate


class _Named(NamedTuple):
    table: str
    subject: str
    claims: dict[str, str]


@final
class CertificateCallers:
    """Tells them; see `Method`. To be asked last: any other credential says more of who is meant.

    Args:
        tables: The kinds of certificates, by name.
        federation: Whom they make callers.
    """

    def __init__(self, tables: Mapping[str, Certificates], federation: Federation) -> None:
        self._tables = tables
        self._federation = federation

    async def prove(self, credentials: Credentials) -> Proven | None:
        """Return whom the certificate names; None where it names no caller."""
        if credentials.certificate is None:
            return None
        named = list(self._named(credentials.certificate))
        if len(named) > 1:
            raise UnauthenticatedError("The client certificate names more than one caller.")
        if not named and (credentials.unverified_bearer or credentials.unverified_token) is None:
            raise UnauthenticatedError("The client certificate is good, and no rule fits it.")
        for table, subject, claims in named:
            proven = self._federation.prove(table, subject, claims)
            return msgspec.structs.replace(proven, by_bearer=False)
        return None

    def _named(self, certificate: PresentedCertificate) -> Iterator[_Named]:
        for name, table in self._tables.items():
            if (name if table.ca_file else GENERAL) in certificate.bundles:
                for subject in table.subjects(certificate):
                    claims = {table.names_by: subject}
                    if any(rule.facts(claims) is not None for rule in table.rules.values()):
                        yield _Named(name, subject, claims)
