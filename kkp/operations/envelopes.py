"""Sealing, opening and moving envelopes.

A data key comes from the backend or is wrapped by it, and never leaves the process but to a backend that
wraps it. It is forgotten after its message, unless data keys are cached for the caller (`kkp.kms.caching`). A
plaintext is returned only after every check of `kkp.envelope` has passed, and a data key is handed to another
backend only after the envelope's labels were found to be its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import msgspec

from kkp import envelope as envelopes
from kkp.authn.base import Authenticated
from kkp.envelope import DetachedEnvelope, Encoding, Envelope
from kkp.errors import (
    AudienceMismatchError,
    EnvelopeInvalidError,
    InvalidWrapError,
    KKPError,
    UnauthenticatedError,
)
from kkp.kms import KMSRegistry
from kkp.kms.base import KMS, WrappedKey, data_key_from
from kkp.model import JSON, Action
from kkp.operations.base import BatchOperation, EnvelopeFacts, Proposal
from kkp.tokens import Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class SealRequest:
    """What whoever would have something sealed asks for, here or elsewhere."""

    backend: str
    key_id: str
    context: Mapping[str, str]
    associated_data: str | None
    policy_context: Mapping[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptRequest(SealRequest):
    """What `POST /envelope/encrypt` asks for."""

    plaintext: bytes | str = field(repr=False)

    @property
    def plaintext_bytes(self) -> int:
        """How long the plaintext is; a lone surrogate, which sealing refuses, counts as well."""
        plaintext = self.plaintext
        return len(plaintext.encode(errors="surrogatepass") if isinstance(plaintext, str) else plaintext)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """What whoever would have an envelope opened asks for, or its wrap alone; the token is the credential."""

    envelope: DetachedEnvelope
    expected_audience: str | None
    policy_context: Mapping[str, JSON]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecryptRequest(OpenRequest):
    """What `POST /envelope/decrypt` asks for."""

    envelope: Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrapRequest(OpenRequest):
    """What `POST /envelope/rewrap` asks for: the envelope, and the key to move it to."""

    backend: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A plaintext, with the claims of the token that it was released to."""

    plaintext: bytes = field(repr=False)
    encoding: Encoding
    claims: Claims | None


@final
class Encrypt(BatchOperation[Proposal, EncryptRequest, Envelope]):
    """`POST /envelope/encrypt`, by a caller with a grant or a token with op `encrypt`.

    Args:
        registry: The configured backends.
    """

    action: ClassVar[Action] = Action.ENCRYPT
    scope: ClassVar[str | None] = "encrypt"

    def __init__(self, registry: KMSRegistry) -> None:
        self._registry = registry

    def propose(self, authenticated: Authenticated, request: EncryptRequest) -> Proposal:
        """Name the key, the context and the associated data."""
        return sealing(authenticated, request)

    async def run(self, proposal: Proposal, request: EncryptRequest) -> Envelope:
        """Take a data key and seal the plaintext under it."""
        kms = self._registry.for_caller(
            request.backend,
            proposal.caller.id,
            epoch=proposal.authenticated.epoch,
            plaintext_bytes=request.plaintext_bytes,
        )
        data_key = await data_key_from(kms, request.key_id, request.context)
        return envelopes.seal(
            request.plaintext,
            data_key=data_key.plaintext,
            context=request.context,
            associated_data=request.associated_data,
            backend=request.backend,
            key_id=request.key_id,
            key_version=data_key.wrapped.key_version,
            encrypted_data_key=data_key.wrapped.encrypted_data_key,
        )

    def trace(self, request: EncryptRequest) -> Sequence[JSON]:
        """Say how long the plaintext is, and whether it is text: what the envelope will show anyway."""
        return request.plaintext_bytes, isinstance(request.plaintext, str)


@final
class Decrypt(BatchOperation[Proposal, DecryptRequest, Opened]):
    """`POST /envelope/decrypt`, always with a KKP token.

    Args:
        registry: The configured backends.
    """

    action: ClassVar[Action] = Action.DECRYPT
    scope: ClassVar[str | None] = "decrypt"

    def __init__(self, registry: KMSRegistry) -> None:
        self._registry = registry

    def propose(self, authenticated: Authenticated, request: DecryptRequest) -> Proposal:
        """Name the envelope's own labels: it is them that the token and the policy are asked about."""
        return opening(authenticated, request)

    async def run(self, proposal: Proposal, request: DecryptRequest) -> Opened:
        """Unwrap the data key and open the envelope.

        Raises:
            EnvelopeInvalidError: Anything at all did not fit; always the same answer.
        """
        kms = self._registry.for_caller(
            request.envelope.wrap.backend,
            proposal.caller.id,
            epoch=proposal.authenticated.epoch,
            plaintext_bytes=request.envelope.plaintext_bytes,
        )
        data_key = await unwrapped(kms, request.envelope)
        plaintext = envelopes.open(request.envelope, data_key)
        return Opened(plaintext, request.envelope.header.encoding, proposal.claims)

    def trace(self, request: DecryptRequest) -> Sequence[JSON]:
        """Name the envelope, every bit of it."""
        return (envelopes.digest(request.envelope),)


@final
class Rewrap(BatchOperation[Proposal, RewrapRequest, DetachedEnvelope]):
    """`POST /envelope/rewrap`, always with a KKP token for the key that the envelope has now.

    The payload is not decrypted, and every byte of it stays as it is; of a detached envelope and of a stream
    it is not even here. Whatever fails, the envelope that the caller has goes on opening.

    Args:
        registry: The configured backends.
    """

    action: ClassVar[Action] = Action.REWRAP
    scope: ClassVar[str | None] = "rewrap"

    def __init__(self, registry: KMSRegistry) -> None:
        self._registry = registry

    def propose(self, authenticated: Authenticated, request: RewrapRequest) -> Proposal:
        """Name the envelope's own labels as what it would be moved from, and those asked for as where to."""
        found = opening(authenticated, request)
        return msgspec.structs.replace(
            found, backend=request.backend, key_id=request.key_id, source=found.envelope
        )

    async def run(self, proposal: Proposal, request: RewrapRequest) -> DetachedEnvelope:  # noqa: ARG002  all is in the request
        """Unwrap the data key, check whose it is, and wrap it under the other key.

        Raises:
            EnvelopeInvalidError: Anything at all did not fit; always the same answer.
        """
        source = self._registry.get(request.envelope.wrap.backend)
        target = self._registry.get(request.backend)
        data_key = await unwrapped(source, request.envelope)
        # Two names may reach one key. Only the tag tells that the labels which were decided on are the
        # envelope's own; until then its data key is not shown to another backend.
        envelopes.verify(request.envelope, data_key)
        wrapped = await target.wrap(request.key_id, data_key, request.envelope.header.context)
        return envelopes.rewrap(
            request.envelope,
            data_key,
            backend=request.backend,
            key_id=request.key_id,
            key_version=wrapped.key_version,
            encrypted_data_key=wrapped.encrypted_data_key,
        )

    def trace(self, request: RewrapRequest) -> Sequence[JSON]:
        """Name the envelope, every bit of it."""
        return (envelopes.digest(request.envelope),)


async def unwrapped(kms: KMS, envelope: DetachedEnvelope) -> bytes:
    """Return the data key of an envelope, none of whose labels is checked by that.

    Raises:
        EnvelopeInvalidError: The backend says that it is not this key's.
    """
    wrap = envelope.wrap
    wrapped = WrappedKey(wrap.encrypted_data_key, wrap.key_version)
    try:
        return await kms.unwrap(wrap.key_id, wrapped, envelope.header.context)
    except InvalidWrapError:
        raise EnvelopeInvalidError from None


def sealing(authenticated: Authenticated, request: SealRequest) -> Proposal:
    """Propose to make an envelope.

    Raises:
        InvalidRequestError: No envelope can hold this context or associated data.
    """
    envelopes.check_context(request.context)
    envelopes.check_associated_data(request.associated_data)
    return Proposal(
        authenticated=authenticated,
        claims=authenticated.token,
        backend=request.backend,
        key_id=request.key_id,
        request_context=request.policy_context,
        envelope=EnvelopeFacts(
            backend=request.backend,
            key_id=request.key_id,
            context=request.context,
            associated_data=request.associated_data,
        ),
    )


def opening(authenticated: Authenticated, request: OpenRequest) -> Proposal:
    """Propose to open an envelope, in whole or only its wrap; it takes a token."""
    header, wrap = request.envelope.header, request.envelope.wrap
    return Proposal(
        authenticated=authenticated,
        claims=authenticated.token,
        backend=wrap.backend,
        key_id=wrap.key_id,
        request_context=request.policy_context,
        envelope=EnvelopeFacts(
            backend=wrap.backend,
            key_id=wrap.key_id,
            context=header.context,
            associated_data=header.associated_data,
        ),
        refusal=_token_refusal(authenticated.token, request.expected_audience),
    )


def _token_refusal(token: Claims | None, expected_audience: str | None) -> KKPError | None:
    if token is None:
        return UnauthenticatedError("Opening an envelope takes a KKP token.")
    if expected_audience is not None and token.aud != expected_audience:
        return AudienceMismatchError("The token is for another audience than the one expected.")
    return None
