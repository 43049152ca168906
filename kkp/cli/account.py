"""`kkp account`: people. Add and invite them, list, disable and enable them, set passwords and roles.

A password is never taken from the command line, where every process of the machine can read it: it is asked
for at a terminal, and is the first line of standard input elsewhere.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final

import msgspec

from kkp import app, emails
from kkp.authn.accounts import ROLES, Account, AccountDirectory
from kkp.authn.passwords import Passwords
from kkp.cli.common import OK, origin, seconds, with_foundation
from kkp.cli.moments import absolute
from kkp.errors import ConfigError, InvalidRequestError
from kkp.model import Credentials
from kkp.operations.accounts import (
    AddAccount,
    DisableAccount,
    EnableAccount,
    InviteAccount,
    InviteRequest,
    ListAccounts,
    NewAccountRequest,
    SetPassword,
    SetPasswordRequest,
    SetRoles,
    SetRolesRequest,
)
from kkp.operations.base import AnswerT_co, Operation, Proposal, RequestT_contra
from kkp.ring_times import MAX_SECONDS

_MAX_INPUT_CHARACTERS: Final = 8 * 1024
_NAMED: Final = "the e-mail address, or user:… as list shows it"
_Command = Callable[["_People"], Coroutine[Any, Any, None]]


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    account = commands.add_parser("account", help="add and invite people, disable them, set passwords")
    verbs = account.add_subparsers(required=True, metavar="VERB")
    add = verbs.add_parser("add", help="add an account with a password, which is asked for or read")
    add.add_argument("email")
    _take_roles(add)
    add.set_defaults(command=_add)
    invite = verbs.add_parser("invite", help="print an enrolment code, once, with which to sign up")
    invite.add_argument("email", help="who may use it; nobody else can")
    _take_roles(invite)
    invite.add_argument(
        "--expires-in", default="7d", metavar="TIME", help="such as 3600 or 30d; by default 7d"
    )
    invite.set_defaults(command=_invite)
    listing = verbs.add_parser("list", help="list accounts")
    listing.add_argument("--json", action="store_true", help="print JSON; times are Unix seconds")
    listing.set_defaults(command=_list)
    for name, command, told in (
        ("disable", _disable, "stop a person, their sessions and tokens included, until they are enabled"),
        ("enable", _enable, "let a person who was disabled log in again"),
        (
            "set-password",
            _set_password,
            "replace a password, which is asked for or read, and end all sessions",
        ),
    ):
        verb = verbs.add_parser(name, help=told)
        verb.add_argument("account", help=_NAMED)
        verb.set_defaults(command=command)
    roles = verbs.add_parser("set-roles", help="replace a person's roles")
    roles.add_argument("account", help=_NAMED)
    _take_roles(roles)
    roles.set_defaults(command=_set_roles)


def _take_roles(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--role", action="append", required=True, choices=ROLES, help="may be given several times"
    )


class _People:
    """The accounts, and the road to them.

    Args:
        base: What is stored.
        directory: Of the accounts, loaded.
    """

    def __init__(self, base: app.Foundation, directory: AccountDirectory) -> None:
        self.base = base
        self.directory = directory

    async def ask(
        self, operation: Operation[Proposal, RequestT_contra, AnswerT_co], request: RequestT_contra
    ) -> AnswerT_co:
        """Walk the road as the operator."""
        return await self.base.operator_pipeline().run(operation, request, Credentials(), origin())

    def named(self, text: str) -> str:
        """Return the name of the account that this names.

        Raises:
            ConfigError: There is none.
        """
        account = self.directory.by_email(text.lower())
        if account is not None:
            return account.id
        if self.directory.knows(text):
            return text
        raise ConfigError([f"account: there is none of {text[:80]!r}; see kkp account list"])


def _with_people(command: _Command) -> int:
    async def run(base: app.Foundation) -> int:
        directory = base.accounts()
        await directory.load()
        await command(_People(base, directory))
        return OK

    return with_foundation(run)


def _add(options: argparse.Namespace) -> int:
    request = NewAccountRequest(email=_email(options), roles=_roles(options), password=_password())

    async def add(people: _People) -> None:
        async with aclosing(Passwords()) as passwords:
            name = await people.ask(AddAccount(people.directory, passwords, people.base.clock), request)
        print(f"Added {name}.", file=sys.stderr)

    return _with_people(add)


def _invite(options: argparse.Namespace) -> int:
    ttl_seconds = seconds(options.expires_in)
    if not 1 <= ttl_seconds <= MAX_SECONDS:
        raise ConfigError([f"--expires-in {options.expires_in}: give a time such as 3600 or 30d"])
    request = InviteRequest(email=_email(options), roles=_roles(options), code_ttl_seconds=ttl_seconds)

    async def invite(people: _People) -> None:
        answer = await people.ask(InviteAccount(people.directory, people.base.clock), request)
        until = absolute(answer.expires_at)
        print(f"Invited {answer.account}. The code, good until {until}, is shown this once:", file=sys.stderr)
        print(answer.code)

    return _with_people(invite)


def _list(options: argparse.Namespace) -> int:
    async def show(people: _People) -> None:
        accounts = await people.ask(ListAccounts(people.directory), None)
        if options.json:
            print(msgspec.json.encode([_shown(account) for account in accounts]).decode())
        else:
            print("\n".join(map(_line, accounts)) or "There is no account.")

    return _with_people(show)


def _disable(options: argparse.Namespace) -> int:
    async def disable(people: _People) -> None:
        name = people.named(options.account)
        await people.ask(DisableAccount(people.directory, people.base.clock), name)
        print(f"Disabled {name}.", file=sys.stderr)

    return _with_people(disable)


def _enable(options: argparse.Namespace) -> int:
    async def enable(people: _People) -> None:
        name = people.named(options.account)
        await people.ask(EnableAccount(people.directory), name)
        print(f"Enabled {name}.", file=sys.stderr)

    return _with_people(enable)


def _set_password(options: argparse.Namespace) -> int:
    password = _password()

    async def replace(people: _People) -> None:
        request = SetPasswordRequest(people.named(options.account), password)
        async with aclosing(Passwords()) as passwords:
            await people.ask(SetPassword(people.directory, passwords), request)
        print(f"{request.account} has the new password, and no session any more.", file=sys.stderr)

    return _with_people(replace)


def _set_roles(options: argparse.Namespace) -> int:
    async def replace(people: _People) -> None:
        request = SetRolesRequest(people.named(options.account), _roles(options))
        await people.ask(SetRoles(people.directory), request)
        print(f"{request.account} is {' and '.join(request.roles)} now.", file=sys.stderr)

    return _with_people(replace)


def _email(options: argparse.Namespace) -> str:
    try:
        return emails.key(options.email)
    except InvalidRequestError as error:
        raise ConfigError([f"account: {error}"]) from None


def _roles(options: argparse.Namespace) -> tuple[str, ...]:
    return tuple(sorted(set(options.role)))


def _password() -> str:
    """Return the password that is typed twice, or the first line of what is no terminal.

    Raises:
        ConfigError: There is none, or what was typed differs.
    """
    if not sys.stdin.isatty():
        given = sys.stdin.readline(_MAX_INPUT_CHARACTERS).removesuffix("\n")
        if not given:
            raise ConfigError(["account: give the password on the first line of standard input"])
        return given
    given = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != given:
        raise ConfigError(["account: the two passwords differ"])
    return given


def _shown(account: Account) -> dict[str, Any]:
    """Return what may be shown of an account: neither what is kept of its password, nor of its code."""
    return {
        "id": account.id,
        "email": account.email,
        "roles": account.roles,
        "state": _state(account),
        "created_at": account.created_at,
        "disabled_at": account.disabled_at,
        "code_expires_at": account.code_expires_at,
    }


def _state(account: Account) -> str:
    if account.disabled_at is not None:
        return "disabled"
    return "enabled" if account.password is not None else "invited"


def _line(account: Account) -> str:
    head = f"{account.id}  {_state(account):9} {absolute(account.created_at)}  {','.join(account.roles)}"
    code = [] if account.code_expires_at is None else [f"code good until {absolute(account.code_expires_at)}"]
    return "\n".join([head, f"    {'  '.join([account.email, *code])}"])
