"""Who a request comes from: what a header may say, and who may say it."""

from __future__ import annotations

import pytest

from kkp.peers import Peers, parse_networks, peer_name

PROXY = "10.0.0.1"
TRUSTED = parse_networks("10.0.0.0/24, 2001:db8:1::/48")

FROM_A_TRUSTED_PROXY = {
    "no header": ([], PROXY),
    "the client alone": (["192.0.2.7"], "192.0.2.7"),
    "a spoofed address before what the proxy wrote": (["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
    "a trusted address spoofed before it": (["10.0.0.9, 192.0.2.7"], "192.0.2.7"),
    "garbage before it": (["<script>, 192.0.2.7"], "192.0.2.7"),
    "two trusted proxies in a row": (["192.0.2.7, 10.0.0.2"], "192.0.2.7"),
    "two proxies and a spoofed address": (["198.51.100.1, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),
    "several headers, which are one list": (["198.51.100.1", "192.0.2.7", "10.0.0.2"], "192.0.2.7"),
    "several headers of several addresses": (
        ["198.51.100.1, 198.51.100.2", "192.0.2.7,10.0.0.2"],
        "192.0.2.7",
    ),
    "no space at all": (["198.51.100.1,192.0.2.7"], "192.0.2.7"),
    "tabs": (["\t192.0.2.7\t"], "192.0.2.7"),
    "IPv6": (["2001:db8:2::7"], "2001:db8:2::7"),
    "IPv6, not in its short form": (["2001:0DB8:0002:0:0:0:0:7"], "2001:db8:2::7"),
    "IPv6 in brackets": (["[2001:db8:2::7]"], "2001:db8:2::7"),
    "a port": (["192.0.2.7:50000"], "192.0.2.7"),
    "IPv6 and a port": (["[2001:db8:2::7]:50000"], "2001:db8:2::7"),
    "a trusted proxy with a port": (["192.0.2.7, 10.0.0.2:443"], "192.0.2.7"),
    "a trusted proxy by IPv6": (["192.0.2.7, 2001:db8:1::2"], "192.0.2.7"),
    "IPv4 in IPv6": (["::ffff:192.0.2.7"], "192.0.2.7"),
    "a trusted proxy's IPv4 in IPv6": (["192.0.2.7, ::ffff:10.0.0.2"], "192.0.2.7"),
    "nobody but trusted proxies": (["10.0.0.3, 10.0.0.2"], PROXY),
    "an empty header": ([""], PROXY),
    "commas": ([",,"], PROXY),
    "an empty end": (["192.0.2.7,"], PROXY),
    "garbage at the end": (["192.0.2.7, x"], PROXY),
    "garbage behind a trusted proxy": (["192.0.2.7, unknown, 10.0.0.2"], PROXY),
    "a host name": (["client.test"], PROXY),
    "an obfuscated name": (["_hidden"], PROXY),
    "a number": (["3221225991"], PROXY),
    "leading zeros": (["192.0.2.007"], PROXY),
    "a short IPv4": (["192.0.2"], PROXY),
    "a network": (["192.0.2.0/24"], PROXY),
    "a zone": (["fe80::1%eth0"], PROXY),
    "half a bracket": (["[2001:db8:2::7"], PROXY),
    "IPv4 in brackets": (["[192.0.2.7]"], PROXY),
    "a port without a number": (["192.0.2.7:"], PROXY),
    "a port of six digits": (["192.0.2.7:500000"], PROXY),
    "the form of another header": (["for=192.0.2.7"], PROXY),
    "quotes": (['"192.0.2.7"'], PROXY),
    "digits of another script": (["\u0661.2.3.4"], PROXY),
    "a NUL": (["192.0.2.7\0"], PROXY),
}


@pytest.mark.parametrize(
    ("headers", "client"), FROM_A_TRUSTED_PROXY.values(), ids=FROM_A_TRUSTED_PROXY.keys()
)
def test_a_trusted_proxy_speaks_for_whoever_it_was_reached_by(headers: list[str], client: str) -> None:
    assert Peers(TRUSTED).client_ip(PROXY, headers) == client


@pytest.mark.parametrize(
    "peer", ["192.0.2.1", "10.0.1.0", "9.255.255.255", "2001:db8:2::1", "::1", "", "unix"]
)
@pytest.mark.parametrize("header", ["198.51.100.1", "10.0.0.2", "127.0.0.1", "x"])
def test_attack_anybody_else_speaks_for_nobody(peer: str, header: str) -> None:
    assert Peers(TRUSTED).client_ip(peer, [header]) == peer


@pytest.mark.parametrize("peer", ["10.0.0.0", "10.0.0.255", "2001:db8:1:ffff::", "::ffff:10.0.0.1"])
def test_a_network_is_trusted_to_its_last_address_in_any_spelling(peer: str) -> None:
    assert Peers(TRUSTED).client_ip(peer, ["192.0.2.7"]) == "192.0.2.7"
    assert Peers(TRUSTED, proxies_only=True).admits(peer)


@pytest.mark.parametrize("peer", ["10.0.1.0", "127.0.0.1", "::1", "fe80::1%eth0", "", "garbage"])
def test_where_a_proxy_terminates_tls_nobody_else_is_admitted(peer: str) -> None:
    assert not Peers(TRUSTED, proxies_only=True).admits(peer)
    assert Peers(TRUSTED).admits(peer)


def test_without_proxies_the_header_means_nothing() -> None:
    assert Peers().client_ip("127.0.0.1", ["192.0.2.7"]) == "127.0.0.1"
    assert Peers().admits("192.0.2.7")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("10.0.0.1", ["10.0.0.1/32"]),
        (" 10.0.0.0/8 , 2001:db8::1,", ["10.0.0.0/8", "2001:db8::1/128"]),
        ("0.0.0.0/1", ["0.0.0.0/1"]),
    ],
)
def test_networks_are_read(text: str, names: list[str]) -> None:
    assert [str(network) for network in parse_networks(text)] == names


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0/0",
        "::/0",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "proxy.test",
        "10.0.0.1 10.0.0.2",
        "*",
        ",",
        "10.0.0.1,x",
    ],
)
def test_everybody_and_nobody_are_no_proxies(text: str) -> None:
    with pytest.raises(ValueError, match="named by their addresses"):
        parse_networks(text)


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("::1", "::/64"),
        ("", "other"),
        ("10.0.0.7:443", "other"),
        ("\x1b[2J", "other"),
    ],
)
def test_a_peer_is_counted_as(peer: str, name: str) -> None:
    assert peer_name(peer) == name
