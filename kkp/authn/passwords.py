"""Passwords: which ones are taken, and how they are kept and compared.

The rules are those of NIST SP 800-63B section 5.1.1.2:
- 8 characters or more, up to 1,024 bytes of UTF-8, all of which count: nothing is cut off. No other rule of
  what must occur, and no expiry.
- Unicode is normalised to NFKC before anything else, so that one password is one on every keyboard.
- A new one is none that attackers try first: a list of them, one character repeated, a run of the keyboard or
  the alphabet, and what the e-mail address tells.

A password is kept as argon2id (RFC 9106), 19 MiB, two passes, one lane, with a random salt of its own; the
result is sealed with the rest of the account (`kkp.authn.accounts`), so that nobody can guess at a copy of
the database who has not got the master key.

Rules that hold here:
- One password is hashed at a time, in one thread beside the event loop, which takes the processor only when
  nothing else wants it: who guesses passwords slows down nothing but logins.
- At most MAX_WAITING wait for it, and the next is refused at once: memory and waiting are bounded.
- Where there is no password to compare with, a decoy is hashed, which nothing matches: it costs the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, final

from argon2 import PasswordHasher, Type
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

from kkp.errors import InvalidRequestError, KeyringUnavailableError, PasswordsBusyError

MIN_CHARACTERS: Final = 8
MAX_BYTES: Final = 1024
MAX_WAITING: Final = 8
_RETRY_SECONDS: Final = 1
_NICENESS: Final = 15
_MEMORY_KIB: Final = 19 * 1024
_PASSES: Final = 2
_LANES: Final = 1
_SHORTEST_TELLING: Final = 4  # a name of fewer letters occurs in passwords by chance
_FEW_CHARACTERS: Final = 2  # as in `aaaaaaaa` and `abababab`
# Of the form that is stored, and of no password: nobody knows what hashes to zeros.
_DECOY: Final = f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${'A' * 22}${'A' * 43}"
_RUNS: Final = (
    "abcdefghijklmnopqrstuvwxyz",
    "01234567890123456789",
    "09876543210987654321",
    "qwertyuiopasdfghjklzxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm",
    "1q2w3e4r5t6y7u8i9o0p",
    "qazwsxedcrfvtgbyhnujm",
)
# What lists of stolen passwords have most often. Repeated, with signs in the place of letters or with digits
# and marks around it, it is no other word.
_COMMON: Final = frozenset(
    """
    password passwort iloveyou iloveu sunshine princess football baseball basketball hockey soccer
    superman batman spiderman starwars trustno trustnoone whatever jennifer michelle samantha victoria
    elizabeth alexander benjamin jonathan christian charlotte letmein letmeinnow welcome welcomeback
    administrator admin root changeme changeit computer internet corvette mercedes maverick butterfly
    chocolate liverpool manchester barcelona metallica blink dragon dragonball pokemon minecraft google
    facebook linkedin microsoft secret mysecret topsecret default guest test testing demo user username
    qwerty qwertz asdf asdfghjkl zxcvbnm monkey shadow master hunter killer freedom summer winter spring
    autumn january february march april june july august september october november december monday
    friday hello helloworld login access abcd letsgo ninja mustang babygirl lovely loveme love cheese
    ginger correcthorsebatterystaple kkp
    """.split()  # noqa: SIM905  so many words read better without quotes
)
_SIGNS: Final = str.maketrans(
    {"0": "o", "1": "l", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s"}
)
_AROUND: Final = "0123456789!?.,-_#*+ "
ResultT = TypeVar("ResultT")
_log = logging.getLogger(__name__)


def normalised(password: str) -> bytes:
    """Return what is hashed.

    Raises:
        InvalidRequestError: It is too long, or no Unicode text.
    """
    try:
        encoded = unicodedata.normalize("NFKC", password).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError("The password is not Unicode text.") from None
    if len(encoded) > MAX_BYTES:
        raise InvalidRequestError(f"A password has up to {MAX_BYTES} bytes in UTF-8.")
    return encoded


def check_new(password: str, email: str) -> None:
    """Refuse a password that nobody should begin to use.

    Raises:
        InvalidRequestError: It is too short or too long, or attackers try it among the first.
    """
    text = normalised(password).decode()
    if len(text) < MIN_CHARACTERS:
        raise InvalidRequestError(f"A password has at least {MIN_CHARACTERS} characters.")
    if _is_obvious(text.casefold(), email):
        raise InvalidRequestError("The password is among the first that are tried; take another one.")


def _is_obvious(text: str, email: str) -> bool:
    told = {email, *email.split("@"), *re.split(r"[@.]", email)}
    words = _COMMON | {part for part in told if len(part) >= _SHORTEST_TELLING}
    bare = text.strip(_AROUND)
    return (
        len(set(text)) <= _FEW_CHARACTERS
        or any(text in run for run in _RUNS)
        or any(
            spelling == word * (len(spelling) // len(word))
            for spelling in (text, bare, bare.translate(_SIGNS))
            for word in words
        )
    )


@final
class Passwords:
    """Hashes and compares passwords, one at a time.

    Args:
        count_refusal: Told of each request that is refused because too many wait.
    """

    def __init__(self, count_refusal: Callable[[], None] = lambda: None) -> None:
        self._count_refusal = count_refusal
        self._hasher = PasswordHasher(
            time_cost=_PASSES, memory_cost=_MEMORY_KIB, parallelism=_LANES, type=Type.ID
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kkp-passwords", initializer=_step_back)
        self._waiting = 0

    def check_room(self) -> None:
        """Refuse to begin what would have to wait for too many others.

        Raises:
            PasswordsBusyError: As many passwords wait as may.
        """
        if self._waiting >= MAX_WAITING:
            self._count_refusal()
            raise PasswordsBusyError(_RETRY_SECONDS)

    async def hash(self, password: str) -> str:
        """Return what is to be kept of a password.

        Raises:
            InvalidRequestError: It is too long, or no Unicode text.
            PasswordsBusyError: As many passwords wait as may.
            KeyringUnavailableError: There is no memory for it.
        """
        text = normalised(password)
        return await self._in_turn(lambda: self._hasher.hash(text))

    async def matches(self, kept: str | None, unverified_password: str) -> bool:
        """Tell whether a password is the one that was kept; None: there is none, which takes as long to tell.

        Raises:
            InvalidRequestError: It is too long, or no Unicode text.
            PasswordsBusyError: As many passwords wait as may.
            KeyringUnavailableError: There is no memory for it.
        """
        text = normalised(unverified_password)
        stored = _DECOY if kept is None else kept
        return await self._in_turn(lambda: self._verify(stored, text)) and kept is not None

    def _verify(self, stored: str, text: bytes) -> bool:
        try:
            return self._hasher.verify(stored, text)
        except VerifyMismatchError:
            return False

    async def _in_turn(self, work: Callable[[], ResultT]) -> ResultT:
        self.check_room()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (HashingError, InvalidHashError, VerificationError) as error:
            raise KeyringUnavailableError("The password can't be checked at the moment.") from error
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread, once what it is at is done."""
        self._thread.shutdown(cancel_futures=True)


def _step_back() -> None:
    """Let everything else of this machine go first; on Linux a thread has a priority of its own."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    except OSError as error:  # a sandbox may forbid it, and people are to log in all the same
        _log.warning("passwords are hashed with the priority of everything else: %s", error.strerror)
