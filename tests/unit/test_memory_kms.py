"""The emulators' naming rules: which names reach one key, and which reach none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kkp import envelope
from kkp.errors import EnvelopeInvalidError, InvalidWrapError, KeyDisabledError, UnknownKeyError
from kkp.kms.base import WrappedKey
from kkp.kms.memory import MemoryKMS
from kkp.master_key import MasterKey

DATA_KEY = bytes(range(32))
CONTEXT = {"table": "orders"}
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
MULTI_REGION_ID = "mrk-" + "0a1b2c3d" * 4
VERSION = "0123456789abcdef" * 2
RING = "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/"
VAULT = "https://my-vault.vault.azure.net/keys/"


def emulator(cloud: str, master_key: bytes = b"m" * 32) -> MemoryKMS:
    return MemoryKMS(cloud, MasterKey(master_key))


async def same_key(cloud: str, one: str, other: str) -> bool:
    kms = emulator(cloud)
    wrapped = await kms.wrap(one, DATA_KEY, CONTEXT)
    try:
        return await kms.unwrap(other, wrapped, CONTEXT) == DATA_KEY
    except InvalidWrapError:
        return False


@pytest.mark.parametrize(
    ("cloud", "one", "other"),
    [
        pytest.param(
            "aws", "alias/a", "arn:aws:kms:us-east-1:111122223333:alias/a", id="aws alias and its ARN"
        ),
        pytest.param(
            "aws", KEY_ID, f"arn:aws:kms:us-east-1:111122223333:key/{KEY_ID}", id="aws key and its ARN"
        ),
        pytest.param(
            "aws",
            MULTI_REGION_ID,
            f"arn:aws-cn:kms:cn-north-1:111122223333:key/{MULTI_REGION_ID}",
            id="aws multi-region key and its ARN",
        ),
        pytest.param(
            "gcp", "orders", "projects/kkp/locations/global/keyRings/kkp/cryptoKeys/orders", id="gcp own ring"
        ),
        pytest.param("azure", "Orders", "oRDERS", id="azure names in another case"),
        pytest.param("azure", "orders", "https://KKP.Vault.Azure.NET/keys/Orders", id="azure own vault"),
        pytest.param(
            "azure", f"o/{VERSION}", f"{VAULT.replace('my-vault', 'kkp')}o/{VERSION}", id="azure kid"
        ),
        pytest.param("azure", f"o/{VERSION}", f"O/{VERSION.upper()}", id="azure version in another case"),
        pytest.param("azure", f"o/{VERSION}", "o", id="azure pinned version opens without the pin"),
    ],
)
async def test_these_names_reach_one_key(cloud: str, one: str, other: str) -> None:
    assert await same_key(cloud, one, other)


@pytest.mark.parametrize(
    ("cloud", "one", "other"),
    [
        pytest.param("aws", "alias/orders", "alias/Orders", id="aws aliases know case"),
        pytest.param("aws", "alias/orders", "alias/orders/", id="aws alias with a slash more"),
        pytest.param("aws", KEY_ID, MULTI_REGION_ID, id="aws two keys"),
        pytest.param("gcp", "orders", "Orders", id="gcp names know case"),
        pytest.param("gcp", "orders", RING + "orders", id="gcp another ring"),
        pytest.param("azure", "orders", VAULT + "orders", id="azure another vault"),
        pytest.param("azure", "orders", f"orders/{VERSION}", id="azure pinned to another version"),
    ],
)
async def test_these_names_reach_two_keys(cloud: str, one: str, other: str) -> None:
    assert not await same_key(cloud, one, other)


async def test_an_alias_its_key_and_the_arn_of_that_key_are_one() -> None:
    arn = (await emulator("aws").describe("alias/orders")).key_id

    assert await same_key("aws", "alias/orders", arn)
    assert await same_key("aws", "alias/orders", arn.rpartition("/")[2])


@pytest.mark.parametrize(
    ("cloud", "key_id"),
    [
        ("aws", "alias/" + "a" * 250),
        ("aws", "alias/a-Z_0/9"),
        ("aws", "alias/aws"),
        ("aws", "alias/awsome"),
        ("gcp", "a"),
        ("gcp", "a" * 63),
        ("gcp", "A-z_9"),
        ("gcp", RING + "a" * 63),
        ("azure", "a"),
        ("azure", "a" * 127),
        ("azure", "A-z-9"),
        ("azure", f"{VAULT}a/{VERSION}"),
    ],
)
async def test_a_well_formed_name_is_a_key(cloud: str, key_id: str) -> None:
    assert await same_key(cloud, key_id, key_id)


@pytest.mark.parametrize(
    ("cloud", "key_id"),
    [
        pytest.param("aws", "orders", id="aws name without alias/"),
        pytest.param("aws", "alias/", id="aws alias without a name"),
        pytest.param("aws", "alias/" + "a" * 251, id="aws alias of 257 letters"),
        pytest.param("aws", "alias/aws/s3", id="aws managed alias"),
        pytest.param("aws", "alias/a.b", id="aws alias with a dot"),
        pytest.param("aws", "alias/a:b", id="aws alias with a colon"),
        pytest.param("aws", KEY_ID.upper(), id="aws key id in capitals"),
        pytest.param("aws", KEY_ID[:-1], id="aws key id one digit short"),
        pytest.param("aws", "mrk-" + "0" * 31, id="aws multi-region key id one digit short"),
        pytest.param("aws", f"key/{KEY_ID}", id="aws resource without its ARN"),
        pytest.param("aws", f"arn:aws:kms:eu-west-1:111122223333:{KEY_ID}", id="aws ARN without key/"),
        pytest.param("aws", f"arn:aws:kms:eu-west-1:11112222333:key/{KEY_ID}", id="aws account of 11 digits"),
        pytest.param(
            "aws", f"arn:aws:s3:eu-west-1:111122223333:key/{KEY_ID}", id="aws ARN of another service"
        ),
        pytest.param("aws", "alias/missing", id="aws missing alias"),
        pytest.param("aws", "arn:aws:kms:eu-west-1:111122223333:alias/missing-a", id="aws missing alias ARN"),
        pytest.param("gcp", "a" * 64, id="gcp name of 64 letters"),
        pytest.param("gcp", "a.b", id="gcp name with a dot"),
        pytest.param("gcp", "keyRings/r/cryptoKeys/a", id="gcp half a resource name"),
        pytest.param("gcp", RING, id="gcp ring without a key"),
        pytest.param("gcp", RING + "a/cryptoKeyVersions/1", id="gcp key version"),
        pytest.param("gcp", "projects/p/locations/l/keyRings/../cryptoKeys/a", id="gcp path upwards"),
        pytest.param("gcp", RING + "missing", id="gcp missing key in full"),
        pytest.param("azure", "a" * 128, id="azure name of 128 letters"),
        pytest.param("azure", "a_b", id="azure name with an underscore"),
        pytest.param("azure", "a/latest", id="azure version that is a word"),
        pytest.param("azure", f"a/{VERSION[:-1]}", id="azure version of 31 digits"),
        pytest.param("azure", f"a/{VERSION}/", id="azure slash at the end"),
        pytest.param("azure", "http://my-vault.vault.azure.net/keys/a", id="azure without TLS"),
        pytest.param("azure", "https://my-vault.vault.azure.net.evil.example/keys/a", id="azure host suffix"),
        pytest.param("azure", "https://evil.example/.vault.azure.net/keys/a", id="azure host in the path"),
        pytest.param("azure", "https://my-vault.vault.azure.net/secrets/a", id="azure secret"),
        pytest.param("azure", VAULT + "a?x=1", id="azure query"),
        pytest.param("azure", "\N{KELVIN SIGN}ey", id="azure look-alike letter"),
        pytest.param("azure", "MISSING", id="azure missing name in capitals"),
    ],
)
async def test_a_name_that_breaks_its_clouds_rules_is_unknown(cloud: str, key_id: str) -> None:
    with pytest.raises(UnknownKeyError):
        await emulator(cloud).describe(key_id)


@pytest.mark.parametrize(
    ("cloud", "key_id"),
    [
        ("aws", "alias/disabled"),
        ("aws", "arn:aws:kms:eu-west-1:111122223333:alias/disabled-orders"),
        ("gcp", RING + "disabled"),
        ("azure", "Disabled-orders"),
        ("azure", f"{VAULT}disabled/{VERSION}"),
    ],
)
async def test_disabled_holds_under_every_spelling(cloud: str, key_id: str) -> None:
    with pytest.raises(KeyDisabledError):
        await emulator(cloud).describe(key_id)


@pytest.mark.promise(24)
async def test_one_clouds_wrap_is_worth_nothing_in_another() -> None:
    wrapped = await emulator("gcp").wrap("orders", DATA_KEY, CONTEXT)
    in_azure_words = WrappedKey(wrapped.encrypted_data_key, VERSION)

    with pytest.raises(InvalidWrapError):
        await emulator("azure").unwrap("orders", in_azure_words, CONTEXT)
    with pytest.raises(InvalidWrapError):
        await emulator("aws").unwrap("alias/orders", wrapped, CONTEXT)


async def test_another_master_key_opens_nothing() -> None:
    wrapped = await emulator("aws").wrap("alias/orders", DATA_KEY, CONTEXT)

    with pytest.raises(InvalidWrapError):
        await emulator("aws", b"n" * 32).unwrap("alias/orders", wrapped, CONTEXT)


@pytest.mark.parametrize(("cloud", "key_id"), [("aws", "alias/o"), ("gcp", "o"), ("azure", "o")])
async def test_a_rotated_keys_wrap_survives_a_restart(cloud: str, key_id: str) -> None:
    kms = emulator(cloud)
    await kms.rotate(key_id)
    wrapped = await kms.wrap(key_id, DATA_KEY, CONTEXT)

    assert await emulator(cloud).unwrap(key_id, wrapped, CONTEXT) == DATA_KEY


async def test_a_rotation_is_seen_under_every_spelling() -> None:
    kms = emulator("aws")
    await kms.rotate("alias/orders")

    assert (await kms.describe((await kms.describe("alias/orders")).key_id)).key_version == "2"


async def test_an_azure_pin_holds_through_a_rotation() -> None:
    kms = emulator("azure")
    await kms.rotate(f"orders/{VERSION}")

    assert (await kms.wrap(f"orders/{VERSION}", DATA_KEY, CONTEXT)).key_version == VERSION
    assert (await kms.describe("orders")).key_version != VERSION


async def test_an_azure_pin_refuses_another_version() -> None:
    kms = emulator("azure")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap(f"orders/{VERSION}", wrapped, CONTEXT)


@pytest.mark.promise(24)
async def test_an_envelope_relabelled_among_the_names_of_one_key_does_not_open() -> None:
    kms = emulator("aws")
    wrapped = await kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    sealed = envelope.seal(
        b"",
        data_key=DATA_KEY,
        context=CONTEXT,
        associated_data=None,
        backend="aws",
        key_id="alias/orders",
        key_version=wrapped.key_version,
        encrypted_data_key=wrapped.encrypted_data_key,
    )
    arn = (await kms.describe("alias/orders")).key_id

    for name in (arn, arn.rpartition("/")[2], "arn:aws:kms:eu-west-1:000000000000:alias/orders"):
        data_key = await kms.unwrap(name, wrapped, CONTEXT)  # the backend takes every name
        with pytest.raises(EnvelopeInvalidError):
            envelope.open(replace(sealed, wrap=replace(sealed.wrap, key_id=name)), data_key)
    assert envelope.open(sealed, DATA_KEY) == b""


@pytest.mark.parametrize(
    ("cloud", "rule"), [("aws", "alias/NAME"), ("gcp", "cryptoKeys/NAME"), ("azure", "NAME/VERSION")]
)
@pytest.mark.parametrize("key_id", ["missing", "orders!"])
async def test_a_name_that_reaches_no_key_is_refused_with_how_keys_are_named(
    cloud: str, rule: str, key_id: str
) -> None:
    with pytest.raises(UnknownKeyError, match=f"has no such key. Its names are .*{rule}"):
        await emulator(cloud).describe(key_id if cloud != "aws" else f"alias/{key_id}")
