"""The master key: one subkey for each purpose, and blobs that open only where they were sealed."""

from __future__ import annotations

import hmac

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from kkp.errors import StateUntrustedError
from kkp.master_key import KEPT, MASTER_KEY_BYTES, MasterKey, RootKey

RAW = bytes(range(100, 132))
MASTER_KEY = MasterKey(RAW)
PURPOSE = "kkp/test/v1"
SECRET = b"a private signing key"
PLACE = b"where it belongs"


def hkdf(key: bytes, salt: bytes | None, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_refused_without_being_shown(length: int) -> None:
    with pytest.raises(ValueError, match=r"\Aa master key has 32 bytes\Z"):
        MasterKey(b"k" * length)


def test_a_subkey_is_hkdf_sha_256_of_the_purpose_for_ever() -> None:
    assert MASTER_KEY.derive(PURPOSE) == hkdf(RAW, None, b"kkp/test/v1")
    assert MasterKey(bytes(32)).derive("kkp/ring/v1").hex() == (hkdf(bytes(32), None, b"kkp/ring/v1").hex())


def test_every_purpose_and_every_master_key_has_a_subkey_of_its_own() -> None:
    keys = [MASTER_KEY, MasterKey(bytes(32)), MasterKey(b"\1" + bytes(31))]
    purposes = ["kkp/ring/v1", "kkp/ring/v2", "kkp/ring/v", "kkp/identities/v1", ""]
    subkeys = {key.derive(purpose) for key in keys for purpose in purposes}
    assert len(subkeys) == len(keys) * len(purposes)
    assert RAW not in subkeys
    assert {len(subkey) for subkey in subkeys} == {MASTER_KEY_BYTES}


def test_a_mac_is_hmac_sha_256_under_the_subkey() -> None:
    tag = MASTER_KEY.mac(PURPOSE, b"data")
    assert tag == hmac.digest(hkdf(RAW, None, PURPOSE.encode()), b"data", "sha256")
    assert MASTER_KEY.verify_mac(PURPOSE, b"data", tag)


def test_a_mac_of_other_data_another_purpose_or_another_key_is_refused() -> None:
    tag = MASTER_KEY.mac(PURPOSE, b"data")
    assert not MASTER_KEY.verify_mac(PURPOSE, b"datA", tag)
    assert not MASTER_KEY.verify_mac("kkp/test/v2", b"data", tag)
    assert not MasterKey(bytes(32)).verify_mac(PURPOSE, b"data", tag)


@pytest.mark.parametrize("change", [lambda tag: tag[:-1], lambda tag: tag + b"\0", lambda _: b""])
def test_a_mac_of_another_length_is_refused(change: object) -> None:
    assert callable(change)
    assert not MASTER_KEY.verify_mac(PURPOSE, b"data", change(MASTER_KEY.mac(PURPOSE, b"data")))


@given(plaintext=st.binary(max_size=200), associated_data=st.binary(max_size=50))
def test_what_was_sealed_opens(plaintext: bytes, associated_data: bytes) -> None:
    sealed = MASTER_KEY.seal(PURPOSE, plaintext, associated_data)
    assert MasterKey(RAW).open(PURPOSE, sealed, associated_data) == plaintext


def test_a_sealed_blob_has_exactly_the_documented_layout() -> None:
    sealed = MASTER_KEY.seal(PURPOSE, SECRET, PLACE)
    salt, nonce, ciphertext = sealed[:32], sealed[32:44], sealed[44:]
    key = hkdf(hkdf(RAW, None, PURPOSE.encode()), salt, b"kkp/seal/v1")
    assert AESGCM(key).decrypt(nonce, ciphertext, PLACE) == SECRET
    assert len(sealed) == 32 + 12 + len(SECRET) + 16


def test_no_two_blobs_share_a_salt_or_a_nonce() -> None:
    blobs = [MASTER_KEY.seal(PURPOSE, SECRET, PLACE) for _ in range(500)]
    assert len({blob[:32] for blob in blobs}) == len({blob[32:44] for blob in blobs}) == 500


def test_a_change_of_any_bit_is_noticed() -> None:
    sealed = MASTER_KEY.seal(PURPOSE, SECRET, PLACE)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1 << place % 8
        with pytest.raises(StateUntrustedError):
            MASTER_KEY.open(PURPOSE, bytes(changed), PLACE)


def test_a_blob_cut_anywhere_or_extended_is_refused() -> None:
    sealed = MASTER_KEY.seal(PURPOSE, SECRET, PLACE)
    for length in range(len(sealed)):
        with pytest.raises(StateUntrustedError):
            MASTER_KEY.open(PURPOSE, sealed[:length], PLACE)
    with pytest.raises(StateUntrustedError):
        MASTER_KEY.open(PURPOSE, sealed + b"\0", PLACE)


def test_a_blob_opens_for_no_other_purpose_place_or_master_key() -> None:
    sealed = MASTER_KEY.seal(PURPOSE, SECRET, PLACE)
    elsewhere = [
        (MASTER_KEY, "kkp/test/v2", PLACE),
        (MASTER_KEY, PURPOSE, b"another place"),
        (MASTER_KEY, PURPOSE, b""),
        (MasterKey(bytes(32)), PURPOSE, PLACE),
    ]
    for key, purpose, place in elsewhere:
        with pytest.raises(StateUntrustedError, match=r"\AA stored secret failed its authentication\.\Z"):
            key.open(purpose, sealed, place)


def test_the_key_shows_in_no_text_about_it() -> None:
    MASTER_KEY.derive(PURPOSE)
    for secret in (RAW, MASTER_KEY.derive(PURPOSE)):
        for text in (repr(MASTER_KEY), str(MASTER_KEY), f"{MASTER_KEY}"):
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text
    assert not hasattr(MASTER_KEY, "__dict__")


def test_a_master_key_wraps_another_and_opens_no_other() -> None:
    former, present = RootKey(RAW), RootKey(bytes(32))
    wrapped = former.wrap(present)
    assert former.unwrap(wrapped, present.check_value()).handed_to(bytes) == bytes(32)
    for key, check_value in ((former, former.check_value()), (present, present.check_value()), (former, b"")):
        with pytest.raises(StateUntrustedError):
            key.unwrap(wrapped, check_value)
    mislabelled = former.seal("kkp/master-key-wrap/v1", RAW, present.check_value())
    with pytest.raises(StateUntrustedError, match="is another one"):
        former.unwrap(mislabelled, present.check_value())


def test_while_it_is_replaced_both_keys_open_and_verify_and_the_present_one_alone_seals_and_signs() -> None:
    former, present = RootKey(RAW), RootKey(bytes(32))
    key = MasterKey.of(former)
    tag, sealed = key.mac(PURPOSE, b"data"), key.seal(PURPOSE, SECRET, PLACE)
    key.take_up(present, former, {})
    assert key.verify_mac(PURPOSE, b"data", tag)
    assert key.open(PURPOSE, sealed, PLACE) == SECRET
    assert key.mac(PURPOSE, b"data") == present.mac(PURPOSE, b"data") != tag
    assert present.open(PURPOSE, key.seal(PURPOSE, SECRET, PLACE), PLACE) == SECRET
    assert key.verify_mac(PURPOSE, b"data", key.mac(PURPOSE, b"data"))
    key.take_up(present, None, {})
    assert not key.verify_mac(PURPOSE, b"data", tag)
    with pytest.raises(StateUntrustedError):
        key.open(PURPOSE, sealed, PLACE)


def test_what_is_kept_is_returned_in_place_of_what_the_present_key_would_give() -> None:
    former, present = RootKey(RAW), RootKey(bytes(32))
    key = MasterKey.of(former)
    before = key.derive(KEPT[0])
    kept = key.keep()
    assert kept.keys() == set(KEPT)
    key.take_up(present, former, kept)
    assert key.derive(KEPT[0]) == before == former.derive(KEPT[0])
    assert key.derive("kkp/test/v2") == present.derive("kkp/test/v2")
    assert key.check_value() == present.check_value()


def test_a_kept_secret_that_was_altered_or_is_another_purpose_s_changes_nothing() -> None:
    former, present = RootKey(RAW), RootKey(bytes(32))
    key = MasterKey.of(former)
    kept = key.keep()[KEPT[0]]
    for wrong in ({KEPT[0]: kept[:-1] + bytes([kept[-1] ^ 1])}, {KEPT[1]: kept}):
        with pytest.raises(StateUntrustedError):
            key.take_up(present, former, wrong)
        assert key.present is not present
