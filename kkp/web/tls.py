"""The listener's TLS: one certificate and key, replaced while it serves.

- TLS 1.2 with forward secrecy and authenticated encryption, or 1.3.
- A new pair is taken when either file changes or when asked to (`kkp.web.reloading`), and serves every
  handshake that begins afterwards. Connections that stand keep theirs.
- A pair that can't be read, does not fit together, or whose key others can read, is refused.
- Where client certificates are asked for, TLS 1.3 alone is spoken: before it, they crossed the network in the
  clear. No session is resumed, because a resumed one knows the client's certificate and not who vouched for
  it. Whom a handshake accepts, `kkp.web.client_certificates` judges again at each request.

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
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, final

from kkp.data_dir import is_exposed
from kkp.errors import ConfigError
from kkp.web.authorities import ReloadingAuthorities
from kkp.web.reloading import LOOK_SECONDS, Reloading

_EXPIRES_SOON_SECONDS = 14 * 86400
_REFUSED = "The new TLS certificate was refused, and the one before it is in force. The log says why."
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # of TLS 1.2; those of 1.3 are all good
# The last one is what OpenSSL says of a key of another type.
_NOT_ITS_KEY = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
_DER = 2  # `_ssl.ENCODING_DER`
_log = logging.getLogger(__name__)


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
        authorities: Whose client certificates are asked for; None for nobody's.

    Raises:
        ConfigError: The pair can't be used.
    """

    def __init__(
        self,
        cert_file: Path,
        key_file: Path,
        authorities: ReloadingAuthorities | None = None,
    ) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._authorities = authorities
        self._pair = Reloading("TLS certificate", [cert_file, key_file], self._load)
        self.context = self._new_context()
        self.context.sni_callback = self._choose

    @property
    def certificate(self) -> Certificate:
        """The one that new connections are shown."""
        return self._pair.value.certificate

    def warning(self) -> str | None:
        """Say that the files hold another pair than is served, or that it expires; None if all is well."""
        told = [_REFUSED if self._pair.refused else None, self.certificate.expiry(time.time())]
        return " ".join(filter(None, told)) or None

    async def run(self, look_seconds: float = LOOK_SECONDS) -> None:
        """Take a new pair and new authorities whenever the files change, until cancelled."""
        while True:
            await asyncio.sleep(look_seconds)
            if self._authorities is not None and self._authorities.look():
                self._pair.reload()  # a context has both
            else:
                self._pair.look()

    def reload(self) -> None:
        """Read the pair again; one that can't be used is logged, and the old one stays."""
        self._pair.reload()

    def _load(self) -> _Pair:
        pair = _load(self._new_context(), self._cert_file, self._key_file)
        _log.info("new connections get the TLS certificate in %s: %s", self._cert_file, pair.certificate)
        expiry = pair.certificate.expiry(time.time())
        if expiry is not None:
            _log.warning("%s Put a new one into %s.", expiry, self._cert_file)
        return pair

    def _new_context(self) -> ssl.SSLContext:
        context = _new_context()
        if self._authorities is not None:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.verify_mode = ssl.CERT_OPTIONAL  # who probes its health has none
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an authority need not be a root
            context.load_verify_locations(cadata=self._authorities.value.der)
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:  # noqa: ARG002  as ssl calls it
        connection.context = self._pair.value.context


def shown_chain(connection: ssl.SSLObject | None) -> Sequence[bytes]:
    """Return the certificates that a client showed in its handshake, in DER, its own first; none if none."""
    if connection is None or connection.getpeercert(binary_form=True) is None:
        return ()
    # A method of the connection itself, with what it returns in DER, from Python 3.13 on.
    chain = connection._sslobj.get_unverified_chain()  # type: ignore[attr-defined]  # noqa: SLF001  as said
    return tuple(each.public_bytes(_DER) for each in chain)


def check_tls(cert_file: Path | None, key_file: Path | None) -> list[str]:
    """Say what is wrong with a certificate and its key, with the cure; nothing if all is well."""
    if cert_file is None or key_file is None:
        return []
    try:
        _load(_new_context(), cert_file, key_file)
    except ConfigError as error:
        return list(error.problems)
    return []


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


def _load(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> _Pair:
    """Return this pair, in this context, which is its own.

    Raises:
        ConfigError: It can't be read, does not fit together, or others can read the key.
    """
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
