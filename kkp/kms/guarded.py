"""`Guarded`: one backend, kept from doing harm to its callers, to the other backends and to itself.

```
a call      admitted by the breaker? a slot? asked, on a task of its own; its answer looked at
            failed or throttled: a pause, and once more, while there are attempts and time left
```

Rules:
- A call has one deadline for everything that it consists of: waiting for a slot, attempts and pauses. Then
  it is KMSUnavailableError, whatever the backend does.
- A slot is waited for until half of the deadline has passed. So nobody takes a slot for a question that there
  is no time left to answer, and under too many calls the backend answers those that it can.
- A call that is given up is cancelled and not waited for. One that does not end by that, because a thread
  can't be ended, keeps its slot until it does: a backend that hangs gets no more work than it has slots.
- Only KMSThrottledError and KMSUnavailableError are tried again. A refusal is an answer, and so is a caller's
  mistake, and a throttle, which one caller can bring about for all: none opens the breaker. Against
  throttling there are the pauses and the slots.
- A late answer counts as a failure only if the backend had a fair share of the deadline for it: how long a
  call waited before says nothing of the backend.
- While the breaker is open nothing is asked, and the caller is told so at once. `kkp.kms._breaker` has its
  rules.
- An answer is distrusted: it has the right type, an envelope can hold it, and no wrap shows the data key.
  What fails that, and whatever an adaptor raises that is no error of ours, is KMSUnavailableError and a line
  in the log, without the answer and without the exception's text.
- A guard has the abilities that its backend has, and no others. `rotate` is tried once: done twice, it is not
  the same.

Retries are ours and not a library's (tenacity, stamina): before each, the breaker and the deadline have their
say, and that is most of what there is to it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeVar, final

from kkp.envelope import (
    DATA_KEY_BYTES,
    MAX_ENCRYPTED_DATA_KEY_BYTES,
    MAX_KEY_ID_BYTES,
    MAX_KEY_VERSION_BYTES,
)
from kkp.errors import KeyNotReadyError, KKPError, KMSThrottledError, KMSUnavailableError
from kkp.kms._breaker import Breaker, Period
from kkp.kms._futures import look_at
from kkp.kms.base import KMS, DataKey, GeneratesDataKeys, KeyDescription, RotatesKeys, WrappedKey
from kkp.model import BackendLimits

_T = TypeVar("_T")
_Ask = Callable[[], Coroutine[Any, Any, _T]]

OK = "ok"

# Each that waits holds its request in memory: its body, and what is to be sealed. Fewer than this would turn
# requests away from a quick backend that the audit lets go together, up to 256 in one transaction.
_WAITING_FOR_EACH_SLOT = 8
# Shares of the deadline: the longest wait for a slot, and the least time after which no answer is a failure.
_LONGEST_WAIT = 0.5
_FAIR_SHARE = 0.25
# The longest pause before the second attempt; each further one may be twice as long.
_FIRST_PAUSE_SECONDS = 0.05
_LATE = "The backend did not answer in time."
# To try again may help, but the backend is there.
_ANSWERS = (KeyNotReadyError, KMSThrottledError)
_log = logging.getLogger(__name__)


class _NoVerdictError(KMSUnavailableError):
    """The backend was not asked, or not for long enough; to try again at once would be no different."""


@final
class Guarded:
    """A backend behind its guard.

    Args:
        kms: The backend; closed with this.
        name: What the log calls it.
        limits: What it may take.
        monotonic: Seconds on a clock that never runs backwards, for the breaker.
        random: A number from 0 up to 1, for pauses.
    """

    def __init__(
        self,
        kms: KMS,
        name: str,
        limits: BackendLimits,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._kms = kms
        self._name = name
        self._limits = limits
        self._random = random
        self._breaker = Breaker(limits.breaker_failures, limits.breaker_seconds, monotonic, random)
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._waiting = 0
        self._count: Callable[[str], None] = _count_nothing
        # What the backend can't do, the guard must not seem to be able to: there is no such method then.
        if isinstance(kms, RotatesKeys):
            self.rotate = partial(self._rotate, kms)
        if isinstance(kms, GeneratesDataKeys):
            self.generate_data_key = partial(self._generate_data_key, kms)

    def is_left_alone(self) -> bool:
        """Tell whether the breaker keeps calls away."""
        return self._breaker.is_open

    def watch(self, count: Callable[[str], None]) -> None:
        """Have every call counted by its outcome: `ok`, or the error's code."""
        self._count = count

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key; see `KMS.wrap`."""
        return await self._call(
            lambda: self._kms.wrap(key_id, data_key, context), partial(_is_wrap_of, data_key)
        )

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        return await self._call(lambda: self._kms.unwrap(key_id, wrapped, context), _is_data_key)

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell which key the name reaches; see `KMS.describe`."""
        return await self._call(lambda: self._kms.describe(key_id), _is_description)

    async def ping(self) -> None:
        """Reach the backend; see `KMS.ping`."""
        await self._call(self._kms.ping, _is_anything)

    async def close(self) -> None:
        """Close the backend."""
        await self._kms.close()

    async def _generate_data_key(
        self, kms: GeneratesDataKeys, key_id: str, context: Mapping[str, str]
    ) -> DataKey:
        return await self._call(lambda: kms.generate_data_key(key_id, context), _is_made)

    async def _rotate(self, kms: RotatesKeys, key_id: str) -> KeyDescription:
        return await self._call(lambda: kms.rotate(key_id), _is_description, attempts=1)

    async def _call(
        self, ask: _Ask[_T], is_good: Callable[[object], bool], *, attempts: int | None = None
    ) -> _T:
        deadline = asyncio.get_running_loop().time() + self._limits.timeout_seconds
        try:
            answer = await self._persist(ask, is_good, deadline, attempts or self._limits.attempts)
        except KKPError as error:
            self._count(error.code)
            raise
        self._count(OK)
        return answer

    async def _persist(
        self, ask: _Ask[_T], is_good: Callable[[object], bool], deadline: float, attempts: int
    ) -> _T:
        """Try again while it may help."""
        longest_pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._attempt(ask, is_good, deadline)
            except (_NoVerdictError, KeyNotReadyError):
                raise
            except KMSUnavailableError:
                attempts -= 1
                pause = self._random() * longest_pause  # full jitter: who failed together does not return so
                is_late = asyncio.get_running_loop().time() + pause >= deadline
                if attempts == 0 or is_late or self._breaker.is_open:
                    raise
            await asyncio.sleep(pause)
            longest_pause *= 2

    async def _attempt(self, ask: _Ask[_T], is_good: Callable[[object], bool], deadline: float) -> _T:
        """Ask once, if the breaker lets it, and tell it how that went."""
        period = self._breaker.admit()
        if period is None:
            raise _NoVerdictError("The backend fails, and is not asked for a moment.")
        try:
            answer = await self._ask(ask, is_good, period, deadline)
        except BaseException as error:
            self._judge(period, error)
            raise
        self._judge(period, None)
        return answer

    def _judge(self, period: Period, error: BaseException | None) -> None:
        was_open = self._breaker.is_open
        if isinstance(error, _NoVerdictError) or not isinstance(error, KKPError | None):
            self._breaker.abandoned(period)
        elif isinstance(error, KMSUnavailableError) and not isinstance(error, _ANSWERS):
            self._breaker.failed(period)
        else:
            self._breaker.succeeded(period)
        if self._breaker.is_open and not was_open:
            _log.error("backend %s: left alone, for it keeps failing: %s", self._name, error)
        elif was_open and not self._breaker.is_open:
            _log.info("backend %s: answers again", self._name)

    async def _ask(
        self, ask: _Ask[_T], is_good: Callable[[object], bool], period: Period, deadline: float
    ) -> _T:
        """Ask on a task of its own, so that nothing that it does can hold the caller beyond the deadline."""
        await self._take_slot(deadline)
        if not self._breaker.still_admits(period):
            self._slots.release()
            raise _NoVerdictError("The backend fails, and is not asked for a moment.")
        loop = asyncio.get_running_loop()
        seconds = deadline - loop.time()
        task = loop.create_task(ask())
        try:
            await asyncio.wait((task,), timeout=seconds)
            if not task.done():
                is_fair = seconds >= self._limits.timeout_seconds * _FAIR_SHARE
                raise KMSUnavailableError(_LATE) if is_fair else _NoVerdictError(_LATE)
            return self._checked(task, is_good)
        finally:
            task.cancel()  # means nothing to one that is done
            # Only from now on, so that who waits for the slot finds the breaker told of what happened.
            task.add_done_callback(self._ended)

    async def _take_slot(self, deadline: float) -> None:
        """Wait for a slot, if not too many do."""
        if not self._slots.locked():
            await self._slots.acquire()  # at once
            return
        if self._waiting >= self._limits.concurrency * _WAITING_FOR_EACH_SLOT:
            raise _NoVerdictError("Too many calls wait for the backend.")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline - self._limits.timeout_seconds * (1 - _LONGEST_WAIT)):
                await self._slots.acquire()
        except TimeoutError:
            raise _NoVerdictError("The backend is busy with other calls.") from None
        finally:
            self._waiting -= 1

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._slots.release()
        look_at(task)

    def _checked(self, task: asyncio.Task[_T], is_good: Callable[[object], bool]) -> _T:
        """Return what the task did, if it is to be believed."""
        if task.cancelled():
            raise KMSUnavailableError("The call to the backend was broken off.")
        error = task.exception()
        if isinstance(error, KKPError):
            raise error
        if error is not None:
            _log.error("backend %s: its adaptor failed with %s", self._name, type(error).__name__)
            raise KMSUnavailableError("The backend's adaptor failed.")
        answer = task.result()
        if not is_good(answer):
            _log.error("backend %s: gave an answer that can't be trusted", self._name)
            raise KMSUnavailableError("The backend gave an answer that can't be trusted.")
        return answer


def _count_nothing(_outcome: str) -> None:
    """Watch nothing."""


def _is_wrap_of(data_key: bytes, answer: object) -> bool:
    return (
        isinstance(answer, WrappedKey)
        and _is_octets(answer.encrypted_data_key, 1, MAX_ENCRYPTED_DATA_KEY_BYTES)
        and data_key not in answer.encrypted_data_key
        and _is_text(answer.key_version, 0, MAX_KEY_VERSION_BYTES)
    )


def _is_data_key(answer: object) -> bool:
    return _is_octets(answer, DATA_KEY_BYTES, DATA_KEY_BYTES)


def _is_made(answer: object) -> bool:
    return (
        isinstance(answer, DataKey)
        and _is_data_key(answer.plaintext)
        and _is_wrap_of(answer.plaintext, answer.wrapped)
    )


def _is_description(answer: object) -> bool:
    return (
        isinstance(answer, KeyDescription)
        and _is_text(answer.key_id, 1, MAX_KEY_ID_BYTES)
        and _is_text(answer.key_version, 0, MAX_KEY_VERSION_BYTES)
    )


def _is_anything(_answer: object) -> bool:
    return True


def _is_octets(value: object, least: int, most: int) -> bool:
    return isinstance(value, bytes) and least <= len(value) <= most


def _is_text(value: object, least: int, most: int) -> bool:
    """Tell whether an envelope can hold it: text of so many bytes in UTF-8, without lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        return least <= len(value.encode()) <= most
    except UnicodeEncodeError:
        return False
