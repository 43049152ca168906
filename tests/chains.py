"""Audit chains as a store sees them: rows that follow one another, whatever they say."""

from __future__ import annotations

from collections.abc import Sequence

from kkp.rows import ChainedRow, ChainHead
from kkp.store.audit import AuditStore


def record(seq: int, text: str = "") -> ChainedRow:
    """Return a record that says nothing, but which it is."""
    return ChainedRow(seq, f"hash {text}{seq}".encode(), f"body {text}{seq}".encode())


class Opening:
    """Makes a chain's first record and remembers what it was to carry."""

    def __init__(self, text: str = "") -> None:
        self.heads: Sequence[ChainHead] = ()
        self._text = text

    def __call__(self, heads: Sequence[ChainHead]) -> ChainedRow:
        self.heads = heads
        return record(1, self._text)


async def open_chain(store: AuditStore, chain: str) -> list[ChainHead]:
    """Open a chain; return the heads that its first record was given."""
    opening = Opening(chain)
    await store.open_chain(chain, opening)
    return list(opening.heads)
