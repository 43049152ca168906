"""What the URIs of remote backends have in common: a form without surprises, and options after a `?`.

Nothing here reaches anything. A message never repeats the URI: it might hold what somebody took for a place
to put a password.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import SplitResult, parse_qsl, urlsplit


def split(uri: str) -> SplitResult:
    """Take a URI apart.

    Raises:
        ValueError: It is none, or holds a user, a fragment, or what can't be printed.
    """
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        raise ValueError("it is not a URI") from None
    if not uri.isascii() or not uri.isprintable() or " " in uri:
        raise ValueError("it holds characters that a URI has not")
    if "@" in parts.netloc or "#" in uri or port == 0:
        raise ValueError("a user, a fragment or port 0 has no place in it")
    return parts


def options(parts: SplitResult, known: Collection[str]) -> Mapping[str, str]:
    """Return the options, each of them known, given once and not empty.

    Raises:
        ValueError: One is not.
    """
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) if parts.query else []
    except ValueError:
        raise ValueError("its options are written ?name=value&name=value") from None
    given = dict(pairs)
    if len(given) != len(pairs) or not all(given.values()) or not set(given) <= set(known):
        raise ValueError(f"its options are {', '.join(sorted(known))}, each at most once and not empty")
    return given
