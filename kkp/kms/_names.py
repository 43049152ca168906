"""The spellings of a key's name that adaptors fold: which names name one key. Pure, and of no vendor's SDK.

Whoever stops a key stops it by whatever name it is asked for. What a vendor resolves, and no adaptor, such as
the alias of a key, can't be told here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

AZURE_KEY_ID: Final = re.compile(
    r"""
    (?: https://(?P<host> [a-z0-9.-]{1,64} )/keys/ )?
    (?P<name> [0-9a-z-]{1,127} )
    (?: / (?P<version> [0-9a-f]{32} ) )?""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)


def short_gcp_name(ring: str, key_id: str) -> str:
    """Return the name within its key ring of a key that may be named in full."""
    return key_id.removeprefix(f"{ring}/cryptoKeys/")


def canonical(uri: str, key_id: str) -> str:
    """Return the spelling that stands for all that name the same key of this backend.

    A version stands for its key: what a version wrapped opens under the key's name, too.
    """
    scheme, _, rest = uri.partition("://")
    fold = _FOLDS.get(scheme)
    return key_id if fold is None else fold(rest.partition("?")[0], key_id)


def _azure(host: str, key_id: str) -> str:
    match = AZURE_KEY_ID.fullmatch(key_id)
    if match is None or (match["host"] or host).lower() != host:
        return key_id  # the adaptor has no such key
    return match["name"].lower()


_FOLDS: Mapping[str, Callable[[str, str], str]] = {"azure-keyvault": _azure, "gcp-kms": short_gcp_name}
