"""How far the clock of whoever signed may be apart from that of whoever verifies."""

from __future__ import annotations

from typing import Final

from kkp_client.errors import ConfigurationError

DEFAULT_LEEWAY_SECONDS: Final = 5
MAX_LEEWAY_SECONDS: Final = 60


def refuse_leeway(leeway_seconds: float) -> None:
    """Refuse a leeway that is none, or more than the issuer allows.

    Raises:
        ConfigurationError: It is.
    """
    if not 0 <= leeway_seconds <= MAX_LEEWAY_SECONDS:  # NaN is refused, too
        raise ConfigurationError(f"The leeway is from 0 to {MAX_LEEWAY_SECONDS} seconds.")
