"""What a record protects: keyed digests of private values, and the sealed policy input.

Digest: `HMAC-SHA-256(key, uint16(len(name)) ‖ name ‖ value)`, UTF-8, lowercase hex, with the master key's
subkey `kkp/audit-hmac/v1`. Equal values of one field can be recognised, equal values of two fields can't,
and without the key nothing can be guessed.

Sealed input: `base64url(nonce (12) ‖ AES-256-GCM(ciphertext ‖ tag))` of the policy input under the day's
audit-input key. Its associated data is `"kkp/audit-input/v1" ‖ 0x00 ‖ chain ‖ 0x00 ‖ seq ‖ 0x00 ‖ day`, `seq`
in decimal: a sealed input opens in its own place only. The day is the record's, in UTC.

A daily key is 32 random bytes and is stored only sealed by the master key (purpose `kkp/audit-input/v1`,
associated data the day). Destroying it erases that day's inputs; the chain covers the sealed bytes and still
verifies. A random nonce is safe for 2^32 records a day (SP 800-38D).

The formats never change in place: a new one gets a new purpose name.
"""

from __future__ import annotations

import os
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Final, NamedTuple, final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from kkp.audit.base import AuditStore
from kkp.errors import StaleProposalError
from kkp.master_key import MasterKey, RootKey
from kkp.renewal import Sealed

_DIGEST_PURPOSE: Final = "kkp/audit-hmac/v1"
_INPUT_PURPOSE: Final = "kkp/audit-input/v1"
_NONCE_BYTES: Final = 12
INPUT_KEYS: Final = Sealed("audit_input_keys", ("day",), ("day",), _INPUT_PURPOSE, str.encode)


@final
class PrivateDigests:
    """Computes the keyed digests of private values."""

    def __init__(self, master_key: MasterKey) -> None:
        self._master_key = master_key
        self._key_under(master_key.present)

    def _key_under(self, present: RootKey) -> None:
        # The keyed state is set up once and copied, which takes a quarter of the time of the hmac module.
        self._present, self._keyed = present, HMAC(present.derive(_DIGEST_PURPOSE), SHA256())

    def of(self, private: Mapping[str, str]) -> dict[str, str]:
        """Return each value's digest, separated by its field's name."""
        if self._master_key.present is not self._present:  # it was rotated
            self._key_under(self._master_key.present)
        return {name: self._digest(name.encode(), value.encode()) for name, value in private.items()}

    def _digest(self, name: bytes, value: bytes) -> str:
        digest = self._keyed.copy()
        digest.update(len(name).to_bytes(2, "big") + name + value)
        return digest.finalize().hex()


class DayCipher(NamedTuple):
    """One day's audit-input key, ready for use."""

    day: str
    cipher: AESGCM

    def seal(self, policy_input: bytes, chain: str, seq: int) -> dict[str, str]:
        """Return the member `input_sealed` of the record `chain:seq`."""
        nonce = os.urandom(_NONCE_BYTES)
        place = f"{_INPUT_PURPOSE}\0{chain}\0{seq}\0{self.day}".encode()
        sealed = nonce + self.cipher.encrypt(nonce, policy_input, place)
        return {"day": self.day, "data": urlsafe_b64encode(sealed).rstrip(b"=").decode()}


@final
class InputKeys:
    """Makes, stores and remembers the present day's audit-input key."""

    def __init__(self, store: AuditStore, master_key: MasterKey) -> None:
        self._store = store
        self._master_key = master_key
        self._today: DayCipher | None = None

    async def for_day(self, day: str) -> DayCipher:
        """Return the day's key: the stored one, whichever process stored it first.

        Raises:
            StateUntrustedError: The stored key is not one that this master key sealed for this day.
        """
        if self._today is None or self._today.day != day:
            try:
                stored = await self._stored(day)
            except StaleProposalError:  # the master key was rotated in this moment
                stored = await self._stored(day)
            opened = self._master_key.open(_INPUT_PURPOSE, stored, day.encode())
            self._today = DayCipher(day, AESGCM(opened))
        return self._today

    async def _stored(self, day: str) -> bytes:
        fresh = self._master_key.seal(_INPUT_PURPOSE, AESGCM.generate_key(256), day.encode())
        return await self._store.input_key(day, fresh)
