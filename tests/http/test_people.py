"""People at the door: signing up, logging in and out, and what nobody learns by trying."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jwt
import pytest

from kkp.authn import passwords
from kkp.authn.accounts import new_code
from kkp.authn.operator import LocalOperator
from kkp.authn.passwords import MAX_OF_ADDRESS, MAX_STRANGERS, MAX_WAITING, Passwords, Waiter
from kkp.authz.operator import OperatorPolicy
from kkp.limits import ACCOUNT_GUESSES, ADDRESS_GUESSES
from kkp.model import Credentials
from kkp.operations.accounts import (
    DisableAccount,
    EnableAccount,
    SetPassword,
    SetPasswordRequest,
    SetRoles,
    SetRolesRequest,
)
from kkp.operations.base import Operation
from kkp.peers import Peers, parse_networks
from kkp.pipeline import Origin, Pipeline
from tests.harness import ISSUER, KKP, Answer, running
from tests.people import (
    EMAIL,
    OTHER_PASSWORD,
    PASSWORD,
    add_person,
    directory,
    invite,
    log_in,
    session,
)
from tests.spellings import spellings


@pytest.fixture
async def kkp(tmp_path: Path) -> AsyncIterator[KKP]:
    async with running(tmp_path, peers=Peers(parse_networks("127.0.0.1"))) as server:
        yield server


@pytest.fixture(autouse=True)
def unrested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no guess make the next one wait."""
    monkeypatch.setattr(passwords, "REST_SECONDS", 0)


async def operate(kkp: KKP, operation: Operation[Any, Any, Any], request: Any) -> None:
    """Do what `kkp account` does, in the same process."""
    pipeline = kkp.services.pipeline
    operator = Pipeline(
        state=pipeline._state,
        authenticator=LocalOperator(),
        policy=OperatorPolicy(),
        audit=pipeline._audit,
        failures=pipeline._failures,
        clock=pipeline._clock,
    )
    await operator.run(operation, request, Credentials(), Origin("test"))


async def sign_up(kkp: KKP, code: str | None, email: str = EMAIL, password: str = PASSWORD) -> Answer:
    document = {"email": email, "password": password, **({} if code is None else {"code": code})}
    return await kkp.post("/signup", document)


def refused(answer: Answer) -> tuple[int, str, str]:
    """Return what a refusal says, but for what names the request."""
    return answer.status, answer.problem(), answer.json["detail"]


def without_ids(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in answer.json.items() if not name.endswith("_id")}


class Hashes:
    """Counts what is hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted = 0
        ask = Passwords._ask

        async def counting(passwords: Passwords, question: Mapping[str, str | None]) -> Any:
            self.counted += 1
            return await ask(passwords, question)

        monkeypatch.setattr(Passwords, "_ask", counting)

    def take(self) -> int:
        """Return how many there were since the last time."""
        counted, self.counted = self.counted, 0
        return counted


# Who was invited signs up and logs in.


async def test_who_was_invited_signs_up_logs_in_and_is_who_the_invitation_says(kkp: KKP) -> None:
    code = await invite(kkp, roles=("admin",))
    signed_up = await sign_up(kkp, code)
    assert (signed_up.status, signed_up.json) == (201, {})
    answer = await log_in(kkp)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json.keys() == {"account", "session", "expires_at"}
    assert (await kkp.get("/audit?limit=1", credential=answer.json["session"])).status == 200


async def test_a_session_is_a_token_of_its_own_type_signed_by_the_keyring(kkp: KKP) -> None:
    name = await add_person(kkp)
    answer = await log_in(kkp)
    value = answer.json["session"]
    header, claims = jwt.get_unverified_header(value), jwt.decode(value, options={"verify_signature": False})
    kids = {key["kid"] for key in (await kkp.get("/keys/jwks")).json["keys"]}
    assert (header["alg"], header["typ"], len(header)) == ("EdDSA", "kkp-session+jwt", 3)
    assert header["kid"] in kids
    assert claims["sub"] == answer.json["account"] == name
    assert (claims["iss"], claims["aud"]) == (ISSUER, ISSUER)
    assert claims["exp"] == answer.json["expires_at"]
    assert 0 < claims["exp"] - claims["iat"] <= 900
    assert claims.keys() == {"iss", "sub", "aud", "iat", "nbf", "exp", "jti", "generation"}


async def test_a_session_lasts_as_long_as_is_set(tmp_path: Path) -> None:
    async with running(tmp_path, KKP_SESSION_TTL_SECS="60") as kkp:
        await add_person(kkp)
        claims = jwt.decode((await log_in(kkp)).json["session"], options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == 60


async def test_case_makes_no_other_address(kkp: KKP) -> None:
    await add_person(kkp)
    assert (await log_in(kkp, "Ann@Example.COM")).status == 200


async def test_a_password_is_one_however_its_letters_are_composed(kkp: KKP) -> None:
    await add_person(kkp, password="caf\u00e9 au lait \ufb01n")
    assert (await log_in(kkp, password="cafe\u0301 au lait fin")).status == 200


async def test_nothing_of_a_long_password_is_cut_off(kkp: KKP) -> None:
    long = "correct " * 127 + "horse"
    await add_person(kkp, password=long)
    assert (await log_in(kkp, password=long)).status == 200
    assert (await log_in(kkp, password=long[:-1] + "x")).status == 401
    assert (await log_in(kkp, password=long[:72])).status == 401


# What a person may do.


async def test_a_user_is_no_administrator_and_an_administrator_in_person_is_one(kkp: KKP) -> None:
    await add_person(kkp)
    await add_person(kkp, "boss@example.com", roles=("admin",))
    ann, boss = await session(kkp), await session(kkp, "boss@example.com")
    assert refused(await kkp.get("/identities", credential=ann))[:2] == (403, "policy_denied")
    assert (await kkp.get("/identities", credential=boss)).status == 200


async def test_a_token_that_a_person_mints_speaks_for_them_until_they_are_disabled(kkp: KKP) -> None:
    name = await add_person(kkp, roles=("admin",))
    token = await kkp.token(await session(kkp))
    assert jwt.decode(token, options={"verify_signature": False})["sub"] == name
    await kkp.seal(token)
    await operate(kkp, DisableAccount(directory(kkp), kkp.services.pipeline._clock), name)
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    assert (await kkp.post("/envelope/encrypt", sealing, credential=token)).problem() == "token_invalid"
    listed = jwt.decode((await kkp.get("/revocations/list")).raw, options={"verify_signature": False})
    assert len(listed["identities"]) == 1  # for those who verify it offline


async def test_roles_are_those_of_now(kkp: KKP) -> None:
    name = await add_person(kkp, roles=("admin",))
    value = await session(kkp)
    assert (await kkp.get("/identities", credential=value)).status == 200
    await operate(kkp, SetRoles(directory(kkp)), SetRolesRequest(name, ("user",)))
    assert (await kkp.get("/identities", credential=value)).problem() == "policy_denied"


# What ends sessions.


async def _ends_by_logging_out(kkp: KKP, _name: str, value: str) -> None:
    answer = await kkp.post("/logout", credential=value)
    assert (answer.status, answer.json) == (200, {})


async def _ends_by_a_changed_password(kkp: KKP, _name: str, value: str) -> None:
    document = {"password": PASSWORD, "new_password": OTHER_PASSWORD}
    answer = await kkp.post("/account/password", document, credential=value)
    assert (answer.status, answer.json) == (200, {})


async def _ends_by_a_password_that_is_set(kkp: KKP, name: str, _value: str) -> None:
    request = SetPasswordRequest(name, OTHER_PASSWORD)
    await operate(kkp, SetPassword(directory(kkp), kkp.services.sign_up._passwords), request)


async def _ends_by_disabling(kkp: KKP, name: str, _value: str) -> None:
    await operate(kkp, DisableAccount(directory(kkp), kkp.services.pipeline._clock), name)


async def _ends_by_disabling_and_enabling(kkp: KKP, name: str, value: str) -> None:
    await _ends_by_disabling(kkp, name, value)
    await operate(kkp, EnableAccount(directory(kkp)), name)
    assert (await log_in(kkp)).status == 200


async def _ends_by_the_kill_switch(kkp: KKP, name: str, _value: str) -> None:
    answer = await kkp.post("/revocations", {"kind": "subject", "name": name}, credential=kkp.root_key)
    assert answer.status == 200, answer.raw
    assert (await log_in(kkp)).problem() == "revoked"
    assert (await log_in(kkp, password=OTHER_PASSWORD)).problem() == "unauthenticated"


@pytest.mark.parametrize(
    "end",
    [
        _ends_by_logging_out,
        _ends_by_a_changed_password,
        _ends_by_a_password_that_is_set,
        _ends_by_disabling,
        _ends_by_disabling_and_enabling,
        _ends_by_the_kill_switch,
    ],
)
async def test_a_session_is_over_at_the_next_request(kkp: KKP, end: Callable[[KKP, str, str], Any]) -> None:
    name = await add_person(kkp)
    value = await session(kkp)
    assert (await kkp.get("/identities", credential=value)).problem() == "policy_denied"
    await end(kkp, name, value)
    assert (await kkp.get("/identities", credential=value)).status == 401


async def test_a_person_whose_identity_is_revoked_is_nobody_until_that_is_lifted(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await add_person(kkp, roles=("admin",))
    value = await session(kkp)
    token = await kkp.token(value)
    sealing = {"backend": "aws", "key_id": "alias/orders", "plaintext": "hello"}
    assert (await kkp.get("/identities", credential=value)).status == 200
    revocation = {"kind": "identity", "name": name, "reason": "INC-1234"}
    revoked = await kkp.post("/revocations", revocation, credential=kkp.root_key)
    assert revoked.status == 200, revoked.raw
    assert (await kkp.get("/identities", credential=value)).problem() == "unauthenticated"
    assert (await kkp.post("/envelope/encrypt", sealing, credential=token)).problem() == "token_invalid"
    hashes = Hashes(monkeypatch)
    right, wrong = await log_in(kkp), await log_in(kkp, password=OTHER_PASSWORD)
    assert refused(right) == refused(wrong)
    assert refused(right)[:2] == (401, "unauthenticated")
    assert hashes.take() == 2
    lifted = await kkp.request("DELETE", f"/revocations/{revoked.json['id']}", credential=kkp.root_key)
    assert lifted.status == 200, lifted.raw
    assert (await log_in(kkp)).status == 200
    assert (await kkp.get("/identities", credential=value)).status == 200
    assert (await kkp.post("/envelope/encrypt", sealing, credential=token)).status == 200


async def test_a_person_who_is_revoked_at_one_replica_does_not_log_in_at_another(tmp_path: Path) -> None:
    async with running(tmp_path) as one, running(tmp_path) as two:
        name = await add_person(one)
        assert (await log_in(two)).status == 200
        revocation = {"kind": "identity", "name": name}
        assert (await one.post("/revocations", revocation, credential=one.root_key)).status == 200
        assert (await log_in(two)).problem() == "unauthenticated"


async def test_a_person_who_does_not_exist_can_not_be_revoked(kkp: KKP) -> None:
    await add_person(kkp)
    revocation = {"kind": "identity", "name": "user:0123456789abcdef"}
    answer = await kkp.post("/revocations", revocation, credential=kkp.root_key)
    assert (answer.status, answer.problem()) == (404, "not_found")


async def test_logging_out_ends_one_session_and_leaves_another(kkp: KKP) -> None:
    await add_person(kkp, roles=("admin",))
    first, second = await session(kkp), await session(kkp)
    await kkp.post("/logout", credential=first)
    assert (await kkp.get("/identities", credential=first)).problem() == "token_invalid"
    assert (await kkp.get("/identities", credential=second)).status == 200


async def test_only_a_person_logs_out(kkp: KKP) -> None:
    assert (await kkp.post("/logout", credential=kkp.root_key)).problem() == "policy_denied"
    await add_person(kkp, roles=("admin",))
    token = await kkp.token(await session(kkp))
    assert (await kkp.post("/logout", credential=token)).problem() == "scope_mismatch"


async def test_what_ends_a_session_on_one_replica_ends_it_on_another(tmp_path: Path) -> None:
    async with running(tmp_path) as one, running(tmp_path) as two:
        name = await add_person(one, roles=("admin",))
        first, second, third = await session(one), await session(two), await session(two)
        for replica in (one, two):
            for value in (first, second, third):
                assert (await replica.get("/identities", credential=value)).status == 200
        await one.post("/logout", credential=first)
        assert (await two.get("/identities", credential=first)).problem() == "token_invalid"
        document = {"password": PASSWORD, "new_password": OTHER_PASSWORD}
        assert (await two.post("/account/password", document, credential=second)).status == 200
        assert (await one.get("/identities", credential=third)).problem() == "token_invalid"
        assert (await log_in(one)).status == 401
        fourth = await session(one, password=OTHER_PASSWORD)
        await operate(one, DisableAccount(directory(one), one.services.pipeline._clock), name)
        assert (await two.get("/identities", credential=fourth)).problem() == "token_invalid"
        assert (await log_in(two, password=OTHER_PASSWORD)).status == 401


async def test_a_code_that_was_used_at_one_replica_is_used_at_another(tmp_path: Path) -> None:
    async with running(tmp_path) as one, running(tmp_path) as two:
        code = await invite(one)
        answers = await asyncio.gather(*(sign_up(replica, code) for replica in (one, two) * MAX_OF_ADDRESS))
        assert sorted(answer.status for answer in answers) == [201, 401, 401, 401]


# A session and a KKP token are never taken for one another.


async def test_a_session_is_no_token_wherever_one_is_wanted(kkp: KKP) -> None:
    await add_person(kkp, roles=("admin",))
    value = await session(kkp)
    envelope = await kkp.seal(kkp.root_key)
    for credential in (None, kkp.root_key, value):
        opened = await kkp.post(
            "/envelope/decrypt", {"envelope": envelope, "token": value}, credential=credential
        )
        assert opened.problem() == "token_invalid"
    # Alone it says who is calling, and that is not enough to open anything.
    alone = await kkp.post("/envelope/decrypt", {"envelope": envelope}, credential=value)
    assert alone.problem() == "unauthenticated"
    for path, expected in (("/token/introspect", {"active": False}), ("/token/revoke", {})):
        answer = await kkp.post(path, {"token": value}, credential=kkp.root_key)
        assert (answer.status, answer.json) == (200, expected)
    assert (await kkp.get("/identities", credential=value)).status == 200


async def test_a_token_beside_ones_session_opens(kkp: KKP) -> None:
    await add_person(kkp, roles=("admin",))
    value = await session(kkp)
    token, envelope = await kkp.token(value), await kkp.seal(value)
    opened = await kkp.post("/envelope/decrypt", {"envelope": envelope, "token": token}, credential=value)
    assert (opened.status, opened.json["plaintext"]) == (200, "hello")


async def test_an_altered_session_is_no_credential(kkp: KKP) -> None:
    await add_person(kkp, roles=("admin",))
    header, claims, signature = (await session(kkp)).split(".")
    other = (await kkp.token(kkp.root_key)).split(".")
    for altered in (
        f"{header}.{claims}.{signature[:-8]}AAAAAAAA",
        f"{header}.{other[1]}.{other[2]}",
        f"{other[0]}.{claims}.{signature}",
        f"{header}.{claims}.{signature}.{signature}",
        f"{header}.{claims}=.{signature}",
        f"{header}.{claims}",
        f"{header}.",
    ):
        assert (await kkp.get("/identities", credential=altered)).status == 401, altered


# Signing up.


async def test_a_code_is_good_once(kkp: KKP) -> None:
    code = await invite(kkp)
    assert (await sign_up(kkp, code)).status == 201
    assert refused(await sign_up(kkp, code, password=OTHER_PASSWORD))[:2] == (401, "unauthenticated")
    assert (await log_in(kkp, password=OTHER_PASSWORD)).status == 401
    assert (await log_in(kkp)).status == 200


async def test_nothing_tells_why_a_code_is_not_good(kkp: KKP, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = await invite(kkp)
    assert (await sign_up(kkp, taken)).status == 201
    expired = await invite(kkp, "late@example.com", expires_at=2.0)
    good = await invite(kkp, "bob@example.com")
    hashes = Hashes(monkeypatch)
    answers = [
        await sign_up(kkp, taken),
        await sign_up(kkp, new_code()),
        await sign_up(kkp, expired, "late@example.com"),
        await sign_up(kkp, good, "nobody@example.com"),
        await sign_up(kkp, new_code(), "bob@example.com"),
        await sign_up(kkp, new_code(), "nobody@example.com"),
    ]
    assert hashes.take() == len(answers)
    assert {json.dumps(without_ids(answer)) for answer in answers} == {json.dumps(without_ids(answers[0]))}
    assert len({len(answer.raw) for answer in answers}) == 1
    assert (await sign_up(kkp, good, "bob@example.com")).status == 201


async def test_without_a_code_nobody_signs_up_unless_that_is_set(kkp: KKP) -> None:
    assert refused(await sign_up(kkp, None))[:2] == (400, "invalid_request")
    assert directory(kkp).all() == []


async def test_where_it_is_open_nobody_learns_who_has_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, KKP_SIGNUP="open") as kkp:
        await add_person(kkp, "old@example.com", roles=("admin",))
        await invite(kkp, "invited@example.com")
        hashes, answers, epochs = Hashes(monkeypatch), [], []
        for email in ("old@example.com", "invited@example.com", "new@example.com"):
            before = directory(kkp).epoch
            answers.append(await sign_up(kkp, None, email, OTHER_PASSWORD))
            epochs.append(directory(kkp).epoch - before)
        assert [(answer.status, answer.raw) for answer in answers] == [(201, b"{}")] * 3
        assert (hashes.take(), epochs) == (3, [1, 1, 1])  # one hash and one transaction, whatever it is
        assert (await log_in(kkp, "old@example.com", OTHER_PASSWORD)).status == 401
        assert (await log_in(kkp, "invited@example.com", OTHER_PASSWORD)).status == 401
        assert (await log_in(kkp, "old@example.com")).status == 200
        new = await session(kkp, "new@example.com", OTHER_PASSWORD)
        assert (await kkp.get("/identities", credential=new)).problem() == "policy_denied"


async def test_where_there_are_as_many_accounts_as_may_be_everybody_is_told_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.authn.accounts.MAX_ACCOUNTS", 1)
    async with running(tmp_path, KKP_SIGNUP="open") as kkp:
        await add_person(kkp)
        told = [refused(await sign_up(kkp, None, email)) for email in (EMAIL, "new@example.com")]
        assert told[0] == told[1]
        assert told[0][:2] == (409, "conflict")


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({"email": "ann"}, id="no address"),
        pytest.param({"email": "ann@"}, id="no domain"),
        pytest.param({"email": "an n@example.com"}, id="a space"),
        pytest.param({"email": "ann@example.com\n"}, id="a newline at the end"),
        pytest.param({"email": "\u0430nn@example.com"}, id="a letter that looks like another"),
        pytest.param({"email": f"{'a' * 65}@example.com"}, id="a name that is too long"),
        pytest.param({"email": f"a@{'b.' * 126}c"}, id="an address that is too long"),
        pytest.param({"email": ["ann@example.com"]}, id="a list"),
        pytest.param({"password": "seven77"}, id="seven characters"),
        pytest.param({"password": "x" * 1025}, id="too many characters"),
        pytest.param({"password": "\u00e4b" * 400}, id="too many bytes"),
        pytest.param({"password": "lamp \ud800 lamps"}, id="no Unicode"),
        pytest.param({"password": 12345678}, id="a number"),
        pytest.param({"password": "aaaaaaaaaaaa"}, id="one character"),
        pytest.param({"password": "Password123!"}, id="a common one"),
        pytest.param({"password": "p@ssw0rd"}, id="a common one in disguise"),
        pytest.param({"password": "12345678"}, id="a run"),
        pytest.param({"password": "adminadmin"}, id="a word twice"),
        pytest.param({"password": "ann@example.com"}, id="the address"),
        pytest.param({"password": "example2026"}, id="the domain and a year"),
        pytest.param({"code": "kkp_ec_short"}, id="no code"),
        pytest.param({"role": "admin"}, id="a wish"),
    ],
)
async def test_what_is_malformed_is_refused_before_anything_is_hashed(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, members: dict[str, Any]
) -> None:
    code, hashes = await invite(kkp), Hashes(monkeypatch)
    document = {"email": EMAIL, "password": PASSWORD, "code": code, **members}
    answer = await kkp.post("/signup", document)
    assert refused(answer)[:2] == (400, "invalid_request")
    assert not any(str(value) in answer.raw.decode() for value in members.values())
    assert hashes.take() == 0
    assert (await sign_up(kkp, code)).status == 201


@pytest.mark.parametrize(
    "password", ["seven777", "\U0001f511\U0001f512\U0001f513\U0001f514" * 2, " lots of space ", "x1y2z3a4"]
)
async def test_what_is_just_long_enough_is_taken(kkp: KKP, password: str) -> None:
    code = await invite(kkp)
    assert (await sign_up(kkp, code, password=password)).status == 201
    assert (await log_in(kkp, password=password)).status == 200


# Nobody learns by trying who has an account.


async def test_every_login_that_fails_is_answered_and_costs_the_same(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_person(kkp)
    fired = await add_person(kkp, "fired@example.com")
    await operate(kkp, DisableAccount(directory(kkp), kkp.services.pipeline._clock), fired)
    await invite(kkp, "invited@example.com")
    hashes, answers = Hashes(monkeypatch), []
    for email, password in (
        (EMAIL, OTHER_PASSWORD),
        ("nobody@example.com", PASSWORD),
        ("fired@example.com", PASSWORD),
        ("invited@example.com", PASSWORD),
    ):
        answers.append(await log_in(kkp, email, password))
        assert hashes.take() == 1, email
    assert {(answer.status, json.dumps(without_ids(answer)), len(answer.raw)) for answer in answers} == {
        (401, json.dumps(without_ids(answers[0])), len(answers[0].raw))
    }
    assert {tuple(sorted(answer.headers)) for answer in answers} == {tuple(sorted(answers[0].headers))}


async def test_what_is_hashed_for_nobody_costs_what_a_real_password_does(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_person(kkp)
    verified: list[str] = []
    ask = Passwords._ask

    async def noting(passwords: Passwords, question: Mapping[str, str | None]) -> Any:
        verified.append(question["kept"] or "")
        return await ask(passwords, question)

    monkeypatch.setattr(Passwords, "_ask", noting)
    for email in (EMAIL, "nobody@example.com"):
        await log_in(kkp, email, OTHER_PASSWORD)
    real, decoy = verified
    assert real.split("$")[1:4] == decoy.split("$")[1:4] == ["argon2id", "v=19", "m=19456,t=2,p=1"]
    assert len(real) == len(decoy)


# How often one may try.


async def tried(kkp: KKP, address: str, email: str = EMAIL, password: str = OTHER_PASSWORD) -> Answer:
    headers = {"X-Forwarded-For": address}
    return await kkp.request("POST", "/login", json={"email": email, "password": password}, headers=headers)


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.com"])
async def test_an_address_that_guesses_is_refused_for_a_while_and_another_is_not(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, email: str
) -> None:
    await add_person(kkp)
    answers = [await tried(kkp, "192.0.2.1", email) for _ in range(ADDRESS_GUESSES)]
    assert {answer.status for answer in answers} == {401}
    hashes = Hashes(monkeypatch)
    answer = await tried(kkp, "192.0.2.1", "another@example.com")
    assert (answer.status, answer.problem()) == (429, "rate_limited")
    assert 60 < int(answer.headers["Retry-After"]) <= 120
    assert hashes.take() == 0
    assert (await tried(kkp, "192.0.2.2", email)).status == 401


async def test_an_ipv6_customer_is_one_address(kkp: KKP) -> None:
    for number in range(ADDRESS_GUESSES):
        assert (await tried(kkp, f"2001:db8:0:1::{number:x}", f"{number}@example.com")).status == 401
    assert (await tried(kkp, "2001:db8:0:1:ffff::1")).status == 429
    assert (await tried(kkp, "2001:db8:0:2::1")).status == 401


@pytest.mark.parametrize("email", [EMAIL, "nobody@example.com"])
async def test_an_account_that_is_guessed_at_from_everywhere_is_closed_to_strangers(
    kkp: KKP, email: str
) -> None:
    await add_person(kkp)
    for number in range(ACCOUNT_GUESSES):
        assert (await tried(kkp, f"192.0.2.{number}", email)).status == 401
    assert (await tried(kkp, "192.0.2.200", email, PASSWORD)).status == 429
    assert (await tried(kkp, "192.0.2.201", "another@example.com")).status == 401


async def test_who_logged_in_from_there_before_is_not_kept_out_by_strangers(kkp: KKP) -> None:
    await add_person(kkp)
    assert (await tried(kkp, "198.51.100.1", password=PASSWORD)).status == 200
    for number in range(ACCOUNT_GUESSES):
        await tried(kkp, f"203.0.113.{number}")
    assert (await tried(kkp, "203.0.113.200", password=PASSWORD)).status == 429
    assert (await tried(kkp, "198.51.100.1", password=PASSWORD)).status == 200


async def test_what_succeeds_does_not_count(kkp: KKP) -> None:
    await add_person(kkp)
    for _ in range(ADDRESS_GUESSES + 1):
        assert (await tried(kkp, "192.0.2.1", password=PASSWORD)).status == 200


async def test_who_has_a_session_can_not_guess_at_the_password_without_end(kkp: KKP) -> None:
    await add_person(kkp)
    value, statuses = await session(kkp), Counter[int]()
    for _ in range(ADDRESS_GUESSES + 1):
        document = {"password": "not the password", "new_password": OTHER_PASSWORD}
        statuses[(await kkp.post("/account/password", document, credential=value)).status] += 1
    assert statuses == {401: ADDRESS_GUESSES, 429: 1}
    assert (await kkp.get("/identities", credential=value)).problem() == "policy_denied"


async def test_signing_up_is_limited_by_address(kkp: KKP) -> None:
    for _ in range(ADDRESS_GUESSES):
        assert (await sign_up(kkp, new_code())).status == 401
    assert (await sign_up(kkp, await invite(kkp))).status == 429


async def test_when_too_many_wait_the_next_is_refused_at_once_and_leaves_no_record(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_person(kkp)
    value = await session(kkp)
    waiting = Counter(str(number) for number in range(MAX_WAITING))
    monkeypatch.setattr(kkp.services.log_in._passwords, "_waiting", waiting)
    records = len(await kkp.records())
    for answer in (
        await log_in(kkp),
        await sign_up(kkp, new_code()),
        await kkp.post(
            "/account/password", {"password": PASSWORD, "new_password": OTHER_PASSWORD}, credential=value
        ),
    ):
        assert (answer.status, answer.problem()) == (429, "rate_limited")
        assert answer.headers["Retry-After"] == "1"
    assert len(await kkp.records()) == records + 1  # that of the first reading
    del waiting["0"]
    assert (await log_in(kkp)).status == 200


class Held:
    """Lets no password be checked before it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._released = asyncio.Event()
        ask = Passwords._ask

        async def held(passwords: Passwords, question: Mapping[str, str | None]) -> Any:
            await self._released.wait()
            return await ask(passwords, question)

        monkeypatch.setattr(Passwords, "_ask", held)

    async def all_but(self, waiting: int, asked: list[asyncio.Task[Answer]]) -> list[Answer]:
        """Return the answers that come while nothing is checked, to all but so many."""
        return [await each for _, each in zip(asked[waiting:], asyncio.as_completed(asked), strict=False)]

    def release(self) -> None:
        self._released.set()


@pytest.mark.parametrize("addresses", ["192.0.2.1", "2001:db8:0:1::{0:x}"])
async def test_one_address_with_the_right_password_keeps_no_other_from_logging_in(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch, addresses: str
) -> None:
    await add_person(kkp)
    await add_person(kkp, "bob@example.com")
    assert (await tried(kkp, addresses.format(0), password=PASSWORD)).status == 200
    held = Held(monkeypatch)
    many = [
        asyncio.create_task(tried(kkp, addresses.format(number), password=PASSWORD))
        for number in range(MAX_WAITING)
    ]
    answers = await held.all_but(MAX_OF_ADDRESS, many)
    assert {(each.status, each.problem(), each.headers["Retry-After"]) for each in answers} == {
        (429, "rate_limited", "1")
    }
    bob = asyncio.create_task(tried(kkp, "2001:db8:0:2::1", "bob@example.com", PASSWORD))
    held.release()
    assert (await bob).status == 200
    assert Counter([(await each).status for each in many]) == {
        200: MAX_OF_ADDRESS,
        429: MAX_WAITING - MAX_OF_ADDRESS,
    }


async def test_strangers_who_fill_the_queue_leave_room_for_who_logged_in_from_there_before(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_person(kkp)
    assert (await tried(kkp, "198.51.100.1", password=PASSWORD)).status == 200
    held = Held(monkeypatch)
    strangers = [
        asyncio.create_task(tried(kkp, f"2001:db8:0:{number:x}::1", f"{number}@example.com"))
        for number in range(2 * MAX_WAITING)
    ]
    answers = await held.all_but(MAX_STRANGERS, strangers)
    assert {each.status for each in answers} == {429}
    assert (await tried(kkp, "198.51.100.2", password=PASSWORD)).status == 429
    ann = asyncio.create_task(tried(kkp, "198.51.100.1", password=PASSWORD))
    held.release()
    assert (await ann).status == 200
    assert Counter([(await each).status for each in strangers])[401] == MAX_STRANGERS


async def test_what_is_refused_at_the_door_is_on_record_in_aggregate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as kkp:
        for _ in range(ADDRESS_GUESSES + 2):
            await log_in(kkp)
        waiting = Counter(str(number) for number in range(MAX_WAITING))
        monkeypatch.setattr(kkp.services.log_in._passwords, "_waiting", waiting)
        await log_in(kkp)
        path = kkp.settings.database_path
    with sqlite3.connect(path) as connection:
        bodies = connection.execute("SELECT body FROM audit_records ORDER BY position").fetchall()
    records = [json.loads(body) for (body,) in bodies]
    (record,) = (record for record in records if record["type"] == "rate_limited")
    assert (record["caller"], record["count"]) == ("anonymous", 3)
    assert sum(record.get("action") == "log_in" for record in records) == ADDRESS_GUESSES


async def test_who_signs_up_with_a_good_code_has_guessed_nothing(kkp: KKP) -> None:
    for number in range(ADDRESS_GUESSES + 1):
        code = await invite(kkp, f"{number}@example.com")
        assert (await sign_up(kkp, code, f"{number}@example.com")).status == 201


# Changing one's password.


async def test_a_person_changes_their_password_by_the_one_before_it(kkp: KKP) -> None:
    await add_person(kkp)
    value = await session(kkp)
    wrong = {"password": OTHER_PASSWORD, "new_password": "ten red bells"}
    assert (await kkp.post("/account/password", wrong, credential=value)).status == 401
    weak = {"password": PASSWORD, "new_password": "password1"}
    assert (await kkp.post("/account/password", weak, credential=value)).status == 400
    right = {"password": PASSWORD, "new_password": OTHER_PASSWORD}
    assert (await kkp.post("/account/password", right, credential=value)).status == 200
    assert (await log_in(kkp)).status == 401
    assert (await log_in(kkp, password=OTHER_PASSWORD)).status == 200


async def test_nobody_else_changes_a_password(kkp: KKP) -> None:
    await add_person(kkp, roles=("admin",))
    document = {"password": PASSWORD, "new_password": OTHER_PASSWORD}
    token = await kkp.token(await session(kkp))
    assert (await kkp.post("/account/password", document)).status == 401
    assert (
        await kkp.post("/account/password", document, credential=kkp.root_key)
    ).problem() == "policy_denied"
    assert (await kkp.post("/account/password", document, credential=token)).problem() == "scope_mismatch"
    assert (await log_in(kkp)).status == 200


# What is on record, and what is stored.


async def test_what_people_do_and_fail_to_do_is_on_record_and_no_address_is(kkp: KKP) -> None:
    code = await invite(kkp)
    await kkp.services.pipeline._state.refresh()
    await sign_up(kkp, new_code())
    await sign_up(kkp, code)
    await log_in(kkp, password=OTHER_PASSWORD)
    value = await session(kkp)
    await kkp.post("/logout", credential=value)
    records = await kkp.records()
    decisions = {record["seq"]: record for record in records if record["type"] == "decision"}
    outcomes = {
        int(record["ref"].split(":")[1]): record["result"]
        for record in records
        if record["type"] == "outcome"
    }
    told = [
        (record["action"], record["caller"], record["method"], outcomes.get(seq))
        for seq, record in decisions.items()
        if record["action"] in {"sign_up", "log_in", "log_out"}
    ]
    claims = jwt.decode(value, options={"verify_signature": False})
    assert told == [
        ("sign_up", "anonymous", "none", "unauthenticated"),
        ("sign_up", "anonymous", "none", None),
        ("log_in", "anonymous", "none", "unauthenticated"),
        ("log_in", "anonymous", "none", None),
        ("log_out", claims["sub"], "session", None),
    ]
    logins = [record for record in decisions.values() if record["action"] == "log_in"]
    assert logins[1]["jti"] == claims["jti"]  # so that a session leads to its login
    assert logins[0]["private"]["email"] == logins[1]["private"]["email"]
    assert {"email", "sub"} == logins[0]["private"].keys()
    assert EMAIL not in json.dumps(records)


async def test_what_people_send_and_are_given_comes_out_nowhere(
    kkp: KKP, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    code = await invite(kkp)
    await sign_up(kkp, code)
    value = await session(kkp)
    await log_in(kkp, password=OTHER_PASSWORD)
    await kkp.get("/identities", credential=value)
    changed = {"password": PASSWORD, "new_password": OTHER_PASSWORD}
    await kkp.post("/account/password", changed, credential=value)
    await kkp.post("/logout", credential=await session(kkp, password=OTHER_PASSWORD))
    with sqlite3.connect(kkp.settings.database_path) as connection:
        stored = b"".join(body for (body,) in connection.execute("SELECT body FROM audit_records"))
    output = capfd.readouterr()
    shown = b"\n".join((stored, caplog.text.encode(), output.out.encode(), output.err.encode()))
    for secret in (EMAIL, PASSWORD, OTHER_PASSWORD, code, value, value.rpartition(".")[2]):
        assert not any(spelling in shown for spelling in spellings(secret.encode())), secret


async def test_a_copy_of_the_database_shows_neither_addresses_nor_hashes_nor_roles(kkp: KKP) -> None:
    await add_person(kkp, roles=("admin",))
    await invite(kkp, "invited@example.com")
    with sqlite3.connect(kkp.settings.database_path) as connection:
        rows = connection.execute("SELECT * FROM accounts").fetchall()
        dump = "\n".join(connection.iterdump())
    assert len(rows) == 2
    assert all(account.startswith("user:") for account, _epoch, _sealed in rows)
    for told in ("example.com", "argon2id", PASSWORD):
        assert told not in dump
        assert told.encode().hex() not in dump.lower()


async def test_a_row_that_was_altered_by_hand_lets_no_person_in_and_is_told_by_readyz(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as kkp:
        name = await add_person(kkp, roles=("admin",))
        value, path = await session(kkp), kkp.settings.database_path
        with sqlite3.connect(path) as connection:
            connection.execute(
                "UPDATE accounts SET sealed = zeroblob(100), epoch = 1000 WHERE id = ?", (name,)
            )
            connection.execute("UPDATE state SET epoch = 1001")
            connection.execute("INSERT INTO epochs VALUES (1001, randomblob(16))")
        assert (await kkp.get("/identities", credential=value)).problem() == "keyring_unavailable"
        assert (await log_in(kkp)).problem() == "keyring_unavailable"
        ready = await kkp.get("/readyz")
        assert (ready.status, ready.json["checks"]["accounts"] == "ok") == (503, False)


async def test_a_planted_account_is_nobodys(kkp: KKP) -> None:
    """Attack: whoever can write to the database copies their own row under another name."""
    name = await add_person(kkp)
    with sqlite3.connect(kkp.settings.database_path) as connection:
        connection.execute(
            "INSERT INTO accounts SELECT 'user:0000000000000000', 1000, sealed FROM accounts WHERE id = ?",
            (name,),
        )
    people = directory(kkp)
    with pytest.raises(Exception, match="failed its authentication"):
        await people.load()
    assert not people.knows("user:0000000000000000")


async def test_an_account_that_changes_while_its_password_is_changed_is_left_alone(
    kkp: KKP, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await add_person(kkp)
    value, hashing = await session(kkp), Passwords.hash

    async def slow(passwords: Passwords, password: str, waiter: Waiter) -> str:
        await directory(kkp).change(name, lambda account: replace(account, generation=account.generation + 1))
        return await hashing(passwords, password, waiter)

    monkeypatch.setattr(Passwords, "hash", slow)
    document = {"password": PASSWORD, "new_password": OTHER_PASSWORD}
    assert (await kkp.post("/account/password", document, credential=value)).problem() == "conflict"
    assert (await log_in(kkp)).status == 200
