"""Data keys that serve more than one message: `Caching(Guarded(AWSKMS(…)))`, as one caller sees it.

It sits below the road: every request is authenticated, decided and recorded before a cached key is looked
for, and what was opened passes every check of `kkp.envelope` again. All that a hit saves is the backend.

Rules that hold here:
- A key is found by everything that the backend's answer depended on, and by the caller: no caller is ever
  served by what another one's request brought in. The parts are compared one by one, never run together.
- One answer of the backend serves at most so many messages, so many bytes of plaintext and so long, counted
  from before the backend was asked. A message that alone is over the limit of bytes passes the cache by.
- When the database's epoch moves, everything is dropped before any operation that knows of it runs. What a
  request brings in that was decided at another epoch than the cache's serves that request and is not kept,
  whenever the backend was asked and whenever it answers.
- Errors are not kept. Callers that ask at the same time for the same key each ask the backend: none waits
  for another's call, so none fails or is cancelled with it.
- `wrap` always asks the backend.

Encrypting takes part only if it is switched on. Then one data key, with one and the same wrap, serves several
messages of one caller under one context. Each has keys of its own all the same, because its random
`message_id` salts their derivation, and so no limit of AES-GCM is nearer than without the cache. What the
limits bound is how much one data key opens, should it ever become known. KKP does not fork; if it did, both
processes would go on with the data keys of before, and each message would still have keys of its own.

What it does not do: it does not share its room out among callers, so a busy one makes others ask the backend
more often; and it erases no key from memory, because Python can't. A key that was dropped is gone when its
memory is used again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypeAlias, final

from kkp.clock import Clock
from kkp.config import DataKeyCacheLimits
from kkp.kms.base import KMS, DataKey, KeyDescription, WrappedKey, context_bytes, data_key_from

Use: TypeAlias = Literal["encrypt", "decrypt"]


class Question(NamedTuple):
    """What a data key is found by; encrypting has no wrapped key yet."""

    use: Use
    caller_id: str
    backend: str
    key_id: str
    context: bytes
    key_version: str = ""
    encrypted_data_key: bytes = b""


@dataclass(slots=True, repr=False)
class _Entry:
    data_key: DataKey
    expires_at: float
    messages_left: int
    plaintext_bytes_left: int


@final
class DataKeyCache:
    """The data keys of all callers and backends, the least recently used dropped first.

    To `kkp.live_state.LiveState` it is a part of the state like the others, which loads nothing.

    Args:
        limits: How long and how often a key serves.
        clock: What time it is.
        read_epoch: Reads the database's epoch.
    """

    def __init__(
        self, limits: DataKeyCacheLimits, clock: Clock, read_epoch: Callable[[], Awaitable[int]]
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._read_epoch = read_epoch
        self._epoch = 0
        self._entries: OrderedDict[Question, _Entry] = OrderedDict()
        self._on_use: Callable[[Use, bool], None] = lambda _use, _is_cached: None

    def watch(self, on_use: Callable[[Use, bool], None]) -> None:
        """Tell somebody of each data key: what for, and whether it was here."""
        self._on_use = on_use

    @property
    def epoch(self) -> int:
        """The epoch since which keys are kept."""
        return self._epoch

    async def load(self) -> None:
        """Drop everything, for a new epoch.

        Raises:
            KeyringUnavailableError: The database can't be read.
        """
        self._epoch = await self._read_epoch()
        self._entries.clear()

    async def run(self) -> None:
        """Drop what has expired, again and again: unused, a key stays for twice its age at most."""
        while True:
            await asyncio.sleep(self.limits.age_seconds)
            now = self._clock.now()
            for question in [asked for asked, entry in self._entries.items() if entry.expires_at <= now]:
                del self._entries[question]

    async def get(
        self, question: Question, epoch: int, plaintext_bytes: int, ask: Callable[[], Awaitable[DataKey]]
    ) -> DataKey:
        """Return the data key for a message of this size: the one that is here, or what the backend says.

        Args:
            question: What it is found by.
            epoch: The one at which the message's request was decided.
            plaintext_bytes: How long the message is.
            ask: Asks the backend.
        """
        asked_at = self._clock.now()
        found = self._take(question, plaintext_bytes, asked_at)
        data_key = await ask() if found is None else found
        self._on_use(question.use, found is not None)
        is_new = found is None and epoch == self._epoch
        if is_new and plaintext_bytes <= self.limits.plaintext_bytes:
            self._keep(
                question,
                _Entry(
                    data_key,
                    asked_at + self.limits.age_seconds,
                    self.limits.messages - 1,
                    self.limits.plaintext_bytes - plaintext_bytes,
                ),
            )
        return data_key

    def _take(self, question: Question, plaintext_bytes: int, now: float) -> DataKey | None:
        """Use up one message's share of a key; one that has too little left is dropped."""
        if plaintext_bytes > self.limits.plaintext_bytes:
            return None
        entry = self._entries.pop(question, None)
        if entry is None or entry.expires_at <= now or entry.plaintext_bytes_left < plaintext_bytes:
            return None
        entry.messages_left -= 1
        entry.plaintext_bytes_left -= plaintext_bytes
        self._keep(question, entry)
        return entry.data_key

    def _keep(self, question: Question, entry: _Entry) -> None:
        """Put an entry at the end; an answer that came earlier for the same question makes way."""
        self._entries.pop(question, None)
        if entry.messages_left > 0:
            self._entries[question] = entry
        if len(self._entries) > self.limits.entries:
            self._entries.popitem(last=False)


@final
class Caching:
    """A backend, as one caller uses it for one message.

    Args:
        kms: The backend.
        cache: Everybody's.
        backend: The backend's configured name.
        caller_id: Whose message it is.
        epoch: The one at which its request was decided.
        plaintext_bytes: How long it is.
    """

    def __init__(  # noqa: PLR0913  a message is all of that
        self, kms: KMS, cache: DataKeyCache, *, backend: str, caller_id: str, epoch: int, plaintext_bytes: int
    ) -> None:
        self._kms = kms
        self._cache = cache
        self._backend = backend
        self._caller_id = caller_id
        self._epoch = epoch
        self._plaintext_bytes = plaintext_bytes

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Have the backend wrap; see `KMS.wrap`."""
        return await self._kms.wrap(key_id, data_key, context)

    async def generate_data_key(self, key_id: str, context: Mapping[str, str]) -> DataKey:
        """Return a data key, maybe one that served before; see `GeneratesDataKeys.generate_data_key`."""
        ask = partial(data_key_from, self._kms, key_id, context)
        if not self._cache.limits.encrypts:
            return await ask()
        question = Question("encrypt", self._caller_id, self._backend, key_id, context_bytes(context))
        return await self._cache.get(question, self._epoch, self._plaintext_bytes, ask)

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key, of the backend or from before; see `KMS.unwrap`."""

        async def ask() -> DataKey:
            return DataKey(await self._kms.unwrap(key_id, wrapped, context), wrapped)

        question = Question(
            "decrypt",
            self._caller_id,
            self._backend,
            key_id,
            context_bytes(context),
            wrapped.key_version,
            wrapped.encrypted_data_key,
        )
        return (await self._cache.get(question, self._epoch, self._plaintext_bytes, ask)).plaintext

    async def describe(self, key_id: str) -> KeyDescription:
        """Ask the backend; see `KMS.describe`."""
        return await self._kms.describe(key_id)

    async def ping(self) -> None:
        """Reach the backend; see `KMS.ping`."""
        await self._kms.ping()

    async def close(self) -> None:
        """Close the backend; see `KMS.close`."""
        await self._kms.close()
