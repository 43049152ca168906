"""Whether two URLs are one, as DPoP's `htu` is compared (RFC 9449 section 4.3, RFC 3986 section 6.2).

Query and fragment do not count, nor do the letters' case in scheme and host, a default port, needless escapes
and dot segments. No URL parser of the platform is used: they differ in what they mend, and what one of them
mends another refuses.
"""

from __future__ import annotations

import re
from typing import Final

_URL: Final = re.compile(
    r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?((?:/[^?#]*)?)(?:[?#].*)?",
    re.IGNORECASE,
)
_VISIBLE_ASCII: Final = re.compile(r"[\x21-\x7e]+")
_ESCAPED: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_MAX_PORT: Final = 65_535


def is_same(unverified_url: str, url: str) -> bool:
    """Tell whether both are URLs of HTTP, and one."""
    normalised = _normalised(unverified_url)
    return normalised is not None and normalised == _normalised(url)


def _normalised(url: str) -> tuple[str, str, int, str] | None:
    parts = _URL.fullmatch(url) if _VISIBLE_ASCII.fullmatch(url) else None
    if parts is None:
        return None
    scheme, host, port, path = parts[1].lower(), parts[2].lower(), parts[3], parts[4]
    number = int(port) if port else _DEFAULT_PORTS[scheme]
    return (scheme, host, number, _normalised_path(path)) if number <= _MAX_PORT else None


def _normalised_path(path: str) -> str:
    given = _ESCAPED.sub(_unescaped, path).split("/")[1:]
    segments: list[str] = []
    for segment in given:
        if segment == "..":
            del segments[-1:]
        elif segment != ".":
            segments.append(segment)
    if given[-1:] in (["."], [".."]):
        segments.append("")
    return "/" + "/".join(segments)


def _unescaped(escape: re.Match[str]) -> str:
    character = chr(int(escape[1], 16))
    return character if _UNRESERVED.fullmatch(character) else escape[0].upper()
