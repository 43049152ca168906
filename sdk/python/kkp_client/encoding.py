"""base64url without padding (RFC 4648 section 5), in which every value has one spelling.

Padding, letters of other alphabets, white space and stray trailing bits are refused.
"""

from __future__ import annotations

import binascii
from typing import Final

_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
# What stands in base64 and not in base64url becomes what stands in neither.
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/...")
_PADDING: Final = (b"", None, b"==", b"=")
# The last letter's bits that are no part of a byte are zero.
_LAST: Final = (None, None, frozenset(b"AQgw"), frozenset(b"AEIMQUYcgkosw048"))


def base64url(data: bytes) -> str:
    """Return bytes in base64url."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_TO_URL).decode()


def from_base64url(text: str | bytes) -> bytes:
    """Return the bytes that a base64url text stands for.

    Raises:
        ValueError: It is none, or could be spelled otherwise; the message quotes nothing of it.
    """
    try:
        return _decoded(text.encode("ascii") if isinstance(text, str) else text)
    except ValueError:  # UnicodeEncodeError, which holds the whole text, and binascii.Error among them
        pass
    raise ValueError("not base64url")


def _decoded(letters: bytes) -> bytes:
    rest = len(letters) % 4
    padding, last = _PADDING[rest], _LAST[rest]
    if padding is None or (last is not None and letters[-1] not in last):
        raise ValueError
    return binascii.a2b_base64(letters.translate(_FROM_URL) + padding, strict_mode=True)
