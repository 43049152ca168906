"""Who a request comes from: the socket's peer, or whom a trusted proxy says that it speaks for.

A proxy appends the address that it was reached from to `X-Forwarded-For`; everything further left was there
before, and so is the client's own word. So the header is read from the right, past the proxies that are
trusted, to the first address that is not: that one was written by a trusted proxy. A header that can't be
read so far names nobody, and the peer itself is taken. `Forwarded` (RFC 7239) is not read: two headers could
disagree.

What is counted, or limited, by address takes an IPv6 peer for its /64: that is what one customer usually has.

Pure, but for a bounded memory of peers that were looked up. An IPv4 address that is mapped into IPv6
(RFC 4291 section 2.5.5.2) is that IPv4 address.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias, final

Network: TypeAlias = IPv4Network | IPv6Network
_Host: TypeAlias = IPv4Address | IPv6Address

UNKNOWN_PEER: Final = "other"
_REMEMBERED_PEERS = 4096
_IPV6_PREFIX_BITS = 64
# Some proxies write the port, too: `192.0.2.1:443`, `[2001:db8::1]:443`.
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a list such as `10.0.0.7,2001:db8::/32`.

    Raises:
        ValueError: One is no address or network, has bits beyond its prefix, or is everybody.
    """
    try:
        networks = tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        networks = ()
    if (text and not networks) or any(network.prefixlen == 0 for network in networks):
        raise ValueError("proxies are named by their addresses or networks")
    return networks


@lru_cache(_REMEMBERED_PEERS)
def peer_name(peer: str) -> str:
    """Return what a peer is counted as: an IPv4 address, an IPv6 /64, or `other`."""
    try:
        address = ip_address(peer)
    except ValueError:
        return UNKNOWN_PEER
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:  # or every IPv4 peer of a dual-stack socket would share one /64
        return str(address.ipv4_mapped)
    return str(IPv6Network((address.packed, _IPV6_PREFIX_BITS), strict=False))


@final
class Peers:
    """Tells who a request comes from, and whether its peer may speak to this listener.

    Args:
        trusted: The proxies whose `X-Forwarded-For` is believed.
        proxies_only: Whether only they may speak to the listener, because they terminate its TLS.
    """

    def __init__(self, trusted: Sequence[Network] = (), *, proxies_only: bool = False) -> None:
        self._trusted = tuple(trusted)
        self._proxies_only = proxies_only
        self._find = lru_cache(_REMEMBERED_PEERS)(self._find_proxy)

    def admits(self, peer: str) -> bool:
        """Tell whether this peer may send requests."""
        return not self._proxies_only or self.is_proxy(peer)

    def is_proxy(self, peer: str) -> bool:
        """Tell whether this peer is a trusted proxy, and so speaks for others."""
        return self._find(peer)

    def client_ip(self, peer: str, forwarded_for: Sequence[str]) -> str:
        """Return the address that a request comes from.

        Args:
            peer: The socket's other end.
            forwarded_for: Every `X-Forwarded-For` header, in order.
        """
        if not self._trusted or not forwarded_for or not self.is_proxy(peer):
            return peer
        for text in reversed(",".join(forwarded_for).split(",")):
            host = _host(text.strip(" \t"))
            if host is None:
                return peer
            if not self._trusts(host):
                return str(host)
        return peer

    def _find_proxy(self, peer: str) -> bool:
        host = _host(peer)
        return host is not None and self._trusts(host)

    def _trusts(self, host: _Host) -> bool:
        return any(host in network for network in self._trusted)


def _host(text: str) -> _Host | None:
    found = _WITH_PORT.fullmatch(text)
    if found is not None:
        text = found["v6"] or found["v4"]
    try:
        host = ip_address(text)
    except ValueError:
        return None
    if isinstance(host, IPv6Address):
        if host.scope_id is not None:  # it means something on one machine only
            return None
        return host.ipv4_mapped or host
    return host
