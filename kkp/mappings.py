"""Rules that make a caller of what somebody else vouches for: what they want to see, and what that may do.

```
[issuers.k8s.rules.orders]
match = { "kubernetes.io/namespace" = "shop", "sub" = "system:serviceaccount:shop:orders" }
roles = ["service"]
attributes = { team = "shop" }
attributes_from = { pod = "kubernetes.io/pod/name" }
grants = [{ backend = "aws", key_id = "alias/orders", ops = ["decrypt"], audiences = ["orders-db"] }]
```

- A *claim path* is the names that lead to a claim, with `/` between two. Within a name `/` is written `~1`
  and `~` `~0`, as in RFC 6901.
- A *pattern* is the exact text that a claim must be; one that ends in `*` is the beginning of it. Numbers and
  truth values are compared as JSON writes them. Of a list one item must fit. What is not there, or is an
  object, fits nothing, `*` included.
- Of an issuer's rules the first that fits counts. A claim of `match`, or of `attributes_from`, that is not
  there makes it one that does not: an attribute that is missing would bind no policy claim.

Pure, and true of whatever vouches: a token's claims, or the names in a certificate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Final, NamedTuple

import msgspec

from kkp.model import JSON, Grant
from kkp.names import Grants, Name, Roles, Text

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}\Z")
TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}\Z")  # of SPIFFE
# Whom KKP itself names so: `user:…` and `operator:…`, and `kkp` as an issuer.
RESERVED: Final = frozenset({"kkp", "operator", "user"})
# A beginning that ends in a letter or digit is that of other names, too: `repo:acme*` of `repo:acme-evil/…`.
_LOOSE: Final = re.compile(r".*[A-Za-z0-9]\*", re.DOTALL)

ClaimPath = Annotated[str, msgspec.Meta(pattern=r"^([^~]|~[01])+$", min_length=1, max_length=256)]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Wanted = Annotated[dict[ClaimPath, Pattern], msgspec.Meta(max_length=16)]
Claims = Mapping[str, JSON]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rule.

    Attributes:
        match: What must be claimed, by claim path.
        roles: What the caller may do.
        grants: On what.
        attributes: Facts about the caller that hold for everybody whom the rule fits.
        attributes_from: Facts that are claimed, by claim path.
    """

    match: Annotated[Wanted, msgspec.Meta(min_length=1)]
    roles: Roles
    grants: Grants = []
    attributes: Annotated[dict[Name, Text], msgspec.Meta(max_length=16)] = {}
    attributes_from: Annotated[dict[Name, ClaimPath], msgspec.Meta(max_length=16)] = {}

    def granted(self) -> tuple[Grant, ...]:
        """Return the grants."""
        return tuple(grant.grant() for grant in self.grants)

    def facts(self, claims: Claims) -> dict[str, str] | None:
        """Return the attributes of whom the rule fits; None where it does not."""
        if not fits(claims, self.match):
            return None
        facts = dict(self.attributes)
        for name, path in self.attributes_from.items():
            text = _text(find(claims, path))
            if text is None or len(text) > _MAX_FACT_CHARACTERS:
                return None
            facts[name] = text
        return facts


class Source(NamedTuple):
    """Somebody who vouches for callers, and what is made of them.

    Attributes:
        name: What its callers' names begin with.
        method: How what it says is proven.
        rules: By name, in their order.
    """

    name: str
    method: str
    rules: Mapping[str, Rule]


_MAX_FACT_CHARACTERS: Final = 1024


def fits(claims: Claims, wanted: Mapping[str, str]) -> bool:
    """Tell whether each of these claims is there and fits its pattern."""
    return all(_fits(find(claims, path), pattern) for path, pattern in wanted.items())


def find(claims: Claims, path: str) -> JSON:
    """Return what a claim path leads to; None where it leads nowhere."""
    found: JSON = claims
    for name in path.split("/"):
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _fits(value: JSON, pattern: str) -> bool:
    if isinstance(value, list):
        return any(_fits(item, pattern) for item in value if not isinstance(item, list))
    text = _text(value)
    if text is None:
        return False
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _text(value: JSON) -> str | None:
    """Return a claim as text, if it is one thing."""
    if isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode() if isinstance(value, bool | int) else None


def problems(title: str, rules: Mapping[str, Rule], backends: Mapping[str, str] | None) -> Iterator[str]:
    """Yield what is wrong with rules that have the right form, each with its cure.

    Args:
        title: What they belong to, as the file names it.
        rules: By name.
        backends: Those that there are; None where they could not be read.
    """
    if not rules:
        cure = f"write [{title[1:-1]}.rules.NAME] with match and roles"
        yield f"{title} has no rule, so nobody comes of it; {cure}"
    for name, rule in rules.items():
        of_rule = f"[{title[1:-1]}.rules.{name}]"
        if not NAME.match(name):
            yield f"{of_rule}: a name is 1 to 32 of a-z, 0-9, - and _, and begins with a letter or digit"
        both = sorted(rule.attributes.keys() & rule.attributes_from.keys())
        if both:
            yield f"{of_rule}: {', '.join(both)} stands in attributes and attributes_from; give it once"
        for number, grant in enumerate(rule.grants):
            if backends is not None and grant.backend not in backends:
                known = ", ".join(sorted(backends))
                yield f"{of_rule} grants[{number}]: no backend is called {grant.backend}; there are {known}"


def loose(title: str, wanted: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each pattern that fits more than its writer may mean."""
    for path, pattern in wanted.items():
        if _LOOSE.fullmatch(pattern):
            yield (
                f"{title} {path}: a beginning that ends within a name fits other names, too; "
                "end it behind a separator, such as repo:acme/*"
            )
