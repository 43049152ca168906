"""`kkp keys` and `kkp token inspect` in this process, on a real data directory; no server runs."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kkp import app, cli, tokens
from kkp.errors import ConfigError, NotFoundError
from kkp.keyring import jwks
from kkp.model import Identity
from kkp.tokens import Claims, Confirmation
from tests.harness import ISSUER, settings_for

CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": "orders",
    "aud": "orders-db",
    "jti": "a-token",
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["decrypt"],
    "policy_claims": {"environment": "prod"},
}

THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


class World:
    """A data directory with a ring and an identity, and hands that reach into it."""

    def __init__(self, directory: Path) -> None:
        self.settings = settings_for(directory)

    def do(self, work: Any, *, create: bool = False) -> Any:
        async def run() -> Any:
            async with app.foundation(self.settings, create=create) as base:
                return await work(base)

        return asyncio.run(run())

    def mint(self, lifetime: int = 300, **changes: Any) -> str:
        async def sign(base: app.Foundation) -> str:
            keyring, now = base.keyring(), int(base.clock.now())
            await keyring.load()
            kid, _ = keyring.plan_expiry(base.clock.now(), 60)
            claims = Claims(**{**CLAIMS, "iat": now, "nbf": now, "exp": now + lifetime, **changes})
            return tokens.sign(tokens.encode_claims(claims), kid, partial(keyring.sign, kid))

        token: str = self.do(sign)
        return token


def command(*arguments: str) -> int:
    """Run a command as `main` does, without its settings of the process."""
    options = cli._parser().parse_args(arguments)
    code: int = options.command(options)
    return code


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    async def prepare(base: app.Foundation) -> None:
        await base.keyring().start()
        await base.directory.add(Identity("orders", ("service",), (), {}, time.time()))

    made.do(prepare, create=True)
    monkeypatch.setenv("KKP_DATA_DIR", str(made.settings.data_dir))
    monkeypatch.setenv("KKP_ISSUER", ISSUER)
    monkeypatch.setenv("KKP_CONFIG", "/dev/null")
    return made


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert command("keys", "list", "--json", *arguments) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_the_ring_is_told_and_drawn(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    upcoming, active = listed(capsys)
    assert (upcoming["state"], active["state"]) == ("next", "active")
    assert command("keys", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"generation 1  ACTIVE  {active['kid']}" in lines
    assert any(line.startswith("  retires") and re.search("in 1[45] min", line) for line in lines)
    assert any(line.endswith("when a successor takes over") for line in lines)
    bars = [set(line.strip()) - {"|"} for line in lines if line.startswith("  |")]
    assert bars == [{".", "#"}, {"#", "-"}]


def test_rotating_and_revoking_say_what_they_did(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    upcoming, active = (key["kid"] for key in listed(capsys))
    assert command("keys", "rotate") == 0
    assert re.match(f"{upcoming} takes over in 1[45] min", capsys.readouterr().out)
    assert command("keys", "revoke", active) == 0
    told = capsys.readouterr().out
    assert f"{upcoming} took over in that moment." in told
    assert re.search(r"which is in 1[01] min\.$", told)
    assert command("keys", "revoke", upcoming) == 0  # there is no NEXT: one is made
    assert [key["state"] for key in listed(capsys)] == ["active", "revoked", "revoked"]
    assert command("keys", "list") == 0
    assert capsys.readouterr().out.count("  revoked ") == 2


def test_what_is_no_key_is_refused(world: World) -> None:
    with pytest.raises(NotFoundError):
        command("keys", "revoke", "-" + "A" * 42)
    with pytest.raises(NotFoundError):
        command("keys", "revoke", "--", "-" + "A" * 42)
    for text in ("nope", "--nope", "A" * 42, "A" * 44):
        with pytest.raises(ConfigError, match="a kid has 43 characters"):
            command("keys", "revoke", text)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_revoking_has_a_help_although_a_kid_may_begin_with_a_hyphen(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert command("keys", "revoke", flag) == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_keys_that_left_by_themselves_are_counted_and_shown_on_request(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    async def age(base: app.Foundation) -> None:
        keyring = base.keyring()
        await keyring.load()
        new = keyring._generate()._replace(generation=9)
        await keyring._store.insert_ring_key(keyring._row(new.key(1.0, 2.0)), b"spent")

    world.do(age)
    assert len(listed(capsys)) == 2
    assert [key["state"] for key in listed(capsys, "--all")].count("gone") == 1
    assert command("keys", "list") == 0
    assert capsys.readouterr().out.endswith("1 more left the JWKS by themselves; --all shows them.\n")


# `kkp token inspect`.


def inspect(monkeypatch: pytest.MonkeyPatch, given: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(given.encode())))
    return command("token", "inspect", *arguments)


def test_keys_of_a_postgresql_come_from_a_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    token = world.mint()
    monkeypatch.setenv("KKP_DATABASE_URL", "postgresql+asyncpg://kkp@127.0.0.1/kkp")
    with pytest.raises(ConfigError) as refused:
        inspect(monkeypatch, token)
    assert refused.value.problems[0].endswith(
        "on PostgreSQL save what $KKP/keys/jwks answers, and give --jwks FILE"
    )


def verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, *arguments: str
) -> str:
    """Return the first line that is printed about a token that does not verify."""
    capsys.readouterr()
    assert inspect(monkeypatch, given, *arguments) == 1
    return capsys.readouterr().out.splitlines()[0]


def test_a_good_token_is_verified_and_told(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = world.mint()
    assert inspect(monkeypatch, token + "\n") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("verified with the key ")
    assert 'policy_claims  {"environment": "prod"}' in lines
    assert any(line.startswith("exp            in ") for line in lines)
    assert token not in "\n".join(lines)


BOUND: dict[str, tuple[Confirmation, str]] = {
    "a key": (
        Confirmation(jkt=THUMBPRINT),
        f'bound to the key "{THUMBPRINT}": refused without its DPoP proof, not seen here',
    ),
    "a client certificate": (
        Confirmation(x5t_s256=THUMBPRINT),
        f'bound to the client certificate "{THUMBPRINT}": refused without it, not seen here',
    ),
}


@pytest.mark.parametrize(("bound", "told"), BOUND.values(), ids=BOUND)
def test_of_a_token_that_is_bound_it_says_that_no_proof_was_seen(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bound: Confirmation,
    told: str,
) -> None:
    assert inspect(monkeypatch, world.mint(cnf=bound)) == 0
    verdict, demand, empty, *_ = capsys.readouterr().out.splitlines()
    assert (verdict.startswith("verified with the key "), demand, empty) == (True, told, "")
    assert inspect(monkeypatch, world.mint()) == 0
    assert "bound to" not in capsys.readouterr().out


def test_what_a_bound_token_demands_is_not_said_of_one_that_does_not_verify(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = world.mint(cnf=Confirmation(jkt=THUMBPRINT), lifetime=0)
    assert verdict(monkeypatch, capsys, token) == "NOT VERIFIED: it has expired"
    inspect(monkeypatch, token)
    assert "bound to" not in capsys.readouterr().out


def test_the_local_database_knows_why_a_token_is_not_good(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(token: str) -> str:
        return verdict(monkeypatch, capsys, token)

    good, revoked = world.mint(), world.mint(jti="revoked")

    async def revoke(base: app.Foundation) -> None:
        await base.revocations().revoke_token("revoked", int(time.time()) + 300, by="root")

    world.do(revoke)
    head, _, signature = good.rpartition(".")
    assert told(f"{head}.{'A' * 10}{signature[10:]}") == "NOT VERIFIED: its signature is wrong"
    assert told(revoked) == "NOT VERIFIED: it was revoked, or its subject was since it was issued"
    assert told(world.mint(iss="https://elsewhere.test")) == (
        f'NOT VERIFIED: its issuer is "https://elsewhere.test", and KKP_ISSUER is "{ISSUER}"'
    )
    assert told(world.mint(sub="nobody")) == 'NOT VERIFIED: its subject, "nobody", is unknown here'
    assert told(world.mint(lifetime=0)) == "NOT VERIFIED: it has expired"
    later = int(time.time()) + 100
    assert told(world.mint(nbf=later)) == "NOT VERIFIED: it is not valid yet"
    assert told("nonsense").endswith("not a token of the form that KKP mints")


@pytest.mark.parametrize(
    ("revoked", "told"),
    [
        (("identity", "orders"), 'its subject, "orders", is revoked'),
        (("key", "aws", "alias/orders"), "the key that it is for, or that key's backend, is revoked"),
        (("backend", "aws"), "the key that it is for, or that key's backend, is revoked"),
        (("subject", "orders"), "it was revoked, or its subject was since it was issued"),
    ],
)
def test_a_token_that_the_kill_switch_stopped_says_so(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    revoked: tuple[str, ...],
    told: str,
) -> None:
    token = world.mint()
    assert command("revoke", *revoked) == 0
    assert verdict(monkeypatch, capsys, token) == f"NOT VERIFIED: {told}"


def test_a_token_of_a_disabled_subject_or_of_a_revoked_key_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = world.mint()

    async def disable(base: app.Foundation) -> None:
        await base.directory.disable("orders", at=time.time())

    world.do(disable)
    assert verdict(monkeypatch, capsys, token) == 'NOT VERIFIED: its subject, "orders", is disabled'
    (active,) = (key["kid"] for key in listed(capsys) if key["state"] == "active")
    assert command("keys", "revoke", active) == 0
    told = verdict(monkeypatch, capsys, token)
    assert re.match(r"NOT VERIFIED: the key that it names was revoked (now|\d+ s ago)  2\d{3}-", told)


def test_other_keys_can_be_given(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = world.mint(iss="https://elsewhere.test")

    async def published(base: app.Foundation) -> bytes:
        keyring = base.keyring()
        await keyring.load()
        return jwks.jwks(keyring.view.ring.keys)

    document: bytes = world.do(published)
    (tmp_path / "keys.json").write_bytes(document)
    assert inspect(monkeypatch, token, "--jwks", str(tmp_path / "keys.json")) == 0
    assert inspect(monkeypatch, f"{token}\n{document.decode()}", "--jwks", "-") == 0
    capsys.readouterr()
    unknown = verdict(monkeypatch, capsys, f'{token}\n{{"keys":[]}}', "--jwks", "-")
    assert unknown == "NOT VERIFIED: its key is not among those that were given"
    for source in ("-", str(tmp_path / "missing.json")):
        with pytest.raises(ConfigError, match="it is no JWKS that can be read"):
            inspect(monkeypatch, token, "--jwks", source)


def test_without_a_database_it_is_not_verified(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = world.mint()
    monkeypatch.setenv("KKP_DATA_DIR", str(tmp_path / "nowhere"))
    assert verdict(monkeypatch, capsys, token).startswith("NOT VERIFIED: there is no database here")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("given", ["", "\n", " \nx", "x" * (1024 * 1024 + 1)])
def test_what_can_not_be_one_token_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    with pytest.raises(ConfigError, match="give one token on standard input"):
        inspect(monkeypatch, given)
