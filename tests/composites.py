"""Composites over emulators that do as they are told, and wrapped keys written by others than KKP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, final

import rfc8785

from kkp.kms import connect
from kkp.kms.base import KMS, Resources, WrappedKey
from kkp.kms.guarded import Guarded
from kkp.master_key import MasterKey
from kkp.model import BackendLimits
from tests.fakes.local_keys import LocalKeysInMemory
from tests.fakes.moody_kms import MoodyKMS

MASTER_KEY = MasterKey(b"m" * 32)
DATA_KEY = bytes(range(32))
CONTEXT = {"table": "orders"}
CLOUDS = ("aws", "gcp", "azure")
THREE = "key.orders=aws:alias/orders&key.orders=gcp:orders&key.orders=azure:orders"

Document = dict[str, Any]


@final
class Clouds:
    """Three backends, and the composites that are made of them."""

    def __init__(self) -> None:
        self.aws, self.gcp, self.azure = (MoodyKMS(cloud, MASTER_KEY) for cloud in CLOUDS)
        # Two configured names for one account.
        self.by_name = {"aws": self.aws, "gcp": self.gcp, "azure": self.azure, "twin": self.aws}

    def __getitem__(self, name: str) -> MoodyKMS:
        return self.by_name[name]

    @property
    def calls(self) -> dict[str, list[str]]:
        """What each of the three was asked."""
        return {cloud: self[cloud].calls for cloud in CLOUDS}

    def forget(self) -> None:
        """Count from here."""
        for cloud in CLOUDS:
            self[cloud].calls.clear()

    async def composite(self, uri: str, *, name: str = "") -> KMS:
        """Connect a composite, whose members have no guards."""
        return await connect(
            uri, Resources(MASTER_KEY, LocalKeysInMemory(), backend=self.__getitem__, name=name)
        )

    async def guarded_composite(self, uri: str, **limits: Any) -> tuple[KMS, Mapping[str, Guarded]]:
        """Connect a composite whose members have guards, with these limits and one attempt; return both."""
        given = BackendLimits(attempts=1, **limits)
        guards = {cloud: Guarded(self[cloud], cloud, given) for cloud in CLOUDS}
        resources = Resources(MASTER_KEY, LocalKeysInMemory(), given, guards.__getitem__)
        return await connect(uri, resources), guards


def document(wrapped: WrappedKey) -> Document:
    """Return what stands in a composite's wrapped key."""
    read: Document = json.loads(wrapped.encrypted_data_key)
    return read


def labelled(document: Mapping[str, Any]) -> str:
    """Return the key version that goes with a document, as anybody can compute it."""
    names = [[part["backend"], part["key_id"], part["key_version"]] for part in document["parts"]]
    return hashlib.sha256(rfc8785.dumps([document["kind"], *names])).hexdigest()


def forged(document: Mapping[str, Any]) -> WrappedKey:
    """Write a wrapped key in its one spelling, with the key version that goes with it."""
    return WrappedKey(rfc8785.dumps(dict(document)), labelled(document))


def checked(
    document: Document, secret: bytes, *, key_id: str = "orders", context: Mapping[str, str] = CONTEXT
) -> Document:
    """Return a document with the check value that belongs to a secret, made by the book."""
    extracted = hmac.digest(bytes(32), secret, "sha256")
    key = hmac.digest(extracted, b"kkp/composite/v1\x01", "sha256")
    bound = {name: document[name] for name in ("kind", "parts", "v")}
    message = rfc8785.dumps({**bound, "context": dict(context), "key_id": key_id})
    return {**document, "check": base64_of(hmac.digest(key, message, "sha256"))}


def part(label: str, wrapped: WrappedKey) -> Document:
    """Return a part with an ordinary wrap of a member in it."""
    backend, _, key_id = label.partition(":")
    return {
        "backend": backend,
        "encrypted_data_key": base64_of(wrapped.encrypted_data_key),
        "key_id": key_id,
        "key_version": wrapped.key_version,
    }


def wrapped_in(part: Document) -> WrappedKey:
    """Return a part as an ordinary wrap of its member."""
    return WrappedKey(base64.b64decode(part["encrypted_data_key"]), part["key_version"])


def base64_of(data: bytes) -> str:
    """Return RFC 4648 section 4."""
    return base64.b64encode(data).decode()


def without(parts: Sequence[Document], backend: str) -> list[Document]:
    """Return the parts of all other backends."""
    return [part for part in parts if part["backend"] != backend]
