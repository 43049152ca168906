"""Message keys, for those who seal or open by themselves.

What leaves is the key of one message, K_enc of `kkp.envelope`, with or for an envelope that has no payload
yet. The data key that it derives from never leaves, and is a fresh one every time: what is sealed elsewhere
can't be counted against a limit.

What it does not do: it can't see that a message key seals one message only (docs/formats.md tells how), and
who was given one can seal another payload under it, which opens in the place of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

from kkp import envelope as envelopes
from kkp.authn.base import Authenticated
from kkp.envelope import DetachedEnvelope, Encoding
from kkp.kms import KMSRegistry
from kkp.kms.base import data_key_from
from kkp.model import Action
from kkp.operations.base import Operation, Proposal
from kkp.operations.envelopes import OpenRequest, SealRequest, opening, sealing, unwrapped


@dataclass(frozen=True, slots=True, kw_only=True)
class DataKeyRequest(SealRequest):
    """What `POST /envelope/data-key` asks for; `encoding` is what the plaintext will be.

    `chunk_size` is that of the stream which it is to be, if it is to be one.
    """

    encoding: Encoding
    chunk_size: int | None


@dataclass(frozen=True, slots=True)
class MessageKey:
    """The key of one message, and the envelope that it is for."""

    envelope: DetachedEnvelope
    key: bytes = field(repr=False)


@final
class GenerateDataKey(Operation[Proposal, DataKeyRequest, MessageKey]):
    """`POST /envelope/data-key`, by a caller with a grant to encrypt or a token with op `encrypt`.

    Args:
        registry: The configured backends.
    """

    action: ClassVar[Action] = Action.GENERATE_DATA_KEY
    scope: ClassVar[str | None] = "encrypt"

    def __init__(self, registry: KMSRegistry) -> None:
        self._registry = registry

    def propose(self, authenticated: Authenticated, request: DataKeyRequest) -> Proposal:
        """Name the key, the context and the associated data."""
        return sealing(authenticated, request)

    async def run(self, proposal: Proposal, request: DataKeyRequest) -> MessageKey:  # noqa: ARG002  all is in the request
        """Wrap a fresh data key, and derive from it the key of one message."""
        kms = self._registry.get(request.backend)
        data_key = await data_key_from(kms, request.key_id, request.context)
        envelope, key = envelopes.detach(
            data_key=data_key.plaintext,
            context=request.context,
            associated_data=request.associated_data,
            encoding=request.encoding,
            backend=request.backend,
            key_id=request.key_id,
            key_version=data_key.wrapped.key_version,
            encrypted_data_key=data_key.wrapped.encrypted_data_key,
            chunk_size=request.chunk_size,
        )
        return MessageKey(envelope, key)


@final
class ReleaseDataKey(Operation[Proposal, OpenRequest, MessageKey]):
    """`POST /envelope/data-key/unwrap`, always with a KKP token with op `decrypt`.

    Args:
        registry: The configured backends.
    """

    action: ClassVar[Action] = Action.RELEASE_DATA_KEY
    scope: ClassVar[str | None] = "decrypt"

    def __init__(self, registry: KMSRegistry) -> None:
        self._registry = registry

    def propose(self, authenticated: Authenticated, request: OpenRequest) -> Proposal:
        """Name the envelope's own labels: it is them that the token and the policy are asked about."""
        return opening(authenticated, request)

    async def run(self, proposal: Proposal, request: OpenRequest) -> MessageKey:  # noqa: ARG002  all is in the request
        """Unwrap the data key, check whose it is, and derive from it the message's key.

        Raises:
            EnvelopeInvalidError: Anything at all did not fit; always the same answer.
        """
        kms = self._registry.get(request.envelope.wrap.backend)
        data_key = await unwrapped(kms, request.envelope)
        return MessageKey(request.envelope, envelopes.message_key(request.envelope, data_key))
