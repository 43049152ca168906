"""A batch taken apart: what stands beside its items, and where each of them lies.

A batch is a JSON object with a member `items`, a list. Each item is to be read like a request of its own, so
that what is wrong with one is wrong with that one alone: a lone surrogate, another shape, a member given
twice, brackets nested without end. Only what leaves it open where an item ends is wrong with the whole batch:
that is no JSON, and no part of it is acted on.

Rules that hold here:
- No object is made of an item, and a list of too many is left at the first one too many: a batch costs memory
  for what is taken from it, not for what it might hold.
- The decoder that tells items apart is strict where an item need not be. So it is shown the body with what it
  would stumble over replaced, byte for byte, and all that is taken from its answer is where the items lie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from kkp.errors import InvalidRequestError
from kkp.web import schemas
from kkp.web.schemas import MAX_ITEMS

MAX_BODY_BYTES: Final = 8 * 1024 * 1024

_NO_LIST: Final = f"Expected a list of 1 to {MAX_ITEMS} items - at `$.items`"
_TOO_MANY: Final = "The body has too many members."
_MAX_BESIDE_BYTES: Final = 64 * 1024
_DEEP: Final = 64  # far more than any item has, and far less than the decoder takes
_MAX_BRACKETS: Final = 128 * 1024
_MAX_QUOTES: Final = 256 * 1024  # and what escapes them
# Up to a bracket outside of strings. Possessive, so that no input makes it try twice.
_TO_BRACKET: Final = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[\[\]{}]', re.DOTALL)
_BETWEEN: Final = re.compile(rb"[ \t\r\n,]*+")


class _Located(msgspec.Struct, frozen=True):
    """The body, of which only the items are looked for."""

    items: msgspec.Raw


# As a list of any length each of four million zeros would become an object before they were counted.
_Elements = msgspec.defstruct(
    "_Elements",
    [(f"item_{number}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for number in range(MAX_ITEMS)],
    array_like=True,
    forbid_unknown_fields=True,
)
_located = msgspec.json.Decoder(_Located)
_elements = msgspec.json.Decoder(_Elements)


def take_apart(body: bytes) -> tuple[bytes, Sequence[slice]]:
    """Return the body with an empty list in the place of its items, and where in it each item lies.

    Raises:
        InvalidRequestError: It has no list of 1 to MAX_ITEMS items, or too much beside it, or is no JSON.
    """
    # A surrogate's escape becomes another's, of the same length; in a text it does no harm either.
    shown = body.replace(rb"\ud", rb"\u0").replace(rb"\uD", rb"\u0")
    try:
        return _take_apart(body, shown)
    except RecursionError:
        return _take_apart(body, _shallow(shown))


def _take_apart(body: bytes, shown: bytes) -> tuple[bytes, Sequence[slice]]:
    items = bytes(schemas.decode_of_any_size(_located, shown).items)
    if len(body) - len(items) > _MAX_BESIDE_BYTES:
        raise InvalidRequestError(f"The body has more than {_MAX_BESIDE_BYTES} bytes beside its items.")
    if not items.startswith(b"["):
        raise InvalidRequestError(_NO_LIST)
    start = _find(items, shown)
    beside = body[:start] + b"[]" + body[start + len(items) :]
    found = [element for element in _split(items) if isinstance(element, msgspec.Raw)]
    if not found:
        raise InvalidRequestError(_NO_LIST)
    return beside, _places(shown, start + 1, [len(memoryview(element)) for element in found])


def _find(items: bytes, shown: bytes) -> int:
    """Return where the items begin; `bytes.find` would first look at every byte of them.

    Their like before them could only stand in a string, where quotes are escaped: then there is none in any
    item, and no item can be meant.
    """
    start = shown.index(b"[")
    while not shown.startswith(items, start):
        start = shown.index(b"[", start + 1)
    return start


def _split(items: bytes) -> Sequence[object]:
    try:
        return msgspec.structs.astuple(_elements.decode(items))
    except msgspec.ValidationError:
        raise InvalidRequestError(_NO_LIST) from None


def _places(shown: bytes, begin: int, lengths: Sequence[int]) -> Sequence[slice]:
    places = []
    for length in lengths:
        between = _BETWEEN.match(shown, begin)
        start = begin if between is None else between.end()
        begin = start + length
        places.append(slice(start, begin))
    return places


def _shallow(text: bytes) -> bytes:
    """Return the text with what is nested too deeply to be read blanked out, at the same length.

    Raises:
        InvalidRequestError: It has too many brackets.
    """
    if text.count(b'"') + text.count(b"\\") > _MAX_QUOTES:
        raise InvalidRequestError(_TOO_MANY)
    kept: list[bytes] = []
    depth = begin = cut = 0
    for count, found in enumerate(_TO_BRACKET.finditer(text)):
        if count == _MAX_BRACKETS:
            raise InvalidRequestError(_TOO_MANY)
        end = found.end()
        opens = text[end - 1] in b"[{"
        depth += 1 if opens else -1
        if opens and depth == _DEEP + 1:
            kept.append(text[begin : end - 1])
            cut = end - 1
        elif not opens and depth == _DEEP:
            kept.append(b"0".ljust(end - cut))
            begin = end
    return b"".join((*kept, text[begin:]))
