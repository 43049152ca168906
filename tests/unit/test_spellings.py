"""The search for thousands of secrets at once finds each that is there, and no other."""

from __future__ import annotations

import base64

import pytest

from tests.spellings import found

SECRET = b"Cn4ry0123456789abcdef"
ALIKE = b"Cn4ry0123fedcba987654"  # in hex, its first nine bytes are the same


@pytest.mark.parametrize("before", range(8))
@pytest.mark.parametrize(
    "spelled",
    [SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode(), base64.b64encode(b"x" + SECRET + b"yz")],
    ids=["as it stands", "hex", "hex in capitals", "base64"],
)
def test_a_secret_is_found_wherever_it_stands_and_one_that_begins_alike_is_not(
    spelled: bytes, before: int
) -> None:
    assert found([SECRET, ALIKE], b"." * before + spelled + b"...") == {SECRET}


def test_a_part_of_a_secret_is_not_the_secret() -> None:
    assert found([SECRET], SECRET[:-1]) == set()
