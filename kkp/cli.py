"""The `kkp` command.

`kkp dev` serves; the rest are for the person at the machine. What they do to identities travels the same
pipeline as a request, is recorded in a chain of its own, and a running server notices by the epoch.

Exit codes: 0 done; 1 refused, or `audit verify` found tampering; 2 wrong usage, a configuration that
can't be used, or an audit log that can't be read.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from kkp import __version__, app, kms
from kkp.audit.verify import UnreadableError, verify_sqlite
from kkp.config import Address, Settings, load
from kkp.errors import ConfigError, KKPError
from kkp.model import Credentials, Grant, Identity
from kkp.operations.identities import AddIdentity, DisableIdentity, ListIdentities
from kkp.pipeline import Origin
from kkp.web.routes import make_application
from kkp.web.schemas import IdentityBody
from kkp.web.server import serving

_OK, _REFUSED, _UNUSABLE = 0, 1, 2

_BANNER = """\
KKP {version}: a development server. Its KMS backends are emulated and its keys lie in {data_dir}.
Do not put real secrets into it, and do not let other machines reach it.

Listening on {url}. It decides by {policy}. Try, from this directory:

  KEY=$(cat {root_key})
  TOKEN=$(curl -sS {url}/token -H "Authorization: Bearer $KEY" --json \\
    '{{"audience":"orders-db","backend":"aws","key_id":"alias/orders","ops":["encrypt","decrypt"]}}' |
    python3 -c 'import json,sys; a = json.load(sys.stdin); print(a["token"] if "token" in a else a)')
  curl -sS {url}/envelope/encrypt -H "Authorization: Bearer $TOKEN" --json \\
    '{{"backend":"aws","key_id":"alias/orders","plaintext":"hello"}}' > sealed.json
  curl -sS {url}/envelope/decrypt -H "Authorization: Bearer $TOKEN" --json @sealed.json
  curl -sS {url}/keys/jwks
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold keys
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except ConfigError as error:
        for problem in error.problems:
            print(f"kkp: {problem}", file=sys.stderr)
        return _UNUSABLE
    except KKPError as error:
        print(f"kkp: {error.code}: {error}", file=sys.stderr)
        return _REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kkp", description="The keyless KMS proxy.")
    parser.add_argument("--version", action="version", version=f"kkp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    dev = commands.add_parser("dev", help="serve on this machine, with emulated backends")
    dev.set_defaults(command=_dev)

    identity = commands.add_parser("identity", help="add, list and disable identities")
    verbs = identity.add_subparsers(required=True, metavar="VERB")
    add = verbs.add_parser("add", help="add an identity; prints its service key, once")
    add.add_argument("name")
    add.add_argument("--role", action="append", required=True, help="may be given several times")
    add.add_argument(
        "--grant",
        action="append",
        default=[],
        metavar="BACKEND:KEY:OP[,OP]",
        help="such as aws:alias/orders:decrypt",
    )
    add.add_argument("--audience", action="append", default=[], help="an audience that tokens may name")
    add.add_argument(
        "--claim", action="append", default=[], metavar="NAME=VALUE", help="a claim that tokens may carry"
    )
    add.add_argument(
        "--attribute", action="append", default=[], metavar="NAME=VALUE", help="a fact that policy may use"
    )
    add.add_argument("--max-ttl", type=int, metavar="SECONDS", help="the longest token lifetime")
    add.set_defaults(command=_identity_add)
    listing = verbs.add_parser("list", help="list identities")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_identity_list)
    disable = verbs.add_parser("disable", help="disable an identity for good, its tokens included")
    disable.add_argument("name")
    disable.set_defaults(command=_identity_disable)

    audit = commands.add_parser("audit", help="check the audit log")
    verify = audit.add_subparsers(required=True, metavar="VERB").add_parser(
        "verify", help="find any change in the log"
    )
    verify.add_argument("file", nargs="?", type=Path, help="a database; by default the data directory's")
    verify.set_defaults(command=_audit_verify)
    return parser


def _settings() -> Settings:
    settings = load(os.environ, schemes=kms.SCHEMES)
    for warning in settings.warnings:
        print(f"kkp: warning: {warning}", file=sys.stderr)
    return settings


def _dev(options: argparse.Namespace) -> int:  # noqa: ARG001  it has none
    asyncio.run(_serve_development(_settings()))
    return _OK


def _collect_garbage_rarely() -> None:
    """Look for cycles less often than every 700 objects: that is every few requests, and they leave few."""
    gc.freeze()  # what was imported stays
    gc.set_threshold(10_000, 20, 50)


async def _serve_development(settings: Settings) -> None:
    _collect_garbage_rarely()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with (
        app.development(settings) as services,
        serving(make_application(services), settings.listen) as address,
    ):
        _print_banner(settings, address)
        await stopped.wait()


def _print_banner(settings: Settings, address: Address) -> None:
    text = _BANNER.format(
        version=__version__,
        data_dir=settings.data_dir,
        url=f"http://{address}",
        root_key=settings.data_dir / "root.key",
        policy=settings.policy_path or "the bundled policy",
    )
    print(text, flush=True)


def _identity_add(options: argparse.Namespace) -> int:
    body = _identity_body(options)
    _check_grants(body, options)

    async def add(base: app.Foundation) -> int:
        operation = AddIdentity(base.directory, base.clock)
        answer = await base.operator_pipeline().run(operation, body.request(), Credentials(), _origin())
        print(f"Added {answer.id}. Its service key is shown this once:", file=sys.stderr)
        print(answer.service_key)
        return _OK

    return _with_foundation(add)


def _check_grants(body: IdentityBody, options: argparse.Namespace) -> None:
    """Refuse what can't be meant: a name, once used, is used up."""
    backends = _settings().backends
    problems = [
        f"--grant: no backend is called {grant.backend}; there are {', '.join(backends)}"
        for grant in body.grants
        if grant.backend not in backends
    ]
    if not body.grants and (options.audience or options.claim or options.max_ttl is not None):
        problems.append("--audience, --claim and --max-ttl limit a grant; give --grant")
    if problems:
        raise ConfigError(problems)
    if body.grants and not options.audience:
        print("kkp: warning: without --audience it may encrypt, but no token can be minted", file=sys.stderr)


def _identity_body(options: argparse.Namespace) -> IdentityBody:
    """Return the same body that `POST /identities` takes, checked by the same schema."""
    claims: dict[str, list[str]] = {}
    for name, value in map(_pair, options.claim):
        claims.setdefault(name, []).append(value)
    document = {
        "id": options.name,
        "roles": options.role,
        "grants": [_grant(text, options.audience, claims, options.max_ttl) for text in options.grant],
        "attributes": dict(map(_pair, options.attribute)),
    }
    try:
        return msgspec.convert(document, IdentityBody)
    except msgspec.ValidationError as error:
        raise ConfigError([f"identity add: {error}"]) from None


def _grant(
    text: str, audiences: list[str], claims: dict[str, list[str]], max_ttl: int | None
) -> dict[str, Any]:
    # A key id may hold colons itself (an ARN does): the backend ends at the first, the ops begin at the last.
    backend, _, rest = text.partition(":")
    key_id, separator, ops = rest.rpartition(":")
    if not separator:
        raise ConfigError(
            [f"--grant {text}: give BACKEND:KEY:OP[,OP], such as aws:alias/orders:encrypt,decrypt"]
        )
    grant = {
        "backend": backend,
        "key_id": key_id,
        "ops": ops.split(","),
        "audiences": audiences,
        "policy_claims": claims,
    }
    return grant if max_ttl is None else {**grant, "max_ttl": max_ttl}


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError([f"{text}: give NAME=VALUE"])
    return name, value


def _identity_list(options: argparse.Namespace) -> int:
    async def show(base: app.Foundation) -> int:
        operation = ListIdentities(base.directory)
        identities = await base.operator_pipeline().run(operation, None, Credentials(), _origin())
        if options.json:
            print(msgspec.json.encode(identities).decode())
        else:
            print("\n".join(map(_line, identities)))
        return _OK

    return _with_foundation(show)


def _line(identity: Identity) -> str:
    made = datetime.fromtimestamp(identity.created_at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    state = "disabled" if identity.disabled_at is not None else "enabled"
    head = f"{identity.id:24} {state:9} {made}  {','.join(identity.roles)}"
    return "\n".join([head, *map(_grant_line, identity.grants)])


def _grant_line(grant: Grant) -> str:
    parts = [f"{grant.backend}:{grant.key_id}:{','.join(grant.ops)}"]
    parts += [f"audience={audience}" for audience in grant.audiences]
    parts += [f"{name}={'|'.join(values)}" for name, values in grant.policy_claims.items()]
    if grant.max_ttl is not msgspec.UNSET:
        parts.append(f"max-ttl={grant.max_ttl}")
    return f"    {' '.join(parts)}"


def _identity_disable(options: argparse.Namespace) -> int:
    async def disable(base: app.Foundation) -> int:
        operation = DisableIdentity(base.directory, base.clock)
        await base.operator_pipeline().run(operation, options.name, Credentials(), _origin())
        print(f"Disabled {options.name}.", file=sys.stderr)
        return _OK

    return _with_foundation(disable)


def _with_foundation(command: Callable[[app.Foundation], Coroutine[Any, Any, int]]) -> int:
    async def run() -> int:
        async with app.foundation(_settings(), create=False) as base:
            return await command(base)

    return asyncio.run(run())


def _origin() -> Origin:
    return Origin(request_id=secrets.token_hex(16))


def _audit_verify(options: argparse.Namespace) -> int:
    path = options.file or _settings().database_path
    try:
        verdict = verify_sqlite(path)
    except UnreadableError as error:
        print(f"kkp: {path}: {error}", file=sys.stderr)
        return _UNUSABLE
    for finding in verdict.findings:
        print(finding)
    counted = f"records: {verdict.records}, chains: {verdict.chains}"
    print(f"tampered: {counted}" if verdict.findings else f"clean: {counted}")
    return _REFUSED if verdict.findings else _OK
