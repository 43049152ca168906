"""The one key that protects everything KKP stores.

Nothing is ever encrypted or authenticated under the master key itself: each purpose has a subkey
`HKDF-SHA-256(master key, info = purpose)` (RFC 5869). Purposes are versioned names such as `kkp/ring/v1`;
a new meaning is a new name, so a ciphertext or a MAC of one purpose is worth nothing in another.

A sealed blob is `salt (32) ‖ nonce (12) ‖ AES-256-GCM(ciphertext ‖ tag)` under a key of its own,
`HKDF-SHA-256(subkey, salt, info = "kkp/seal/v1")`: with a fresh key for each blob no number of blobs comes
near the limits of SP 800-38D. The layout never changes in place: a new layout gets a new purpose name.

Python can't promise to erase a key from memory; KKP keeps keys out of logs, errors and `repr` and
turns core dumps off instead.
"""

from __future__ import annotations

import hmac
import os
from typing import final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kkp.errors import StateUntrustedError

MASTER_KEY_BYTES = 32
_SALT_BYTES = 32
_NONCE_BYTES = 12


def _hkdf(key: bytes, salt: bytes | None, info: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info.encode()).derive(key)


@final
class MasterKey:
    """Derives a subkey for each purpose, and seals, opens and authenticates with it.

    Args:
        key: 32 random bytes.

    Raises:
        ValueError: The key has another length.
    """

    __slots__ = ("_key", "_subkeys")

    def __init__(self, key: bytes) -> None:
        if len(key) != MASTER_KEY_BYTES:
            raise ValueError("a master key has 32 bytes")
        self._key = key
        self._subkeys: dict[str, bytes] = {}

    def derive(self, purpose: str) -> bytes:
        """Return the 32-byte subkey of a purpose."""
        if purpose not in self._subkeys:
            self._subkeys[purpose] = _hkdf(self._key, None, purpose)
        return self._subkeys[purpose]

    def check_value(self) -> bytes:
        """Return what a database keeps to tell whether this is its master key."""
        return self.derive("kkp/master-key-check/v1")

    def mac(self, purpose: str, data: bytes) -> bytes:
        """Return HMAC-SHA-256 of the data under the purpose's subkey (RFC 2104)."""
        return hmac.digest(self.derive(purpose), data, "sha256")

    def verify_mac(self, purpose: str, data: bytes, tag: bytes) -> bool:
        """Tell whether the tag is the data's, in constant time."""
        return hmac.compare_digest(self.mac(purpose, data), tag)

    def seal(self, purpose: str, plaintext: bytes, associated_data: bytes) -> bytes:
        """Encrypt and authenticate under the purpose's subkey."""
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        key = _hkdf(self.derive(purpose), salt, "kkp/seal/v1")
        return salt + nonce + AESGCM(key).encrypt(nonce, plaintext, associated_data)

    def open(self, purpose: str, sealed: bytes, associated_data: bytes) -> bytes:
        """Decrypt what `seal` made for the same purpose and associated data.

        Raises:
            StateUntrustedError: It was altered, moved, or sealed under another master key.
        """
        salt, rest = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
        key = _hkdf(self.derive(purpose), salt, "kkp/seal/v1")
        try:
            return AESGCM(key).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], associated_data)
        except (InvalidTag, ValueError) as error:
            raise StateUntrustedError("A stored secret failed its authentication.") from error
