"""Where an OPA may stand, checked before anything is connected to.

An OPA decides everything, so what answers in its place must not be somebody else: it stands on this machine,
on a loopback address or a Unix socket, or it proves its name by a certificate of an authority that the
operator names. A host name is taken only with such a certificate, because whoever answers for the resolver
would otherwise answer for the policy.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from kkp.destinations import is_host, is_loopback

_CURE = (
    "give http://127.0.0.1:8181, unix:///run/opa.sock, or https://host with its authority in KKP_OPA_CA_FILE"
)
_MAX_SOCKET_PATH = 107  # bytes: sockaddr_un holds 108, the last one is zero


@dataclass(frozen=True, slots=True)
class OPAAddress:
    """Where to connect.

    Attributes:
        host: As it stands in a URL, an IPv6 address in brackets.
        port: From 1 to 65535.
        is_tls: Whether the host has to prove its name.
        socket_path: The Unix socket to use in place of host and port.
    """

    host: str
    port: int
    is_tls: bool = False
    socket_path: str | None = None


def read_address(url: str) -> OPAAddress:
    """Read a `KKP_OPA_URL`.

    Raises:
        ValueError: It names no place where an OPA may stand; the message has the cure.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"it is not a URL; {_CURE}") from None
    # The URL itself is not shown: it might hold a password.
    if (
        parts.username is not None
        or parts.query
        or parts.fragment
        or not url.isascii()
        or not url.isprintable()
    ):
        raise ValueError(f"a user, query or fragment has no place in it; {_CURE}")
    if parts.scheme == "unix":
        return _unix_address(parts)
    if parts.path not in {"", "/"} or not parts.hostname or port == 0:
        raise ValueError(f"it takes a host and a port, without a path; {_CURE}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if parts.scheme == "https":
        if not is_host(parts.hostname):
            raise ValueError(f"its host is not a host name; {_CURE}")
        return OPAAddress(host, port or 443, is_tls=True)
    if parts.scheme == "http" and is_loopback(parts.hostname):
        return OPAAddress(host, port or 80)
    raise ValueError(f"without TLS it must be a loopback address, and a number rather than a name; {_CURE}")


def check_opa(url: str, ca_file: Path | None) -> list[str]:
    """Say what is wrong with `KKP_OPA_URL` and `KKP_OPA_CA_FILE`, each with its cure; nothing if all is well.

    Only the CA file is read; nothing is connected to, since an OPA may start after KKP.
    """
    try:
        address = read_address(url)
    except ValueError as error:
        return [f"KKP_OPA_URL: {error}"]
    if not address.is_tls:
        if ca_file is not None:
            return ["KKP_OPA_CA_FILE: it is for an https OPA only; unset it, or make KKP_OPA_URL https"]
        return []
    if ca_file is None:
        return ["KKP_OPA_CA_FILE: an https OPA proves its name by it; name a PEM file of its authority"]
    try:
        tls_context(ca_file)
    except (OSError, ValueError):  # ssl.SSLError is an OSError
        return [
            f"KKP_OPA_CA_FILE: {ca_file} can't be read as certificates; name a PEM file of OPA's authority"
        ]
    return []


def tls_context(ca_file: Path) -> ssl.SSLContext:
    """Return a context that trusts this file's authorities and no others, and checks the host's name.

    Raises:
        OSError: The file can't be read or holds no certificate.
    """
    context = ssl.create_default_context(cafile=str(ca_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _unix_address(parts: SplitResult) -> OPAAddress:
    path = parts.path
    if (
        parts.netloc
        or not path.startswith("/")
        or path.endswith("/")
        or len(path) > _MAX_SOCKET_PATH
        or "%" in path
    ):
        raise ValueError(
            f"a Unix socket takes three slashes and a path of at most {_MAX_SOCKET_PATH} bytes; {_CURE}"
        )
    return OPAAddress("localhost", 80, socket_path=path)
