"""`memory://aws`, `memory://gcp`, `memory://azure`: emulators for `kkp dev` and tests, never for production.

Each obeys its cloud's naming rules, and every well-formed name is a key, but for these:

- a name that starts with `missing` (AWS: `alias/missing`) does not exist: UnknownKeyError;
- a name that starts with `disabled` (AWS: `alias/disabled`) is switched off: KeyDisabledError.

| cloud | names of one key |
|---|---|
| aws | `alias/NAME`, the key id it stands for (a UUID, or `mrk-…`), and the ARN of either |
| gcp | `NAME` in the emulator's own key ring, or `projects/…/locations/…/keyRings/…/cryptoKeys/NAME` |
| azure | `NAME`, `NAME/VERSION`, or `https://VAULT.vault.azure.net/keys/NAME[/VERSION]`, in any case |

An ARN is checked for its form only: the emulator stands for every AWS account and region. Azure's names may
pin a version; then that version wraps, and no other unwraps.

Nothing is stored. A key version's material is `HKDF-SHA-256(subkey kkp/memory-kms/v1, info = cloud, full
name, version)`, so envelopes survive a restart, whatever version wrapped them. `rotate` lasts until then.

What differs from the clouds: no credentials, no latency, no quotas, no state but the version; AWS hides the
version of a key and this reports one; Azure's RSA wrap can't bind a context and this binds it. Wraps are
`kkp.kms._aead`'s.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol, final

from kkp.errors import ConfigError, KeyDisabledError, UnknownKeyError
from kkp.kms._aead import WrappingKey, derive_key, invalid_wrap, label
from kkp.kms.base import KeyDescription, Resources, WrappedKey
from kkp.master_key import MasterKey


class _Key(NamedTuple):
    """What a name means.

    Attributes:
        short_name: What `missing` and `disabled` are looked for in.
        full_name: The one name under which the cloud itself knows the key.
        pinned_version: The version that the name insists on.
    """

    short_name: str
    full_name: str
    pinned_version: str | None = None


class _Cloud(Protocol):
    """A cloud's naming rules. A pattern matches ASCII only, so that no look-alike letter is taken."""

    versions: ClassVar[re.Pattern[str]]
    naming: ClassVar[str]  # as people are told

    def resolve(self, key_id: str) -> _Key | None:
        """Return what the name means, or None where it breaks the rules."""

    def version(self, full_name: str, number: int, /) -> str:
        """Return what the cloud calls the key's version of this number, counted from 1."""


_COUNTED = re.compile(r"[1-9][0-9]{0,5}")


@final
class _AWS:
    versions: ClassVar = _COUNTED
    naming: ClassVar = "alias/NAME, a key id, or an ARN"
    _names: ClassVar = re.compile(
        r"""
        (?P<arn> arn:aws[a-z-]*:kms:[a-z0-9-]{1,32}:[0-9]{12}: )?
        (?: alias/(?!aws/)(?P<alias> [a-zA-Z0-9/_-]{1,250} )
        |   (?P<resource> key/ )?
            (?P<id> [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12} | mrk-[0-9a-f]{32} )
        )""",
        re.VERBOSE,
    )

    def resolve(self, key_id: str) -> _Key | None:
        match = self._names.fullmatch(key_id)
        if match is None:
            return None
        if match["alias"] is not None:
            return _Key(match["alias"], self._arn(str(uuid.uuid5(uuid.NAMESPACE_URL, match["alias"]))))
        # `key/` stands in an ARN and nowhere else.
        if (match["arn"] is None) != (match["resource"] is None):
            return None
        return _Key(match["id"], self._arn(match["id"]))

    def version(self, _full_name: str, number: int, /) -> str:
        return str(number)

    @staticmethod
    def _arn(identifier: str) -> str:
        return f"arn:aws:kms:eu-west-1:000000000000:key/{identifier}"


@final
class _GCP:
    versions: ClassVar = _COUNTED
    naming: ClassVar = "NAME, or projects/…/cryptoKeys/NAME"
    _names: ClassVar = re.compile(
        r"""
        (?P<ring> projects/[a-z0-9][a-z0-9.:-]{0,62}/locations/[a-z0-9-]{1,63}
                  /keyRings/[A-Za-z0-9_-]{1,63}/cryptoKeys/ )?
        (?P<name> [A-Za-z0-9_-]{1,63} )""",
        re.VERBOSE,
    )
    _own_ring = "projects/kkp/locations/global/keyRings/kkp/cryptoKeys/"

    def resolve(self, key_id: str) -> _Key | None:
        match = self._names.fullmatch(key_id)
        if match is None:
            return None
        return _Key(match["name"], (match["ring"] or self._own_ring) + match["name"])

    def version(self, _full_name: str, number: int, /) -> str:
        return str(number)


@final
class _Azure:
    versions: ClassVar = re.compile(r"[0-9a-f]{32}")
    naming: ClassVar = "NAME, NAME/VERSION, or a key's URL"
    _names: ClassVar = re.compile(
        r"""
        (?P<vault> https://[a-z][a-z0-9-]{1,22}[a-z0-9]\.vault\.azure\.net/keys/ )?
        (?P<name> [0-9a-z-]{1,127} )
        (?: / (?P<version> [0-9a-f]{32} ) )?""",
        re.VERBOSE | re.IGNORECASE | re.ASCII,
    )
    _own_vault = "https://kkp.vault.azure.net/keys/"

    def resolve(self, key_id: str) -> _Key | None:
        match = self._names.fullmatch(key_id)
        if match is None:
            return None
        vault, name, version = (part and part.lower() for part in match.groups())
        return _Key(name, (vault or self._own_vault) + name, version)

    def version(self, full_name: str, number: int, /) -> str:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{full_name}/{number}").hex


_CLOUDS: Mapping[str, _Cloud] = {"aws": _AWS(), "gcp": _GCP(), "azure": _Azure()}
_CLOUD_OF: Mapping[str, str] = {f"memory://{cloud}": cloud for cloud in _CLOUDS}


@final
class MemoryKMS:
    """An emulator of one cloud's key management.

    Args:
        cloud: `aws`, `gcp` or `azure`.
        master_key: What every key is derived from.
    """

    def __init__(self, cloud: str, master_key: MasterKey) -> None:
        self._subkey = master_key.derive("kkp/memory-kms/v1")
        self._cloud_name = cloud
        self._cloud = _CLOUDS[cloud]
        self._rotations: dict[str, int] = {}

    @staticmethod
    def check(uri: str) -> None:
        """Refuse a URI that names no emulator.

        Raises:
            ConfigError: There is no such emulator.
        """
        if uri not in _CLOUD_OF:
            raise ConfigError([f"memory:// has the emulators {', '.join(_CLOUDS)}; write memory://aws"])

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> MemoryKMS:
        """Make the emulator that the URI names.

        Raises:
            ConfigError: There is no such emulator.
        """
        cls.check(uri)
        return cls(_CLOUD_OF[uri], resources.master_key)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key; see `KMS.wrap`."""
        key = self._resolve(key_id)
        version = self._current_version(key)
        return WrappedKey(self._wrapping_key(key, version).wrap(data_key, context), version)

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        key, version = self._resolve(key_id), wrapped.key_version
        if key.pinned_version not in (None, version) or not self._cloud.versions.fullmatch(version):
            raise invalid_wrap()
        return self._wrapping_key(key, version).unwrap(wrapped.encrypted_data_key, context)

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the key's full name and the version that wraps now; see `KMS.describe`."""
        key = self._resolve(key_id)
        return KeyDescription(key.full_name, self._current_version(key))

    async def rotate(self, key_id: str) -> KeyDescription:
        """Count the key's version up by one, until the process ends; see `RotatesKeys.rotate`."""
        key = self._resolve(key_id)._replace(pinned_version=None)
        self._rotations[key.full_name] = self._rotations.get(key.full_name, 0) + 1
        return KeyDescription(key.full_name, self._current_version(key))

    async def ping(self) -> None:
        """Do nothing: memory is always there."""

    async def close(self) -> None:
        """Do nothing: nothing is held open."""

    def _resolve(self, key_id: str) -> _Key:
        key = self._cloud.resolve(key_id)
        if key is None or key.short_name.startswith("missing"):
            raise UnknownKeyError(f"The backend has no such key. Its names are {self._cloud.naming}.")
        if key.short_name.startswith("disabled"):
            raise KeyDisabledError("The key is disabled.")
        return key

    def _current_version(self, key: _Key) -> str:
        if key.pinned_version is not None:
            return key.pinned_version
        return self._cloud.version(key.full_name, 1 + self._rotations.get(key.full_name, 0))

    def _wrapping_key(self, key: _Key, version: str) -> WrappingKey:
        names = label(self._cloud_name, "key", key.full_name, version)
        return WrappingKey(derive_key(self._subkey, None, names), names)
