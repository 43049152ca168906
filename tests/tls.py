"""Certificates for tests: an authority, and servers that it vouches for."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority whose key lives in memory."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.BasicConstraints(ca=True, path_length=0)
        self._certificate = self._build(self._name, self._key, usage, []).sign(self._key, hashes.SHA256())

    def write_certificate(self, directory: Path, name: str) -> Path:
        """Write the authority's own certificate, in PEM."""
        path = directory / name
        path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))
        return path

    def issue(self, directory: Path, host: str) -> None:
        """Write `<host>.crt` and `<host>.key` for a server of this name or address."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        usage = x509.BasicConstraints(ca=False, path_length=None)
        certificate = self._build(subject, key, usage, [_general_name(host)]).sign(self._key, hashes.SHA256())
        (directory / f"{host}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{host}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        usage: x509.BasicConstraints,
        names: list[x509.GeneralName],
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(usage, critical=True)
        )
        return builder.add_extension(x509.SubjectAlternativeName(names), critical=False) if names else builder


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
