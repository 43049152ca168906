"""E-mail addresses: the form they must have, and which are one."""

from __future__ import annotations

import pytest

from kkp import emails
from kkp.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ann@example.com", "ann@example.com"),
        ("Ann.Miller+kkp@Example.COM", "ann.miller+kkp@example.com"),
        ("a.n.n@example.com", "a.n.n@example.com"),
        ("ann@xn--mnchen-3ya.example", "ann@xn--mnchen-3ya.example"),
        ("ann@localhost", "ann@localhost"),
        (f"{'a' * 64}@example.com", f"{'a' * 64}@example.com"),
        (f"a@{'b.' * 125}cd", f"a@{'b.' * 125}cd"),
    ],
)
def test_an_address_is_compared_in_small_letters_and_otherwise_as_it_is(text: str, key: str) -> None:
    assert emails.key(text) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann",
        "@example.com",
        "ann@",
        "ann@@example.com",
        "ann@example..com",
        "ann@.example.com",
        "ann@-example.com",
        "ann@example-.com",
        "ann@exa_mple.com",
        "ann miller@example.com",
        '"ann"@example.com',
        "ann@example.com\n",
        "ann@example.com ",
        "ann\x00@example.com",
        "ann@[192.0.2.1]",
        "\u0430nn@example.com",
        "ann@m\u00fcnchen.example",
        "ann@exam\u212aple.com",
        f"{'a' * 65}@example.com",
        f"a@{'b' * 64}.com",
        f"a@{'b.' * 126}c",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        emails.key(text)
    assert str(refusal.value) == "It is no e-mail address of ASCII characters."
