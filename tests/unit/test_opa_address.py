"""Where an OPA may stand."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from kkp.authz.opa_address import OPAAddress, check_opa, read_address, tls_context
from tests.tls import Authority

GOOD = {
    "http://127.0.0.1:8181": OPAAddress("127.0.0.1", 8181),
    "http://127.0.0.1:8181/": OPAAddress("127.0.0.1", 8181),
    "http://127.255.255.254:1": OPAAddress("127.255.255.254", 1),
    "http://[::1]:65535": OPAAddress("[::1]", 65535),
    "http://127.0.0.1": OPAAddress("127.0.0.1", 80),
    "unix:///run/opa.sock": OPAAddress("localhost", 80, socket_path="/run/opa.sock"),
    "unix:///" + "x" * 106: OPAAddress("localhost", 80, socket_path="/" + "x" * 106),
}
GOOD_TLS = {
    "https://opa.example": OPAAddress("opa.example", 443, is_tls=True),
    "https://opa.example:8181": OPAAddress("opa.example", 8181, is_tls=True),
    "https://OPA.example:8181": OPAAddress("opa.example", 8181, is_tls=True),
    "https://10.0.0.7:8181": OPAAddress("10.0.0.7", 8181, is_tls=True),
    "https://[2001:db8::1]:8181": OPAAddress("[2001:db8::1]", 8181, is_tls=True),
    "https://localhost": OPAAddress("localhost", 443, is_tls=True),
}
BAD = [
    "",
    "127.0.0.1:8181",
    "127.0.0.1",
    "opa",
    "http://",
    "http://localhost:8181",
    "http://opa.example:8181",
    "http://10.0.0.7:8181",
    "http://0.0.0.0:8181",
    "http://[::]:8181",
    "http://[::ffff:10.0.0.7]:8181",
    "http://169.254.169.254",
    "http://127.0.0.1.example:8181",
    "http://2130706433:8181",
    "http://0x7f.0.0.1:8181",
    "http://127.1:8181",
    "http://127.0.0.1:8181/v1/data/other",
    "http://127.0.0.1:8181?pretty",
    "http://127.0.0.1:8181#x",
    "http://user:password@127.0.0.1:8181",
    "http://@127.0.0.1:8181",
    "http://127.0.0.1:0",
    "http://127.0.0.1:65536",
    "http://127.0.0.1:all",
    "http://127.0.0.1:8181\n",
    "http://127.0.0.1:8181 ",
    "http://127.0.0.1\t:8181",
    "http://127.0.0.1@opa.example:8181",
    "http://[::1",
    "https://",
    "https://opa_1.example",
    "https://-opa.example",
    "https://opa..example",
    "https://opa.example/x",
    "https://user@opa.example",
    "https://" + "x" * 254,
    "https://opä.example",
    "unix://run/opa.sock",
    "unix:run/opa.sock",
    "unix:///",
    "unix:///run/",
    "unix:///run/opa.sock?x",
    "unix:///run/%6fpa.sock",
    "unix:///" + "x" * 107,
    "ftp://127.0.0.1",
    "file:///run/opa.sock",
    "opa://127.0.0.1",
]


@pytest.mark.parametrize("url", GOOD)
def test_an_opa_on_this_machine_is_taken(url: str) -> None:
    assert read_address(url) == GOOD[url]
    assert check_opa(url, None) == []


@pytest.mark.parametrize("url", GOOD_TLS)
def test_an_opa_with_a_certificate_is_taken(url: str, tmp_path: Path) -> None:
    assert read_address(url) == GOOD_TLS[url]
    assert check_opa(url, Authority("ours").write_certificate(tmp_path, "ca.pem")) == []


@pytest.mark.parametrize("url", BAD)
def test_another_address_is_refused_with_its_cure(url: str) -> None:
    (problem,) = check_opa(url, None)
    assert problem.startswith("KKP_OPA_URL: ")
    assert "give http://127.0.0.1:8181" in problem
    assert "password" not in problem


def test_an_https_opa_needs_an_authority() -> None:
    assert [problem.split(":")[0] for problem in check_opa("https://opa.example", None)] == [
        "KKP_OPA_CA_FILE"
    ]


@pytest.mark.parametrize(
    "content", [None, b"", b"no certificate", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\n"]
)
def test_an_authority_that_is_not_one_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    (problem,) = check_opa("https://opa.example", path)
    assert problem.startswith(f"KKP_OPA_CA_FILE: {path} ")


@pytest.mark.parametrize("url", GOOD)
def test_an_authority_for_an_opa_without_tls_is_a_mistake(url: str, tmp_path: Path) -> None:
    (problem,) = check_opa(url, Authority("ours").write_certificate(tmp_path, "ca.pem"))
    assert problem.startswith("KKP_OPA_CA_FILE: ")


def test_only_the_named_authority_is_trusted_and_the_name_is_checked(tmp_path: Path) -> None:
    context = tls_context(Authority("ours").write_certificate(tmp_path, "ca.pem"))
    (authority,) = context.get_ca_certs()
    assert authority["subject"] == ((("commonName", "ours"),),)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
