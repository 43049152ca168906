"""The parsers of what strangers send, each as a function of bytes that raises a KKPError or is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from kkp import dpop, envelope, jwk, tokens
from kkp.kms import _parts
from kkp.kms.base import WrappedKey
from kkp.web import batches, exchange, schemas
from kkp.web.forwarded_certificate import read_forwarded

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


def read_key_set(raw: bytes) -> None:
    """Read an issuer's keys, which are none of a caller's: a ValueError refuses them."""
    with suppress(ValueError):
        jwk.read_set(raw)


READERS: tuple[Read, ...] = (
    read_token,
    lambda raw: tokens.read_unverified(raw.decode("latin-1")),
    envelope.parse_any,
    batches.take_apart,
    read_wrap,
    lambda raw: schemas.held_token(schemas.form_pairs(raw)),
    lambda raw: exchange.read_form(schemas.form_pairs(raw)).request(),
    lambda raw: dpop.verify(raw.decode("latin-1"), method="POST", url="https://kkp.test/token", token=None),
    read_key_set,
    lambda raw: read_forwarded([raw.decode("latin-1")], []),
    read_body(schemas.TokenBody),
    read_body(schemas.EncryptBody),
    read_body(schemas.DecryptBody),
    read_body(schemas.IdentityBody),
    read_body(schemas.ExplainBody),
)
