"""`kkp revoke` in this process, on a real data directory; no server runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from kkp import app
from kkp.errors import ConfigError, ConflictError, NotFoundError, UnknownBackendError
from kkp.model import Identity
from tests.unit.test_cli_keys import World, command

JTI = "-" + "A" * 21


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    async def prepare(base: app.Foundation) -> None:
        await base.directory.add(Identity("orders", ("service",), (), {}, time.time()))

    made.do(prepare, create=True)
    monkeypatch.setattr("kkp.cli.common.settings", lambda: made.settings)
    return made


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert command("revoke", "list", "--json") == 0
    shown: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return shown


def test_each_kind_is_revoked_listed_and_lifted_if_it_can_be(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("revoke", "token", "--reason", "INC-1", "--", JTI) == 0
    assert command("revoke", "subject", "orders", "--reason", "INC-2") == 0
    assert "none are issued until then" in capsys.readouterr().out
    assert command("revoke", "identity", "orders") == 0
    assert command("revoke", "key", "aws", "alias/orders", "--reason", "INC-3") == 0
    assert command("revoke", "backend", "gcp") == 0
    shown = {each["kind"]: each for each in listed(capsys)}
    assert {kind: each["name"] for kind, each in shown.items()} == {
        "token": JTI, "subject": "orders", "identity": "orders", "key": "alias/orders", "backend": "gcp",
    }  # fmt: skip
    assert {each["revoked_by"].partition(":")[0] for each in shown.values()} == {"operator"}
    for kind in ("identity", "key", "backend"):
        assert command("revoke", "lift", "--", shown[kind]["id"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "Lifted: key aws alias/orders goes on."
    for kind in ("token", "subject"):
        with pytest.raises(ConflictError):
            command("revoke", "lift", "--", shown[kind]["id"])
    assert {each["kind"] for each in listed(capsys)} == {"token", "subject"}


def test_people_read_what_is_revoked_by_whom_until_when_and_why(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("revoke", "list") == 0
    assert capsys.readouterr().out == "Nothing is revoked.\n"
    command("revoke", "key", "aws", "alias/orders", "--reason", "INC-3: stolen")
    capsys.readouterr()
    command("revoke", "list")
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("  key aws alias/orders")
    assert second.startswith("    until it is lifted; 2")
    assert third == "    INC-3: stolen"


def test_a_token_s_reason_is_not_listed_and_its_help_says_where_it_is(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("revoke", "token", "--reason", "INC-1", "--", JTI) == 0
    assert [each["reason"] for each in listed(capsys)] == [""]
    with pytest.raises(SystemExit):
        command("revoke", "token", "--help")
    assert "of a token it is in the audit log alone" in " ".join(capsys.readouterr().out.split())


def test_more_than_a_page_is_listed_whole(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.cli.revoke._PAGE", 2)
    for number in range(4):
        command("revoke", "subject", f"subject-{number}")
    assert len(listed(capsys)) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("token", "eyJ"), "revoke token: Expected a token's jti: 22 characters of base64url - at `$.name`"),
        (("key", "aws", "alias/*"), "revoke key: Expected a key's name"),
        (("key", "AWS", "a"), "revoke key: Expected a backend's name"),
        (("identity", "Orders"), "revoke identity: Expected an identity's name"),
        (("subject", "or ders"), "revoke subject: Expected 1 to 512 visible ASCII"),
        (("backend", "gcp", "--reason", "two\nlines"), "revoke backend: Expected up to 256 characters"),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_is_opened(
    world: World, arguments: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        command("revoke", *arguments)
    assert refused.value.problems[0].startswith(told)


def test_a_slip_of_the_pen_is_told(world: World) -> None:
    with pytest.raises(UnknownBackendError):
        command("revoke", "backend", "azur")
    with pytest.raises(UnknownBackendError):
        command("revoke", "key", "azur", "alias/orders")
    with pytest.raises(NotFoundError):
        command("revoke", "identity", "nobody")
    with pytest.raises(NotFoundError):
        command("revoke", "lift", "nothing")


def test_a_jti_that_looks_like_an_option_is_not_taken_for_another(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("revoke", "token", JTI)
    assert "the following arguments are required: JTI; see kkp revoke token --help" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("revoke", "token", "--help")
    assert "goes behind --" in capsys.readouterr().out
