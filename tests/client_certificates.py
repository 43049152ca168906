"""Client certificates for tests: authorities, those below them, and whom they vouch for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA224, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
Extension: TypeAlias = tuple[x509.ExtensionType, bool]

HOUR = timedelta(hours=1)
LASTS = timedelta(days=10)  # longer than tests go on that were collected with it
FOR_CLIENTS: Extension = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
FOR_SERVERS: Extension = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
NO_AUTHORITY: Extension = (x509.BasicConstraints(ca=False, path_length=None), True)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def usage(*names: str) -> Extension:
    """Return the key usage that has these bits set."""
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in every}), True


def names(*texts: str) -> Extension:
    """Return the subject alternative name with these: a URI where there is a colon, else a host."""
    general = [x509.UniformResourceIdentifier(text) if ":" in text else x509.DNSName(text) for text in texts]
    return x509.SubjectAlternativeName(general), False


@dataclass(frozen=True)
class Holder:
    """Whoever has a certificate and its key.

    Attributes:
        certificate: Its own.
        above: Those between it and an authority, the nearest first.
    """

    certificate: x509.Certificate
    key: Key = field(repr=False)
    above: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> list[bytes]:
        """All of them in DER, as a handshake shows them."""
        return [each.public_bytes(Encoding.DER) for each in (self.certificate, *self.above)]

    @property
    def pem(self) -> bytes:
        """All of them in PEM."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.above))

    @property
    def alone(self) -> Holder:
        """The same without those between."""
        return Holder(self.certificate, self.key)

    @property
    def between(self) -> Sequence[Holder]:
        """Those between, each alone and without its key."""
        return [Holder(each, self.key) for each in self.above]

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write the chain and the key; return the paths of both."""
        chain, key = directory / f"{name}.crt", directory / f"{name}.key"
        chain.write_bytes(self.pem)
        key.touch(0o600)
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return chain, key


@dataclass(frozen=True)
class Authority(Holder):
    """Somebody who vouches for others."""

    @classmethod
    def new(
        cls,
        name: str = "root",
        key: Key | None = None,
        *,
        ago: timedelta = HOUR,
        lives: timedelta = 2 * LASTS,
    ) -> Self:
        """Make a root that began so long ago, and lives for so long."""
        key = key or new_key()
        extensions = [_authority(None), usage("key_cert_sign")]
        return cls(_build(name, key, _name(name), key, extensions, -ago, lives - ago), key)

    def below(
        self,
        name: str = "below",
        *extensions: Extension,
        key: Key | None = None,
        path_length: int | None = None,
        begins: timedelta = -HOUR,
        lasts: timedelta = LASTS,
    ) -> Authority:
        """Make an authority that this one vouches for; by default one that may sign certificates."""
        key = key or new_key()
        extensions = extensions or (_authority(path_length), usage("key_cert_sign"))
        made = _build(name, key, self.certificate.subject, self.key, extensions, begins, lasts)
        return Authority(made, key, self._path())

    def issue(  # noqa: PLR0913  each with what is usual
        self,
        *texts: str,
        extensions: Sequence[Extension] = (FOR_CLIENTS, NO_AUTHORITY),
        name: str = "somebody",
        key: Key | None = None,
        begins: timedelta = -HOUR,
        lasts: timedelta = LASTS,
        algorithm: SHA224 | SHA256 | None = None,
    ) -> Holder:
        """Vouch for somebody who has these names; by default for a client."""
        key = key or new_key()
        every = [*([names(*texts)] if texts else []), *extensions]
        made = _build(name, key, self.certificate.subject, self.key, every, begins, lasts, algorithm)
        return Holder(made, key, self._path())

    def _path(self) -> tuple[x509.Certificate, ...]:
        is_root = self.certificate.issuer == self.certificate.subject
        return () if is_root else (self.certificate, *self.above)


def _authority(path_length: int | None) -> Extension:
    return x509.BasicConstraints(ca=True, path_length=path_length), True


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _build(  # noqa: PLR0913, PLR0917  what a certificate has
    name: str,
    key: Key,
    issuer: x509.Name,
    issuer_key: Key,
    extensions: Sequence[Extension],
    begins: timedelta,
    lasts: timedelta,
    algorithm: SHA224 | SHA256 | None = None,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + lasts)
    )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    is_edwards = isinstance(issuer_key, ed25519.Ed25519PrivateKey)
    return builder.sign(issuer_key, None if is_edwards else algorithm or SHA256())
