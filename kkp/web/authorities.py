"""Whose client certificates are accepted: bundles in files, replaced while KKP serves.

What a bundle vouches for is judged in `kkp.web.certificate_chains`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from kkp.certificates import GENERAL, Certificates, bundles
from kkp.errors import ConfigError
from kkp.web.reloading import Reloading

if TYPE_CHECKING:
    from cryptography import x509

    from kkp.web.certificate_chains import Authorities  # as in `load_authorities`

_EXPIRES_SOON_SECONDS = 14 * 86400
_SHORT_LIVED_SHARE = 3  # of what lives for weeks or less, the last third is soon
_REFUSED = (
    "The new authorities of client certificates were refused, and those before are in force. "
    "The log says why."
)

ReloadingAuthorities: TypeAlias = "Reloading[Authorities]"


def reloading_authorities(files: Mapping[str, Path]) -> ReloadingAuthorities:
    """Return those whose client certificates are accepted, as files have them.

    Args:
        files: By the name of their bundle.

    Raises:
        ConfigError: One can't be used.
    """
    what = "bundle of client certificate authorities"
    return Reloading(what, list(files.values()), lambda: load_authorities(files))


def check_authorities(general: Path | None, tables: Mapping[str, Certificates]) -> Sequence[str]:
    """Say what is wrong with bundles, with the cure; nothing if all is well."""
    found: list[str] = []
    for name, file in bundles(general, tables).items():
        try:
            _load(name, file)
        except ConfigError as error:
            found += error.problems
    return found


def load_authorities(files: Mapping[str, Path]) -> Authorities:
    """Read bundles.

    Raises:
        ConfigError: One can't be used.
    """
    from kkp.web.certificate_chains import Authorities  # noqa: PLC0415  a library that `kkp dev` does not need

    return Authorities({name: _load(name, file) for name, file in files.items()})


def _load(name: str, file: Path) -> Sequence[x509.Certificate]:
    from kkp.web.certificate_chains import read_bundle  # noqa: PLC0415  likewise

    setting = "KKP_CLIENT_CA_FILE" if name == GENERAL else f"[certificates.{name}] ca_file"
    try:
        return read_bundle(file.read_bytes())
    except OSError as error:
        raise ConfigError([f"{setting}: {file} can't be read ({error.strerror})"]) from None
    except ValueError as error:
        raise ConfigError(
            [f"{setting}: {file} can't be used: {error}; give the authorities in PEM"]
        ) from None


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
    if len(ending) > 1:
        return f"{len(ending)} authorities of client certificates expired or will soon, the first at {first}."
    return f"An authority of client certificates {'expired' if now > min(ending) else 'expires'} at {first}."


def _soon_seconds(lifetime_seconds: float) -> float:
    return min(_EXPIRES_SOON_SECONDS, lifetime_seconds / _SHORT_LIVED_SHARE)
