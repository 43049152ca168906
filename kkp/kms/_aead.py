"""Wraps by keys that KKP itself holds, for the backends that are not somebody else's service.

A wrapped key is `salt (32) ‖ nonce (12) ‖ AES-256-GCM(data key ‖ tag)` under a key of its own,
`HKDF-SHA-256(wrapping key, salt, info = "kkp/wrap/v1")`: with a fresh key for each wrap no number of wraps
comes near the limits of SP 800-38D. Its associated data is the wrapping key's label (backend, key, version)
and the context, so a wrap is worth nothing under another name, version or context even where the key is
the same. The layout never changes in place: a new layout gets a new info.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kkp.errors import InvalidWrapError
from kkp.kms.base import context_bytes

_SALT_BYTES = 32
_NONCE_BYTES = 12


def invalid_wrap() -> InvalidWrapError:
    """Return the one error for every wrap that does not open, so that callers can't tell why."""
    return InvalidWrapError("The wrapped key was altered, or belongs to another key, version or context.")


def derive_key(key: bytes, salt: bytes | None, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA-256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def label(*names: str) -> bytes:
    """Write names so that no two sequences of names look alike."""
    return msgspec.json.encode(names)


@final
class WrappingKey:
    """One version of one key.

    Args:
        key: 32 secret bytes.
        label: Backend, key and version; bound into every wrap.
    """

    __slots__ = ("_key", "_label")

    def __init__(self, key: bytes, label: bytes) -> None:
        self._key = key
        self._label = label

    def wrap(self, data_key: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt the data key for this context."""
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        aead = AESGCM(derive_key(self._key, salt, b"kkp/wrap/v1"))
        return salt + nonce + aead.encrypt(nonce, data_key, self._label + context_bytes(context))

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Return the data key that `wrap` encrypted for the same context.

        Raises:
            InvalidWrapError: It was altered, or belongs to another key, version or context.
        """
        salt, rest = wrapped[:_SALT_BYTES], wrapped[_SALT_BYTES:]
        aead = AESGCM(derive_key(self._key, salt, b"kkp/wrap/v1"))
        associated_data = self._label + context_bytes(context)
        try:
            return aead.decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], associated_data)
        except (InvalidTag, ValueError) as error:  # ValueError: the nonce is cut short
            raise invalid_wrap() from error
