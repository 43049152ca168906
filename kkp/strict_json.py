"""What JSON decoders let through and KKP does not.

Of two members with one name most decoders keep the last, some the first: what a proxy in front of KKP
inspected and what KKP acts on must not differ (RFC 8259 section 4 leaves the outcome open).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from kkp.model import JSON


def refuse_duplicates(document: bytes | bytearray) -> None:
    """Refuse a JSON text in which an object has two members of one name.

    Raises:
        ValueError: It has, or it is not JSON in UTF-8.
        RecursionError: It is nested beyond any use.
    """
    _decoder.decode(document.decode())


def _unique(pairs: Sequence[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


_decoder = json.JSONDecoder(object_pairs_hook=_unique)
