"""E-mail addresses, as people are found by them.

They are ASCII, of the form that browsers take (HTML Living Standard), at most 254 characters, and compared in
small letters, the part before the `@` as well. Nothing else is made equal: no dots or tags are left out, and
a domain of another script is written as `xn--…`. So no two that differ look alike.
"""

from __future__ import annotations

import re
from typing import Final

from kkp.errors import InvalidRequestError

_LABEL: Final = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
PATTERN: Final = rf"^[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@{_LABEL}(\.{_LABEL})*$(?!\n)"
MAX_CHARACTERS: Final = 254


def key(text: str) -> str:
    """Return an address as it is stored and compared.

    Raises:
        InvalidRequestError: It is none.
    """
    if len(text) > MAX_CHARACTERS or re.match(PATTERN, text) is None:
        raise InvalidRequestError("It is no e-mail address of ASCII characters.")
    return text.lower()
