from __future__ import annotations

import pytest

from kkp_client.errors import ConfigurationError
from kkp_client.urls import checked_url


@pytest.mark.parametrize(
    ("url", "checked"),
    [
        ("https://kkp.example", "https://kkp.example"),
        ("https://kkp.example:8443/door//", "https://kkp.example:8443/door"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://127.255.0.1", "http://127.255.0.1"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost", "http://localhost"),
        ("HTTPS://KKP.example", "HTTPS://KKP.example"),
    ],
)
def test_a_url_of_tls_or_of_this_machine_is_taken(url: str, checked: str) -> None:
    assert checked_url(url) == checked


@pytest.mark.parametrize(
    "url",
    [
        "",
        "kkp.example",
        "https://",
        "https:///door",
        "ftp://kkp.example",
        "file:///etc/passwd",
        "https://kkp.example:port",
        "https://kkp.example:65536",
        "https://[::1",
        "https://user:hunter2@kkp.example",
        "https://hunter2\u2100@kkp.example",
        "https://kkp.example/?hunter2",
        "https://kkp.example/#hunter2",
        "https://kkp.example/?",
        "https://kkp.example/a b",
        "https://kkp.exämple",
        "https://kkp.example\n",
        "http://kkp.example",
        "http://localhost.example",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://[::ffff:10.0.0.1]",
    ],
)
def test_another_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        checked_url(url)
    assert "hunter2" not in repr(refused.value)
    assert refused.value.__context__ is None


def test_http_to_another_machine_is_taken_where_told_so() -> None:
    assert checked_url("http://kkp.example", allow_http=True) == "http://kkp.example"
    with pytest.raises(ConfigurationError):
        checked_url("ftp://kkp.example", allow_http=True)
