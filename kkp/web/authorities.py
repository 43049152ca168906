"""Whose client certificates are accepted: a bundle in a file, replaced while KKP serves.

What the bundle vouches for is judged in `kkp.web.certificate_chains`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kkp.errors import ConfigError
from kkp.web.reloading import Reloading

if TYPE_CHECKING:
    from kkp.web.certificate_chains import Authorities  # as in `load_authorities`

_EXPIRES_SOON_SECONDS = 14 * 86400
_SHORT_LIVED_SHARE = 3  # of what lives for weeks or less, the last third is soon
_REFUSED = (
    "The new authorities of client certificates were refused, and those before are in force. "
    "The log says why."
)

ReloadingAuthorities: TypeAlias = "Reloading[Authorities]"


def reloading_authorities(ca_file: Path) -> ReloadingAuthorities:
    """Return those whose client certificates are accepted, as the file has them.

    Raises:
        ConfigError: It can't be used.
    """
    return Reloading("bundle of client certificate authorities", [ca_file], lambda: load_authorities(ca_file))


def check_authorities(ca_file: Path | None) -> Sequence[str]:
    """Say what is wrong with a bundle, with the cure; nothing if all is well."""
    if ca_file is None:
        return ()
    try:
        load_authorities(ca_file)
    except ConfigError as error:
        return error.problems
    return ()


def load_authorities(ca_file: Path) -> Authorities:
    """Read a bundle.

    Raises:
        ConfigError: It can't be used.
    """
    from kkp.web.certificate_chains import Authorities  # noqa: PLC0415  a library that `kkp dev` does not need

    try:
        return Authorities.read(ca_file.read_bytes())
    except OSError as error:
        raise ConfigError([f"KKP_CLIENT_CA_FILE: {ca_file} can't be read ({error.strerror})"]) from None
    except ValueError as error:
        problem = f"KKP_CLIENT_CA_FILE: {ca_file} can't be used: {error}; give the authorities in PEM"
        raise ConfigError([problem]) from None


def warning_of(authorities: ReloadingAuthorities) -> str | None:
    """Say that the file holds another bundle than is in force, or that some expire; None if all is well."""
    told = [_REFUSED if authorities.refused else None, expiry_of(authorities.value, time.time())]
    return " ".join(filter(None, told)) or None


def expiry_of(authorities: Authorities, now: float) -> str | None:
    """Say which authorities have expired, or will soon; None if all are good for long."""
    ending = [end for begin, end in authorities.times() if end - now <= _soon_seconds(end - begin)]
    if not ending:
        return None
    first = datetime.fromtimestamp(min(ending), UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    which = "One authority" if len(ending) == 1 else f"{len(ending)} authorities"
    verb = "expired" if now > max(ending) else "expires" if len(ending) == 1 else "expire"
    return f"{which} of client certificates {verb}, from {first} on."


def _soon_seconds(lifetime_seconds: float) -> float:
    return min(_EXPIRES_SOON_SECONDS, lifetime_seconds / _SHORT_LIVED_SHARE)
