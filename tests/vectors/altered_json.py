"""JSON documents altered at random: what they say, how they are written, and their bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, Final

from tests.vectors.forging import AUDIENCE, ISSUER, SIGNER, b64


class Raw(str):
    """A value as it is written, whether it is JSON or not."""

    __slots__ = ()


class Members(list[list[Any]]):
    """An object: names and values, in their order, twins among them."""


# What stands where something else is looked for.
VALUES: Final[Sequence[str]] = (
    "null", "true", "false", "0", "1", "-1", "-0", "1.0", "1e3", "1E400", "9007199254740991",
    "9007199254740992", "1750000000", "1750000300", '""', '"x"', '"EdDSA"', '"\\ud83d\\udd12"',
    '"__proto__"', "[]", "{}", '["decrypt"]', '["verify"]', '{"sub":"x"}', '{"x":"y"}', '{"__proto__":"y"}',
    "[null]", "[[[]]]", '"\u2028"', '"\x7f"', f'"{ISSUER}"', f'"{AUDIENCE}"', f'"{b64(bytes(32))}"',
    f'"{SIGNER.kid}"', f'"{"x" * 5000}"', "9" * 320, "[" * 28 + "]" * 28,
)  # fmt: skip
# What a strict reader of JSON refuses there.
NO_VALUES: Final[Sequence[str]] = (
    '"\\ud800"', "NaN", "-Infinity", "01", "+1", "1.", "'x'", "\ufeff0", "\u00a00", '"\t"', "",
    "[" * 40 + "]" * 40,
)  # fmt: skip
NAMES: Final[Sequence[str]] = (
    "iss", "sub", "aud", "iat", "nbf", "exp", "jti", "backend", "key_id", "ops", "policy_claims", "context",
    "act", "cnf", "federated", "jkt", "x5t#S256", "mapping", "attributes", "seq", "tokens", "subjects",
    "identities", "keys", "backends", "alg", "kid", "typ", "jwk", "kty", "crv", "x", "y", "d", "use",
    "key_ops", "ext", "htm", "htu", "ath", "nonce", "crit", "__proto__", "constructor", "toString", "",
    "\u00e9", "\U0001f512",
)  # fmt: skip
SNIPPETS: Final[Sequence[bytes]] = (
    b" ", b"\n", b"\t", b"\r", b"\f", b"\0", b",", b":", b"{", b"}", b"[", b"]", b'"', b"\\", b"\\u0000",
    b"\\ud800", b"0", b"-", b".", b"e9", b"null", b'"x":1,', b'"exp":1,', b"/**/", b"\xff", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xc3\xa9", b"\xf0\x9f\x94\x92", b"\xf4\x90\x80\x80",
    b"\x80", b"'", b"NaN",
)  # fmt: skip
LETTERS: Final = "ABCXYZabcxyz0189-_.=+/:% \n\t\0\u00e9\u2028"
LONE: Final = "\ud800"  # no character alone
STEPS: Final = (-601, -61, -60, -6, -5, -1, 1, 5, 6, 60, 61, 300, 301, 601)


def altered_document(rng: Random, document: bytes) -> bytes:
    """Return a document with something changed."""
    try:
        read = json.loads(
            document, object_pairs_hook=_members, parse_int=Raw, parse_float=Raw, parse_constant=Raw
        )
    except (ValueError, RecursionError):
        read = None
    if read is None or rng.random() < 0.1:
        return altered_bytes(rng, document)
    whole = [read]
    for _ in range(rng.choice((1, 1, 1, 2))):
        if places := list(_places(whole)):
            rng.choice(_CHANGES)(rng, *rng.choice(places))
    return "".join(_written(rng, value) for value in whole).encode(errors="surrogatepass")


def altered_bytes(rng: Random, data: bytes) -> bytes:
    """Return bytes with a few of them inserted, left out, replaced or flipped."""
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + rng.choice((0, 0, 1, 1, 2, 8)))
    snippet = rng.choice((*SNIPPETS, b"", rng.randbytes(1), data[start:stop] * 2))
    return data[:start] + snippet + data[stop:]


def altered_text(rng: Random, text: str) -> str:
    """Return a text with a few letters inserted, left out or replaced, or in another case."""
    if rng.random() < 0.1:
        return rng.choice((text.upper(), text.lower(), text * 2, text[::-1], ""))
    start = rng.randrange(len(text) + 1)
    stop = min(len(text), start + rng.choice((0, 1, 1, 2)))
    put: str = rng.choice((*LETTERS * 3, LONE, "", text[start:stop] * 2))
    return text[:start] + put + text[stop:]


def _members(pairs: list[tuple[str, Any]]) -> Members:
    return Members([name, value] for name, value in pairs)


def _places(container: list[Any]) -> Iterator[tuple[list[Any], int]]:
    """Yield where values stand: a list, or the pair of a member, and an index of it."""
    for index, value in enumerate(container):
        pair = isinstance(container, Members)
        yield (container, index)
        held = value[1] if pair else value
        if isinstance(held, list):
            yield from _places(held)


# The changes. Each is handed what holds a value, and where.


def _value(container: list[Any], index: int) -> Any:
    return container[index][1] if isinstance(container, Members) else container[index]


def _set(container: list[Any], index: int, value: object) -> None:
    if isinstance(container, Members):
        container[index] = [container[index][0], value]
    else:
        container[index] = value


def _any_value(rng: Random) -> Raw:
    return Raw(rng.choice(VALUES if rng.random() < 0.93 else NO_VALUES))


def _replace(rng: Random, container: list[Any], index: int) -> None:
    _set(container, index, _any_value(rng))


def _nudge(rng: Random, container: list[Any], index: int) -> None:
    """Change a value a little: another number or string, or a list or object with one part more or less."""
    value = _value(container, index)
    if isinstance(value, Raw):
        _set(container, index, _other_number(rng, value))
    elif isinstance(value, str):
        _set(container, index, altered_text(rng, value))
    elif isinstance(value, Members):
        value.insert(rng.randrange(len(value) + 1), [rng.choice(NAMES), _any_value(rng)])
    elif isinstance(value, list):
        value.insert(rng.randrange(len(value) + 1), _any_value(rng))
    else:
        _replace(rng, container, index)


def _other_number(rng: Random, text: Raw) -> Raw:
    shapes = ("{}.0", "-{}", "{}e0", '"{}"', "[{}]", "0{}", "{}0", " {} ", "{}.5")
    if text.isdigit() and len(text) < 20 and rng.random() < 0.7:
        return Raw(abs(int(text) + rng.choice(STEPS)))
    return Raw(rng.choice(shapes).format(text))


def _remove(_: Random, container: list[Any], index: int) -> None:
    del container[index]


def _repeat(rng: Random, container: list[Any], index: int) -> None:
    """Have a member or an item twice, perhaps with another value."""
    twin = list(container[index]) if isinstance(container, Members) else container[index]
    container.insert(rng.randrange(len(container) + 1), twin)
    if rng.random() < 0.3:
        _replace(rng, container, index)


def _rename(rng: Random, container: list[Any], index: int) -> None:
    if not isinstance(container, Members):
        _nudge(rng, container, index)
        return
    name, value = container[index]
    container[index] = [rng.choice((altered_text(rng, name), rng.choice(NAMES))), value]


def _add(rng: Random, container: list[Any], index: int) -> None:
    fresh = _any_value(rng)
    container.insert(index, [rng.choice(NAMES), fresh] if isinstance(container, Members) else fresh)


def _shuffle(rng: Random, container: list[Any], _: int) -> None:
    rng.shuffle(container)


def _wrap(rng: Random, container: list[Any], index: int) -> None:
    value = _value(container, index)
    for _ in range(rng.choice((1, 1, 2, 27, 28, 29, 30, 31, 32, 33))):
        value = [value] if rng.random() < 0.8 else Members([[rng.choice(NAMES), value]])
    _set(container, index, value)


def _swap(rng: Random, container: list[Any], index: int) -> None:
    """Give a value the place of another."""
    other = rng.randrange(len(container))
    mine, its = _value(container, index), _value(container, other)
    _set(container, index, its)
    _set(container, other, mine)


_CHANGES: Final[Sequence[Callable[[Random, list[Any], int], None]]] = (
    _replace, _replace, _nudge, _nudge, _nudge, _nudge, _remove, _repeat, _rename, _add, _add, _shuffle,
    _wrap, _swap,
)  # fmt: skip


# How it is written.


def _written(rng: Random, value: object) -> str:
    spaced = rng.random() < 0.15
    escaped = rng.random() < 0.2

    def space() -> str:
        return rng.choice(("", " ", "\n", "\t \r\n")) if spaced else ""

    def text_of(value: object) -> str:
        if isinstance(value, Raw):
            return value
        if isinstance(value, str):
            return _string(rng, value, escaped=escaped)
        if isinstance(value, Members):
            members = (
                f"{space()}{text_of(name)}{space()}:{space()}{text_of(held)}{space()}" for name, held in value
            )
            return "{" + ",".join(members) + "}"
        if isinstance(value, list):
            return "[" + ",".join(f"{space()}{text_of(item)}{space()}" for item in value) + "]"
        return json.dumps(value)

    return space() + text_of(value) + space()


def _string(rng: Random, text: str, *, escaped: bool) -> str:
    if not escaped:
        return json.dumps(text, ensure_ascii=rng.random() < 0.5)
    units = text.encode("utf-16-be", "surrogatepass")
    codes = [int.from_bytes(units[at : at + 2]) for at in range(0, len(units), 2)]
    return '"' + "".join(f"\\u{code:04{rng.choice('xX')}}" for code in codes) + '"'
