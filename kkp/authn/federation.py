"""The callers whom KKP knows by another's word: who they are, and what they may do now.

Such a caller is called `<source's name>:<subject>`. It is stored nowhere: what it may do stands in the rule
that fitted what it presented. A KKP token that it gets names that rule, under our signature, so every replica
looks up the roles and grants of now; where the rule is no longer configured, the token is good for nothing.
A local identity's name has no colon, so none can be taken for the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import final

from kkp.authn.base import Proven
from kkp.errors import UnauthenticatedError
from kkp.mappings import Claims, Rule, Source
from kkp.model import Caller
from kkp.tokens import MAX_PAIRS, Federated

_CALLER = re.compile(r"[\x21-\x7e]{1,256}\Z")  # what `sub` of a token may be


@final
class Federation:
    """Everybody who vouches for callers.

    Args:
        sources: Who does; each has a name of its own.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = {source.name: source for source in sources}
        self._rules = {
            f"{source.name}/{name}": rule
            for source in self._sources.values()
            for name, rule in source.rules.items()
        }

    def knows(self, identity_id: str) -> bool:
        """Tell whether a caller may have this name."""
        source, separator, subject = identity_id.partition(":")
        return bool(separator and subject) and source in self._sources

    def prove(self, source_name: str, subject: object, claims: Claims) -> Proven:
        """Return the caller that the first rule which fits makes of what was verified.

        Args:
            source_name: Who vouches for it.
            subject: Who it is, in their words.
            claims: What they say of it.

        Raises:
            UnauthenticatedError: No rule fits, or the subject can't be a caller's name.
        """
        source = self._sources[source_name]
        caller_id = f"{source.name}:{subject}"
        if not isinstance(subject, str) or not subject or not _CALLER.match(caller_id):
            raise UnauthenticatedError("The credential names nobody whom KKP could call so.")
        for name, rule in source.rules.items():
            facts = rule.facts(claims)
            if facts is not None and len(facts) <= MAX_PAIRS:
                federated = Federated(f"{source.name}/{name}", facts)
                return Proven(_caller(caller_id, source.method, rule, federated), federated=federated)
        raise UnauthenticatedError("The credential is good, and no rule of its issuer's fits it.")

    def caller(self, name: str, federated: Federated) -> Caller | None:
        """Return the caller of this name, as the rule of its token has it now.

        None where that is no longer configured, or is another's than the name says.
        """
        rule = self._rules.get(federated.mapping)
        source = federated.mapping.partition("/")[0]
        if rule is None or not name.startswith(f"{source}:"):
            return None
        return _caller(name, "kkp_token", rule, federated)


def _caller(name: str, method: str, rule: Rule, federated: Federated) -> Caller:
    return Caller(
        id=name,
        kind="service",
        roles=tuple(rule.roles),
        issuer=name.partition(":")[0],
        method=method,
        attributes=federated.attributes,
        grants=rule.granted(),
    )
