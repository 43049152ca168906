"""`kkp doctor`: what is set and by whom, whether the times fit together, and what is wrong.

It changes nothing, beside a server or without one; backends note in their own logs that they were asked to
wrap and unwrap a probe. No secret is shown, and of a URL no user information and nothing that follows its
path. What a composite is made of follows it, and is shown: names, and two numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from kkp import certificates, issuers, kms
from kkp.app import PRODUCTION_CHECKS
from kkp.authz.embedded import default_policy_path
from kkp.cli.checks import examine
from kkp.cli.common import OK, REFUSED
from kkp.cli.findings import Finding, Status, problem
from kkp.config import Given, Settings, given, load, read_backends
from kkp.errors import ConfigError
from kkp.ring_times import Rule
from kkp.ways import COMMAND, DEV, SERVE

# Told without their text where they can't be read, because that may hold a password; here it is cut out.
_URLS = frozenset({"KKP_ISSUER", "KKP_BACKENDS", "KKP_MASTER_KEY_KMS"})
_NOT_SET = "not set"
# From the first to the last that could begin or end a credential, however oddly it is written.
_USER_INFORMATION = re.compile(r"://.*@", re.DOTALL)
_AFTER_THE_PATH = re.compile(r"[?#].*", re.DOTALL)
_COMPOSITION = re.compile(r"(?:(?:key|former)\.[^=#]+|min_members|hedge_ms)=[^#]*")


class _Setting(NamedTuple):
    name: str
    value: str
    source: str


class _RingRule(NamedTuple):
    name: str
    statement: str
    low: float
    high: float
    margin: float


class _Report(NamedTuple):
    status: Status
    settings: list[_Setting]
    rules: list[_RingRule]
    checks: list[Finding]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    doctor = commands.add_parser("doctor", help="show every setting, and find what is wrong")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--for",
        choices=("dev", "serve"),
        dest="way",
        help="judge as this command would; by default as `kkp serve` where KKP_OPA_URL is set",
    )
    doctor.add_argument(
        "--probe",
        action="append",
        default=[],
        metavar="BACKEND:KEY",
        help="wrap and unwrap a probe under this key, besides those that grants name; may be given several "
        "times",
    )
    doctor.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    report = asyncio.run(_examine(options.way, _probes(options.probe)))
    print(msgspec.json.encode(_document(report)).decode() if options.json else _text(report))
    return REFUSED if report.status is Status.FAIL else OK


def _probes(texts: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the keys to try by backend; a key's id may hold colons itself."""
    probes: dict[str, list[str]] = {}
    for text in texts:
        backend, separator, key_id = text.partition(":")
        if not separator or not key_id:
            raise ConfigError([f"--probe {text}: give BACKEND:KEY, such as aws:alias/orders"])
        probes.setdefault(backend, []).append(key_id)
    return probes


async def _examine(way_name: str | None, probes: Mapping[str, Sequence[str]]) -> _Report:
    by_command = {item.name: item.text for item in given(os.environ, COMMAND)}
    serves = way_name == "serve" or (way_name is None and by_command["KKP_OPA_URL"] != "")
    way, checks_of_way = (SERVE, PRODUCTION_CHECKS) if serves else (DEV, ())
    settings = [_Setting(item.name, _shown(item), item.source) for item in given(os.environ, way)]
    try:
        chosen = load(os.environ, way, schemes=kms.SCHEMES, checks=checks_of_way)
    except ConfigError as error:
        checks = [Finding("settings", *problem(text)) for text in error.problems]
        return _Report(Status.FAIL, settings, [], checks)
    checks = [Finding("settings", Status.WARN, warning) for warning in chosen.warnings]
    checks = checks or [Finding("settings", Status.OK, "all of them can be used")]
    checks += await examine(chosen, probes)
    settings = [_derived(setting, chosen) for setting in settings]
    rules = [_ring_rule(rule) for rule in chosen.ring_times.rules()]
    worst = max((check.status for check in checks), key=list(Status).index)
    return _Report(worst, settings, rules, checks)


def _shown(item: Given) -> str:
    if not item.text:
        return _NOT_SET
    if item.name == "KKP_ISSUERS":
        return _shown_issuers(item.text)
    if item.name == "KKP_CERTIFICATES":
        return _shown_certificates(item.text)
    if item.secret and item.name not in _URLS:
        return "set"
    if item.name == "KKP_BACKENDS":
        return _shown_backends(item.text)
    return _without_secrets(item.text)


def _shown_issuers(text: str) -> str:
    """Show whom each name stands for, if that can be read."""
    try:
        found = issuers.read(text)
    except ValueError:
        return "set"
    return ",".join(f"{name}={_without_secrets(issuer.who)}" for name, issuer in found.items())


def _shown_certificates(text: str) -> str:
    """Show what names the callers of each kind, if that can be read."""
    try:
        found = certificates.read(text)
    except ValueError:
        return "set"
    return ",".join(f"{name}={table.trust_domain or table.names_by}" for name, table in found.items())


def _without_secrets(text: str) -> str:
    without_user = _USER_INFORMATION.sub("://", text)
    return _AFTER_THE_PATH.sub("…", without_user) if "://" in without_user else without_user


def _shown_backends(text: str) -> str:
    """Show each backend for itself, if it can be told where each ends."""
    try:
        backends = read_backends(text)
    except ValueError:
        return _without_secrets(text)
    return ",".join(f"{name}={_shown_backend(uri)}" for name, uri in backends.items())


def _shown_backend(uri: str) -> str:
    if not kms.is_composite(uri):
        return _without_secrets(uri)
    scheme, _, rest = uri.partition("://")
    address, _, options = rest.partition("?")
    shown = [option if _COMPOSITION.fullmatch(option) else "…" for option in options.split("&")]
    return f"{scheme}://{address and '…'}?{'&'.join(shown)}"


def _derived(setting: _Setting, chosen: Settings) -> _Setting:
    """Show what stands for a setting that follows from others where it is not set."""
    derived = {
        "KKP_DATABASE_URL": chosen.database_url,
        "KKP_MASTER_KEY_FILE": _master_key_file(chosen),
        "KKP_ISSUER": chosen.issuer,
        "KKP_POLICY_PATH": default_policy_path() if chosen.opa_url is None else _NOT_SET,
        "KKP_CHECKPOINT_SINK": f"{chosen.checkpoint_sink.kind}:{chosen.checkpoint_sink.path}",
        "KKP_MIN_TOKEN_TTL_SECS": f"{chosen.ring_times.min_ttl:g}",
    }
    if setting.value != _NOT_SET or setting.name not in derived:
        return setting
    return setting._replace(value=str(derived[setting.name]))


def _master_key_file(chosen: Settings) -> object:
    is_elsewhere = chosen.master_key is not None or chosen.master_key_kms is not None
    return _NOT_SET if is_elsewhere else chosen.master_key_file


def _ring_rule(rule: Rule) -> _RingRule:
    return _RingRule(rule.name, rule.statement, rule.low, rule.high, rule.high - rule.low)


def _document(report: _Report) -> dict[str, object]:
    return {
        "status": report.status,
        "settings": [row._asdict() for row in report.settings],
        "rules": [row._asdict() for row in report.rules],
        "checks": [row._asdict() for row in report.checks],
    }


def _text(report: _Report) -> str:
    rules = [(r.name, r.statement, f"{r.low:g} <= {r.high:g}", f"margin {r.margin:g}") for r in report.rules]
    lines = ["Settings", *_table(report.settings)]
    if rules:
        lines += ["", "Times of the signing keyring", *_table(rules)]
    lines += ["", "Checks"]
    rows = _table([(check.status, check.check, check.detail) for check in report.checks])
    for check, row in zip(report.checks, rows, strict=True):
        lines.append(row)
        if check.cure:
            lines.append(f"        cure: {check.cure}")
    return "\n".join(lines)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows in columns, what can't be printed escaped."""
    cells = [[text if text.isprintable() else ascii(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
