"""Retention: which records may go, and how they go.

- A chain loses its first records, in whole segments of SEGMENT, or all of them. They are older than a given
  time, and a checkpoint lists them that the sink has.
- What the newest checkpoint lists stays, and so does the last record of a chain that no other chain's first
  record carries: a start compares the database with the former, and a checkpoint lists the latter.
- Before anything is signed, each record is compared with its hash, and the root over all of them with the one
  that the checkpoint lists. A log that was tampered with is not pruned: that would sign the tampering.
  What was exported is read back and compared with that root again, before any of it is deleted.
- They are on record first, exported next, and deleted last: slice by slice, each together with the signed
  statement that it is gone (`kkp.audit.prunings`). Whenever this is killed, the log verifies, and the next
  run goes on.

Replicas go on meanwhile: a slice holds up their writes for some milliseconds, and they are left as long
before the next one.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, final

from kkp.audit.chain import read_body, record_hash
from kkp.audit.checkpoints import Checkpoint, CheckpointSigner, read_checkpoint
from kkp.audit.export import write_row
from kkp.audit.proofs import (
    DisprovedError,
    NoProofError,
    RecordsProof,
    check_proof,
    read_proof,
    write_proof,
)
from kkp.audit.prunings import Pruning, read_pruning, sign_pruning
from kkp.audit.tree import Frontier, Range, subtrees
from kkp.audit.verify import StoredRow
from kkp.clock import Clock
from kkp.data_dir import flush_directory
from kkp.errors import ConfigError, StateUntrustedError
from kkp.rows import ChainedRow, ChainHead, ChainState, CheckpointRow

SEGMENT: Final = 4096
_SLICE: Final = 1024
_CHAIN: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")
_ALTERED = "The audit log is not what {} lists; nothing more is deleted. Run: kkp audit verify"


class RetentionStore(Protocol):
    """Where records go from. What it raises is a KKPError."""

    async def chains(self) -> Sequence[ChainState]:
        """Return what the tables say of each chain."""

    async def hashes(self, chain: str, after: int, upto: int) -> Sequence[object]:
        """Return the hashes of a chain's records behind this number, up to that one, in order."""

    async def records(self, chain: str, after: int, upto: int) -> Sequence[ChainedRow]:
        """Return a chain's records behind this number, up to that one, in order."""

    async def prune(self, chain: str, known: object, line: bytes, after: int, upto: int) -> None:
        """Delete records up to this number together with the statement that they are gone, or do nothing."""


class Checkpoints(Protocol):
    """Where checkpoints are. What it raises is a KKPError."""

    async def newest(self) -> CheckpointRow | None:
        """Return the checkpoint of the highest number."""

    async def at(self, seq: int) -> CheckpointRow | None:
        """Return the checkpoint of this number."""


@final
@dataclass(frozen=True, slots=True)
class Prunable:
    """The records of a chain that may go.

    Attributes:
        chain: The chain.
        known: The tree of those that are gone already.
        steps: Up to which records they go, one slice after the other, and the tree up to each.
        behind: The roots of the subtrees behind the last of them, as far as the checkpoint lists.
        under: The checkpoint.
        pruning: The statement that is there now.
    """

    chain: str
    known: Frontier
    steps: Sequence[tuple[ChainHead, Frontier]]
    behind: Sequence[bytes]
    under: Checkpoint
    pruning: object

    @property
    def first(self) -> int:
        """The number of the first record that goes."""
        return self.known.size + 1

    @property
    def last(self) -> ChainHead:
        """The last one."""
        return self.steps[-1][0]

    def __len__(self) -> int:
        return self.last.seq - self.known.size


@final
class Pruner:
    """Finds records that may go, and deletes them.

    Args:
        store: Where they go from.
        checkpoints: What lists them.
        signer: Signs that they are gone.
        clock: Dates that.
    """

    def __init__(
        self, store: RetentionStore, checkpoints: Checkpoints, signer: CheckpointSigner, clock: Clock
    ) -> None:
        self._store = store
        self._checkpoints = checkpoints
        self._signer = signer
        self._clock = clock

    async def plan(self, before: float) -> list[Prunable]:
        """Return what may go of what was recorded before this time.

        Raises:
            StateUntrustedError: A record, a statement or a checkpoint is not as KKP wrote it.
        """
        newest = self._believed(await self._checkpoints.newest())
        kept = {head.chain: head.seq for head in newest.heads} if newest is not None else {}
        found = [await self._plan_one(state, kept, before) for state in await self._store.chains()]
        return [prunable for prunable in found if prunable is not None]

    async def export(self, prunable: Prunable, directory: Path) -> Path:
        """Write the records into a file that proves what it holds, and return it once it is on disk.

        Raises:
            ConfigError: It can't be written.
            StateUntrustedError: The chain's name is none of KKP's: it may lead elsewhere. Or what was written
                is not what the checkpoint lists.
        """
        if _CHAIN.fullmatch(prunable.chain) is None:
            raise StateUntrustedError(f"The chain {prunable.chain!a:.80} is none of KKP's.")
        path = directory / f"{prunable.chain}.{prunable.first:012}-{prunable.last.seq:012}.jsonl"
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")  # two may prune at a time
        try:
            await self._write(part, prunable)
            await asyncio.to_thread(self._check, part, prunable)
            part.rename(path)
            flush_directory(directory)
        except OSError as error:
            raise ConfigError([f"--export: {path} can't be written ({error.strerror})"]) from error
        finally:
            with suppress(OSError):
                part.unlink()
        return path

    async def _write(self, path: Path, prunable: Prunable) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(write_proof(_proof(prunable)))
            for start, head in _slices(prunable):
                rows = await self._store.records(head.chain, start, head.seq)
                file.writelines(_line(head.chain, row) for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def _check(self, path: Path, prunable: Prunable) -> None:
        """Verify what was written: the records may be others than those that were compared before."""
        try:
            with path.open("rb") as file:
                check_proof(read_proof(file.readline()), file, self._signer.public_key)
        except (NoProofError, DisprovedError) as error:
            raise StateUntrustedError(_ALTERED.format(prunable.under)) from error

    async def delete(self, prunable: Prunable, on_slice: Callable[[int], object]) -> None:
        """Delete the records; tell after each slice how many it had."""
        known, after = prunable.pruning, prunable.known.size
        loop = asyncio.get_running_loop()
        for head, tree in prunable.steps:
            began = loop.time()
            line = sign_pruning(self._signer, head, tree, prunable.under, self._clock.now()).line
            await self._store.prune(head.chain, known, line, after, head.seq)
            on_slice(head.seq - after)
            known, after = line, head.seq
            await asyncio.sleep(loop.time() - began)

    async def _plan_one(self, state: ChainState, kept: dict[str, int], before: float) -> Prunable | None:
        if state.listed_seq is None or state.listed_by is None or not state.is_delivered:
            return None
        pruning = self._pruning(state)
        gone = pruning.head.seq if pruning is not None else 0
        limit = min(state.listed_seq, kept.get(state.chain, state.head_seq + 1) - 1)
        if state.carried_seq != state.head_seq:
            limit = min(limit, state.head_seq - 1)
        ends = [*range((gone // SEGMENT + 1) * SEGMENT, limit + 1, SEGMENT)]
        if limit == state.head_seq > gone and limit not in ends:
            ends.append(limit)
        last = await self._last_before(state.chain, ends, before)
        if last is None:
            return None
        under = self._believed(await self._checkpoints.at(state.listed_by))
        if under is None:
            raise StateUntrustedError(f"There is no checkpoint {state.listed_by}.")
        known = pruning.frontier if pruning is not None else Frontier()
        return await self._examined(state, known, last, under)

    async def _last_before(self, chain: str, ends: Sequence[int], before: float) -> int | None:
        """Return the last of these records that is older, by halves: times rise."""
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            seq = ends[middle]
            rows = await self._store.records(chain, seq - 1, seq)
            if len(rows) == 1 and _time(rows[0]) < before:
                low = middle + 1
            else:
                high = middle
        return ends[low - 1] if low else None

    async def _examined(self, state: ChainState, known: Frontier, last: int, under: Checkpoint) -> Prunable:
        """Compare every record with its hash, and the tree with the root that the checkpoint lists."""
        listed = next((head for head in under.heads if head.chain == state.chain), None)
        if listed is None or listed.root is None or listed.seq < last:
            raise StateUntrustedError(_ALTERED.format(under))
        steps = await self._steps(state.chain, known, last, under)
        tree, behind = steps[-1][1].copy(), subtrees(Range(last, listed.seq))
        nodes = [await self._root(state.chain, part, under) for part in behind]
        for part, node in zip(behind, nodes, strict=True):
            tree.add_subtree(node, part.end - part.start)
        if tree.root().hex() != listed.root:
            raise StateUntrustedError(_ALTERED.format(under))
        return Prunable(state.chain, known, steps, nodes, under, state.pruning)

    async def _steps(
        self, chain: str, known: Frontier, last: int, under: Checkpoint
    ) -> list[tuple[ChainHead, Frontier]]:
        tree, steps = known.copy(), []
        while tree.size < last:
            upto = min(last, (tree.size // _SLICE + 1) * _SLICE)
            rows = await self._store.records(chain, tree.size, upto)
            whole = [row.hash for seq, row in enumerate(rows, tree.size + 1) if _is_whole(chain, seq, row)]
            tree.extend(whole)
            if tree.size != upto:
                raise StateUntrustedError(_ALTERED.format(under))
            steps.append((ChainHead(chain, upto, whole[-1]), tree.copy()))
        return steps

    async def _root(self, chain: str, part: Range, under: Checkpoint) -> bytes:
        tree = Frontier()
        for start in range(part.start, part.end, SEGMENT):
            hashes = await self._store.hashes(chain, start, min(start + SEGMENT, part.end))
            tree.extend(value for value in hashes if isinstance(value, bytes))
        if tree.size != part.end - part.start:
            raise StateUntrustedError(_ALTERED.format(under))
        return tree.root()

    def _pruning(self, state: ChainState) -> Pruning | None:
        if state.pruning is None:
            return None
        try:
            pruning = read_pruning(state.pruning if isinstance(state.pruning, bytes) else b"")
        except ValueError as error:
            raise StateUntrustedError(f"The pruning of {state.chain} can't be believed: {error}.") from error
        if pruning.key != self._signer.public_key or pruning.head.chain != state.chain:
            raise StateUntrustedError(f"The pruning of {state.chain} is not ours.")
        return pruning

    def _believed(self, row: CheckpointRow | None) -> Checkpoint | None:
        if row is None:
            return None
        try:
            checkpoint = read_checkpoint(
                row.line if type(row.line) is bytes else b""
            )  # SQLite keeps any type
        except ValueError as error:
            raise StateUntrustedError(f"Checkpoint {row.seq} can't be believed: {error}.") from error
        if checkpoint.key != self._signer.public_key:
            raise StateUntrustedError(f"Checkpoint {row.seq} is not ours.")
        return checkpoint


def _slices(prunable: Prunable) -> Iterator[tuple[int, ChainHead]]:
    """Return each slice: behind which record it begins, and the last one."""
    after = prunable.known.size
    for head, _ in prunable.steps:
        yield after, head
        after = head.seq


def _proof(prunable: Prunable) -> RecordsProof:
    before = prunable.known.stored().hex()
    return RecordsProof(
        chain=prunable.chain,
        first=prunable.first,
        last=prunable.last.seq,
        checkpoint=prunable.under.line.decode(),
        before=tuple(before[at : at + 64] for at in range(0, len(before), 64)),
        behind=tuple(node.hex() for node in prunable.behind),
    )


def _line(chain: str, row: ChainedRow) -> bytes:
    line = write_row(StoredRow(chain, *row))
    if line is None:
        raise StateUntrustedError(f"{chain}:{row.seq} was tampered with; run: kkp audit verify")
    return line


def _is_whole(chain: str, seq: int, row: ChainedRow) -> bool:
    """Tell whether a record is what its place and its hash say."""
    if type(row.body) is not bytes or record_hash(row.body) != row.hash:  # SQLite keeps any type
        return False
    try:
        body = read_body(row.body)
    except ValueError:
        return False
    return (body.chain, body.seq, row.seq) == (chain, seq, seq)


def _time(row: ChainedRow) -> float:
    """Return when a record was made; infinitely late, if that can't be read: then it stays."""
    try:
        return read_body(row.body).time
    except (TypeError, ValueError):  # SQLite keeps any type
        return math.inf
