"""The one key that protects everything KKP stores.

Nothing is ever encrypted or authenticated under the master key itself: each purpose has a subkey
`HKDF-SHA-256(master key, info = purpose)` (RFC 5869). Purposes are versioned names such as `kkp/ring/v1`;
a new meaning is a new name, so a ciphertext or a MAC of one purpose is worth nothing in another.

A sealed blob is `salt (32) ‖ nonce (12) ‖ AES-256-GCM(ciphertext ‖ tag)` under a key of its own,
`HKDF-SHA-256(subkey, salt, info = "kkp/seal/v1")`: with a fresh key for each blob no number of blobs comes
near the limits of SP 800-38D. The layout never changes in place: a new layout gets a new purpose name.

A master key can be rotated while everything runs. Until all that is stored is renewed, rows are under the
present key or the former one: both open and verify, and only the present one seals and signs. So a process
has one `MasterKey` for its life, and the `RootKey`s in it change (`take_up`). `kkp.store.secured` sees to it
that no row is read with too old a key, or written under one that has been replaced.

A few secrets outlive their master key, because others rely on them: they are *kept* from the first day, which
is to say stored sealed under whichever key is the present one (`KEPT`), and `derive` returns what was kept.

What is here knows no file, no environment, no database and no KMS: `kkp.unlock` does.

Python can't promise to erase a key from memory; KKP keeps keys out of logs, errors and `repr` and
turns core dumps off instead.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, TypeVar, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kkp.errors import StateUntrustedError

MASTER_KEY_BYTES = 32
# Pinned outside KKP, or what `kkp dev` sealed envelopes with: as they were before the first rotation.
KEPT: Final = ("kkp/audit-checkpoint/v1", "kkp/memory-kms/v1")
_SALT_BYTES = 32
_NONCE_BYTES = 12
_WRAP: Final = "kkp/master-key-wrap/v1"
KEPT_PURPOSE: Final = "kkp/kept-secret/v1"
_NOTHING_KEPT: Mapping[str, bytes] = MappingProxyType({})
_T = TypeVar("_T")


def _hkdf(key: bytes, salt: bytes | None, info: str) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info.encode()).derive(key)


@final
class RootKey:
    """32 random bytes, from which everything is derived.

    Args:
        key: The bytes.

    Raises:
        ValueError: They are not 32.
    """

    __slots__ = ("_key", "_subkeys")

    def __init__(self, key: bytes) -> None:
        if len(key) != MASTER_KEY_BYTES:
            raise ValueError("a master key has 32 bytes")
        self._key = key
        self._subkeys: dict[str, bytes] = {}

    @classmethod
    def generate(cls) -> RootKey:
        """Return a new key."""
        return cls(os.urandom(MASTER_KEY_BYTES))

    def handed_to(self, keeper: Callable[[bytes], _T]) -> _T:
        """Give the bytes to what keeps them: a KMS or a file. Nobody else ever sees them."""
        return keeper(self._key)

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

    def wrap(self, other: RootKey) -> bytes:
        """Seal another master key under this one."""
        return other.handed_to(lambda key: self.seal(_WRAP, key, other.check_value()))

    def unwrap(self, wrapped: bytes, check_value: bytes) -> RootKey:
        """Return the other master key that `wrap` sealed.

        Raises:
            StateUntrustedError: It was altered, or is not the key of this check value.
        """
        other = RootKey(self.open(_WRAP, wrapped, check_value))
        if not hmac.compare_digest(other.check_value(), check_value):
            raise StateUntrustedError("A stored master key is another one.")
        return other


@dataclass(frozen=True, slots=True)
class _Keys:
    """What a process holds at a time; replaced as a whole, since a database's thread may look at it."""

    present: RootKey
    former: RootKey | None
    kept: Mapping[str, bytes] = field(repr=False)


@final
class MasterKey:
    """The present master key and, while it is being replaced, the former one.

    Args:
        key: 32 random bytes.

    Raises:
        ValueError: The key has another length.
    """

    __slots__ = ("_keys",)

    def __init__(self, key: bytes) -> None:
        self._keys = _Keys(RootKey(key), None, _NOTHING_KEPT)

    @classmethod
    def of(cls, present: RootKey) -> MasterKey:
        """Return what holds this key alone."""
        return present.handed_to(cls)

    def take_up(self, present: RootKey, former: RootKey | None, kept: Mapping[str, bytes]) -> None:
        """Go on with the present key, the former one to read by, and the secrets that were kept, sealed.

        Raises:
            StateUntrustedError: A kept secret was altered; then nothing has changed.
        """
        opened = {name: _open_kept(name, sealed, present, former) for name, sealed in kept.items()}
        self._keys = _Keys(present, former, MappingProxyType(opened))

    @property
    def present(self) -> RootKey:
        """What seals and signs."""
        return self._keys.present

    @property
    def former(self) -> RootKey | None:
        """What rows may be under besides; None unless the master key is being replaced."""
        return self._keys.former

    def derive(self, purpose: str) -> bytes:
        """Return the 32-byte subkey of a purpose, or what was kept for it of an earlier key."""
        keys = self._keys
        kept = keys.kept.get(purpose)
        return keys.present.derive(purpose) if kept is None else kept

    def check_value(self) -> bytes:
        """Return the present key's; see `RootKey.check_value`."""
        return self._keys.present.check_value()

    def mac(self, purpose: str, data: bytes) -> bytes:
        """Sign with the present key; see `RootKey.mac`."""
        return self._keys.present.mac(purpose, data)

    def verify_mac(self, purpose: str, data: bytes, tag: bytes) -> bool:
        """Tell whether the tag is the data's under either key."""
        keys = self._keys
        if keys.present.verify_mac(purpose, data, tag):
            return True
        return keys.former is not None and keys.former.verify_mac(purpose, data, tag)

    def seal(self, purpose: str, plaintext: bytes, associated_data: bytes) -> bytes:
        """Seal with the present key; see `RootKey.seal`."""
        return self._keys.present.seal(purpose, plaintext, associated_data)

    def open(self, purpose: str, sealed: bytes, associated_data: bytes) -> bytes:
        """Decrypt what either key sealed; see `RootKey.open`.

        Raises:
            StateUntrustedError: It was altered, moved, or sealed under another master key.
        """
        keys = self._keys
        return _open(purpose, sealed, associated_data, keys.present, keys.former)

    def keep(self) -> Mapping[str, bytes]:
        """Return the secrets that are to outlive this key, sealed; a database is begun with them."""
        return {name: self.seal(KEPT_PURPOSE, self.derive(name), name.encode()) for name in KEPT}


def _open_kept(name: str, sealed: bytes, present: RootKey, former: RootKey | None) -> bytes:
    return _open(KEPT_PURPOSE, sealed, name.encode(), present, former)


def _open(purpose: str, sealed: bytes, place: bytes, present: RootKey, former: RootKey | None) -> bytes:
    if former is None:
        return present.open(purpose, sealed, place)
    try:
        return present.open(purpose, sealed, place)
    except StateUntrustedError:
        return former.open(purpose, sealed, place)
