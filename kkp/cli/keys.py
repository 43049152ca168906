"""`kkp keys`: list, rotate and revoke the signing keys, beside a server or without one.

A server of the same database notices by the epoch, at its next request. The list draws each key on one line
of time, from the making of the oldest key shown to the end of the youngest:

```
....|####-----      made . signs # retired but published - now |
```
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from kkp import app
from kkp.cli.common import OK, origin, with_foundation
from kkp.cli.moments import absolute, both, distance
from kkp.errors import ConfigError
from kkp.keyring.state import KeyState
from kkp.model import Credentials
from kkp.operations.signing_keys import (
    ListSigningKeys,
    RevokeSigningKey,
    RotateSigningKey,
    SigningKey,
    is_kid,
)

_LINE_CHARACTERS = 64


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    keys = commands.add_parser("keys", help="list, rotate and revoke the signing keys")
    verbs = keys.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="show the ring on a line of time")
    listing.add_argument("--all", action="store_true", help="show keys that have left the JWKS, too")
    listing.add_argument("--json", action="store_true", help="print JSON; times are Unix seconds")
    listing.set_defaults(command=_list)
    rotate = verbs.add_parser("rotate", help="let the next key take over, or say when it will")
    rotate.set_defaults(command=_rotate)
    # One kid in 64 begins with a hyphen: it must not be taken for an option; nor is -h then.
    ending = "end a key at once, and every token that it signed"
    revoke = verbs.add_parser("revoke", help=ending, prefix_chars="+", add_help=False)
    revoke.add_argument("kid", metavar="KID")
    revoke.set_defaults(command=partial(_revoke, revoke))


def _list(options: argparse.Namespace) -> int:
    async def show(base: app.Foundation) -> int:
        operation = ListSigningKeys(base.keyring(), base.clock)
        every = await base.operator_pipeline().run(operation, None, Credentials(), origin())
        shown = [found for found in every if options.all or found.state is not KeyState.GONE]
        if options.json:
            print(msgspec.json.encode(list(map(_document, shown))).decode())
        else:
            print("\n".join(_timeline(shown, base.clock.now(), hidden=len(every) - len(shown))))
        return OK

    return with_foundation(show)


def _document(found: SigningKey) -> dict[str, Any]:
    key = found.key
    return {
        "kid": key.kid,
        "generation": key.generation,
        "state": found.state,
        "created_at": key.created_at,
        "activates_at": key.activate_at,
        "retires_at": found.retires_at,
        "unpublished_at": _leaves_at(found),
        "revoked_at": key.revoked_at,
    }


def _leaves_at(found: SigningKey) -> float:
    return found.publish_until if found.key.revoked_at is None else found.key.revoked_at


def _timeline(shown: Sequence[SigningKey], now: float, *, hidden: int) -> list[str]:
    lines = [f"now         {absolute(now)}"]
    for found in shown:
        lines += ["", *_block(found, now), f"  {_drawn(found, shown, now)}"]
    if shown:
        lines += ["", "  made .  signs #  retired but published -  now |"]
    if hidden:
        lines += ["", f"{hidden} more left the JWKS by themselves; --all shows them."]
    return lines


def _block(found: SigningKey, now: float) -> list[str]:
    key = found.key
    moments = [("created", key.created_at), ("activates", key.activate_at), ("retires", found.retires_at)]
    if key.revoked_at is None:
        moments.append(("unpublished", found.publish_until))
    else:
        moments = [*moments[:1], ("revoked", key.revoked_at)]
    lines = [f"generation {key.generation}  {found.state.upper()}  {key.kid}"]
    for name, moment in moments:
        told = both(moment, now) if moment is not None else f"{'-':>10}  when a successor takes over"
        lines.append(f"  {name:11} {told}")
    return lines


def _drawn(found: SigningKey, shown: Sequence[SigningKey], now: float) -> str:
    """Draw one key from its making to its end, on the line that all keys share."""
    begin = min(other.key.created_at for other in shown)
    span = max(now, *(_leaves_at(other) for other in shown)) - begin
    step = span / _LINE_CHARACTERS
    here = min(int((now - begin) / step), _LINE_CHARACTERS - 1)
    marks = [_mark(found, begin + (column + 0.5) * step) for column in range(_LINE_CHARACTERS)]
    marks[here] = "|"
    return "".join(marks).rstrip()


def _mark(found: SigningKey, moment: float) -> str:
    if not found.key.created_at <= moment < _leaves_at(found):
        return " "
    if moment < found.key.activate_at:
        return "."
    return "#" if found.retires_at is None or moment < found.retires_at else "-"


def _rotate(_options: argparse.Namespace) -> int:
    async def rotate(base: app.Foundation) -> int:
        operation = RotateSigningKey(base.keyring())
        answer = await base.operator_pipeline().run(operation, None, Credentials(), origin())
        now = base.clock.now()
        verb = "took over" if answer.outcome == "promoted" else "takes over"
        print(f"{answer.kid} {verb} {distance(answer.activates_at, now)}, {absolute(answer.activates_at)}.")
        print(f"It leaves the JWKS {distance(answer.expires_at, now)} at the latest.")
        return OK

    return with_foundation(rotate)


def _revoke(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.kid in {"-h", "--help"}:
        parser.print_help()
        return OK
    if not is_kid(options.kid):
        raise ConfigError(["keys revoke KID: a kid has 43 characters; `kkp keys list` shows them"])

    async def revoke(base: app.Foundation) -> int:
        operation = RevokeSigningKey(base.keyring())
        answer = await base.operator_pipeline().run(operation, options.kid, Credentials(), origin())
        now, trusted = base.clock.now(), answer.trusted_until
        print(f"{answer.kid} is revoked, {absolute(answer.revoked_at)}; so is every token that it signed.")
        if answer.successor is not None:
            print(f"{answer.successor} took over in that moment.")
        print(f"Verifiers with an older copy of the JWKS may trust it until {absolute(trusted)},")
        print(f"which is {distance(trusted, now)}.")
        return OK

    return with_foundation(revoke)
