"""`kkp identity`: add, list and disable identities, and change their service keys."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec

from kkp import app
from kkp.authz.embedded import PolicySource, default_policy_path
from kkp.cli.common import OK, origin, pair, seconds, settings, with_foundation
from kkp.config import Settings
from kkp.errors import ConfigError, PolicyLoadError
from kkp.model import Credentials, Grant, Identity, KeyTimes
from kkp.names import TokenOp
from kkp.operations.identities import AddIdentity, DisableIdentity, ListIdentities, RotateServiceKey
from kkp.web.schemas import IdentityBody, RotateKeyBody, explanation
from kkp.web.shapes import MAX_OVERLAP_SECONDS

_EXPIRES_HELP = "how long the service key lives, such as 3600 or 30d"


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    identity = commands.add_parser("identity", help="add, list and disable identities, rotate their keys")
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
    add.add_argument("--expires-in", metavar="TIME", help=f"{_EXPIRES_HELP}; by default until it is rotated")
    add.set_defaults(command=_identity_add)
    listing = verbs.add_parser("list", help="list identities")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(command=_identity_list)
    rotate = verbs.add_parser("rotate-key", help="replace a service key; prints the new one, once")
    rotate.add_argument("name")
    rotate.add_argument(
        "--overlap",
        default="0",
        metavar="TIME",
        help="how long the key in use still works, such as 900 or 1d; by default it is dead at once",
    )
    rotate.add_argument(
        "--expires-in", metavar="TIME", help=f"{_EXPIRES_HELP}; by default as long as the one before it"
    )
    rotate.set_defaults(command=_identity_rotate_key)
    disable = verbs.add_parser("disable", help="disable an identity for good, its tokens included")
    disable.add_argument("name")
    disable.set_defaults(command=_identity_disable)


def _identity_add(options: argparse.Namespace) -> int:
    body = _identity_body(options)
    chosen = settings()
    _check_grants(body, options, chosen)
    _check_roles(body.roles, chosen)

    async def add(base: app.Foundation) -> int:
        operation = AddIdentity(base.directory, base.clock)
        answer = await base.operator_pipeline().run(operation, body.request(), Credentials(), origin())
        print(f"Added {answer.id}. Its service key is shown this once:", file=sys.stderr)
        print(answer.service_key)
        return OK

    return with_foundation(add)


def _identity_rotate_key(options: argparse.Namespace) -> int:
    overlap_seconds = seconds(options.overlap)
    if overlap_seconds > MAX_OVERLAP_SECONDS:
        raise ConfigError([f"--overlap {options.overlap}: give {MAX_OVERLAP_SECONDS // 86400}d at most"])
    document = {"overlap_seconds": overlap_seconds, **_key_ttl(options)}
    try:
        body = msgspec.convert(document, RotateKeyBody)
    except msgspec.ValidationError as error:
        raise ConfigError([f"identity rotate-key: {explanation(error)}"]) from None

    async def rotate(base: app.Foundation) -> int:
        operation = RotateServiceKey(base.directory, base.clock)
        answer = await base.operator_pipeline().run(
            operation, body.request()(options.name), Credentials(), origin()
        )
        end = f"works until {_moment(answer.former_expires_at)}" if body.overlap_seconds else "is dead"
        if answer.dropped_expires_at is not None:
            promised = _moment(answer.dropped_expires_at)
            print(f"The key before it, which was to work until {promised}, is dead now.", file=sys.stderr)
        print(f"The key that {answer.id} had {end}. The new one is shown this once:", file=sys.stderr)
        print(answer.service_key)
        root_key = base.settings.data_dir / "root.key"
        if answer.id == app.ROOT and root_key.exists():
            print(f"Put it into {root_key}, which still holds the one before it.", file=sys.stderr)
        return OK

    return with_foundation(rotate)


def _key_ttl(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.expires_in is None else {"key_ttl_seconds": seconds(options.expires_in)}


def _check_roles(roles: list[str], chosen: Settings) -> None:
    """Refuse a role that the bundled policy does not have; another policy may know it all the same.

    OPA's is such another one, and is not asked.
    """
    try:
        known = PolicySource.read(chosen.policy_path or default_policy_path()).roles
    except PolicyLoadError:
        return  # a broken policy must not keep the operator from his identities
    for role in roles if known else []:
        if role in known:
            continue
        problem = f"--role: the policy has no role {role}; it has {', '.join(sorted(known))}"
        if chosen.opa_url is not None:
            problem = (
                f"--role: the bundled policy has no role {role}; whether OPA's has can't be looked up here"
            )
        elif chosen.policy_path is None:
            raise ConfigError([problem])
        print(f"kkp: warning: {problem}", file=sys.stderr)


def _check_grants(body: IdentityBody, options: argparse.Namespace, chosen: Settings) -> None:
    """Refuse what can't be meant: a name, once used, is used up."""
    backends = chosen.backends
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
        **_key_ttl(options),
    }
    try:
        return msgspec.convert(document, IdentityBody)
    except msgspec.ValidationError as error:
        raise ConfigError([f"identity add: {explanation(error)}"]) from None


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
    known = get_args(TokenOp)
    for op in ops.split(","):
        if op not in known:
            raise ConfigError([f"--grant {text}: there is no operation {op!r}; there are {', '.join(known)}"])
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
    state = "disabled" if identity.disabled_at is not None else "enabled"
    head = f"{identity.id:24} {state:9} {_moment(identity.created_at)}  {','.join(identity.roles)}"
    return "\n".join([head, *map(_grant_line, identity.grants), *map(_key_line, identity.service_keys)])


def _moment(unix_seconds: float) -> str:
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _key_line(key: KeyTimes) -> str:
    end = "does not expire" if key.expires_at is None else f"expires {_moment(key.expires_at)}"
    return f"    service key of {_moment(key.created_at)}, {end}"


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
