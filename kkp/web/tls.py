"""The listener's TLS: one certificate and key, replaced while it serves.

- TLS 1.2 with forward secrecy and authenticated encryption, or 1.3.
- A new pair is taken when either file changes or when asked to, and serves every handshake that begins
  afterwards. Connections that stand keep theirs.
- A pair that can't be read, does not fit together, or whose key others can read, is refused and logged; the
  old one goes on serving. So a rotation that is half-way done harms nobody: the next look finds the rest.

A certificate is served to its end and beyond: clients judge its dates, and `warning` tells operators in time.

OpenSSL keeps one certificate for each type of key in a context, and would go on offering an old RSA one
beside a new one of EC. So each pair gets a context of its own, and the handshake is switched to it (the
server name callback is called with or without a name).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias, final

from kkp.data_dir import is_exposed
from kkp.errors import ConfigError

_LOOK_SECONDS = 2.0
_EXPIRES_SOON_SECONDS = 14 * 86400
_REFUSED = "The new TLS certificate was refused, and the one before it is in force. The log says why."
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all good
# The last one is what OpenSSL says of a key of another type.
_NOT_ITS_KEY = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
_log = logging.getLogger(__name__)
_Marks: TypeAlias = tuple[tuple[int, ...] | None, ...]


class Certificate(NamedTuple):
    """What is told of the server's certificate.

    Attributes:
        not_after: Until when it is good, in Unix seconds.
        fingerprint: SHA-256 of its DER, in hex.
    """

    not_after: float
    fingerprint: str

    def __str__(self) -> str:
        return f"good until {self._end}, SHA-256 {self.fingerprint}"

    def expiry(self, now: float) -> str | None:
        """Say that it has expired, or will within 14 days; None if neither."""
        if self.has_expired(now):
            return f"The TLS certificate expired at {self._end}."
        if self.not_after - now <= _EXPIRES_SOON_SECONDS:
            return f"The TLS certificate expires at {self._end}."
        return None

    def has_expired(self, now: float) -> bool:
        """Tell whether clients refuse it by now."""
        return now > self.not_after

    @property
    def _end(self) -> str:
        return datetime.fromtimestamp(self.not_after, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


class _Pair(NamedTuple):
    context: ssl.SSLContext
    certificate: Certificate


@final
class ReloadingTLS:
    """The context to listen with, and the pair that is behind it.

    Args:
        cert_file: PEM certificate chain, the server's own first.
        key_file: PEM private key, readable by its owner only.

    Raises:
        ConfigError: The pair can't be used.
    """

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._marks = self._look()
        self._pair = _load(cert_file, key_file)
        self._refused = False
        self.context = _new_context()
        self.context.sni_callback = self._choose
        self._tell()

    @property
    def certificate(self) -> Certificate:
        """The one that new connections are shown."""
        return self._pair.certificate

    def warning(self) -> str | None:
        """Say that the files hold another pair than is served, or that it expires; None if all is well."""
        told = [_REFUSED if self._refused else None, self.certificate.expiry(time.time())]
        return " ".join(filter(None, told)) or None

    async def run(self, look_seconds: float = _LOOK_SECONDS) -> None:
        """Take a new pair whenever the files change, until cancelled; they are looked at this often."""
        while True:
            await asyncio.sleep(look_seconds)
            if self._look() != self._marks:
                self.reload()

    def reload(self) -> None:
        """Read the files again; a pair that can't be used is logged, and the old one stays."""
        self._marks = self._look()  # before they are read: what changes meanwhile is seen at the next look
        try:
            self._pair = _load(self._cert_file, self._key_file)
        except ConfigError as error:
            self._refused = True
            _log.error("the new TLS certificate is refused, the old one stays: %s", error)
            return
        self._refused = False
        self._tell()

    def _tell(self) -> None:
        _log.info("new connections get the TLS certificate in %s: %s", self._cert_file, self.certificate)
        expiry = self.certificate.expiry(time.time())
        if expiry is not None:
            _log.warning("%s Put a new one into %s.", expiry, self._cert_file)

    def _choose(self, connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:  # noqa: ARG002  as ssl calls it
        connection.context = self._pair.context

    def _look(self) -> _Marks:
        """Return what changes when a file does, be it rewritten, replaced, or behind a link that moved."""
        return tuple(map(_mark, (self._cert_file, self._key_file)))


def check_tls(cert_file: Path | None, key_file: Path | None) -> list[str]:
    """Say what is wrong with a certificate and its key, with the cure; nothing if all is well."""
    if cert_file is None or key_file is None:
        return []
    try:
        _load(cert_file, key_file)
    except ConfigError as error:
        return list(error.problems)
    return []


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    return context


def read_certificate(cert_file: Path) -> Certificate:
    """Return what is told of the first certificate of a PEM file.

    Raises:
        OSError: It can't be read.
        ValueError: It is no certificate.
    """
    from cryptography import x509  # noqa: PLC0415  a library that `kkp dev` does not need
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415  likewise

    found = x509.load_pem_x509_certificate(cert_file.read_bytes())
    return Certificate(found.not_valid_after_utc.timestamp(), found.fingerprint(SHA256()).hex())


def _load(cert_file: Path, key_file: Path) -> _Pair:
    """Return this pair, in a context of its own.

    Raises:
        ConfigError: It can't be read, does not fit together, or others can read the key.
    """
    context = _new_context()
    try:
        if is_exposed(key_file.stat()):
            raise ConfigError([f"KKP_TLS_KEY_FILE: others can read {key_file}; run: chmod 600 {key_file}"])
        context.load_cert_chain(cert_file, key_file, password=_refuse_passphrase)
        certificate = read_certificate(cert_file)
    except ssl.SSLError as error:  # which is an OSError, too
        raise ConfigError([_cure(error, cert_file, key_file)]) from None
    except OSError as error:
        problem = f"KKP_TLS_CERT_FILE: {cert_file} or {key_file} can't be read ({error.strerror})"
        raise ConfigError([problem]) from None
    except ValueError:  # OpenSSL takes what is no certificate to a stricter reader
        raise ConfigError([f"KKP_TLS_CERT_FILE: {cert_file} can't be used; give one pair in PEM"]) from None
    return _Pair(context, certificate)


def _refuse_passphrase() -> str:
    """Keep OpenSSL from asking on a terminal: nobody is there to type."""
    raise ConfigError(["KKP_TLS_KEY_FILE: the key asks for a passphrase; give it without one, mode 0600"])


def _cure(error: ssl.SSLError, cert_file: Path, key_file: Path) -> str:
    if error.reason in _NOT_ITS_KEY:
        return f"KKP_TLS_KEY_FILE: {key_file} is not the key of {cert_file}; give the two of one pair"
    return f"KKP_TLS_CERT_FILE: {cert_file} and {key_file} can't be used; give one pair in PEM"
