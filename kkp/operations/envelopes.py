"""Sealing and opening envelopes.

A data key comes from the backend or is wrapped by it, and never leaves the process. It is forgotten after its
message, unless data keys are cached for the caller (`kkp.kms.caching`). A plaintext is returned only after
every check of `kkp.envelope` has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

from kkp import envelope as envelopes
from kkp.authn.base import Authenticated
from kkp.envelope import Encoding, Envelope
from kkp.errors import (
    AudienceMismatchError,
    EnvelopeInvalidError,
    InvalidWrapError,
    KKPError,
    UnauthenticatedError,
)
from kkp.kms import KMSRegistry
from kkp.kms.base import WrappedKey, data_key_from
from kkp.model import JSON, Action
from kkp.operations.base import EnvelopeFacts, Operation, Proposal
from kkp.tokens import Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptRequest:
    """What `POST /envelope/encrypt` asks for."""

    backend: str
    key_id: str
    plaintext: bytes | str = field(repr=False)
    context: Mapping[str, str]
    associated_data: str | None
    policy_context: Mapping[str, JSON]

    @property
    def plaintext_bytes(self) -> int:
        """How long the plaintext is; a lone surrogate, which sealing refuses, counts as well."""
        plaintext = self.plaintext
        return len(plaintext.encode(errors="surrogatepass") if isinstance(plaintext, str) else plaintext)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecryptRequest:
    """What `POST /envelope/decrypt` asks for; the token is the credential."""

    envelope: Envelope
    expected_audience: str | None
    policy_context: Mapping[str, JSON]


@dataclass(frozen=True, slots=True)
class Opened:
    """A plaintext, with the claims of the token that it was released to."""

    plaintext: bytes = field(repr=False)
    encoding: Encoding
    claims: Claims | None


@final
class Encrypt(Operation[Proposal, EncryptRequest, Envelope]):
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

    async def run(self, proposal: Proposal, request: EncryptRequest) -> Envelope:
        """Take a data key and seal the plaintext under it."""
        kms = self._registry.for_caller(
            request.backend, proposal.caller.id, plaintext_bytes=request.plaintext_bytes
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


@final
class Decrypt(Operation[Proposal, DecryptRequest, Opened]):
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

    async def run(self, proposal: Proposal, request: DecryptRequest) -> Opened:
        """Unwrap the data key and open the envelope.

        Raises:
            EnvelopeInvalidError: Anything at all did not fit; always the same answer.
        """
        header, wrap = request.envelope.header, request.envelope.wrap
        kms = self._registry.for_caller(
            wrap.backend, proposal.caller.id, plaintext_bytes=request.envelope.plaintext_bytes
        )
        wrapped = WrappedKey(wrap.encrypted_data_key, wrap.key_version)
        try:
            data_key = await kms.unwrap(wrap.key_id, wrapped, header.context)
        except InvalidWrapError:
            raise EnvelopeInvalidError from None
        plaintext = envelopes.open(request.envelope, data_key)
        return Opened(plaintext, header.encoding, proposal.claims)


def _token_refusal(token: Claims | None, expected_audience: str | None) -> KKPError | None:
    if token is None:
        return UnauthenticatedError("Opening an envelope takes a KKP token.")
    if expected_audience is not None and token.aud != expected_audience:
        return AudienceMismatchError("The token is for another audience than the one expected.")
    return None
