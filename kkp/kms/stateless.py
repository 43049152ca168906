"""What a backend is handed where there is no database, or it is in nobody's way to have none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from kkp.errors import KMSUnavailableError
from kkp.kms.base import Resources
from kkp.master_key import MasterKey, RootKey
from kkp.model import BackendLimits
from kkp.rows import LocalKeyRow


def without_state(limits: BackendLimits, master_key: MasterKey | None = None) -> Resources:
    """Return what a backend is handed that needs no database; without a master key it gets one of nothing."""
    return Resources(master_key or MasterKey.of(RootKey.generate()), _NoLocalKeys(), limits)


@final
class _NoLocalKeys:
    """Stands for a database that is not there."""

    async def local_key_versions(self, key_id: str) -> Sequence[LocalKeyRow]:
        raise KMSUnavailableError(f"There is no database to take the local key {key_id} from.")

    async def add_local_key(self, row: LocalKeyRow) -> None:
        raise KMSUnavailableError(f"There is no database to keep the local key {row.key_id} in.")
