"""Which release of the client this is; `pyproject.toml` reads it here, and KKP is told."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
USER_AGENT: Final = f"kkp-client/{VERSION}"
