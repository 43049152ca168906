"""Strict JSON: RFC 8259 in UTF-8, of which every reader makes the same.

Refused beyond what the standard refuses: duplicate names at any depth, lone surrogates, `NaN` and
`Infinity`, a byte order mark, and objects and lists that stand inside one another more than 32 deep.

Numbers: what is written with digits alone and is at most 2^53 - 1 is an `int`; every other number is a
`float`, `-0` and `1.0` among them. So whoever wants a whole number asks for `int`, and means it (a bool is
none: compare `type(value)`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, TypeAlias

JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"

MAX_DEPTH: Final = 32
MAX_INTEGER: Final = 2**53 - 1
_MAX_DIGITS: Final = 16
_WHITE_SPACE: Final = " \t\r\n"
# In one pass, whatever the text: a string without an end is read once, up to the text's end.
_OUTSIDE_STRINGS: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|([\[{])|([\]}])', re.DOTALL)


def loads(document: bytes) -> JSON:
    """Return what a JSON text says.

    Raises:
        ValueError: It is no strict JSON; the message quotes nothing of it.
    """
    try:
        return _read(document)
    except ValueError:  # UnicodeError and JSONDecodeError, which hold the whole text, among them
        pass
    raise ValueError("not strict JSON")


def _read(document: bytes) -> JSON:
    text = document.decode().strip(_WHITE_SPACE)
    if _is_deep(text):
        raise ValueError
    value: JSON
    value, end = _decoder.raw_decode(text)
    if end != len(text):
        raise ValueError
    if "\\u" in text:
        _refuse_lone_surrogates(value)
    return value


def _is_deep(text: str) -> bool:
    """Tell whether a JSON text nests too deeply; of what is no JSON, how far a parser would descend."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in _OUTSIDE_STRINGS.finditer(text):
        depth += (token[1] is not None) - (token[2] is not None)
        if depth > MAX_DEPTH:
            return True
    return False


def _refuse_lone_surrogates(value: JSON) -> None:
    json.dumps(value, ensure_ascii=False).encode()


def _unique(pairs: Sequence[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _number(digits: str) -> int | float:
    # Their count first: Python refuses to read integers of thousands of digits, other languages don't.
    if len(digits) <= _MAX_DIGITS and digits[0] != "-" and (number := int(digits)) <= MAX_INTEGER:
        return number
    return float(digits)


def _refused(_: str) -> None:
    raise ValueError


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_number, parse_constant=_refused)
