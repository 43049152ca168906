"""What holds a secret does not show it: every class of KKP's whose fields are named like one."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

import kkp

SHOWN = "hunter2-in-a-repr"

# A field is taken for a secret by a word in its name. What is encrypted is none: KKP hands it out.
SECRET_WORDS = {
    "plaintext": "what somebody sealed, or a data key in the clear",
    "key": "of whatever kind",
    "keys": "some of them",
    "secret": "whatever it is",
    "private": "half of a pair, or what an audit record keeps to itself",
    "token": "who has it, may",
    "tokens": "some of them",
    "password": "who has it, may",
    "credential": "who has it, may",
    "credentials": "some of them",
    "authorization": "the header that holds one",
    "jwt": "what a login shows",
    "seed": "what a key is made of",
    "kept": "secrets that outlive the key they were derived from",
    "value": "what a vendor's answer calls a key",
}
# What holds neither bytes nor text holds no secret itself: it is a number, a path, or another class.
_HOLDS = re.compile(r"\b(bytes|bytearray|str|Raw|Any|JSON|object)\b")
# Fields whose names have such a word, and that hold no secret: by the whole name, and by the class.
HARMLESS_NAMES = {
    "key_id": "a key's name",
    "key_version": "the name of one of its versions",
    "encrypted_data_key": "is encrypted",
    "check_value": "tells one master key from another, and leads to none",
}
HARMLESS = {
    "kkp.audit.checkpoints:_Body.key": "the public half that verifies the checkpoint",
    "kkp.audit.checkpoints:Checkpoint.key": "the same",
    "kkp.audit.prunings:_Body.key": "the same",
    "kkp.audit.prunings:Pruning.key": "the same",
    "kkp.authn.revocations:_View.tokens": "ids of tokens",
    "kkp.authn.revocations:_View.keys": "names of keys",
    "kkp.cli.doctor:_Setting.value": "what the doctor prints, a secret already left out",
    "kkp.config:_BackendTable.keys": "names of keys and of members",
    "kkp.dpop:_JWK.key_ops": "what a key may be used for",
    "kkp.keyring.rotation:_Published.public_keys": "public halves",
    "kkp.kms._members:Composition.keys": "names of keys and of members",
    "kkp.kms.aws:_Metadata.key_state": "what AWS says of a key",
    "kkp.kms.aws:_Metadata.key_usage": "the same",
    "kkp.kms.aws:_Metadata.key_spec": "the same",
    "kkp.kms.azure:_JSONWebKey.key_ops": "what a key may be used for",
    "kkp.kms.vault_login:Login.credentials": "each hides what it holds",
    "kkp.revocations:ListClaims.tokens": "ids of tokens, which anybody may read",
    "kkp.revocations:ListClaims.keys": "digests of names",
    "kkp.rows:MasterKeyState.kept": "sealed under the master key",
    "kkp.rows:RingSnapshot.sealed_private": "the same",
    "kkp.web.public:DiscoveryAnswer.token_endpoint": "a URL",
    "kkp.web.public:DiscoveryAnswer.token_endpoint_auth_methods_supported": "names of methods",
}


def fields_of(kind: type) -> Iterator[str]:
    """Return the names of the fields that a class's constructor takes."""
    if dataclasses.is_dataclass(kind):
        yield from (field.name for field in dataclasses.fields(kind) if field.init)
    elif issubclass(kind, msgspec.Struct):
        yield from kind.__struct_fields__
    elif issubclass(kind, tuple):
        yield from getattr(kind, "_fields", ())


def annotation(kind: type, name: str) -> str:
    """Return what the field's type is called."""
    return next(str(base.__annotations__[name]) for base in kind.__mro__ if name in base.__annotations__)


def kinds() -> Iterator[type]:
    """Return every class with fields that a module of KKP's defines."""
    for module in pkgutil.walk_packages(kkp.__path__, "kkp."):
        if module.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and kind.__module__ == module.name and any(fields_of(kind)):
                yield kind


def full_name(suspect: tuple[type, str]) -> str:
    """Return how `HARMLESS` calls a field."""
    kind, name = suspect
    return f"{kind.__module__}:{kind.__qualname__}.{name}"


def suspects() -> list[tuple[type, str]]:
    """Return the fields that may hold a secret, by their names and types."""
    return [
        (kind, name)
        for kind in kinds()
        for name in fields_of(kind)
        if not SECRET_WORDS.keys().isdisjoint(name.split("_"))
        and name not in HARMLESS_NAMES
        and _HOLDS.search(annotation(kind, name))
    ]


class _Secret:
    def __repr__(self) -> str:
        return SHOWN


def shows(suspect: tuple[type, str]) -> bool:
    """Tell whether the class's repr shows what is in this field."""
    kind, name = suspect
    values: dict[str, Any] = {each: _Secret() if each == name else None for each in fields_of(kind)}
    return SHOWN in repr(kind(**values))


@pytest.mark.promise(31)
@pytest.mark.parametrize("suspect", suspects(), ids=full_name)
def test_a_repr_shows_no_field_that_is_named_like_a_secret(suspect: tuple[type, str]) -> None:
    # An exception is one that is needed: what no longer shows, or no longer is, is taken from the list.
    assert shows(suspect) is (full_name(suspect) in HARMLESS)


def test_the_search_for_secrets_finds_those_that_are_known_and_every_exception() -> None:
    found = set(map(full_name, suspects()))
    assert found >= HARMLESS.keys()
    assert found >= {
        "kkp.config:Settings.master_key",
        "kkp.kms.aws:_Generated.plaintext",
        "kkp.kms.aws:_Decrypted.plaintext",
        "kkp.kms.azure:_Result.value",
        "kkp.kms.base:DataKey.plaintext",
        "kkp.kms.vault:_Decrypted.plaintext",
        "kkp.kms.vault_client:Granted.client_token",
        "kkp.kms.vault_login:FixedCredential.value",
        "kkp.kms.vault_login:Lease.token",
        "kkp.master_key:_Keys.kept",
        "kkp.operations.envelopes:EncryptRequest.plaintext",
    }
