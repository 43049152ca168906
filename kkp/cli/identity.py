"""`kkp identity`: add, list and disable identities."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from kkp import app
from kkp.cli.common import OK, origin, pair, settings, with_foundation
from kkp.errors import ConfigError
from kkp.model import Credentials, Grant, Identity
from kkp.operations.identities import AddIdentity, DisableIdentity, ListIdentities
from kkp.web.schemas import IdentityBody


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
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


def _identity_add(options: argparse.Namespace) -> int:
    body = _identity_body(options)
    _check_grants(body, options)

    async def add(base: app.Foundation) -> int:
        operation = AddIdentity(base.directory, base.clock)
        answer = await base.operator_pipeline().run(operation, body.request(), Credentials(), origin())
        print(f"Added {answer.id}. Its service key is shown this once:", file=sys.stderr)
        print(answer.service_key)
        return OK

    return with_foundation(add)


def _check_grants(body: IdentityBody, options: argparse.Namespace) -> None:
    """Refuse what can't be meant: a name, once used, is used up."""
    backends = settings().backends
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
    for name, value in map(pair, options.claim):
        claims.setdefault(name, []).append(value)
    document = {
        "id": options.name,
        "roles": options.role,
        "grants": [_grant(text, options.audience, claims, options.max_ttl) for text in options.grant],
        "attributes": dict(map(pair, options.attribute)),
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


def _identity_list(options: argparse.Namespace) -> int:
    async def show(base: app.Foundation) -> int:
        operation = ListIdentities(base.directory)
        identities = await base.operator_pipeline().run(operation, None, Credentials(), origin())
        if options.json:
            print(msgspec.json.encode(identities).decode())
        else:
            print("\n".join(map(_line, identities)))
        return OK

    return with_foundation(show)


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
        await base.operator_pipeline().run(operation, options.name, Credentials(), origin())
        print(f"Disabled {options.name}.", file=sys.stderr)
        return OK

    return with_foundation(disable)
