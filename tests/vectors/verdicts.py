"""Cases of tokens, in a word: good ones, and refused ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    CLAIMS,
    NOW,
    Document,
    compact,
    jws,
    token,
)

Cases = Iterator[Verdict]

MAX_TOKEN: Final = 8192
MAX_INTEGER: Final = 2**53 - 1
MAX_AGE_SECONDS: Final = 600
EXP: Final = NOW + 300

TOKEN: Final = token()
PROTECTED, BODY, SIGNATURE = TOKEN.split(".")


def accepted(name: str, claims: Document = CLAIMS, made: str | None = None, **inputs: Any) -> Verdict:
    """Return a case of a token that is good; it is made of the claims where it is not given."""
    return Verdict(name=name, token=made or jws(payload=compact(claims)), expected=claims, **inputs)


def refused(reason: str, name: str, made: str, **inputs: Any) -> Verdict:
    return Verdict(name=name, token=made, expected=reason, **inputs)


def stray_bits(segment: str) -> str:
    """Return another spelling of a segment that has spare bits."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    assert len(segment) % 4
    return segment[:-1] + alphabet[alphabet.index(segment[-1]) + 1]


def near(text: str) -> Mapping[str, str]:
    """Return what is nearly a name."""
    return {
        "another": "https://evil.test",
        "cut short": text[:-1],
        "with a letter behind": f"{text}x",
        "with a letter in front": f"x{text}",
        "with a slash behind": f"{text}/",
        "with a space behind": f"{text} ",
        "with a line feed behind": f"{text}\n",
        "with a NUL behind": f"{text}\0",
        "in capitals": text.upper(),
        "one capital": text[:-1] + text[-1].upper(),
        "twice": f"{text} {text}",
        "as a list in a string": compact([text]).decode(),
        "with a full stop": f"{text}.",
        "with a look-alike": text.replace("s", "\u0455"),
        "a wildcard": "*",
    }
