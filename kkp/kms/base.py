"""The port to a key management system: wrap a data key, unwrap it, say which key that was.

An adaptor does no policy and keeps no secrets of its callers: the pipeline decides before it is asked. It
always names the key explicitly, binds the wrap to the context's RFC 8785 bytes where its backend can, and
turns every vendor exception into one of these, so that nothing above knows a vendor:

```
UnknownKeyError       the backend has no such key
KeyDisabledError      the key is disabled or awaits deletion
KMSDeniedError        the backend refused KKP's own credentials
InvalidWrapError      the wrapped key was altered, or is another key's, version's or context's
KMSThrottledError     the backend asked for fewer requests
KMSUnavailableError   the backend could not be reached, failed, or can't be trusted
KeyNotReadyError      the backend answers, but can't use this key at the moment
```

What a caller can bring about is never KMSUnavailableError itself, because after a few of those in a row
`kkp.kms.guarded` leaves the backend alone, for everybody. A wrap that somebody made by hand is
InvalidWrapError, and a key in a state of its own is KeyNotReadyError.

Contexts are given checked (`kkp.envelope.check_context`). The data key is 32 bytes. Abilities that not
every backend has are Protocols of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from kkp.envelope import DATA_KEY_BYTES, context_bytes
from kkp.errors import UnknownBackendError
from kkp.master_key import MasterKey
from kkp.model import BackendLimits

if TYPE_CHECKING:
    from kkp.kms.local import LocalKeyStore

__all__ = [
    "KMS",
    "DataKey",
    "GeneratesDataKeys",
    "KeyDescription",
    "Resources",
    "RotatesKeys",
    "WrappedKey",
    "context_bytes",
    "data_key_from",
]


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as a backend wrapped it, and the version of the key that did."""

    encrypted_data_key: bytes = field(repr=False)
    key_version: str


@dataclass(frozen=True, slots=True)
class DataKey:
    """A data key in the clear, beside its wrap."""

    plaintext: bytes = field(repr=False)
    wrapped: WrappedKey


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """Which key a name reaches: the backend's own full name for it, and the version that wraps now."""

    key_id: str
    key_version: str


def _no_other_backend(_name: str) -> KMS:
    raise UnknownBackendError("No backend has this name.")


@dataclass(frozen=True, slots=True)
class Resources:
    """What adaptors are handed besides their URI; each takes what it needs.

    Attributes:
        master_key: The root of KKP's own keys.
        local_keys: Where those of `local://` are.
        limits: What a call may take. `kkp.kms.guarded` sees to it; an adaptor says it to what can't be
            cancelled, such as the sockets of a thread, and keeps to it where nobody guards it.
        backend: Returns a connected backend by its configured name, or raises UnknownBackendError. Composites
            find their members by it, which belong to whoever connected them.
        name: The backend's own configured name, for the log; empty where nobody gave it.
    """

    master_key: MasterKey = field(repr=False)
    local_keys: LocalKeyStore
    limits: BackendLimits = field(default_factory=BackendLimits)
    backend: Callable[[str], KMS] = field(default=_no_other_backend, repr=False)
    name: str = ""


class KMS(Protocol):
    """A backend. Every method may raise KMSDeniedError, KMSThrottledError and KMSUnavailableError."""

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key under the key's current version, bound to the context.

        Raises:
            UnknownKeyError: There is no such key.
            KeyDisabledError: The key may not be used now.
        """

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key that `wrap` was given for the same key and context.

        Raises:
            UnknownKeyError: There is no such key.
            KeyDisabledError: The key may not be used now.
            InvalidWrapError: It is not a wrap of this key, in this version, for this context.
        """

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell which key the name reaches.

        Raises:
            UnknownKeyError: There is no such key.
            KeyDisabledError: The key may not be used now.
        """

    async def ping(self) -> None:
        """Reach the backend, or raise."""

    async def close(self) -> None:
        """Release what the adaptor holds; safe to call twice."""


@runtime_checkable
class GeneratesDataKeys(Protocol):
    """A backend that makes data keys itself, and gives each together with its wrap."""

    async def generate_data_key(self, key_id: str, context: Mapping[str, str]) -> DataKey:
        """Return a data key under the key's current version, its wrap bound to the context.

        Raises:
            UnknownKeyError: There is no such key.
            KeyDisabledError: The key may not be used now.
        """


async def data_key_from(kms: KMS, key_id: str, context: Mapping[str, str]) -> DataKey:
    """Return a data key: one that the backend makes, where it does, else a random one that it wraps.

    Raises:
        UnknownKeyError: There is no such key.
        KeyDisabledError: The key may not be used now.
    """
    if isinstance(kms, GeneratesDataKeys):
        return await kms.generate_data_key(key_id, context)
    plaintext = os.urandom(DATA_KEY_BYTES)
    return DataKey(plaintext, await kms.wrap(key_id, plaintext, context))


@runtime_checkable
class RotatesKeys(Protocol):
    """A backend that can give a key a new version."""

    async def rotate(self, key_id: str) -> KeyDescription:
        """Wrap with a new version from now on; older versions still unwrap.

        Raises:
            UnknownKeyError: There is no such key.
            KeyDisabledError: The key may not be used now.
        """
