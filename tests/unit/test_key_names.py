"""The spellings of a key's name: which are one key, and which are not."""

from __future__ import annotations

import pytest

from kkp.kms import canonical

VAULT = "azure-keyvault://v.vault.azure.net"
RING = "projects/p/locations/l/keyRings/r"
GCP = f"gcp-kms://{RING}?endpoint=kms.test"
VERSION = "0123456789abcdef0123456789abcdef"

SAME = {
    "a key in capitals": (VAULT, "ORDERS", "orders"),
    "a version": (VAULT, f"orders/{VERSION}", "orders"),
    "a version in capitals": (VAULT, f"Orders/{VERSION.upper()}", "orders"),
    "a URL": (VAULT, "https://v.vault.azure.net/keys/orders", "orders"),
    "a URL of a version in capitals": (VAULT, f"HTTPS://V.VAULT.AZURE.NET/KEYS/ORDERS/{VERSION}", "orders"),
    "a full name": (GCP, f"{RING}/cryptoKeys/orders", "orders"),
}
OTHERS = {
    "another key": (VAULT, "orders-2"),
    "a key of another vault": (VAULT, "https://w.vault.azure.net/keys/orders"),
    "what is no version": (VAULT, "orders/1"),
    "a key of another ring": (GCP, "projects/p/locations/l/keyRings/s/cryptoKeys/orders"),
    "a key in capitals where they count": (GCP, "ORDERS"),
    "a key of a backend that folds nothing": ("aws-kms://?region=eu-west-1", "ORDERS"),
    "a key of a backend that is not configured": ("", "ORDERS"),
}


@pytest.mark.parametrize(("uri", "spelled", "name"), SAME.values(), ids=SAME)
def test_a_key_is_the_same_however_it_is_spelled(uri: str, spelled: str, name: str) -> None:
    assert canonical(uri, spelled) == canonical(uri, name) == name


@pytest.mark.parametrize(("uri", "key_id"), OTHERS.values(), ids=OTHERS)
def test_what_may_be_another_key_stays_as_it_is(uri: str, key_id: str) -> None:
    assert canonical(uri, key_id) == key_id
