"""Passwords: which are taken, and that one is hashed at a time, in a process of its own, for so many."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from argon2.exceptions import HashingError

from kkp.authn import hashing, passwords
from kkp.authn.passwords import (
    MAX_OF_ADDRESS,
    MAX_STRANGERS,
    MAX_WAITING,
    Passwords,
    Waiter,
    check_new,
    normalised,
)
from kkp.errors import InvalidRequestError, KeyringUnavailableError, PasswordsBusyError

EMAIL = "ann.miller@example.com"


@pytest.mark.parametrize(
    "password",
    [
        "seven777",
        "x" + "yz" * 5,
        "\U0001f511\U0001f512\U0001f513\U0001f514" * 2,
        "a sentence of some words",
        "ann saw it",
        "password manager of mine",
        "Tr0ub4dor&3",
        "\u00e4" + "bcd" * 340 + "ef",
    ],
)
def test_what_few_would_guess_is_taken(password: str) -> None:
    check_new(password, EMAIL)


@pytest.mark.parametrize(
    "password",
    [
        "",
        "seven77",
        "\u00e4" * 7,
        "xyz" * 342,
        "\u00e4" + "bcd" * 340 + "efg",
        "aaaaaaaa",
        "abababab",
        "abcdefgh",
        "34567890",
        "QWERTYUI",
        "1qaz2wsx",
        "password",
        "PASSWORD",
        "Password2026!",
        "p4$$w0rd",
        "12password34",
        "letmein1",
        "lovelovelove",
        "iloveyou!",
        "correcthorsebatterystaple",
        "ann.miller",
        "miller99",
        "ann.miller@example.com",
        "EXAMPLE.COM",
        "\uff50\uff41\uff53\uff53\uff57\uff4f\uff52\uff44",
    ],
)
def test_what_is_too_short_too_long_or_tried_first_is_not(password: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check_new(password, EMAIL)
    assert str(refusal.value).startswith(("A password has ", "The password is among the first "))


def test_a_password_is_normalised_to_nfkc_and_is_utf_8() -> None:
    assert normalised("cafe\u0301 \ufb01") == "caf\u00e9 fi".encode()
    with pytest.raises(InvalidRequestError):
        normalised("\ud800")


@pytest.fixture(autouse=True)
def unrested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nobody wait but where that is what a test is about."""
    monkeypatch.setattr(passwords, "REST_SECONDS", 0)


@pytest.fixture
async def hasher() -> AsyncIterator[Passwords]:
    async with aclosing(Passwords()) as hasher:
        yield hasher


async def test_a_password_matches_what_was_kept_of_it_and_nothing_else_does(hasher: Passwords) -> None:
    first, second = await hasher.hash("seven777"), await hasher.hash("seven777")
    assert first != second
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hasher.matches(first, "seven777")
    assert not await hasher.matches(first, "seven778")
    assert not await hasher.matches(None, "seven777")


async def test_nothing_matches_the_decoy_not_even_what_would(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "_DECOY", await hasher.hash("seven777"))
    assert not await hasher.matches(None, "seven777")


async def test_passwords_are_hashed_in_a_process_that_lets_others_go_first_and_knows_nothing(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KKP_MASTER_KEY", "a secret of this process")
    await hasher.hash("seven777")
    assert hasher._process is not None
    process = Path(f"/proc/{hasher._process.pid}")
    assert os.getpriority(os.PRIO_PROCESS, hasher._process.pid) == 19
    assert (process / "environ").read_bytes() == b""
    assert (process / "cwd").resolve() == Path("/")
    assert re.search(r"^Max core file size +0 +0 ", (process / "limits").read_text(), re.MULTILINE)
    assert b"seven777" not in (process / "cmdline").read_bytes()


def known(number: int) -> Waiter:
    return Waiter(f"198.51.100.{number}", is_known=True)


def stranger(number: int) -> Waiter:
    return Waiter(f"192.0.2.{number}")


class Line:
    """Who waits for a password, none of which is checked before the line is let go."""

    def __init__(self) -> None:
        self.refusals = 0
        self.passwords = Passwords(self._count)
        self._waiting: list[asyncio.Future[bool]] = []

    def _count(self) -> None:
        self.refusals += 1

    async def takes(self, *waiters: Waiter) -> list[bool]:
        """Tell who of them may wait; who may not is refused at once."""
        asked = [asyncio.ensure_future(self.passwords.matches(None, "seven777", each)) for each in waiters]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert all(isinstance(each.exception(), PasswordsBusyError) for each in asked if each.done())
        self._waiting += [each for each in asked if not each.done()]
        return [not each.done() for each in asked]

    async def aclose(self) -> None:
        assert await asyncio.gather(*self._waiting) == [False] * len(self._waiting)
        assert not self.passwords._waiting
        await self.passwords.aclose()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    async with aclosing(Line()) as line:
        yield line


async def test_as_many_wait_as_may_and_the_next_is_refused_at_once(line: Line) -> None:
    assert all(await line.takes(*(known(number) for number in range(MAX_WAITING))))
    for asked in (
        line.passwords.hash("seven777"),
        line.passwords.matches("kept", "seven777"),
        line.passwords.matches(None, "x", known(100)),
        line.passwords.matches(None, "x", stranger(100)),
    ):
        with pytest.raises(PasswordsBusyError) as refusal:
            await asked
        assert refusal.value.retry_after_seconds == 1
        assert str(refusal.value) == "Too many passwords wait to be checked; try again later."
    with pytest.raises(PasswordsBusyError):
        line.passwords.check_room()
    assert line.refusals == 5


@pytest.mark.parametrize("whose", [known, stranger])
async def test_of_one_address_so_many_wait_and_of_another_as_many(
    line: Line, whose: Callable[[int], Waiter]
) -> None:
    told = await line.takes(*[whose(1)] * MAX_WAITING)
    assert told == [True] * MAX_OF_ADDRESS + [False] * (MAX_WAITING - MAX_OF_ADDRESS)
    with pytest.raises(PasswordsBusyError):
        line.passwords.check_room(whose(1))
    assert await line.takes(*[whose(2)] * MAX_OF_ADDRESS) == [True] * MAX_OF_ADDRESS


async def test_an_address_that_is_done_waiting_may_wait_again(line: Line) -> None:
    assert all(await line.takes(*[known(1)] * MAX_OF_ADDRESS))
    await asyncio.gather(*line._waiting)
    assert all(await line.takes(*[known(1)] * MAX_OF_ADDRESS))


@pytest.mark.parametrize("is_sign_up", [True, False])
async def test_after_a_guess_no_stranger_is_taken_for_a_while_and_who_is_known_is(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch, *, is_sign_up: bool
) -> None:
    kept = await hasher.hash("seven777")
    monkeypatch.setattr(passwords, "REST_SECONDS", 3600)
    if is_sign_up:  # which may come with a code that is a guess
        await hasher.hash("seven777", stranger(1))
    else:
        assert not await hasher.matches(kept, "seven778", stranger(1))
    second = asyncio.ensure_future(hasher.matches(kept, "seven777", stranger(2)))
    assert await hasher.matches(kept, "seven777", known(1))
    assert not await hasher.matches(kept, "seven778", known(1))
    assert await hasher.matches(kept, "seven777", known(1))
    assert not second.done()
    second.cancel()
    await asyncio.wait([second])
    assert not hasher._waiting


async def test_after_a_right_password_the_next_stranger_is_taken_at_once(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await hasher.hash("seven777")
    monkeypatch.setattr(passwords, "REST_SECONDS", 3600)
    for number in range(3):
        assert await hasher.matches(kept, "seven777", stranger(number))


async def test_after_the_rest_a_stranger_is_taken_again(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "REST_SECONDS", 0.05)
    kept = await hasher.hash("seven777")
    told = [await hasher.matches(kept, f"seven77{number}", stranger(number)) for number in (6, 7, 8, 7)]
    assert told == [False, True, False, True]


async def test_however_many_strangers_wait_there_is_room_for_who_is_known(line: Line) -> None:
    told = await line.takes(*(stranger(number) for number in range(2 * MAX_WAITING)))
    assert told == [True] * MAX_STRANGERS + [False] * (2 * MAX_WAITING - MAX_STRANGERS)
    line.passwords.check_room(known(1))
    assert await line.takes(known(1), known(2), known(3)) == [True, True, False]


async def test_of_many_each_is_told_of_its_own(hasher: Passwords) -> None:
    kept = await hasher.hash("seven777")
    told = await asyncio.gather(
        *(
            hasher.matches(kept, f"seven77{number}", known(place))
            for place, number in enumerate((7, 8, 7, 9, 7, 6, 5, 7))
        )
    )
    assert told == [True, False, True, False, True, False, False, True]


async def test_who_leaves_has_nobody_else_told_what_was_theirs(hasher: Passwords) -> None:
    kept = await hasher.hash("seven777")
    leaving = asyncio.ensure_future(hasher.matches(kept, "seven777"))
    staying = asyncio.ensure_future(hasher.matches(kept, "seven778"))
    await asyncio.sleep(0.001)
    leaving.cancel()
    assert await staying is False
    assert await hasher.matches(kept, "seven777")


async def test_a_process_that_was_killed_is_started_anew(hasher: Passwords) -> None:
    kept = await hasher.hash("seven777")
    assert hasher._process is not None
    hasher._process.kill()
    await hasher._process.wait()
    with pytest.raises(KeyringUnavailableError, match="at the moment"):
        await hasher.matches(kept, "seven777")
    assert await hasher.matches(kept, "seven777")
    hasher.check_room()


async def test_a_process_that_does_not_answer_is_given_up(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hasher.hash("seven777")
    stopped = hasher._process
    assert stopped is not None
    stopped.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(KeyringUnavailableError, match="at the moment"):
        await hasher.hash("seven777")
    assert await stopped.wait() == -signal.SIGKILL
    monkeypatch.setattr(passwords, "_PATIENCE_SECONDS", 10)
    assert await hasher.hash("seven777")


async def test_where_no_process_can_be_started_it_is_told_that_passwords_can_not_be_checked(
    hasher: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nothing")
    with pytest.raises(KeyringUnavailableError, match="at the moment"):
        await hasher.hash("seven777")
    hasher.check_room()


@pytest.mark.parametrize("kept", ["nonsense", "$argon2id$v=19$m=19456,t=2,p=1$AAAA$AAAA"])
async def test_what_can_not_be_compared_is_no_match_and_no_crash(hasher: Passwords, kept: str) -> None:
    with pytest.raises(KeyringUnavailableError):
        await hasher.matches(kept, "seven777")
    assert not await hasher.matches(None, "seven777")


async def test_what_is_closed_leaves_no_process_behind() -> None:
    hasher = Passwords()
    await hasher.hash("seven777")
    process = hasher._process
    assert process is not None
    await hasher.aclose()
    assert process.returncode == -signal.SIGKILL
    await hasher.aclose()


async def test_the_process_ends_with_its_input(hasher: Passwords) -> None:
    await hasher.hash("seven777")
    process = hasher._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


# What the process answers, without the process.


def asked(password: str, kept: str | None) -> dict[str, Any]:
    line = hashing.answer(json.dumps({"password": password, "kept": kept}).encode())
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    told: dict[str, Any] = json.loads(line)
    return told


def test_a_line_is_answered_by_a_line() -> None:
    kept = asked("caf\u00e9\n", None)["kept"]
    assert asked("caf\u00e9\n", kept) == {"matches": True}
    assert asked("caf\u00e9", kept) == {"matches": False}
    assert asked("caf\u00e9", "nonsense") == {}


def test_without_memory_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise HashingError("Memory allocation error")

    monkeypatch.setattr("argon2.PasswordHasher.hash", fail)
    assert asked("seven777", None) == {}


def test_it_reads_to_the_end_and_steps_back_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Standard:
        def __init__(self, given: bytes = b"") -> None:
            self.buffer = io.BytesIO(given)

    done: list[object] = []
    monkeypatch.setattr("os.setpriority", lambda *priority: done.append(priority))
    monkeypatch.setattr("resource.setrlimit", lambda *limit: done.append(limit))
    monkeypatch.setattr("signal.signal", lambda *handled: done.append(handled))
    line = json.dumps({"password": "x", "kept": "nonsense"}).encode() + b"\n"
    out = Standard()
    monkeypatch.setattr("sys.stdin", Standard(line * 2))
    monkeypatch.setattr("sys.stdout", out)
    hashing.main()
    assert out.buffer.getvalue() == b"{}\n" * 2
    assert done == [(os.PRIO_PROCESS, 0, 19), (resource.RLIMIT_CORE, (0, 0)), (signal.SIGINT, signal.SIG_IGN)]
