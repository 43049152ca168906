"""Which chains of client certificates are good, and whom they name."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA224
from cryptography.x509.oid import ExtendedKeyUsageOID

from kkp.errors import CertificateInvalidError
from kkp.web.certificate_chains import Authorities, read_bundle
from tests.client_certificates import (
    FOR_CLIENTS,
    FOR_SERVERS,
    NO_AUTHORITY,
    Authority,
    Extension,
    Holder,
    usage,
)


def authorities(**bundles: Authority) -> Authorities:
    return Authorities({name: [each.certificate] for name, each in bundles.items()})


ROOT = Authority.new()
BELOW = ROOT.below(path_length=0)
OURS = authorities(ours=ROOT)
WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505  that is the point
NOW = time.time()
ID = "spiffe://example.org/ns/shop/sa/orders"
AN_AUTHORITY: Extension = (x509.BasicConstraints(ca=True, path_length=None), True)
FOR_ANYTHING: Extension = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False)
UNKNOWN: Extension = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.1"), b"\5\0"), True)


def verified(holder: Holder, *, now: float = NOW, by: Authorities = OURS) -> object:
    return by.verify(holder.chain, now)


# Good ones.

GOOD: dict[str, Holder] = {
    "a root vouches for it": ROOT.issue(ID),
    "somebody below a root does": BELOW.issue(ID),
    "somebody three below does": ROOT.below("1").below("2").below("3").issue(ID),
    "it is for servers as well": ROOT.issue(
        ID,
        extensions=[
            (
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                False,
            )
        ],
    ),
    "its key may sign": ROOT.issue(ID, extensions=[FOR_CLIENTS, usage("digital_signature")]),
    "who vouches is for clients": ROOT.below("c", AN_AUTHORITY, FOR_CLIENTS).issue(ID),
    "who vouches is for anything": ROOT.below("c", AN_AUTHORITY, FOR_ANYTHING).issue(ID),
    "RSA of 2048 bits": ROOT.issue(ID, key=rsa.generate_private_key(65537, 2048)),
    "P-384": ROOT.issue(ID, key=ec.generate_private_key(ec.SECP384R1())),
    "Ed25519": ROOT.issue(ID, key=ed25519.Ed25519PrivateKey.generate()),
    "names are limited to its own": ROOT.below(
        "c",
        AN_AUTHORITY,
        (x509.NameConstraints([x509.DNSName("shop.example")], None), True),
    ).issue("orders.shop.example"),
}


@pytest.mark.parametrize("holder", GOOD.values(), ids=GOOD.keys())
def test_a_chain_is_good_where(holder: Holder) -> None:
    found = OURS.verify(holder.chain, NOW)
    assert found.certificate.sha256 == hashlib.sha256(holder.chain[0]).digest()
    assert found.is_in_time(NOW)


def test_an_authority_need_not_be_a_root() -> None:
    assert verified(BELOW.issue(ID), by=authorities(ours=BELOW))


def test_one_of_many_authorities_is_enough() -> None:
    both = authorities(others=Authority.new("other"), ours=ROOT)
    assert verified(ROOT.issue(ID), by=both)


# Bad ones.

_STRANGER = Authority.new()  # of the same name
_CLIENT = ROOT.issue(ID)
BAD: dict[str, Holder] = {
    "nobody of ours vouches for it": Authority.new("other").issue(ID),
    "an authority of the same name vouches for it": _STRANGER.issue(ID),
    "what stands between is left out": BELOW.issue(ID).alone,
    "who vouches is no authority": ROOT.below("c", NO_AUTHORITY).issue(ID),
    "who vouches does not say that it is an authority": ROOT.below("c", usage("key_cert_sign")).issue(ID),
    "who vouches may not sign certificates": ROOT.below("c", AN_AUTHORITY, usage("crl_sign")).issue(ID),
    "who vouches is for servers": ROOT.below("c", AN_AUTHORITY, FOR_SERVERS).issue(ID),
    "there are more below than may be": BELOW.below("c").issue(ID),
    "there are four between": ROOT.below("1").below("2").below("3").below("4").issue(ID),
    "another client vouches for it": Authority(_CLIENT.certificate, _CLIENT.key).issue(ID),
    "it is for servers": ROOT.issue(ID, extensions=[FOR_SERVERS, NO_AUTHORITY]),
    "it is for anything": ROOT.issue(ID, extensions=[FOR_ANYTHING, NO_AUTHORITY]),
    "it does not say what it is for": ROOT.issue(ID, extensions=[NO_AUTHORITY]),
    "it is an authority": ROOT.issue(ID, extensions=[FOR_CLIENTS, AN_AUTHORITY]),
    "its key may not sign": ROOT.issue(ID, extensions=[FOR_CLIENTS, usage("key_agreement")]),
    "its key may sign certificates": ROOT.issue(
        ID, extensions=[FOR_CLIENTS, usage("digital_signature", "key_cert_sign")]
    ),
    "it has something critical that nobody knows": ROOT.issue(ID, extensions=[FOR_CLIENTS, UNKNOWN]),
    "it has expired": ROOT.issue(ID, lasts=timedelta(seconds=-60)),
    "it is to be good later": ROOT.issue(ID, begins=timedelta(seconds=60)),
    "who vouches has expired": ROOT.below("c", lasts=timedelta(seconds=-60)).issue(ID),
    "who vouches is to be good later": ROOT.below("c", begins=timedelta(seconds=60)).issue(ID),
    "RSA of 1024 bits": ROOT.issue(ID, key=WEAK),
    "it is signed with a weak hash": ROOT.issue(ID, algorithm=SHA224()),
    "a curve that is not taken": ROOT.issue(ID, key=ec.generate_private_key(ec.SECP256K1())),
    "who vouches has a weak key": ROOT.below("c", key=WEAK).issue(ID),
    "its name is outside of who vouches for it": ROOT.below(
        "c",
        AN_AUTHORITY,
        (x509.NameConstraints([x509.DNSName("shop.example")], None), True),
    ).issue("orders.bank.example"),
    "who vouches is limited in a way that can't be judged": ROOT.below(
        "c",
        AN_AUTHORITY,
        (x509.NameConstraints(None, [x509.UniformResourceIdentifier("example.org")]), True),
    ).issue(ID),
    "two SPIFFE IDs": ROOT.issue(ID, f"{ID}-2"),
    "a SPIFFE ID and another URI": ROOT.issue(ID, "https://example.org/"),
    "a SPIFFE ID of the trust domain alone": ROOT.issue("spiffe://example.org"),
    "a SPIFFE ID that ends in a slash": ROOT.issue(f"{ID}/"),
    "a SPIFFE ID that goes up": ROOT.issue("spiffe://example.org/ns/../admin"),
    "a SPIFFE ID with a dot for a name": ROOT.issue("spiffe://example.org/./admin"),
    "a SPIFFE ID with nothing between slashes": ROOT.issue("spiffe://example.org//admin"),
    "a SPIFFE ID with a port": ROOT.issue("spiffe://example.org:443/admin"),
    "a SPIFFE ID with a user": ROOT.issue("spiffe://you@example.org/admin"),
    "a SPIFFE ID with a query": ROOT.issue(f"{ID}?admin"),
    "a SPIFFE ID with a fragment": ROOT.issue(f"{ID}#admin"),
    "a SPIFFE ID with an escape": ROOT.issue("spiffe://example.org/%61dmin"),
    "a SPIFFE ID in capitals": ROOT.issue("SPIFFE://example.org/admin"),
    "a trust domain in capitals": ROOT.issue("spiffe://Example.org/admin"),
    "more names than anybody needs": ROOT.issue(*(f"host-{number}.example" for number in range(33))),
}


@pytest.mark.parametrize("holder", BAD.values(), ids=BAD.keys())
def test_a_chain_is_refused_where(holder: Holder) -> None:
    with pytest.raises(CertificateInvalidError):
        verified(holder)


def test_attack_many_paths_to_try_are_refused_before_one_is_tried() -> None:
    key = ec.generate_private_key(ec.SECP521R1())
    twins = [Authority.new("twin", key) for _ in range(3)]
    holder = twins[0].issue(ID)
    chain = [*holder.chain, *(twin.chain[0] for twin in twins)]
    with pytest.raises(CertificateInvalidError, match="one subject"):
        OURS.verify(chain, NOW)


@pytest.mark.parametrize("der", [b"", b"no certificate", ROOT.chain[0][:-1], ROOT.chain[0] + b"\0"])
@pytest.mark.parametrize("is_first", [True, False])
def test_attack_what_is_no_certificate_is_refused(der: bytes, is_first: bool) -> None:  # noqa: FBT001  a case
    good = ROOT.issue(ID).chain
    with pytest.raises(CertificateInvalidError, match="malformed"):
        OURS.verify([der, *good] if is_first else [*good, der], NOW)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_attack_no_bit_of_what_is_signed_can_be_changed() -> None:
    holder = ROOT.issue(ID)
    (der,) = holder.chain
    first = der.index(holder.certificate.tbs_certificate_bytes)
    for position in range(8 * first, 8 * (first + len(holder.certificate.tbs_certificate_bytes))):
        changed = bytearray(der)
        changed[position // 8] ^= 1 << position % 8
        with pytest.raises(CertificateInvalidError):
            OURS.verify([bytes(changed)], NOW)


# Times.


def ends(holder: Holder) -> float:
    return holder.certificate.not_valid_after_utc.timestamp()


def test_a_chain_is_good_from_its_first_second_to_its_last() -> None:
    holder = ROOT.issue(ID, begins=timedelta(minutes=-5), lasts=timedelta(minutes=5))
    begins = holder.certificate.not_valid_before_utc.timestamp()
    for now in (begins, ends(holder)):
        assert verified(holder, now=now)
    for now in (begins - 1, ends(holder) + 1):
        with pytest.raises(CertificateInvalidError):
            verified(holder, now=now)


SHORT = timedelta(minutes=1)
_SHORT_ROOT = Authority.new(lives=timedelta(hours=1) + SHORT)
FIRST_TO_END: dict[str, tuple[Holder, Authority]] = {
    "its own": (BELOW.issue(ID, lasts=SHORT), ROOT),
    "that between": (ROOT.below("c", lasts=SHORT).issue(ID), ROOT),
    "the authority's": (_SHORT_ROOT.issue(ID), _SHORT_ROOT),
}


@pytest.mark.parametrize(("holder", "root"), FIRST_TO_END.values(), ids=FIRST_TO_END.keys())
def test_it_is_good_no_longer_than_the_first_of_its_chain_that_ends(holder: Holder, root: Authority) -> None:
    found = authorities(ours=root).verify(holder.chain, NOW)
    first = min(ends(holder), *map(ends, (holder.alone, root)), *(ends(each) for each in holder.between))
    assert found.not_after == first
    assert found.is_in_time(first)
    assert not found.is_in_time(first + 1)


# Names.

NAMES: dict[str, tuple[Holder, tuple[str, ...], tuple[str, ...]]] = {
    "a SPIFFE ID": (ROOT.issue(ID), (ID,), ()),
    "a SPIFFE ID and hosts": (ROOT.issue(ID, "orders"), (ID,), ("orders",)),
    "hosts": (ROOT.issue("orders.example", "orders"), (), ("orders.example", "orders")),
    "a host in capitals, twice": (ROOT.issue("Orders.Example", "orders.example"), (), ("orders.example",)),
    "a wildcard": (ROOT.issue("*.example", "orders.example"), (), ("orders.example",)),
    "what is no host's name": (ROOT.issue("a..b", "-a", "a_b", "a b", "a."), (), ()),
    "another URI": (ROOT.issue("https://example.org/"), (), ()),
    "a common name alone": (ROOT.issue(name="orders.example"), (), ()),
}


@pytest.mark.parametrize(("holder", "spiffe_ids", "dns_names"), NAMES.values(), ids=NAMES.keys())
def test_names_are_those_of_the_alternative_name_where_it_has(
    holder: Holder, spiffe_ids: tuple[str, ...], dns_names: tuple[str, ...]
) -> None:
    found = OURS.verify(holder.chain, NOW).certificate
    assert (found.spiffe_ids, found.dns_names) == (spiffe_ids, dns_names)


# Bundles.


def test_a_certificate_is_of_the_bundles_that_its_authority_is_in() -> None:
    other = Authority.new("other")
    found = Authorities(
        {
            "": [ROOT.certificate],
            "mesh": [other.certificate],
            "both": [ROOT.certificate, other.certificate],
        }
    )
    assert found.verify(BELOW.issue(ID).chain, NOW).certificate.bundles == {"", "both"}
    assert found.verify(other.issue(ID).chain, NOW).certificate.bundles == {"mesh", "both"}


NO_BUNDLE: dict[str, tuple[bytes, str]] = {
    "it is empty": (b"", "it is no bundle"),
    "it is no PEM": (b"no certificate", "it is no bundle"),
    "it holds a key": (b"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "it is no bundle"),
    "one is broken": (
        ROOT.pem + b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
        "no bundle",
    ),
    "one is a client's": (ROOT.pem + _CLIENT.pem, "certificate 2 of it is no authority's"),
    "one has a weak key": (
        Authority.new(key=WEAK).pem,
        "certificate 1 of it",
    ),
}


@pytest.mark.parametrize(("pem", "message"), NO_BUNDLE.values(), ids=NO_BUNDLE.keys())
def test_a_bundle_is_refused_where(pem: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_bundle(pem)
