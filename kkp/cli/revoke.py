"""`kkp revoke`: the kill switch. Stop a token, a subject, an identity, a key or a backend; list, and lift.

Every server of the same database notices by the epoch, at its next request.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

import msgspec

from kkp import app
from kkp.cli.common import OK, origin, with_foundation
from kkp.cli.moments import absolute
from kkp.errors import ConfigError, InvalidRequestError
from kkp.model import Credentials
from kkp.operations.revocations import (
    LiftRevocation,
    ListRevocations,
    RevocationQuery,
    RevocationRequest,
    Revoke,
)
from kkp.revocations import Revocation, RevocationKind
from kkp.web.answers import revoked
from kkp.web.schemas import RevocationBody, explanation

_PAGE: Final = 1000
_HELP: Final[Mapping[RevocationKind, str]] = {
    RevocationKind.TOKEN: "end one token, named by its jti",
    RevocationKind.SUBJECT: "end every token that speaks for a subject and was issued up to now",
    RevocationKind.IDENTITY: "stop an identity, its credentials and all its tokens, until that is lifted",
    RevocationKind.KEY: "stop everything that names a backend's key, until that is lifted",
    RevocationKind.BACKEND: "stop everything that names a backend, until that is lifted",
}
_REASON: Final = "why, for those who read the list; of a token it is in the audit log alone"
_HYPHEN: Final = "What begins with a hyphen, as one in 64 jtis does, goes behind --."


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    revoke = commands.add_parser(
        "revoke", help="the kill switch: stop a token, a subject, an identity, a key or a backend"
    )
    verbs = revoke.add_subparsers(required=True, metavar="WHAT")
    for kind, told in _HELP.items():
        verb = verbs.add_parser(kind.value, help=told, epilog=_HYPHEN)
        if kind is RevocationKind.KEY:
            verb.add_argument("backend", metavar="BACKEND")
        verb.add_argument("name", metavar="JTI" if kind is RevocationKind.TOKEN else "NAME")
        verb.add_argument("--reason", default="", metavar="TEXT", help=_REASON)
        verb.set_defaults(command=_revoke, kind=kind, backend=None)
    lift = verbs.add_parser("lift", help="let an identity, a key or a backend go on", epilog=_HYPHEN)
    lift.add_argument("id", metavar="ID", help="as list shows it")
    lift.set_defaults(command=_lift)
    listing = verbs.add_parser("list", help="show what is revoked")
    listing.add_argument("--json", action="store_true", help="print JSON; times are Unix seconds")
    listing.set_defaults(command=_list)


def _revoke(options: argparse.Namespace) -> int:
    request = _request(options)

    async def revoke(base: app.Foundation) -> int:
        people = base.accounts()
        await people.load()
        identities = (base.directory, base.federation(), people)
        operation = Revoke(base.revocations(), identities, base.settings.backends)
        answer = await base.operator_pipeline().run(operation, request, Credentials(), origin())
        print(_line(answer))
        if answer.before is not None:
            print(f"Void are its tokens issued until {absolute(answer.before)}; none are issued until then.")
        return OK

    return with_foundation(revoke)


def _request(options: argparse.Namespace) -> RevocationRequest:
    """Return what `POST /revocations` would be asked for, checked by the same schema.

    Raises:
        ConfigError: It can't be meant.
    """
    given = {name: getattr(options, name) for name in ("kind", "name", "backend", "reason")}
    try:
        return msgspec.convert(given, RevocationBody).request()
    except msgspec.ValidationError as error:
        raise ConfigError([f"revoke {options.kind}: {explanation(error)}"]) from None
    except InvalidRequestError as error:
        raise ConfigError([f"revoke {options.kind}: {error}"]) from None


def _lift(options: argparse.Namespace) -> int:
    async def lift(base: app.Foundation) -> int:
        operation = LiftRevocation(base.revocations())
        answer = await base.operator_pipeline().run(operation, options.id, Credentials(), origin())
        print(f"Lifted: {_named(answer)} goes on.")
        return OK

    return with_foundation(lift)


def _list(options: argparse.Namespace) -> int:
    async def show(base: app.Foundation) -> int:
        revocations = base.revocations()
        await revocations.load()
        operation, pipeline = ListRevocations(revocations), base.operator_pipeline()
        found: list[Revocation] = []
        while True:
            query = RevocationQuery(found[-1].id if found else "", _PAGE)
            page = await pipeline.run(operation, query, Credentials(), origin())
            found += page
            if len(page) < _PAGE:
                break
        if options.json:
            print(msgspec.json.encode([revoked(each, None) for each in found]).decode())
        else:
            print("\n".join(map(_line, found)) or "Nothing is revoked.")
        return OK

    return with_foundation(show)


def _line(answer: Revocation) -> str:
    end = "until it is lifted" if answer.expires_at is None else f"until {absolute(answer.expires_at)}"
    lines = [
        f"{answer.id:43}  {_named(answer)}",
        f"    {end}; {absolute(answer.revoked_at)} by {answer.revoked_by}",
    ]
    return "\n".join([*lines, *([f"    {answer.reason}"] if answer.reason else [])])


def _named(answer: Revocation) -> str:
    return " ".join(filter(None, (answer.kind, answer.backend, answer.name)))
