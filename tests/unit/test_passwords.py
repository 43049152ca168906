"""Passwords: which are taken, and that one is hashed at a time, beside the loop, for so many at the most."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
from argon2.exceptions import HashingError

from kkp.authn import passwords
from kkp.authn.passwords import MAX_WAITING, Passwords, check_new, normalised
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


async def test_a_password_matches_what_was_kept_of_it_and_nothing_else_does() -> None:
    hasher = Passwords()
    first, second = await hasher.hash("seven777"), await hasher.hash("seven777")
    assert first != second
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert await hasher.matches(first, "seven777")
    assert not await hasher.matches(first, "seven778")
    assert not await hasher.matches(None, "seven777")
    hasher.close()


async def test_nothing_matches_the_decoy_not_even_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    hasher = Passwords()
    monkeypatch.setattr(passwords, "_DECOY", await hasher.hash("seven777"))
    assert not await hasher.matches(None, "seven777")
    hasher.close()


async def test_one_is_hashed_at_a_time_in_a_thread_that_lets_others_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher, at_work, seen = Passwords(), threading.Lock(), set[tuple[bool, str, int]]()

    def verify(_hasher: Passwords, _stored: str, _text: bytes) -> bool:
        alone = at_work.acquire(blocking=False)
        time.sleep(0.01)
        priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        seen.add((alone, threading.current_thread().name, priority))
        at_work.release()
        return True

    monkeypatch.setattr(Passwords, "_verify", verify)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    await asyncio.gather(*(hasher.matches("kept", "seven777") for _ in range(MAX_WAITING)))
    ((alone, name, priority),) = seen
    assert alone
    assert name.startswith("kkp-passwords")
    assert priority > before or before > 15
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    hasher.close()


async def test_where_no_thread_may_step_back_people_log_in_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.setpriority", refuse)
    hasher = Passwords()
    assert await hasher.matches(await hasher.hash("seven777"), "seven777")
    hasher.close()
    assert caplog.messages == [
        "passwords are hashed with the priority of everything else: Operation not permitted"
    ]


async def test_as_many_wait_as_may_and_the_next_is_refused_at_once() -> None:
    hasher, begin = Passwords(), threading.Event()
    waiting = [asyncio.ensure_future(hasher._in_turn(begin.wait)) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)
    hasher_is_full = [hasher.hash("seven777"), hasher.matches("kept", "seven777"), hasher.matches(None, "x")]
    for asked in hasher_is_full:
        with pytest.raises(PasswordsBusyError) as refusal:
            await asked
        assert refusal.value.retry_after_seconds == 1
        assert str(refusal.value) == "Too many passwords wait to be checked; try again later."
    with pytest.raises(PasswordsBusyError):
        hasher.check_room()
    begin.set()
    assert await asyncio.gather(*waiting) == [True] * MAX_WAITING
    hasher.check_room()
    hasher.close()


async def test_the_loop_goes_on_while_a_password_is_hashed() -> None:
    hasher, begin = Passwords(), threading.Event()
    waiting = asyncio.ensure_future(hasher._in_turn(begin.wait))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    begin.set()
    assert await waiting
    hasher.close()


@pytest.mark.parametrize("kept", ["nonsense", "$argon2id$v=19$m=19456,t=2,p=1$AAAA$AAAA"])
async def test_what_can_not_be_compared_is_no_match_and_no_crash(kept: str) -> None:
    hasher = Passwords()
    with pytest.raises(KeyringUnavailableError):
        await hasher.matches(kept, "seven777")
    hasher.check_room()
    hasher.close()


async def test_without_memory_it_is_told_that_it_can_not_be_checked_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> str:
        raise HashingError("Memory allocation error")

    hasher = Passwords()
    monkeypatch.setattr("argon2.PasswordHasher.hash", fail)
    with pytest.raises(KeyringUnavailableError, match="at the moment"):
        await hasher.hash("seven777")
    hasher.close()
