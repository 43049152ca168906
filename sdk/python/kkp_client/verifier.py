"""Verifies KKP's tokens with keys, and a list of revocations, that are fetched from KKP and kept.

Nothing is asked of KKP about a token: with KKP away, tokens verify as long as keys and list may be used. What
is fetched is fetched in the background of verifications, so that one waits only
- where there are no keys, none young enough, or none with the token's `kid` (at most every 30 seconds);
- where there is no list, or it is older than its `max-age`: what was revoked is honoured within that time.

A token that is refused whatever the keys are causes no request. Once a request for the list has failed nobody
waits for the next one: the list is used until it ends. What is missing is said at once until it may be asked
for again.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Final, Required, TypeAlias, TypedDict, Unpack, cast, final

from kkp_client import keys as key_sets
from kkp_client.claims import Claims
from kkp_client.clock import Clock, SystemClock
from kkp_client.dpop import PresentedProof
from kkp_client.errors import (
    ConfigurationError,
    KeysReason,
    KeysUnavailableError,
    KKPError,
    RevocationsReason,
    RevocationsUnavailableError,
    TokenError,
)
from kkp_client.fetching import tls_context
from kkp_client.key_cache import DocumentCache, NotReadError
from kkp_client.keys import KeySet, PublicKey, read_key_set
from kkp_client.leeway import DEFAULT_LEEWAY_SECONDS, refuse_leeway
from kkp_client.remote_document import RemoteDocument
from kkp_client.replay_memory import ReplayMemory
from kkp_client.revocations import MAX_LIST_CHARACTERS, RevocationList, Revocations, verify_revocation_list
from kkp_client.tokens import verify_token
from kkp_client.urls import checked_url

Keys: TypeAlias = Mapping[str, PublicKey]
Refusal: TypeAlias = TokenError | KeysUnavailableError | RevocationsUnavailableError

_KEYS_AGE_SECONDS: Final = 300
# A list that says nothing of its own life is one of KKP's default: 300 s, signed anew each fifth of it.
_LIST_AGE_SECONDS: Final = 60
# The list is fetched early, so that verifications find one that is young enough, and need not wait.
_LIST_REFRESH_SHARE: Final = 0.5
# The keys, a key that was not among them, the list: what can be missing, one after the other.
_MAX_FETCHES: Final = 3


class VerifierOptions(TypedDict, total=False):
    """How a verifier is made.

    Attributes:
        audience: What the service that verifies is called: a token is good if it is meant for exactly this.
        issuer: What KKP calls itself (`KKP_ISSUER`), if that is not its URL.
        leeway_seconds: How far clocks may be apart, 0 to 60; 5 unless told.
        revocations: Whether revocations are honoured before a token expires; True unless told.
        highest_revocation_seq: That of a verifier of before, so that an old list is refused after a restart.
        allow_http: Whether KKP may be asked in the clear, elsewhere than on this machine.
        ssl_context: By what KKP's certificate is verified; unless told, by what certifi has.
        clock: What time it is.
    """

    audience: Required[str]
    issuer: str
    leeway_seconds: float
    revocations: bool
    highest_revocation_seq: int
    allow_http: bool
    ssl_context: ssl.SSLContext
    clock: Clock


@final
class TokenVerifier:
    """Verifies tokens in asyncio. Its twin for threads is `kkp_client.sync_verifier.SyncTokenVerifier`.

    Args:
        url: Where KKP is.
        **options: See VerifierOptions.

    Raises:
        ConfigurationError: It can't be made of these.
    """

    def __init__(self, url: str, **options: Unpack[VerifierOptions]) -> None:
        base = checked_url(url, allow_http=options.get("allow_http", False))
        self.audience = _named(options["audience"], "audience")
        self.issuer = _named(options.get("issuer", base), "issuer")
        self._leeway_seconds = options.get("leeway_seconds", DEFAULT_LEEWAY_SECONDS)
        refuse_leeway(self._leeway_seconds)
        self._clock = options.get("clock", SystemClock())
        self._highest_seq = options.get("highest_revocation_seq", 0)
        self._proof_memory = ReplayMemory()
        context = options.get("ssl_context") or tls_context(base)
        self._keys = RemoteDocument(_keys_at(f"{base}/keys/jwks"), _read_keys, self._clock, context)
        self._list: RemoteDocument[RevocationList] | None = None
        if options.get("revocations", True):
            cache = _list_at(f"{base}/revocations/list")
            self._list = RemoteDocument(cache, self._read_list, self._clock, context)

    def __repr__(self) -> str:
        return f"TokenVerifier(audience={self.audience!r}, issuer={self.issuer!r})"

    @property
    def highest_revocation_seq(self) -> int:
        """The highest `seq` of a list that was ever accepted; 0 before the first."""
        return self._highest_seq

    async def prepare(self) -> None:
        """Fetch keys and list now, so that the first token need not wait.

        Raises:
            KeysUnavailableError: There are no keys; it says what could not be fetched, and why.
            RevocationsUnavailableError: There is no list.
        """
        if not await self._keys.refresh() and self._keys.held is None:
            raise KeysUnavailableError.because("no_keys", self._keys.failure)
        if self._list is not None and not await self._list.refresh() and self._list.held is None:
            raise RevocationsUnavailableError.because("no_list", self._list.failure)

    async def verify(
        self, token: str, *, proof: PresentedProof | None = None, certificate_sha256: str | None = None
    ) -> Claims:
        """Return the claims of a token that is good now.

        Args:
            token: As it was shown.
            proof: The DPoP proof that was shown with it, and the request; None for none.
            certificate_sha256: Of the TLS client's certificate: see `kkp_client.tokens.certificate_sha256`.

        Raises:
            TokenError: The token is refused.
            KeysUnavailableError: It can't be verified for want of keys.
            RevocationsUnavailableError: Whether it was revoked can't be told.
        """
        self._refresh_in_background()
        if self._list is not None and self._must_wait():
            await self._list.refresh()
        fetches = 0
        while True:
            try:
                return self._verdict(token, proof, certificate_sha256)
            except (TokenError, KeysUnavailableError, RevocationsUnavailableError) as error:
                refusal = error
            if fetches == _MAX_FETCHES or not await self._supply(refusal):
                raise self._explained(refusal)
            fetches += 1

    def _at_hand(
        self,
        token: str,
        proof: PresentedProof | None,
        certificate_sha256: str | None,
        begin: Callable[[Callable[[], None]], None],
    ) -> Claims | None:
        """Return what `verify` does, for the twin: None where something has to be waited for.

        Args:
            token: See `verify`, as of the next two.
            proof: See there.
            certificate_sha256: See there.
            begin: Runs in the event loop what begins to fetch.
        """
        if self._must_wait():
            return None
        if self._is_due():
            begin(self._refresh_in_background)
        try:
            return self._verdict(token, proof, certificate_sha256)
        except (KeysUnavailableError, RevocationsUnavailableError):
            return None
        except TokenError as error:
            if error.reason != "unknown_key":
                raise
            return None

    def _verdict(self, token: str, proof: PresentedProof | None, certificate_sha256: str | None) -> Claims:
        """Return the claims of a token that is good now, by what is at hand; see `verify`."""
        return verify_token(
            token,
            keys=self._key_set(),
            now=self._clock.now(),
            issuer=self.issuer,
            audience=self.audience,
            leeway_seconds=self._leeway_seconds,
            revocations=self._revocations(),
            proof=proof,
            proof_memory=self._proof_memory,
            certificate_sha256=certificate_sha256,
        )

    def _must_wait(self) -> bool:
        """Tell whether the list is too old to verify by, unless the last request for another has failed.

        With KKP out of reach each request would last until its deadline, and every verification with it.
        """
        listed = self._list
        return listed is not None and listed.is_older_than(1) and not listed.failure and listed.is_coming()

    def _is_due(self) -> bool:
        """Tell whether there is something to be fetched in the background now."""
        return (self._is_keys_due() and self._keys.may_begin()) or (
            self._list is not None and self._is_list_due() and self._list.may_begin()
        )

    def _refresh_in_background(self) -> None:
        """Begin to fetch what is due. What was never fetched is fetched when a token needs it."""
        if self._is_keys_due():
            self._keys.refresh_in_background()
        if self._list is not None and self._is_list_due():
            self._list.refresh_in_background()

    def _is_keys_due(self) -> bool:
        return self._keys.is_older_than(1)

    def _is_list_due(self) -> bool:
        return self._list is not None and self._list.is_older_than(_LIST_REFRESH_SHARE)

    def _key_set(self) -> KeySet | None:
        held = self._keys.held
        if held is None:
            return None
        age_seconds = self._clock.steady() - held.fetched_at
        return KeySet(held.document, self._clock.now() - age_seconds)

    def _revocations(self) -> Revocations | None:
        if self._list is None:
            return None
        return Revocations(None if self._list.held is None else self._list.held.document)

    async def _supply(self, refusal: Refusal) -> bool:
        """Fetch what a verdict lacked; tell whether it came."""
        if isinstance(refusal, RevocationsUnavailableError):
            return self._list is not None and await self._list.refresh()
        return await self._supply_keys(refusal)

    async def _supply_keys(self, refusal: KKPError) -> bool:
        if isinstance(refusal, KeysUnavailableError):
            return await self._keys.refresh()
        return refusal.reason == "unknown_key" and await self._keys.refresh_for_unknown_key()

    def _explained(self, refusal: Refusal) -> Refusal:
        """Return a refusal that says what could not be fetched, from where, if that is why."""
        if isinstance(refusal, KeysUnavailableError):
            return KeysUnavailableError.because(cast("KeysReason", refusal.reason), self._keys.failure)
        if isinstance(refusal, RevocationsUnavailableError) and self._list is not None:
            reason = cast("RevocationsReason", refusal.reason)
            return RevocationsUnavailableError.because(reason, self._list.failure)
        return refusal

    async def _read_list(self, body: bytes) -> RevocationList:
        """Return the list that an answer is.

        Raises:
            NotReadError: It is none, or none that can be relied on.
        """
        document = body.decode("ascii", "replace")
        fetches = 0
        while True:
            try:
                found = self._list_of(document)
            except (TokenError, KeysUnavailableError, RevocationsUnavailableError) as error:
                refusal = error
            else:
                self._highest_seq = found.seq
                return found
            # The list of a KKP that rotated its key a moment ago is by one that is not among those here.
            if fetches == _MAX_FETCHES or not await self._supply_keys(refusal):
                raise NotReadError(f"the list was refused: {self._explained(refusal)}")
            fetches += 1

    def _list_of(self, document: str) -> RevocationList:
        return verify_revocation_list(
            document,
            keys=self._key_set(),
            now=self._clock.now(),
            issuer=self.issuer,
            leeway_seconds=self._leeway_seconds,
            highest_seq=self._highest_seq,
        )


def _keys_at(url: str) -> DocumentCache[Keys]:
    return DocumentCache(url, max_bytes=key_sets.MAX_DOCUMENT_BYTES, default_age_seconds=_KEYS_AGE_SECONDS)


def _list_at(url: str) -> DocumentCache[RevocationList]:
    return DocumentCache(url, max_bytes=MAX_LIST_CHARACTERS, default_age_seconds=_LIST_AGE_SECONDS)


async def _read_keys(body: bytes) -> Keys:
    """Return the keys that an answer has.

    Raises:
        NotReadError: It is no key set.
    """
    try:
        return read_key_set(body)
    except ValueError as error:
        why = str(error)
    raise NotReadError(f"the answer is no key set: {why}")


def _named(name: str, option: str) -> str:
    if not name:
        raise ConfigurationError(f"A verifier needs the option {option}.")
    return name
