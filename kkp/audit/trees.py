"""Follows the tree of each chain, so that checkpoints can list its root. No request waits for this.

- The records' hashes are read from the store, not handed over by the log: any process can follow every
  replica's chains.
- A tree is followed before a checkpoint's transaction, and within it only what was recorded meanwhile.
- Where a process goes on from what another one stored, the root of that is compared with that of the signed
  checkpoint that lists it. Where it does not fit, the chain is followed anew: from its first record, or from
  those that were pruned.
- A chain with a gap gets no root, and checkpoints go on without one: to find the gap is verification's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias, final

from kkp.audit.checkpoints import Checkpoint
from kkp.audit.prunings import read_pruning
from kkp.audit.tree import HASH_BYTES, Frontier
from kkp.rows import ChainHead, CheckpointRow, LogPosition, TreeRow

ReadHashes: TypeAlias = Callable[[str, int, int], Sequence[object]]
"""Return the hashes of a chain's records behind this number, up to that one, in order."""

_AT_ONCE: Final = 512  # about a millisecond's work: it runs on the event loop
_MOST_BEFORE: Final = 512 * _AT_ONCE
_MOST_WITHIN: Final = 16 * _AT_ONCE


class TreeStore(Protocol):
    """Where records and trees are. What it raises is a KKPError."""

    async def at(self, seq: int) -> CheckpointRow | None:
        """Return the checkpoint of this number."""

    async def hashes(self, chain: str, after: int, upto: int) -> Sequence[object]:
        """Return the hashes of a chain's records behind this number, up to that one, in order."""

    async def pruning(self, chain: str) -> object:
        """Return the signed line that says which of a chain's records are gone; None: none."""


@final
class ChainTrees:
    """The trees of the chains whose heads are to be listed.

    Args:
        store: Where records and trees are.
        believed: Reads a checkpoint's line and verifies that it is ours; ValueError otherwise.
        public_key: Of the key that signs prunings.
    """

    def __init__(self, store: TreeStore, believed: Callable[[object], Checkpoint], public_key: str) -> None:
        self._store = store
        self._believed = believed
        self._public_key = public_key
        self._frontiers: dict[str, Frontier] = {}

    async def follow(self, position: LogPosition) -> None:
        """Follow the trees of these heads, and forget all others."""
        stored = {row.chain: row for row in position.trees}
        kept, left = {}, _MOST_BEFORE
        for head in position.heads:
            frontier = self._frontiers.get(head.chain) or await self._resumed(head, stored.get(head.chain))
            left -= await self._follow_one(head, frontier, left)
            kept[head.chain] = frontier
        self._frontiers = kept

    def up_to(self, position: LogPosition, hashes: ReadHashes) -> dict[str, Frontier]:
        """Return the trees up to exactly these heads, as far as they are known."""
        found = {}
        for head in position.heads:
            frontier = self._frontiers.get(head.chain)
            if frontier is None or not 0 <= head.seq - frontier.size <= _MOST_WITHIN:
                continue
            if frontier.size < head.seq:
                _extend(frontier, head.seq, hashes(head.chain, frontier.size, head.seq))
            if frontier.size == head.seq:
                found[head.chain] = frontier
        return found

    async def _follow_one(self, head: ChainHead, frontier: Frontier, most: int) -> int:
        began = frontier.size
        end = min(head.seq, began + most)
        while frontier.size < end:
            upto = min(end, frontier.size + _AT_ONCE)
            _extend(frontier, upto, await self._store.hashes(head.chain, frontier.size, upto))
            if frontier.size < upto:
                break
        return frontier.size - began

    async def _resumed(self, head: ChainHead, row: TreeRow | None) -> Frontier:
        if row is not None and row.size <= head.seq and await self._is_listed(row):
            return Frontier.read(row.size, row.frontier)
        line = await self._store.pruning(head.chain)
        if isinstance(line, bytes):
            try:
                pruning = read_pruning(line)
            except ValueError:
                return Frontier()
            if pruning.key == self._public_key and pruning.head.chain == head.chain:
                return pruning.frontier
        return Frontier()

    async def _is_listed(self, row: TreeRow) -> bool:
        found = await self._store.at(row.checkpoint)
        try:
            checkpoint = self._believed(found.line if found is not None else None)
            root = Frontier.read(row.size, row.frontier).root().hex()
        except (TypeError, ValueError):  # SQLite keeps any type in any column
            return False
        listed = [head for head in checkpoint.heads if head.chain == row.chain]
        return [(head.seq, head.root) for head in listed] == [(row.size, root)]


def _extend(frontier: Frontier, size: int, hashes: Sequence[object]) -> None:
    """Add all hashes, unless one is missing or is none: then nothing."""
    good = [value for value in hashes if isinstance(value, bytes) and len(value) == HASH_BYTES]
    if frontier.size + len(good) == size:
        frontier.extend(good)
