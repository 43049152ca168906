"""The parsers of what strangers send, each as a function of bytes that raises a KKPError or is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from kkp import envelope, tokens
from kkp.kms import _parts
from kkp.kms.base import WrappedKey
from kkp.web import batches, schemas

Read: TypeAlias = Callable[[bytes], object]


def read_token(raw: bytes) -> None:
    """Verify a token against keys that nobody has."""
    tokens.verify(raw.decode("latin-1"), {"kid": bytes(32)}, issuer="https://kkp.test")


def read_body(body: type[schemas.Asks[Any]]) -> Read:
    """Return what reads a JSON body of this schema, as the routes do."""
    decoder = msgspec.json.Decoder(body)

    def read(raw: bytes) -> None:
        schemas.decode(decoder, raw).request()
        schemas.check_unique(raw)

    return read


def read_wrap(raw: bytes) -> None:
    """Take a composite's wrap apart."""
    _parts.read("any-of", WrappedKey(raw, "1"))


READERS: tuple[Read, ...] = (
    read_token,
    lambda raw: tokens.read_unverified(raw.decode("latin-1")),
    envelope.parse,
    batches.take_apart,
    read_wrap,
    schemas.held_token_of_form,
    read_body(schemas.TokenBody),
    read_body(schemas.EncryptBody),
    read_body(schemas.DecryptBody),
    read_body(schemas.IdentityBody),
    read_body(schemas.ExplainBody),
)
