"""`vault-transit://HOST:PORT/MOUNT`: the transit engine of a HashiCorp Vault or an OpenBao.

A wrap is `encrypt`, an unwrap is `decrypt`, of a key of the mount; the context's RFC 8785 bytes are the
`associated_data`, so nothing opens under another context. The wrapped key is Vault's own text,
`vault:vN:BASE64`, and the key's version is its N: after a rotation new wraps have the new version, and old
ones open as long as `min_decryption_version` lets them.

Rules:
- Keys are AES-256-GCM or (X)ChaCha20-Poly1305, not derived. Others either can't bind a context or are weaker
  than the data key.
- Every key is looked at before its first wrap: transit makes a key that it does not have if the token may
  `create`, and a typing error must not.
- Vault answers 400 to everything that is wrong with a request. What it was is read from the key itself.
- Data keys are KKP's own, wrapped by `encrypt`: transit's `datakey` takes no associated data, so what it
  wraps could not be bound to a context.
- Answers are distrusted: the version in the text must be the one that the answer names, and one that the key
  has; a text must be written as Vault writes it, since Go's base64 passes over line breaks.
- Whatever says that Vault could not be reached, is sealed, failed or is not to be trusted is
  KMSUnavailableError. Only Vault's own refusal of a token or a login is KMSDeniedError.
- One try and one deadline for each call, with what a login takes.

Least permissions of the token, with the policy `default` or its own right to look itself up and renew itself:

    path "MOUNT/encrypt/KEY" { capabilities = ["update"] }
    path "MOUNT/decrypt/KEY" { capabilities = ["update"] }
    path "MOUNT/keys/KEY"    { capabilities = ["read"] }
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final
from urllib.parse import SplitResult

import msgspec

from kkp.destinations import is_host, is_loopback
from kkp.envelope import DATA_KEY_BYTES
from kkp.errors import (
    ConfigError,
    KeyDisabledError,
    KeyNotReadyError,
    KMSDeniedError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import _address
from kkp.kms._aead import invalid_wrap
from kkp.kms.base import KeyDescription, Resources, WrappedKey, context_bytes
from kkp.kms.vault_client import FORBIDDEN, NOT_FOUND, OK, VaultAddress, VaultAnswer, VaultClient
from kkp.kms.vault_login import FileCredential, GivenToken, Login, Source, VaultTokens, credential, read_facts

_T = TypeVar("_T")

_CURE = "write vault-transit://HOST:PORT/MOUNT; docs/kms/vault-transit.md has the options"
_KEY_TYPES = frozenset({"aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"})
_PORT = 8200
_MAX_NAMES = 1024  # whose version is remembered

_PATH = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}){0,7}"
_MOUNT = re.compile(_PATH)
_KEY_ID = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,126}[A-Za-z0-9_])?")
_CIPHERTEXT = re.compile(
    r"vault:v(?P<version> [1-9][0-9]{0,8} ):(?P<blob> [A-Za-z0-9+/]{4,1024}={0,2} )", re.VERBOSE
)

_COMMON_OPTIONS = frozenset({"auth", "namespace", "ca_file", "tls"})
_OPTIONS_OF: Mapping[str, frozenset[str]] = {
    "token": frozenset({"token_file"}),
    "approle": frozenset({"auth_mount", "role_id_file", "secret_id_file"}),
    "jwt": frozenset({"auth_mount", "role", "jwt_file"}),
}
_ALL_OPTIONS = _COMMON_OPTIONS.union(*_OPTIONS_OF.values())


class _Key(msgspec.Struct, frozen=True):
    """What Vault says of a key."""

    type: str
    latest_version: int
    min_decryption_version: int = 0
    derived: bool = False
    soft_deleted: bool = False


class _Encrypted(msgspec.Struct, frozen=True):
    ciphertext: str
    key_version: int


class _Decrypted(msgspec.Struct, frozen=True):
    plaintext: bytes

    def __repr__(self) -> str:
        return "_Decrypted(...)"


@dataclass(frozen=True, slots=True)
class _Address:
    vault: VaultAddress
    mount: str
    login: Mapping[str, str]


@final
class VaultKMS:
    """The keys of one transit mount.

    URI: `vault-transit://HOST[:PORT]/MOUNT`, with the options

    - `auth`: `token` (the default), `approle` or `jwt`.
    - `token_file`: holds the token; else `VAULT_TOKEN` does.
    - `role_id_file`, `secret_id_file`: hold what AppRole asks for; else `VAULT_ROLE_ID` and
      `VAULT_SECRET_ID` do.
    - `role`, `jwt_file`: what a JWT login asks for; both needed.
    - `auth_mount`: where the auth method is, if not at `approle` or `jwt`; `kubernetes` with `auth=jwt`.
    - `namespace`: the one that mount and auth method are in.
    - `ca_file`: PEM certificates of Vault's authority; else the system's are believed.
    - `tls`: `off`, on a loopback address only.

    Key ids: the key's name in the mount, spelled one way only.

    Args:
        client: The connections to Vault; closed by the adaptor.
        tokens: The token to show, kept alive; closed by the adaptor.
        mount: Path of the engine.
        timeout_seconds: The deadline of each call.
    """

    def __init__(self, client: VaultClient, tokens: VaultTokens, mount: str, timeout_seconds: float) -> None:
        self._client = client
        self._tokens = tokens
        self._mount = mount
        self._timeout_seconds = timeout_seconds
        self._latest: dict[str, int] = {}

    @staticmethod
    def check(uri: str) -> None:
        """Refuse a URI that names no mount, or has options that don't exist or don't go together.

        Raises:
            ConfigError: It does.
        """
        _read(uri)

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> VaultKMS:
        """Make the client, and log in as soon as Vault answers, which is not waited for.

        Raises:
            ConfigError: The URI can't be used, or there is no credential or no certificate.
        """
        address = _read(uri)
        source = _source(address.login)
        client = VaultClient(address.vault)
        timeout_seconds = resources.limits.timeout_seconds
        tokens = VaultTokens(client, source, timeout_seconds)
        tokens.start()
        return cls(client, tokens, address.mount, timeout_seconds)

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Encrypt the data key under the key's newest version; see `KMS.wrap`."""
        _check_name(key_id)
        async with self._deadline():
            if key_id not in self._latest:
                await self._look(key_id)
            document = {"plaintext": _encode(data_key), "associated_data": _encode(context_bytes(context))}
            answer = await self._request(f"{self._mount}/encrypt/{key_id}", document)
            if answer.status != OK:
                await self._look(key_id)  # raises, where the key itself is why
                raise KeyNotReadyError("Vault does not encrypt under this key.")
            encrypted = _convert(answer, _Encrypted)
            await self._confirm(key_id, encrypted)
            return WrappedKey(encrypted.ciphertext.encode(), str(encrypted.key_version))

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Return the data key; see `KMS.unwrap`."""
        _check_name(key_id)
        ciphertext = wrapped.encrypted_data_key.decode("latin-1")
        version = _version_of(ciphertext)
        if version is None or str(version) != wrapped.key_version:
            raise invalid_wrap()
        async with self._deadline():
            document = {"ciphertext": ciphertext, "associated_data": _encode(context_bytes(context))}
            answer = await self._request(f"{self._mount}/decrypt/{key_id}", document)
            if answer.status != OK:
                key = await self._look(key_id)
                if version < key.min_decryption_version:
                    raise KeyDisabledError("The key no longer opens what this version of it wrapped.")
                raise invalid_wrap()
            plaintext = _convert(answer, _Decrypted).plaintext
            if len(plaintext) != DATA_KEY_BYTES:
                # No data key: it is the wrap that somebody else made, and no fault of Vault.
                raise invalid_wrap()
            return plaintext

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the newest version; see `KMS.describe`."""
        _check_name(key_id)
        async with self._deadline():
            return KeyDescription(key_id, str((await self._look(key_id)).latest_version))

    async def ping(self) -> None:
        """Have Vault look up KKP's token."""
        async with self._deadline():
            read_facts(await self._request("auth/token/lookup-self"))

    async def close(self) -> None:
        """Forget the token and close the connections. The token lives on in Vault until its lease ends."""
        await self._tokens.close()
        await self._client.close()

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                yield
        except TimeoutError:
            raise KMSUnavailableError("Vault did not answer in time.") from None

    async def _look(self, key_id: str) -> _Key:
        """Read what Vault says of the key, and remember its newest version if it can be used."""
        answer = await self._request(f"{self._mount}/keys/{key_id}")
        if answer.status == NOT_FOUND and not answer.has_errors:
            raise UnknownKeyError("The backend has no such key.")
        if answer.status != OK:
            raise KMSUnavailableError("Vault has no transit engine at this mount.")
        key = _convert(answer, _Key)
        if key.soft_deleted:
            raise KeyDisabledError("The key awaits deletion.")
        if key.type not in _KEY_TYPES or key.derived:
            raise UnknownKeyError("The backend's key of this name is not one to wrap with.")
        self._remember(key_id, key.latest_version)
        return key

    def _remember(self, key_id: str, version: int) -> None:
        if len(self._latest) >= _MAX_NAMES:
            self._latest.clear()
        self._latest[key_id] = version

    async def _confirm(self, key_id: str, encrypted: _Encrypted) -> None:
        """Hold the version that an answer names against its text, and against those that the key has."""
        version = _version_of(encrypted.ciphertext)
        if version is None or version != encrypted.key_version:
            raise _untrusted()
        if version != self._latest.get(key_id) and version > (await self._look(key_id)).latest_version:
            raise _untrusted()

    async def _request(self, path: str, document: Mapping[str, object] | None = None) -> VaultAnswer:
        """Read a path, or write to it, with the token; once more with a new one where the old one is dead."""
        token = await self._tokens.current()
        answer = await self._send(path, token, document)
        if answer.status == FORBIDDEN:
            token = await self._tokens.after_refusal(token)
            answer = await self._send(path, token, document)
        if answer.status == FORBIDDEN:
            raise KMSDeniedError("Vault does not permit this to KKP's token.")
        return answer

    async def _send(self, path: str, token: str, document: Mapping[str, object] | None) -> VaultAnswer:
        if document is None:
            return await self._client.get(path, token)
        return await self._client.post(path, token, document)


def _read(uri: str) -> _Address:
    try:
        parts = _address.split(uri)
        given = _address.options(parts, _ALL_OPTIONS)
        return _Address(_vault(parts, given), _mount(parts), _login(given))
    except ValueError as error:
        raise ConfigError([f"vault-transit://: {error}; {_CURE}"]) from None


def _vault(parts: SplitResult, given: Mapping[str, str]) -> VaultAddress:
    host = parts.hostname or ""
    if not is_host(host):
        raise ValueError("it names no host")
    is_tls = "tls" not in given
    if not is_tls and (given["tls"] != "off" or not is_loopback(host) or "ca_file" in given):
        raise ValueError("tls=off is for a loopback address, written as a number, and without ca_file")
    namespace = given.get("namespace", "")
    if namespace and not _MOUNT.fullmatch(namespace):
        raise ValueError("namespace is a path such as team/a")
    ca_file = Path(given["ca_file"]) if "ca_file" in given else None
    bracketed = f"[{host}]" if ":" in host else host
    return VaultAddress(f"{bracketed}:{parts.port or _PORT}", is_tls, ca_file, namespace)


def _mount(parts: SplitResult) -> str:
    mount = parts.path.removeprefix("/")
    if not _MOUNT.fullmatch(mount):
        raise ValueError("it names no mount")
    return mount


def _login(given: Mapping[str, str]) -> Mapping[str, str]:
    """Return the options of the login, the method among them."""
    method = given.get("auth", "token")
    login = {name: value for name, value in given.items() if name not in _COMMON_OPTIONS}
    if method not in _OPTIONS_OF:
        raise ValueError(f"auth is one of {', '.join(_OPTIONS_OF)}")
    if not set(login) <= _OPTIONS_OF[method]:
        raise ValueError(f"with auth={method} go {', '.join(sorted(_OPTIONS_OF[method]))}")
    if method == "jwt" and not {"role", "jwt_file"} <= set(login):
        raise ValueError("auth=jwt needs role and jwt_file")
    if not _MOUNT.fullmatch(login.get("auth_mount", method)):
        raise ValueError("auth_mount is a path such as kubernetes")
    return {"auth": method, "auth_mount": method, **login}


def _source(login: Mapping[str, str]) -> Source:
    if login["auth"] == "token":
        return GivenToken(credential(login.get("token_file"), "VAULT_TOKEN"))
    if login["auth"] == "jwt":
        return Login(
            login["auth_mount"], {"role": login["role"]}, {"jwt": FileCredential(Path(login["jwt_file"]))}
        )
    shown = {
        "role_id": credential(login.get("role_id_file"), "VAULT_ROLE_ID"),
        "secret_id": credential(login.get("secret_id_file"), "VAULT_SECRET_ID"),
    }
    return Login(login["auth_mount"], {}, shown)


def _check_name(key_id: str) -> None:
    if not _KEY_ID.fullmatch(key_id):
        raise UnknownKeyError("The backend has no such key.")


def _version_of(ciphertext: str) -> int | None:
    """Return the version in a wrapped key's text; None where it is not written as Vault writes it."""
    match = _CIPHERTEXT.fullmatch(ciphertext)
    if match is None:
        return None
    try:
        decoded = base64.b64decode(match["blob"], validate=True)
    except binascii.Error:
        return None
    return int(match["version"]) if _encode(decoded) == match["blob"] else None


def _encode(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _convert(answer: VaultAnswer, form: type[_T]) -> _T:
    try:
        return msgspec.json.decode(answer.data, type=form)
    except msgspec.MsgspecError:
        raise _untrusted() from None


def _untrusted() -> KMSUnavailableError:
    return KMSUnavailableError("Vault's answer is about another version, or not of the form that it has.")
