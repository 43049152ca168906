"""A secret in what came out: in every spelling that one meets in practice."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

# So many bytes of a spelling are looked for, enough that nothing is found by chance, at every fourth place.
_LOOK_BYTES = 16
_STRIDE = 4
_Windows: TypeAlias = "defaultdict[bytes, list[_Spelled]]"


def spellings(value: bytes) -> Iterator[bytes]:
    """Spell a value as it stands, in base64 at each of its three alignments, and in JSON."""
    yield value
    yield repr(value)[2:-1].encode()
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + value)
        inner = encoded[4 if shift else 0 : len(encoded) - 4]  # the ends depend on the neighbours
        yield inner
        yield inner.translate(bytes.maketrans(b"+/", b"-_"))
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        yield json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
    yield repr(text)[1:-1].encode()


def folded_spellings(value: bytes) -> Iterator[bytes]:
    """Spell a value where capitals don't matter: in hex and percent-encoded, in part and throughout."""
    yield value.hex().encode()
    yield quote(value, safe="").lower().encode()
    yield "".join(f"%{byte:02x}" for byte in value).encode()
    yield "".join(f"\\x{byte:02x}" for byte in value).encode()


class _Spelled(NamedTuple):
    secret: bytes
    text: bytes
    begin: int


def found(secrets: Iterable[bytes], haystack: bytes) -> set[bytes]:
    """Return which of thousands of random secrets, of 32 bytes or more, occur, however spelled.

    Whatever their number, the haystack is read twice: one place in four is looked at, where each spelling has
    one of its first four windows. What a window shows there is read to its end, as some spellings are long
    and begin alike.
    """
    plain: _Windows = defaultdict(list)
    folded: _Windows = defaultdict(list)
    for secret in secrets:
        _add_windows(plain, secret, spellings(secret))
        _add_windows(folded, secret, folded_spellings(secret))
    return _look(plain, haystack) | _look(folded, haystack.lower())


def _add_windows(windows: _Windows, secret: bytes, spelled: Iterable[bytes]) -> None:
    for text in spelled:
        assert len(text) >= _LOOK_BYTES + _STRIDE
        for begin in range(_STRIDE):
            windows[text[begin : begin + _LOOK_BYTES]].append(_Spelled(secret, text, begin))


def _look(windows: _Windows, haystack: bytes) -> set[bytes]:
    return {
        spelled.secret
        for place in range(0, len(haystack), _STRIDE)
        for spelled in windows.get(haystack[place : place + _LOOK_BYTES], ())
        if haystack.startswith(spelled.text, place - spelled.begin)
    }
