"""Seals with cached data keys, then forks, and goes on in both processes: `sealing_process DIRECTORY COUNT`.

Each of the two writes a file of its own with every pair of key and nonce that AES-GCM was given. The exit
code is 0 only if nearly all messages shared a data key, the child's first with the parent's.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kkp import envelope
from kkp.authn.base import Authenticated
from kkp.clock import SteadyClock
from kkp.config import DataKeyCacheLimits
from kkp.kms import KMSRegistry
from kkp.kms.caching import DataKeyCache, Use
from kkp.kms.memory import MemoryKMS
from kkp.master_key import MasterKey
from kkp.model import Caller
from kkp.operations.base import Proposal
from kkp.operations.envelopes import Encrypt, EncryptRequest

PAIR_BYTES: Final = 32 + 12
LIMITS: Final = DataKeyCacheLimits(
    age_seconds=3600, entries=10, messages=1000, plaintext_bytes=10_000, encrypts=True
)
CALLERS: Final = ("orders", "billing")
_WARMING: Final = 200

_pairs: list[bytes] = []
_uses: list[bool] = []


class _RecordingAESGCM:
    """What `kkp.envelope` seals by, with a note of key and nonce."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        _pairs.append(self._key + nonce)
        return AESGCM(self._key).encrypt(nonce, data, associated_data)


async def _epoch() -> int:
    return 0


def _note_use(_use: Use, is_cached: bool) -> None:  # noqa: FBT001  as it is called back
    _uses.append(is_cached)


def _operation() -> Encrypt:
    cache = DataKeyCache(LIMITS, SteadyClock(), _epoch)
    cache.watch(_note_use)
    return Encrypt(KMSRegistry({"aws": MemoryKMS("aws", MasterKey(b"m" * 32))}, cache=cache))


async def _seal(operation: Encrypt, count: int) -> None:
    request = EncryptRequest(
        backend="aws",
        key_id="alias/orders",
        plaintext=b"secret",
        context={},
        associated_data=None,
        policy_context={},
    )
    proposals = [
        Proposal(authenticated=Authenticated(Caller(name, "service", (), "kkp", "service_key"), 0))
        for name in CALLERS
    ]
    for number in range(count):
        await operation.run(proposals[number % len(proposals)], request)


def main(directory: Path, count: int) -> int:
    """Do it, and return the exit code."""
    envelope.AESGCM = _RecordingAESGCM  # type: ignore[assignment,attr-defined]  # sealing uses no more of it
    operation = _operation()
    asyncio.run(_seal(operation, _WARMING))
    child = os.fork()
    if child == 0:
        _pairs.clear()
        _uses.clear()
    asyncio.run(_seal(operation, count if child == 0 else count - _WARMING))
    (directory / str(os.getpid())).write_bytes(b"".join(_pairs))
    shares = sum(_uses) >= 0.98 * len(_uses) and (child != 0 or _uses[0])
    if child == 0:
        os._exit(0 if shares else 1)
    _, status = os.waitpid(child, 0)
    return 0 if shares and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
