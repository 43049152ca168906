"""Where KKP may be told to call: URLs that name one place, and addresses that are never one.

Nothing here reaches anything. These rules hold:
- A host is an address in its one spelling or a host name. What some resolvers take for a number (`0x7f.1`,
  `2130706433`) is neither.
- Without TLS only a loopback address, written as a number, is spoken to: no resolver is asked.
- A name never leads to this machine, to a metadata service, or to any other address that is no place of its
  own (link-local, multicast, unspecified), however that is wrapped up in an IPv6 address. Private networks
  are places: clusters live there.

A message never repeats the URL: it might hold what somebody took for a place to put a password.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_CURE: Final = "give https://host/path"
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)")
# Metadata services that are not on a link-local address: AWS's by IPv6, Azure's host, Alibaba's, Oracle's.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "168.63.129.16", "100.100.100.200", "192.0.0.192"))
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def url_problem(url: str) -> str | None:
    """Say what is wrong with a URL that KKP is to fetch from, with its cure; None if nothing is."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return f"it is not a URL; {_CURE}"
    problem = next(_problems(url, parts), None)
    return f"{problem}; {_CURE}" if problem is not None else None


def _problems(url: str, parts: SplitResult) -> Iterator[str]:
    host = parts.hostname or ""
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        yield "it holds characters that a URL has not"
    if "@" in parts.netloc or "#" in url or parts.port == 0 or parts.netloc.endswith(":"):
        yield "a user, a fragment or port 0 has no place in it"
    if parts.scheme not in {"http", "https"} or not host:
        yield "it takes a scheme and a host"
    if not is_host(host):
        yield "its host is neither a host name nor an address in its one spelling"
    if parts.scheme == "http" and not is_loopback(host):
        yield "without TLS it must be a loopback address, written as a number"
    address = _read(host)
    if address is not None and not is_loopback(host) and is_no_place(address):
        yield "its address is that of a metadata service, or of no host"


def is_loopback(host: str) -> bool:
    """Tell whether a host is a loopback address, written as a number: no resolver is asked."""
    address = _read(host)
    return address is not None and address.is_loopback


def is_host(host: str) -> bool:
    """Tell whether it is an address, in its one spelling, or a host name."""
    if _read(host) is not None:
        return True
    return _HOST_NAME.fullmatch(host) is not None and _NUMBER.fullmatch(host) is None


def is_no_place(address: _Address) -> bool:
    """Tell whether a name must not lead to this address."""
    inner = _embedded(address)
    if inner is not None:
        return is_no_place(inner)
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or address in _METADATA
    )


def _embedded(address: _Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address is another word for."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour


def _read(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
