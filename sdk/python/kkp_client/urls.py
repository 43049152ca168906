"""Which URLs a client asks: `https:`, and `http:` to this machine alone, unless told otherwise."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from kkp_client.errors import ConfigurationError

_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


def checked_url(url: str, *, allow_http: bool = False) -> str:
    """Return a URL without a slash at its end, which what is asked for is put behind.

    Args:
        url: Scheme, host, and where it has one, port and path.
        allow_http: Whether `http:` is taken for other machines, too: then tokens travel in clear.

    Raises:
        ConfigurationError: It is no such URL. The message does not repeat it: it may hold a password.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError("The URL is no http: or https: URL.")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ConfigurationError("The URL has a user, a query or a fragment.")
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts.hostname):
        raise ConfigurationError("An http: URL is taken for this machine alone: use https:.")
    return url.rstrip("/")


def _split(url: str) -> SplitResult | None:
    """Return a URL's parts; its error, whose text may repeat them, goes no further."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if _VISIBLE.fullmatch(url) else None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
