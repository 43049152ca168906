"""What JSON decoders let through and KKP does not: members given twice, and depth without a use.

Of two members with one name most decoders keep the last, some the first: what a proxy in front of KKP
inspected and what KKP acts on must not differ (RFC 8259 section 4 leaves the outcome open).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from kkp.model import JSON


def refuse_duplicates(document: bytes | bytearray) -> None:
    """Refuse a JSON text in which an object has two members of one name.

    Raises:
        ValueError: It has, or it is not JSON in UTF-8.
        RecursionError: It is nested beyond any use.
    """
    _decoder.decode(document.decode())


def refuse_deep(document: JSON, most: int) -> None:
    """Refuse a decoded JSON value in which objects and lists stand inside one another more than so many deep.

    Raises:
        ValueError: They do.
    """
    level: list[JSON] = [document]
    for _ in range(most + 1):
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return
        level = [inner for value in level for inner in _inside(value)]
    raise ValueError("nested too deeply")


def _inside(value: dict[str, JSON] | list[JSON]) -> Iterable[JSON]:
    return value.values() if isinstance(value, dict) else value


def _unique(pairs: Sequence[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


_decoder = json.JSONDecoder(object_pairs_hook=_unique)
