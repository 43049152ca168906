"""Chains of client certificates: whether one is good now, and whom it names.

The TLS layer verified most of this as the connection began, and a proxy says that it did. It is all verified
here once more, because a connection outlives certificates and authorities, and because a proxy may be set up
to forward what it did not verify. Rules that hold here:

- The chain ends at an authority of ours, be that a root or not, and every certificate of it is in time: those
  of the authorities, too.
- The client's own certificate was made for clients: its extended key usage has `clientAuth`. Its key may sign
  (key usage, where there is one), and it is no authority.
- An authority's certificate says that it is one, for as many below it, and may sign certificates; if it is
  limited to some purposes, then to this one as well. Limits on names hold; one that can't be judged (on URIs)
  is kept by refusing everything below it.
- Keys are RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, or Ed25519; signatures are made with
  SHA-256 or better.
- Names come from the subject alternative name alone, never from the subject. A certificate with a SPIFFE ID
  has that one URI and no other (X509-SVID, section 2). DNS names are those of one host each: a wildcard names
  nobody.

At most three certificates may stand between a client's and an authority of ours, each of another subject, so
that whoever makes up a chain can't have us try many paths.

Whether a certificate was revoked is not asked of anybody: give clients certificates that are short-lived, or
revoke the caller or the authority in KKP.

Pure: bytes and a time in, names out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    ClientVerifier,
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from kkp.certificates import is_host, is_workload
from kkp.errors import CertificateInvalidError
from kkp.model import PresentedCertificate

MAX_CHAIN = 4  # the client's own, and three between it and an authority of ours
_MAX_NAMES = 32
_MIN_RSA_BITS, _MAX_RSA_BITS = 2048, 8192  # a larger one takes longer to verify than is good for others
_MAX_EXPONENT = 2**32
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES = (SHA256, SHA384, SHA512)
# What a certificate that is not of the form that it should be makes its reader raise.
_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


class Verified(NamedTuple):
    """A client certificate that an authority of ours vouches for.

    Attributes:
        certificate: Whom it names.
        not_before: From when on the whole chain is good, in Unix seconds.
        not_after: Until when.
    """

    certificate: PresentedCertificate
    not_before: float
    not_after: float

    def is_in_time(self, now: float) -> bool:
        """Tell whether no certificate of the chain has expired, or is to be good later."""
        return self.not_before <= now <= self.not_after


@final
class Authorities:
    """Those whose client certificates are accepted.

    Args:
        bundles: Their certificates, each of which is trusted as it stands, by the name of their bundle.

    Attributes:
        der: All of them, one after the other.
    """

    def __init__(self, bundles: Mapping[str, Sequence[x509.Certificate]]) -> None:
        found: dict[x509.Certificate, set[str]] = defaultdict(set)
        for name, certificates in bundles.items():
            for each in certificates:
                found[each].add(name)
        self._bundles = {certificate: frozenset(names) for certificate, names in found.items()}
        self._store = Store(list(self._bundles))
        self.der = b"".join(each.public_bytes(Encoding.DER) for each in self._bundles)

    def times(self) -> Sequence[tuple[float, float]]:
        """Return from when to when each of their certificates is good, in Unix seconds."""
        return [_times([each]) for each in self._bundles]

    def verify(self, chain: Sequence[bytes], now: float) -> Verified:
        """Return whom a chain is good for now.

        Args:
            chain: Certificates in DER, the client's own first.
            now: In Unix seconds.

        Raises:
            CertificateInvalidError: It is not good; the text says why, and repeats nothing of it.
        """
        if len(chain) > MAX_CHAIN:
            raise CertificateInvalidError("The client certificate's chain is too long.")
        try:
            leaf, *others = map(x509.load_der_x509_certificate, chain)
            if len({each.subject for each in others}) < len(others):
                raise CertificateInvalidError("Two certificates of the client's chain have one subject.")
            path = self._verifier(now).verify(leaf, others).chain
            is_strong = all(map(_is_strong, path))
            presented = _presented(leaf, chain[0], self._bundles[path[-1]])
            verified = Verified(presented, *_times(path))
        except VerificationError:
            raise CertificateInvalidError("The client certificate is not one that is accepted now.") from None
        except _MALFORMED:
            raise CertificateInvalidError("The client certificate is malformed.") from None
        if not is_strong:
            raise CertificateInvalidError("A key or a signature of the client's chain is too weak.")
        if not verified.is_in_time(now):
            raise CertificateInvalidError("The client certificate is not one that is accepted now.")
        return verified

    def _verifier(self, now: float) -> ClientVerifier:
        return (
            PolicyBuilder()
            .store(self._store)
            .time(datetime.fromtimestamp(now, UTC))
            .max_chain_depth(MAX_CHAIN - 1)
            .extension_policies(ca_policy=_OF_AN_AUTHORITY, ee_policy=_OF_A_CLIENT)
            .build_client_verifier()
        )


def read_bundle(pem: bytes) -> Sequence[x509.Certificate]:
    """Return the certificates of authorities.

    Raises:
        ValueError: It holds no certificate, or one that is no authority's, or has a weak key.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        good = [_is_authority(each) and _is_strong(each) for each in certificates]
    except _MALFORMED:
        raise ValueError("it is no bundle of certificates in PEM") from None
    if not all(good):
        position = good.index(False) + 1
        raise ValueError(f"certificate {position} of it is no authority's, or its key is too weak")
    return certificates


def _times(path: Sequence[x509.Certificate]) -> tuple[float, float]:
    """Return from when to when all of these are good."""
    begins = max(each.not_valid_before_utc for each in path)
    ends = min(each.not_valid_after_utc for each in path)
    return begins.timestamp(), ends.timestamp()


def _is_strong(certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        is_strong = _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS and key.public_numbers().e <= _MAX_EXPONENT
    elif isinstance(key, ec.EllipticCurvePublicKey):
        is_strong = isinstance(key.curve, _CURVES)
    else:
        is_strong = isinstance(key, ed25519.Ed25519PublicKey)
    algorithm = certificate.signature_hash_algorithm  # none in Ed25519, which has its own
    return is_strong and (algorithm is None or isinstance(algorithm, _HASHES))


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _presented(certificate: x509.Certificate, der: bytes, bundles: frozenset[str]) -> PresentedCertificate:
    """Return whom a certificate names.

    Raises:
        CertificateInvalidError: It has names that can't stand together.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return PresentedCertificate(hashlib.sha256(der).digest(), bundles=bundles)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    spiffe_ids = tuple(uri for uri in uris if uri.lower().startswith("spiffe:"))
    if spiffe_ids and (len(uris) > 1 or not is_workload(spiffe_ids[0])):
        raise CertificateInvalidError("The client certificate's SPIFFE ID is not exactly one.")
    hosts = (name.lower() for name in names.get_values_for_type(x509.DNSName))
    dns_names = tuple(dict.fromkeys(host for host in hosts if is_host(host)))
    if len(dns_names) > _MAX_NAMES:
        raise CertificateInvalidError("The client certificate has too many names.")
    return PresentedCertificate(hashlib.sha256(der).digest(), spiffe_ids, dns_names, bundles)


def _check_client_purpose(_policy: Policy, _of: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError


def _check_limited_purpose(_: Policy, _of: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and _PURPOSES.isdisjoint(usage):
        raise ValueError


def _check_signs(_policy: Policy, _of: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and (not usage.digital_signature or usage.key_cert_sign):
        raise ValueError


def _check_signs_certificates(_policy: Policy, _of: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError


def _check_is_no_authority(
    _policy: Policy, _of: x509.Certificate, constraints: x509.BasicConstraints | None
) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError


_PURPOSES = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})
_OF_A_CLIENT = (
    ExtensionPolicy.permit_all()
    .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_client_purpose)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_signs)
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _check_is_no_authority)
)
_OF_AN_AUTHORITY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)  # that it says so is always checked
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_signs_certificates)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_limited_purpose)
)
