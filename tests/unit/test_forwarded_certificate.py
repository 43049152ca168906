"""What a proxy may write into `Client-Cert` and `Client-Cert-Chain`, to the last character."""

from __future__ import annotations

import base64

import pytest

from kkp.errors import InvalidRequestError
from kkp.web.forwarded_certificate import read_forwarded

ONE, TWO, THREE = b"\x30one", b"\x30another", b"\x30 a third"


def written(der: bytes) -> str:
    return f":{base64.b64encode(der).decode()}:"


def test_nothing_forwarded_is_nothing() -> None:
    assert list(read_forwarded([], [])) == []


def test_a_certificate_is_read() -> None:
    assert read_forwarded([written(ONE)], []) == [ONE]


@pytest.mark.parametrize("comma", [",", ", ", " ,\t", "\t,  "])
def test_a_chain_follows_it_in_its_order(comma: str) -> None:
    chain = comma.join([written(TWO), written(THREE)])
    assert read_forwarded([written(ONE)], [chain]) == [ONE, TWO, THREE]


MALFORMED: dict[str, str] = {
    "nothing": "",
    "colons alone": ":",
    "no colon before": written(ONE)[1:],
    "no colon behind": written(ONE)[:-1],
    "a space before": " " + written(ONE),
    "a space behind": written(ONE) + " ",
    "a line behind": written(ONE) + "\n",
    "a space within": ":MG9u ZQ==:",
    "a parameter": written(ONE) + ";a=1",
    "an empty parameter": written(ONE) + ";",
    "no padding": ":MG9uZQ:",
    "too little padding": ":MG9uZQ=:",
    "too much padding": ":MG9uZQ===:",
    "stray bits": ":MG9uZR==:",
    "base64url": ":MG9u-_-_:",
    "percent-encoded": ":MG9uZQ%3D%3D:",
    "a string": f'"{base64.b64encode(ONE).decode()}"',
    "PEM": "-----BEGIN CERTIFICATE----- MG9uZQ== -----END CERTIFICATE-----",
    "Envoy's own form": f'Hash=00;Cert="{base64.b64encode(ONE).decode()}"',
    "letters of another alphabet": ":MG9u\u0416\u0416\u0416=:",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_attack_any_other_spelling_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        read_forwarded([text], [])
    with pytest.raises(InvalidRequestError):
        read_forwarded([written(ONE)], [text])


AMBIGUOUS: dict[str, tuple[list[str], list[str]]] = {
    "two certificates": ([written(ONE), written(TWO)], []),
    "the same certificate twice": ([written(ONE), written(ONE)], []),
    "two certificates in one header": ([f"{written(ONE)}, {written(TWO)}"], []),
    "a chain of nobody's": ([], [written(TWO)]),
    "two chains": ([written(ONE)], [written(TWO), written(THREE)]),
    "a chain that ends in a comma": ([written(ONE)], [written(TWO) + ","]),
    "a chain that begins with a comma": ([written(ONE)], ["," + written(TWO)]),
    "a chain with nothing between commas": ([written(ONE)], [f"{written(TWO)},,{written(THREE)}"]),
}


@pytest.mark.parametrize(("certificate", "chain"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_attack_whatever_could_be_read_in_two_ways_is_refused(
    certificate: list[str], chain: list[str]
) -> None:
    with pytest.raises(InvalidRequestError):
        read_forwarded(certificate, chain)
