"""A store of local keys in memory, with the real one's rule: what is there is never overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from kkp.rows import LocalKeyRow


@final
class LocalKeysInMemory:
    """Sealed keys by id and version, and how often they were read."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], LocalKeyRow] = {}
        self.reads = 0

    async def local_key_versions(self, key_id: str) -> Sequence[LocalKeyRow]:
        self.reads += 1
        return [row for row in self.rows.values() if row.key_id == key_id]

    async def add_local_key(self, row: LocalKeyRow) -> None:
        self.rows.setdefault((row.key_id, row.version), row)
