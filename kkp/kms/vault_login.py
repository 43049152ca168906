"""How KKP gets a token of Vault's, and keeps it alive.

- A token is taken from a file or from `VAULT_TOKEN`, or given by a login: AppRole, or a JWT (which is how
  Kubernetes service accounts log in, too). Files are read anew whenever a credential is needed, so whoever
  renews them, such as a Vault Agent, is followed.
- A token that Vault renews is renewed when a third of its life is left, used or not; one that it does not
  renew, or hardly any more, is replaced by a new login at that time.
- A token that is refused is looked up. If Vault does not know it either, it is replaced, once; if it does,
  the refusal was about the request. So a revoked token costs one more try, a missing permission no login.
- After a refused login the next is tried a few seconds later: Vault locks out whoever tries too often.

Leases are intervals, so times here are the event loop's.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, final

import msgspec

from kkp.errors import ConfigError, CredentialsExpiredError, KMSDeniedError, KMSError, KMSUnavailableError
from kkp.kms.vault_client import BAD_REQUEST, FORBIDDEN, OK, VaultAnswer, VaultClient

_RETRY_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 600.0  # at what never expires
_SHORTEST_PAUSE_SECONDS = 1.0
_MAX_CREDENTIAL_BYTES = 16 * 1024
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")


class Credential(Protocol):
    """Something to show to Vault."""

    def read(self) -> str:
        """Return it.

        Raises:
            KMSUnavailableError: It is not there now.
        """


@final
@dataclass(frozen=True, slots=True)
class FixedCredential:
    """One that does not change while KKP runs."""

    value: str = field(repr=False)

    def read(self) -> str:
        """Return it."""
        return self.value


@final
@dataclass(frozen=True, slots=True)
class FileCredential:
    """One in a file, which somebody else may replace at any time."""

    path: Path

    def read(self) -> str:
        """Read the file; see `Credential.read`."""
        try:
            with self.path.open("rb") as opened:
                text = opened.read(_MAX_CREDENTIAL_BYTES).decode("ascii", errors="replace").strip()
        except OSError as error:
            name = type(error).__name__
            raise KMSUnavailableError(f"A file of credentials for Vault can't be read ({name}).") from None
        if not _CREDENTIAL.fullmatch(text):
            raise KMSUnavailableError("A file of credentials for Vault holds none.")
        return text


def credential(file: str | None, variable: str) -> Credential:
    """Return the credential of this file, or of this variable of the environment where no file is named.

    Raises:
        ConfigError: There is neither.
    """
    if file is not None:
        return FileCredential(Path(file))
    value = os.environ.get(variable, "").strip()
    if not _CREDENTIAL.fullmatch(value):
        raise ConfigError([f"vault-transit://: set {variable}, or name a file that holds it"])
    return FixedCredential(value)


@dataclass(frozen=True, slots=True)
class Lease:
    """A token, and how long it lives.

    Attributes:
        seconds: From now; 0 for ever.
    """

    token: str = field(repr=False)
    seconds: int
    is_renewable: bool


class Source(Protocol):
    """Where tokens come from."""

    async def take(self, client: VaultClient) -> Lease:
        """Get a token.

        Raises:
            KMSDeniedError: Vault refuses the credential.
            KMSUnavailableError: There is no credential or no Vault now.
        """


class TokenFacts(msgspec.Struct, frozen=True):
    """What Vault says of a token, in seconds."""

    ttl: int
    renewable: bool = False


@final
@dataclass(frozen=True, slots=True)
class GivenToken:
    """A token that somebody else made."""

    token: Credential

    async def take(self, client: VaultClient) -> Lease:
        """Read the token and look up how long it lives; see `Source.take`."""
        token = self.token.read()
        answer = await client.get("auth/token/lookup-self", token)
        if answer.status == FORBIDDEN:  # Vault forgets a token whose time is over
            raise CredentialsExpiredError("Vault does not know KKP's token, or no longer.")
        _refuse(answer, "Vault does not know KKP's token.")
        facts = read_facts(answer)
        return Lease(token, facts.ttl, facts.renewable)


@final
@dataclass(frozen=True, slots=True)
class Login:
    """A login.

    Attributes:
        mount: The path of the auth method, such as `approle`.
        members: What is sent as it is.
        credentials: What is sent by what it is called in the request.
    """

    mount: str
    members: Mapping[str, str]
    credentials: Mapping[str, Credential]

    async def take(self, client: VaultClient) -> Lease:
        """Log in; see `Source.take`."""
        shown = {name: each.read() for name, each in self.credentials.items()}
        answer = await client.post(f"auth/{self.mount}/login", None, {**self.members, **shown})
        _refuse(answer, "Vault refused KKP's login.")
        return _lease(answer)


@final
class VaultTokens:
    """The token that requests carry.

    Args:
        client: The Vault to ask.
        source: Where tokens come from.
        timeout_seconds: The most that keeping the token alive waits for an answer.
    """

    def __init__(self, client: VaultClient, source: Source, timeout_seconds: float) -> None:
        self._client = client
        self._source = source
        self._timeout_seconds = timeout_seconds
        self._lease: Lease | None = None
        self._full_seconds = 0
        self._taking = asyncio.Lock()
        self._refused: tuple[float, KMSDeniedError] | None = None
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take a token and keep it alive from now on. It does not wait for Vault."""
        self._keeper = asyncio.create_task(self._keep_alive())

    async def close(self) -> None:
        """Stop, and forget the token."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self._lease = None

    async def current(self) -> str:
        """Return the token.

        Raises:
            KMSDeniedError: Vault refuses KKP's credential.
            KMSUnavailableError: There is no credential or no Vault now.
        """
        return await self._take(None) if self._lease is None else self._lease.token

    async def after_refusal(self, refused: str) -> str:
        """Return a token to try once more with.

        Raises:
            KMSDeniedError: The token is good, so its permissions are not; or there is no other.
            KMSUnavailableError: There is no credential or no Vault now.
        """
        answer = await self._client.get("auth/token/lookup-self", refused)
        if answer.status != FORBIDDEN:
            read_facts(answer)
            raise KMSDeniedError("Vault does not permit this to KKP's token.")
        return await self._take(refused)

    async def _take(self, old: str | None) -> str:
        """Take a token in place of the old one, unless somebody else has done so."""
        async with self._taking:
            if self._lease is not None and self._lease.token != old:
                return self._lease.token
            if self._refused is not None and asyncio.get_running_loop().time() < self._refused[0]:
                raise type(self._refused[1])(str(self._refused[1]))
            try:
                self._lease = await self._source.take(self._client)
            except KMSDeniedError as error:
                self._lease = None
                self._refused = asyncio.get_running_loop().time() + _RETRY_SECONDS, error
                raise
            self._refused = None
            self._full_seconds = self._lease.seconds
            return self._lease.token

    async def _keep_alive(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    pause_seconds = await self._tend()
            except (KMSError, TimeoutError):
                pause_seconds = _RETRY_SECONDS
            await asyncio.sleep(pause_seconds)

    async def _tend(self) -> float:
        """Renew or replace the token, and return when to look again."""
        if self._lease is None:
            await self._take(None)
        elif self._lease.seconds > 0 and not await self._renew(self._lease):
            await self._take(self._lease.token)
        if self._lease is None or self._lease.seconds <= 0:
            return _LOOK_AGAIN_SECONDS
        return max(self._lease.seconds * 2 / 3, _SHORTEST_PAUSE_SECONDS)

    async def _renew(self, lease: Lease) -> bool:
        """Tell whether the token lives on for at least half as long as it did when it was new."""
        if not lease.is_renewable:
            return False
        answer = await self._client.post("auth/token/renew-self", lease.token, {})
        if answer.status != OK:
            return False
        renewed = _lease(answer)
        if renewed.token != lease.token or renewed.seconds < self._full_seconds / 2:
            return False
        self._lease = renewed
        return True


def read_facts(answer: VaultAnswer) -> TokenFacts:
    """Return what a look-up of a token found.

    Raises:
        KMSUnavailableError: It is not the answer to one.
    """
    try:
        return msgspec.json.decode(answer.data, type=TokenFacts)
    except msgspec.MsgspecError:
        raise KMSUnavailableError("Vault's answer about a token is not of the form that it has.") from None


def _refuse(answer: VaultAnswer, message: str) -> None:
    if answer.status in {BAD_REQUEST, FORBIDDEN}:
        raise KMSDeniedError(message)
    if answer.status != OK:
        raise KMSUnavailableError("Vault has no such login.")


def _lease(answer: VaultAnswer) -> Lease:
    granted = answer.auth
    if granted is None or not _CREDENTIAL.fullmatch(granted.client_token):
        raise KMSUnavailableError("Vault's answer holds no token.")
    return Lease(granted.client_token, granted.lease_duration, granted.renewable)
