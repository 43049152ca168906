"""`kkp token mint` gets a token of a running KKP (`kkp.cli.calling`); `kkp token inspect` looks into one.

What follows is of `inspect`: what a token says, and whether to believe it.

The token is read from standard input, never from the arguments, which every account on the machine can see,
and is not printed. Nothing is contacted: the keys come from `--jwks`, or from a SQLite file, where it is
also known which tokens were revoked and whose subjects are disabled.

A token that is bound to a key of its holder's is verified without that, because nobody proves here to have
it; a second line says so, and to what.

Exit codes: 0 it verifies and is good now; 1 it is not verified, and the first line says so; 2 what was
given can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import msgspec

from kkp import app, tokens
from kkp.authn.revocations import Revocations
from kkp.cli import callers
from kkp.cli.common import OK, REFUSED, settings
from kkp.cli.moments import both
from kkp.clock import Clock, SteadyClock
from kkp.errors import AuthenticationError, ConfigError, TokenExpiredError, TokenInvalidError
from kkp.keyring import jwks
from kkp.names import TokenOp
from kkp.ring_times import RingTimes
from kkp.tokens import ALGORITHM, TOKEN_TYPE, Claims, Federated

_MAX_INPUT_BYTES = 1024 * 1024
_TIMES = ("iat", "nbf", "exp")
_NO_FILE = (
    "token inspect: it reads keys from a SQLite file only; on PostgreSQL save what $KKP/keys/jwks answers, "
    "and give --jwks FILE"
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    token = commands.add_parser("token", help="get a token, or look into one")
    verbs = token.add_subparsers(required=True, metavar="VERB")
    _register_mint(verbs)
    inspect = verbs.add_parser(
        "inspect",
        help="read a token from standard input; print what it says, and whether it verifies",
        epilog="Exit codes: 0 it verifies and is good now; 1 it is NOT VERIFIED; 2 unusable input.",
    )
    inspect.add_argument(
        "--jwks",
        metavar="FILE",
        help="the keys to verify with, by default those of the SQLite file; with - they follow the token on "
        "standard input, from its second line on",
    )
    inspect.set_defaults(command=_inspect)


def _register_mint(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    mint = verbs.add_parser(
        "mint",
        help="get a token from KKP, and print it",
        description=callers.CREDENTIAL,
        epilog=callers.CODES,
    )
    callers.add_kkp(mint)
    callers.add_key(mint)
    callers.add_audience(mint, "whom it is meant for")
    mint.add_argument(
        "--op",
        action="append",
        default=[],
        choices=get_args(TokenOp),
        help="what it opens; may be given several times; default: decrypt",
    )
    mint.add_argument(
        "--ttl", metavar="TIME", help="how long it lives, such as 90s or 5m; default, and most: KKP's"
    )
    mint.add_argument("--subject", metavar="NAME", help="for whom it speaks, if not for who asks")
    callers.add_pairs(mint, "--claim", "what it claims, for policy to see")
    callers.add_pairs(mint, "--context", "what the context of an envelope must have")
    mint.set_defaults(command=callers.calling("mint"))


def _inspect(options: argparse.Namespace) -> int:
    token, rest = _read_input()
    try:
        kid, claims = tokens.read_unverified(token)
    except TokenInvalidError:
        print("NOT VERIFIED: this is not a token of the form that KKP mints")
        return REFUSED
    clock = SteadyClock()
    if options.jwks is None:
        problem = _local_problem(token, clock)
    else:
        problem = _problem(token, _keys(options.jwks, rest), clock, RingTimes().clock_error)
    verdict = [f"NOT VERIFIED: {problem}"] if problem is not None else _verified(kid, claims)
    print("\n".join([*verdict, *_described(kid, claims, clock.now())]))
    return OK if problem is None else REFUSED


def _read_input() -> tuple[str, bytes]:
    """Return the first line, which is the token, and what follows it.

    Raises:
        ConfigError: There is too much, or nothing.
    """
    given = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
    first, _, rest = given.partition(b"\n")
    if len(given) > _MAX_INPUT_BYTES or not first.strip():
        raise ConfigError(["token inspect: give one token on standard input"])
    return first.strip().decode("utf-8", "replace"), rest


def _keys(source: str, rest: bytes) -> Mapping[str, bytes]:
    """Return the keys of a JWKS file, or of what follows the token.

    Raises:
        ConfigError: It can't be read, or is no JWKS.
    """
    try:
        return jwks.read(rest if source == "-" else Path(source).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            [f"--jwks {source}: it is no JWKS that can be read ({type(error).__name__})"]
        ) from error


def _problem(token: str, keys: Mapping[str, bytes], clock: Clock, clock_error_seconds: float) -> str | None:
    """Say why a token is not good now by these keys; None if it is. Any issuer will do: it is printed."""
    kid, claims = tokens.read_unverified(token)
    if kid not in keys:
        return "its key is not among those that were given"
    try:
        tokens.verify(token, keys, issuer=claims.iss)
    except TokenInvalidError:
        return "its signature is wrong"
    try:
        tokens.check_times(claims, now=clock.now(), clock_error_seconds=clock_error_seconds)
    except TokenExpiredError:
        return "it has expired"
    except TokenInvalidError:
        return "it is not valid yet"
    return None


def _local_problem(token: str, clock: Clock) -> str | None:
    """Say why KKP would refuse a token that is shown to it now; None if it would not."""
    chosen = settings()
    if chosen.postgres is not None:
        raise ConfigError([_NO_FILE])
    if not chosen.database_path.exists():
        return "there is no database here to take keys from; give --jwks"

    async def ask() -> str | None:
        async with app.foundation(chosen, clock=clock, create=False) as base:
            keyring, revoked, people = base.keyring(), base.revocations(), base.accounts()
            await keyring.load()
            await revoked.load()
            await people.load()
            keys = keyring.public_keys(clock.now())
            unverified_kid, claims = tokens.read_unverified(token)
            named = keyring.view.ring.find(unverified_kid)
            if named is not None and named.revoked_at is not None:
                return f"the key that it names was revoked {both(named.revoked_at, clock.now()).strip()}"
            problem = _problem(token, keys, clock, chosen.ring_times.clock_error)
            if problem is not None:
                return problem
            if revoked.is_void(claims):
                return "it was revoked, or its subject was since it was issued"
            try:
                base.authenticator(keyring, revoked, people).accepted(token)
            except AuthenticationError:
                return _refusal(claims, base, revoked)
            return None

    return asyncio.run(ask())


def _refusal(claims: Claims, base: app.Foundation, revoked: Revocations) -> str:
    """Say why a token that verifies is refused all the same."""
    issuer = base.settings.issuer
    if claims.iss != issuer:
        return f"its issuer is {json.dumps(claims.iss)}, and KKP_ISSUER is {json.dumps(issuer)}"
    asker = [] if claims.act is None else [("who asked for it", claims.act.sub)]
    for role, name in (("its subject", claims.sub), *asker):
        federated = claims.federated if name == claims.asked_by else None
        wrong = "is revoked" if revoked.is_held(name) else _wrong_with(name, federated, base)
        if wrong is not None:
            return f"{role}, {json.dumps(name)}, {wrong}"
    if revoked.is_stopped(claims.backend, claims.key_id):
        return "the key that it is for, or that key's backend, is revoked"
    return "KKP does not accept it"


def _wrong_with(name: str, federated: Federated | None, base: app.Foundation) -> str | None:
    """Say why somebody is nobody now."""
    if federated is not None:
        is_known = base.federation().caller(name, federated) is not None
        return None if is_known else f"came by {json.dumps(federated.mapping)}, which is no rule now"
    if not base.directory.knows(name):
        return "is unknown here"
    return None if base.directory.enabled(name) is not None else "is disabled"


def _verified(kid: str, claims: Claims) -> list[str]:
    """Say that a token verifies, and what else is demanded of who shows it."""
    lines, bound = [f"verified with the key {kid}"], claims.cnf
    if bound is not None and bound.jkt is not None:
        lines.append(
            f"bound to the key {json.dumps(bound.jkt)}: refused without its DPoP proof, not seen here"
        )
    if bound is not None and bound.x5t_s256 is not None:
        certificate = json.dumps(bound.x5t_s256)
        lines.append(f"bound to the client certificate {certificate}: refused without it, not seen here")
    return lines


def _described(kid: str, claims: Claims, now: float) -> list[str]:
    """Return header and claims, one a line; nothing in them can steer the terminal."""
    header = {"alg": ALGORITHM, "kid": kid, "typ": TOKEN_TYPE}
    lines = ["", *(f"{name:14} {json.dumps(value)}" for name, value in header.items()), ""]
    for name, value in msgspec.to_builtins(claims).items():
        told = both(value, now).strip() if name in _TIMES else json.dumps(value)
        lines.append(f"{name:14} {told}")
    return lines
