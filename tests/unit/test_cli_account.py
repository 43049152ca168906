"""`kkp account` in this process, on a real data directory; no server runs."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from kkp import app
from kkp.authn.accounts import Account
from kkp.authn.passwords import Passwords
from kkp.errors import ConfigError, ConflictError, InvalidRequestError
from tests.people import EMAIL, OTHER_PASSWORD, PASSWORD
from tests.unit.test_cli_keys import World, command


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    async def prepare(_base: app.Foundation) -> None: ...

    made.do(prepare, create=True)
    monkeypatch.setattr("kkp.cli.common.settings", lambda: made.settings)
    return made


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def add(monkeypatch: pytest.MonkeyPatch, *arguments: str, password: str = PASSWORD) -> int:
    typed(monkeypatch, f"{password}\n")
    return command("account", "add", EMAIL, "--role", "user", *arguments)


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert command("account", "list", "--json") == 0
    shown: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return shown


def stored(world: World) -> list[Account]:
    found: list[Account] = []

    async def read(base: app.Foundation) -> None:
        directory = base.accounts()
        await directory.load()
        found.extend(directory.all())

    world.do(read)
    return found


async def _matches(account: Account, password: str) -> bool:
    async with aclosing(Passwords()) as passwords:
        return await passwords.matches(account.password, password)


def test_an_account_is_added_listed_disabled_enabled_and_given_roles(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(monkeypatch) == 0
    (account,) = listed(capsys)
    assert account.pop("created_at") == pytest.approx(time.time(), abs=60)
    name = account["id"]
    assert re.fullmatch(r"user:[0-9a-f]{16}", name)
    assert account == {
        "id": name, "email": EMAIL, "roles": ["user"], "state": "enabled", "disabled_at": None,
        "code_expires_at": None,
    }  # fmt: skip
    assert command("account", "disable", "Ann@Example.com") == 0
    assert listed(capsys)[0]["state"] == "disabled"
    with pytest.raises(ConflictError):
        command("account", "disable", name)
    assert command("account", "enable", name) == 0
    with pytest.raises(ConflictError):
        command("account", "enable", name)
    assert command("account", "set-roles", EMAIL, "--role", "user", "--role", "admin") == 0
    assert (listed(capsys)[0]["state"], listed(capsys)[0]["roles"]) == ("enabled", ["admin", "user"])
    assert stored(world)[0].generation == 2


def test_a_password_is_set_and_ends_what_was_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch)
    typed(monkeypatch, f"{OTHER_PASSWORD}\nwhat follows is not read")
    assert command("account", "set-password", EMAIL) == 0
    (account,) = stored(world)
    assert account.generation == 2
    assert asyncio.run(_matches(account, OTHER_PASSWORD))
    assert not asyncio.run(_matches(account, PASSWORD))


def test_an_invitation_is_printed_once_and_the_next_voids_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("account", "invite", EMAIL, "--role", "admin", "--expires-in", "1h") == 0
    first = capsys.readouterr().out
    assert re.fullmatch(r"kkp_ec_[A-Za-z0-9_-]{43}\n", first)
    (account,) = listed(capsys)
    assert (account["state"], account["roles"]) == ("invited", ["admin"])
    assert account["code_expires_at"] == pytest.approx(time.time() + 3600, abs=60)
    digest = stored(world)[0].code
    assert command("account", "invite", EMAIL, "--role", "user") == 0
    assert capsys.readouterr().out != first
    (again,) = stored(world)
    assert (again.id, again.roles) == (account["id"], ("user",))
    assert again.code != digest


def test_who_has_signed_up_is_not_invited_or_added_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch)
    before = stored(world)
    with pytest.raises(ConflictError):
        command("account", "invite", EMAIL, "--role", "admin")
    with pytest.raises(ConflictError):
        add(monkeypatch, "--role", "admin")
    assert stored(world) == before


def test_people_read_who_there_is_and_neither_hash_nor_code(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("account", "list") == 0
    assert capsys.readouterr().out == "There is no account.\n"
    add(monkeypatch)
    command("account", "invite", "bob@example.com", "--role", "admin")
    code = capsys.readouterr().out.strip()
    command("account", "list")
    shown = capsys.readouterr().out
    assert re.search(r"^user:\S+  enabled   2.*Z  user\n    ann@example.com$", shown, re.MULTILINE)
    assert re.search(
        r"^user:\S+  invited   2.*Z  admin\n    bob@example.com  code good until 2", shown, re.MULTILINE
    )
    shown += json.dumps(listed(capsys))
    for account in stored(world):
        for secret in (account.password, account.code, code):
            assert secret is None or secret not in shown


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("add", "ann", "--role", "user"), ConfigError),
        (("invite", "\u0430nn@example.com", "--role", "user"), ConfigError),
        (("invite", EMAIL, "--role", "user", "--expires-in", "0"), ConfigError),
        (("invite", EMAIL, "--role", "user", "--expires-in", "soon"), ConfigError),
        (("disable", "nobody@example.com"), ConfigError),
        (("enable", "user:0000000000000000"), ConfigError),
        (("set-roles", "nobody@example.com", "--role", "user"), ConfigError),
    ],
)
def test_what_can_not_be_meant_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], error: type[Exception]
) -> None:
    typed(monkeypatch, f"{PASSWORD}\n")
    with pytest.raises(error):
        command("account", *arguments)
    assert stored(world) == []


@pytest.mark.parametrize(
    ("text", "error"), [("", ConfigError), ("\n", ConfigError), ("short\n", InvalidRequestError)]
)
def test_without_a_password_nothing_is_added_or_set(
    world: World, monkeypatch: pytest.MonkeyPatch, text: str, error: type[Exception]
) -> None:
    typed(monkeypatch, text)
    with pytest.raises(error):
        command("account", "add", EMAIL, "--role", "user")
    assert stored(world) == []
    add(monkeypatch)
    before = stored(world)
    typed(monkeypatch, text)
    with pytest.raises(error):
        command("account", "set-password", EMAIL)
    assert stored(world) == before


def test_at_a_terminal_the_password_is_asked_for_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    answers = [PASSWORD, OTHER_PASSWORD]
    monkeypatch.setattr("getpass.getpass", lambda _prompt: answers.pop(0))
    with pytest.raises(ConfigError, match="differ"):
        command("account", "add", EMAIL, "--role", "user")
    answers += [PASSWORD, PASSWORD]
    assert command("account", "add", EMAIL, "--role", "user") == 0
    assert asyncio.run(_matches(stored(world)[0], PASSWORD))


def test_another_role_there_is_not(world: World) -> None:
    with pytest.raises(SystemExit):
        command("account", "invite", EMAIL, "--role", "auditor")
    assert stored(world) == []
