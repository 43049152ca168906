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
- One password is hashed at a time, in a process of its own (`kkp.authn.hashing`) that takes the processor
  only when nothing else wants it: who guesses passwords slows down nothing but logins. It is started with the
  first password, and anew if it ends.
- After whatever of a stranger's is no right password it takes none of a stranger's for REST_SECONDS. Hashing
  fills a core and the memory's bandwidth, and no priority gives that back: so guessing takes little of both.
- At most MAX_WAITING wait for it, and the next is refused at once: memory and waiting are bounded. Of one
  address MAX_OF_ADDRESS do, right passwords or wrong ones, and MAX_STRANGERS fill no more than their part, so
  that neither one address nor many of them keep out who is known.
- Where there is no password to compare with, a decoy is hashed, which nothing matches: it costs the same.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import unicodedata
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, final

import msgspec

from kkp.authn import hashing
from kkp.errors import InvalidRequestError, KeyringUnavailableError, PasswordsBusyError

MIN_CHARACTERS: Final = 8
MAX_BYTES: Final = 1024
MAX_WAITING: Final = 8
MAX_STRANGERS: Final = 6
MAX_OF_ADDRESS: Final = 2
REST_SECONDS: Final = 0.4  # several times what a hash takes
_RETRY_SECONDS: Final = 1
_PATIENCE_SECONDS: Final = 10.0  # of one that nobody gives the processor, or that has ended
_UNAVAILABLE: Final = "The password can't be checked at the moment."
_SHORTEST_TELLING: Final = 4  # a name of fewer letters occurs in passwords by chance
_FEW_CHARACTERS: Final = 2  # as in `aaaaaaaa` and `abababab`
# Of the form that is stored, and of no password: nobody knows what hashes to zeros.
_DECOY: Final = (
    f"$argon2id$v=19$m={hashing.MEMORY_KIB},t={hashing.PASSES},p={hashing.LANES}${'A' * 22}${'A' * 43}"
)
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


class Waiter(NamedTuple):
    """Who waits for a password to be hashed.

    Attributes:
        address: Where they come from, as `kkp.peers` counts it.
        is_known: Whether they have shown a right password before, there or for the session that they have.
    """

    address: str
    is_known: bool = False


AT_THE_MACHINE: Final = Waiter("", is_known=True)


@final
class Passwords:
    """Hashes and compares passwords, one at a time.

    Args:
        count_refusal: Told of each request that is refused because too many wait.
    """

    def __init__(self, count_refusal: Callable[[], None] = lambda: None) -> None:
        self._count_refusal = count_refusal
        self._waiting = Counter[str]()
        self._turn = asyncio.Lock()
        self._turn_of_strangers = asyncio.Lock()
        self._rested_at = 0.0
        self._process: Process | None = None

    def check_room(self, waiter: Waiter = AT_THE_MACHINE) -> None:
        """Refuse to begin what would have to wait for too many others.

        Raises:
            PasswordsBusyError: As many passwords wait as may, or as many of this address.
        """
        most = MAX_WAITING if waiter.is_known else MAX_STRANGERS
        if self._waiting.total() >= most or self._waiting[waiter.address] >= MAX_OF_ADDRESS:
            self._count_refusal()
            raise PasswordsBusyError(_RETRY_SECONDS)

    async def hash(self, password: str, waiter: Waiter = AT_THE_MACHINE) -> str:
        """Return what is to be kept of a password.

        Raises:
            InvalidRequestError: It is too long, or no Unicode text.
            PasswordsBusyError: As many passwords wait as may, or as many of this address.
            KeyringUnavailableError: It can't be hashed at the moment.
        """
        answer = await self._in_turn(normalised(password), None, waiter)
        if answer.kept is None:
            raise KeyringUnavailableError(_UNAVAILABLE)
        return answer.kept

    async def matches(
        self, kept: str | None, unverified_password: str, waiter: Waiter = AT_THE_MACHINE
    ) -> bool:
        """Tell whether a password is the one that was kept; None: there is none, which takes as long to tell.

        Raises:
            InvalidRequestError: It is too long, or no Unicode text.
            PasswordsBusyError: As many passwords wait as may, or as many of this address.
            KeyringUnavailableError: It can't be compared at the moment.
        """
        password = normalised(unverified_password)
        answer = await self._in_turn(password, _DECOY if kept is None else kept, waiter)
        if answer.matches is None:
            raise KeyringUnavailableError(_UNAVAILABLE)
        return answer.matches and kept is not None

    async def _in_turn(self, password: bytes, kept: str | None, waiter: Waiter) -> _Answer:
        self.check_room(waiter)
        self._waiting[waiter.address] += 1
        try:
            question = {"password": password.decode(), "kept": kept}
            if waiter.is_known:
                return await self._ask_alone(question)
            return await self._ask_as_stranger(question)
        finally:
            self._waiting -= Counter((waiter.address,))  # who has none waiting is forgotten

    async def _ask_as_stranger(self, question: Mapping[str, str | None]) -> _Answer:
        """Ask behind all other strangers; who is known has one of them ahead at the most."""
        time = asyncio.get_running_loop().time
        async with self._turn_of_strangers:
            await asyncio.sleep(self._rested_at - time())
            answer = await self._ask_alone(question)
            if not answer.matches:
                self._rested_at = time() + REST_SECONDS
            return answer

    async def _ask_alone(self, question: Mapping[str, str | None]) -> _Answer:
        async with self._turn:
            return await self._ask(question)

    async def _ask(self, question: Mapping[str, str | None]) -> _Answer:
        process = self._process = self._process or await _start()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await _exchange(process, msgspec.json.encode(question) + b"\n")
        except BaseException as error:  # nobody must be given the answer to another's question
            self._process = None
            with suppress(ProcessLookupError):
                process.kill()
            if isinstance(error, OSError | TimeoutError | msgspec.DecodeError):
                raise KeyringUnavailableError(_UNAVAILABLE) from None
            raise

    async def aclose(self) -> None:
        """End the process, whatever it is at."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class _Answer(msgspec.Struct, frozen=True):
    """What the process tells: nothing, where it could not do it."""

    kept: str | None = None
    matches: bool | None = None

    def __repr__(self) -> str:
        return "_Answer(…)"


async def _start() -> Process:
    """Start the process, with nothing of this one's but its standard error."""
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # no directory and no variable of somebody else's says what is imported
            hashing.__file__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={},
            cwd="/",
        )
    except OSError as error:
        raise KeyringUnavailableError(_UNAVAILABLE) from error


async def _exchange(process: Process, line: bytes) -> _Answer:
    assert process.stdin is not None  # noqa: S101  both are pipes
    assert process.stdout is not None  # noqa: S101  likewise
    process.stdin.write(line)
    await process.stdin.drain()
    return _answer_decoder.decode(await process.stdout.readline())


_answer_decoder = msgspec.json.Decoder(_Answer)
