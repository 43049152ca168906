"""Whose client certificates are credentials: the tables `[certificates.NAME]` of `kkp.toml`, checked. Pure.

```
[certificates.mesh]
trust_domain = "example.org"
ca_file = "/run/spire/bundle.pem"

[certificates.mesh.rules.orders]
match = { spiffe_id = "spiffe://example.org/ns/shop/sa/orders" }
roles = ["service"]

[certificates.hosts.rules.billing]
match = { dns_name = "billing.shop.example" }
roles = ["service"]
```

with what else a rule of `kkp.mappings` has. A table with a trust domain is about SPIFFE IDs, any other one
about DNS names. The authorities in its `ca_file` vouch for its callers alone, and nobody else does; those of
KKP_CLIENT_CA_FILE vouch for the callers of every table without one. In the environment the same tables are a
JSON object.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from kkp import mappings
from kkp.mappings import Rule
from kkp.model import PresentedCertificate

GOOD: Final = 'tables such as [certificates.mesh], or a JSON object {"mesh": {…}}'
GENERAL: Final = ""  # the bundle that is no table's own
SPIFFE_ID: Final = "spiffe_id"
DNS_NAME: Final = "dns_name"
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\Z")
# SPIFFE-ID, section 2: of a workload, so with a path.
_WORKLOAD: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+\Z")
_MAX_SPIFFE_ID_CHARACTERS: Final = 2048


def is_host(text: str) -> bool:
    """Tell whether a text is one host's name, in lower case."""
    return _HOST.match(text) is not None


def is_workload(text: str) -> bool:
    """Tell whether a text is the SPIFFE ID of a workload."""
    return len(text) <= _MAX_SPIFFE_ID_CHARACTERS and _WORKLOAD.match(text) is not None


class Certificates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of client certificates.

    Attributes:
        trust_domain: Of the SPIFFE IDs that name its callers; empty where DNS names do.
        ca_file: PEM certificates of those who vouch for its callers; empty for KKP_CLIENT_CA_FILE.
        rules: Who may do what, by name; the first that fits counts.
    """

    trust_domain: str = ""
    ca_file: str = ""
    rules: dict[str, Rule] = {}

    @property
    def names_by(self) -> str:
        """What a rule may look at."""
        return SPIFFE_ID if self.trust_domain else DNS_NAME

    def subjects(self, certificate: PresentedCertificate) -> Iterator[str]:
        """Yield the names in a certificate that could be those of callers of this kind.

        Whoever has a SPIFFE ID is called so, and by nothing else.
        """
        if self.trust_domain:
            of_domain = f"spiffe://{self.trust_domain}/"
            yield from (each for each in certificate.spiffe_ids if each.startswith(of_domain))
        elif not certificate.spiffe_ids:
            yield from certificate.dns_names


def read(text: str) -> dict[str, Certificates]:
    """Return the tables of a JSON object.

    Raises:
        ValueError: It is none, or one of them has not the right form.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Certificates]) if text else {}
    except msgspec.DecodeError:
        raise ValueError("not tables of certificates") from None


def bundles(general: Path | None, tables: Mapping[str, Certificates]) -> dict[str, Path]:
    """Return the files with authorities, by the table that they are for."""
    own = {name: Path(table.ca_file) for name, table in tables.items() if table.ca_file}
    return own if general is None else {GENERAL: general, **own}


def problems(
    tables: Mapping[str, Certificates],
    issuers: Collection[str],
    backends: Mapping[str, str] | None,
    *,
    has_general: bool,
) -> Iterator[str]:
    """Yield what is wrong with tables that have the right form, each with its cure.

    Args:
        tables: By name.
        issuers: The names of the issuers, which are nobody else's.
        backends: Those that there are; None where they could not be read.
        has_general: Whether there is a bundle for those that have none of their own.
    """
    seen: dict[str, str] = {}
    for name, table in tables.items():
        title = f"[certificates.{name}]"
        yield from (f"{title}: {problem}" for problem in _of_table(name, table, issuers))
        if not table.ca_file and not has_general:
            yield f"{title}: nobody vouches for its callers; give it a ca_file, or set KKP_CLIENT_CA_FILE"
        yield from mappings.problems(title, table.rules, backends)
        for rule_name, rule in table.rules.items():
            yield from _of_rule(f"[certificates.{name}.rules.{rule_name}]", table, rule)
        if table.trust_domain and table.trust_domain in seen:
            other = seen[table.trust_domain]
            yield f"{title}: its trust domain is that of [certificates.{other}] too; make one table of both"
        seen[table.trust_domain] = name


def _of_table(name: str, table: Certificates, issuers: Collection[str]) -> Iterator[str]:
    if not mappings.NAME.match(name) or name in mappings.RESERVED:
        yield (
            "its name is 1 to 32 of a-z, 0-9, - and _, begins with a letter or digit, and is none of "
            f"{', '.join(sorted(mappings.RESERVED))}"
        )
    if name in issuers:
        yield f"[issuers.{name}] has the name, and so its callers would; give it another"
    if table.trust_domain and not mappings.TRUST_DOMAIN.match(table.trust_domain):
        yield "trust_domain: it is the host of its SPIFFE IDs, such as example.org"


def _of_rule(title: str, table: Certificates, rule: Rule) -> Iterator[str]:
    if {*rule.match, *rule.attributes_from.values()} != {table.names_by}:
        yield f"{title}: a certificate of this kind tells its {table.names_by}, and nothing else to look at"
        return
    pattern = rule.match[table.names_by]
    if table.trust_domain and not pattern.startswith(f"spiffe://{table.trust_domain}/"):
        yield f"{title} match: no other ID gets here than one that begins with spiffe://{table.trust_domain}/"
    if not table.trust_domain and not is_host(pattern):
        yield f"{title} match: give a host's whole name, in lower case, such as billing.shop.example"


def warnings(tables: Mapping[str, Certificates]) -> Iterator[str]:
    """Yield what is not wrong with tables but looks unintended."""
    for name, table in tables.items():
        for rule_name, rule in table.rules.items():
            yield from mappings.loose(f"[certificates.{name}.rules.{rule_name}] match", rule.match)
