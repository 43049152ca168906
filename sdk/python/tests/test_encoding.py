"""base64url: one spelling for every value."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp_client.encoding import base64url, from_base64url

REFUSED = {
    "padding": "QQ==",
    "padding that is none": "QUFB=",
    "base64's plus": "-+--",
    "base64's slash": "_/__",
    "a letter left over": "QUFBQ",
    "one letter": "Q",
    "a space": "QU FB",
    "a line break at the end": "QUFB\n",
    "a dot": "QU.B",
    "a letter beyond ASCII": "QUFä",
    "a letter that looks like one": "QUF\uff21",
    "a stray bit behind one byte": "QR",
    "a stray bit behind two bytes": "QUF",
    "NUL": "QUF\0",
}


@given(st.binary())
def test_bytes_come_back(data: bytes) -> None:
    text = base64url(data)
    assert text == base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    assert from_base64url(text) == from_base64url(text.encode()) == data


@given(st.text("AEQUYcgkosw048_-Bz9", max_size=12))
def test_what_is_read_has_one_spelling(text: str) -> None:
    try:
        data = from_base64url(text)
    except ValueError:
        return
    assert base64url(data) == text


@pytest.mark.parametrize("name", REFUSED)
def test_other_spellings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^not base64url$") as refusal:
        from_base64url(REFUSED[name])
    assert refusal.value.__context__ is None, "a decoder's error holds the whole text"
