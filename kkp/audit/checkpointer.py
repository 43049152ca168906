"""The service that signs checkpoints, hands them to the sink, and compares them with the database at start.

- One is signed when something was recorded since the last: every interval, within a second of a change of
  the epoch (a key, an identity or a grant was made, changed or revoked) and of the 256th record, at start and
  at a clean stop. It speaks about the chains of every replica, so that one of them signs it for all: each
  looks what the newest in the database says, and once more in the transaction that would add another.
- Each chain's tree is followed beside the log, and its root listed (`kkp.audit.trees`).
- It is committed to the database first, in the transaction that reads where the log stands; then it goes to
  the sink. So a sink never knows more than the database that it speaks about.
- A sink that fails loses nothing: audit and operations go on, what it did not take is handed to it again at
  the next interval, the log says so once, and readiness turns bad after three intervals without success.
- A database that is behind the newest checkpoint, or other than it says, is not started on, unless exactly
  that checkpoint is named as accepted. The next checkpoint then says so, under a higher number.
- No number is signed twice: one that is gone from the database is noticed at the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias, final

from kkp.audit.checkpoints import Checkpoint, CheckpointSigner, disagreements, named_heads, read_checkpoint
from kkp.audit.evidence import NotCheckpointsError, read_lines
from kkp.audit.sinks import CheckpointSink, ReadableSink
from kkp.audit.trees import ChainTrees, ReadHashes, TreeStore
from kkp.clock import Clock
from kkp.errors import AuditUnavailableError, ConfigError, KKPError, described
from kkp.rows import ChainHead, CheckpointRow, LogLook, LogPosition, SignedRows, Standing, TreeRow

CLOSE_SECONDS: Final = 15.0
RECORDS_UNTIL_DUE: Final = 256

_LOOK_SECONDS: Final = 1.0
_INTERVALS_UNTIL_UNREADY: Final = 3
_DELIVERED_AT_ONCE: Final = 100
_ROLLBACK = """\
KKP_DATABASE_URL: the database is not the one that {newest} was made of: {problem}. It was deleted, restored \
from an older copy, or altered, and what was revoked or disabled since would be valid again. Put the newer \
database back. If this is meant, start once with KKP_ACCEPT_ROLLBACK={accept}, which goes on record"""
_NO_CHECKPOINT = (
    "the audit log has %d records, and no checkpoint is in the database or in the sink: they were deleted, "
    "or KKP was killed before its first; a log cut at its end can't be told from a whole one"
)
_log = logging.getLogger(__name__)
_Make: TypeAlias = Callable[[CheckpointRow | None, LogPosition, ReadHashes], SignedRows | None]


class CheckpointStore(TreeStore, Protocol):
    """Where checkpoints are kept beside the log. What it raises is a KKPError."""

    async def newest(self) -> CheckpointRow | None:
        """Return the checkpoint of the highest number."""

    async def look(self) -> LogLook:
        """Return what tells whether a checkpoint may be due."""

    async def position(self) -> LogPosition:
        """Return where the log stands."""

    async def standing(self, heads: Sequence[ChainHead]) -> Standing:
        """Return what the database holds of these heads."""

    async def add(
        self, make: Callable[[CheckpointRow | None, LogPosition, ReadHashes], SignedRows | None]
    ) -> CheckpointRow | None:
        """In one transaction, add what `make` makes of the newest checkpoint and of where the log stands."""

    async def behind(self, seq: int, limit: int) -> Sequence[CheckpointRow]:
        """Return the oldest checkpoints of higher numbers."""

    async def undelivered(self, limit: int) -> Sequence[CheckpointRow]:
        """Return the oldest checkpoints that no sink has."""

    async def mark_delivered(self, seqs: Sequence[int]) -> None:
        """Note that a sink has taken these."""


@final
class Checkpointer:
    """Signs and delivers checkpoints.

    Args:
        store: Where they are kept, and where the log stands.
        signer: Has the key.
        sink: Takes them outside of the database; None for none.
        clock: Dates them.
        interval_seconds: How often `run` looks whether one is due.
    """

    def __init__(
        self,
        store: CheckpointStore,
        signer: CheckpointSigner,
        sink: CheckpointSink | None,
        clock: Clock,
        *,
        interval_seconds: float,
    ) -> None:
        self._store = store
        self._signer = signer
        self._sink = sink
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._looked: LogLook | None = None
        self._position_before = 0  # about where the log stood when the newest checkpoint was signed
        self._trees = ChainTrees(store, self._believed, signer.public_key)
        self._writing = asyncio.Lock()
        self._newest: Checkpoint | None = None
        self._accepted: Checkpoint | None = None  # the one whose loss the next checkpoint is to accept
        self._sunk_seq = 0  # of the newest that a sink holds which can be read
        self._failing = False
        self._succeeded_at = clock.now()

    async def check_start(self, accept_rollback: str) -> Checkpoint | None:
        """Compare the database with the newest checkpoint there is, in it and in the sink.

        Args:
            accept_rollback: The hash of a checkpoint that the database may be behind; empty for none.

        Returns:
            The checkpoint that the database is behind, if that was accepted.

        Raises:
            ConfigError: The database is behind or another one, or a checkpoint can't be believed.
            KKPError: The database can't be read.
        """
        stored = await self._stored()
        sunk = await self._sunk(is_start=True)
        newest = max(filter(None, (sunk, stored)), key=lambda checkpoint: checkpoint.seq, default=None)
        self._newest = newest
        if newest is None:
            await self._note_lack()
            return None
        problems = disagreements(newest, await self._store.standing(named_heads(newest)))
        problems += await self._missing(sunk)
        if not problems:
            self._note_sunk(sunk)
            return None
        if accept_rollback != newest.hash:
            problem = "; ".join(problems[:3])
            raise ConfigError([_ROLLBACK.format(newest=newest, problem=problem, accept=newest.hash)])
        _log.warning("a rollback behind %s is accepted: %s", newest, "; ".join(problems))
        self._accepted = newest
        return newest

    async def write(self) -> Checkpoint | None:
        """Sign a checkpoint if anything was recorded since the last, and hand the sink what it lacks.

        Raises:
            AuditUnavailableError: It could not be signed, or the sink took it not for certain.
        """
        return await self._write(self._make)

    async def _write(self, make: _Make) -> Checkpoint | None:
        async with self._writing:
            try:
                await self._check_newest()
                await self._trees.follow(await self._store.position())
                row = await self._store.add(make)
                if row is not None:
                    self._newest, self._accepted = read_checkpoint(row.line), None
                await self._deliver()
            except KKPError as error:
                self._note_failure(error)
                raise AuditUnavailableError(str(error)) from error
            except Exception as error:  # of whatever kind: readiness must tell of it
                self._note_failure(error)
                raise AuditUnavailableError("No checkpoint could be signed.") from error
            self._note_success()
            return self._newest if row is not None else None

    async def _check_newest(self) -> None:
        """Compare the newest one with the database's of its number, which may be of another history."""
        if self._newest is None or self._accepted is not None:
            return
        row = await self._store.at(self._newest.seq)
        if row is None or row.line != self._newest.line:
            raise AuditUnavailableError(f"The database lost {self._newest}.")

    async def run(self) -> None:
        """Write checkpoints for ever: at once, every interval, and soon after what makes one due."""
        due_at, make = 0.0, self._make
        while True:
            try:
                now_at = self._clock.now()
                if now_at >= due_at or await self._looks_due():
                    due_at = now_at + self._interval_seconds
                    await self._write(make)
                    make = self._make_if_due
            except Exception as error:  # noqa: BLE001  nothing may end the task
                self._note_failure(error)
            await asyncio.sleep(min(_LOOK_SECONDS, self._interval_seconds))

    async def check_ready(self) -> None:
        """Tell whether checkpoints are made and taken.

        Raises:
            AuditUnavailableError: Not for three intervals.
        """
        since = self._clock.now() - self._succeeded_at
        if since > _INTERVALS_UNTIL_UNREADY * self._interval_seconds + _LOOK_SECONDS:
            raise AuditUnavailableError(f"No checkpoint was signed and taken for {since:.0f} s.")

    async def close(self) -> None:
        """Write the last one; what the sink does not take now, it gets at the next start."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.write()
        except TimeoutError:
            _log.error("the last checkpoint took too long")
        except AuditUnavailableError as error:
            _log.error("the last checkpoint failed: %s", error)

    async def _stored(self) -> Checkpoint | None:
        row = await self._store.newest()
        if row is None:
            return None
        try:
            return self._believed(row.line)
        except ValueError as error:
            problem = f"KKP_DATABASE_URL: the database's checkpoint {row.seq} can't be believed ({error})"
            raise ConfigError([f"{problem}; restore the database from a backup"]) from None

    async def _sunk(self, *, is_start: bool = False) -> Checkpoint | None:
        """Return the newest one that the sink holds; at a start, wherever it stands, else near the end."""
        if not isinstance(self._sink, ReadableSink):
            return None
        try:
            found = read_lines([*await self._sink.tail(), *(await self._sink.highest() if is_start else ())])
            newest = max(found, key=lambda checkpoint: checkpoint.seq, default=None)
            return self._believed(newest.line) if newest is not None else None
        except NotCheckpointsError as error:
            problem = f"KKP_CHECKPOINT_SINK: it holds something else than checkpoints ({error}, near its end)"
            raise ConfigError([f"{problem}; put the right file back, or move this one away"]) from None
        except ValueError as error:
            problem = f"KKP_CHECKPOINT_SINK: its newest checkpoint can't be believed ({error})"
            raise ConfigError(
                [f"{problem}; is it another installation's? Give each a sink of its own"]
            ) from None

    def _believed(self, line: object) -> Checkpoint:
        if not isinstance(line, bytes):
            raise ValueError("it is not bytes")  # noqa: TRY004  whoever wrote it, it is one more bad value
        checkpoint = read_checkpoint(line)
        if checkpoint.key != self._signer.public_key:
            raise ValueError(f"it is signed by another key, {checkpoint.kid}")
        return checkpoint

    async def _note_lack(self) -> None:
        """Tell of a log that has records and no checkpoint; a new database has neither."""
        records = (await self._store.standing([])).records
        if records:
            _log.error(_NO_CHECKPOINT, records)

    async def _missing(self, sunk: Checkpoint | None) -> list[str]:
        """Tell whether the database lacks the checkpoint that the sink took last."""
        if sunk is None:
            return []
        row = await self._store.at(sunk.seq)
        if row is not None and row.line == sunk.line:
            return []
        if await self._is_accepted_as_lost(sunk):
            return []
        what = (
            f"it has no checkpoint {sunk.seq}" if row is None else f"its checkpoint {sunk.seq} is another one"
        )
        return [what]

    async def _is_accepted_as_lost(self, sunk: Checkpoint) -> bool:
        """Tell whether the next checkpoint accepts that, and only did not reach the sink before a crash."""
        row = await self._store.at(sunk.seq + 1)
        try:
            following = self._believed(row.line) if row is not None else None
        except ValueError:
            return False
        return following is not None and following.rollback and following.prev == sunk.hash

    def _note_sunk(self, sunk: Checkpoint | None) -> None:
        """Tell how much a sink that can be read gets: others may have made some, or it lost them."""
        self._sunk_seq = sunk.seq if sunk is not None else 0
        if isinstance(self._sink, ReadableSink) and self._newest is not None:
            lacking = self._newest.seq - self._sunk_seq
            if lacking:
                _log.info("the checkpoint sink lacks the last %d checkpoints; it gets them", lacking)

    async def _looks_due(self) -> bool:
        """Tell whether one may be due; it is for the transaction that would add it to say for certain."""
        look, before = await self._store.look(), self._looked
        self._looked = look
        if before is None or before.newest != look.newest:
            self._position_before = (before or look).last_position
        new_records = look.last_position - self._position_before
        try:
            newest = self._read(look.newest)
        except ValueError:  # writing the next one finds it, too, and tells of it
            return True
        return newest is None or newest.epoch != look.epoch or self._is_much(new_records, newest)

    def _is_due(self, previous: Checkpoint | None, position: LogPosition) -> bool:
        """Tell whether so much happened since the newest checkpoint, whoever signed it, that one is due."""
        if previous is None or previous.epoch != position.epoch:
            return True
        return self._is_much(position.records - previous.records, previous)

    def _is_much(self, new_records: int, previous: Checkpoint) -> bool:
        since = abs(self._clock.now() - previous.time)  # whichever clock was off
        return new_records >= RECORDS_UNTIL_DUE or (new_records != 0 and since >= self._interval_seconds)

    def _make_if_due(
        self, row: CheckpointRow | None, position: LogPosition, hashes: ReadHashes
    ) -> SignedRows | None:
        if self._accepted is None and not self._is_due(self._read(row), position):
            return None  # another replica was faster
        return self._make(row, position, hashes)

    def _make(
        self, row: CheckpointRow | None, position: LogPosition, hashes: ReadHashes
    ) -> SignedRows | None:
        """Sign where the log stands, unless the newest checkpoint says the same."""
        if self._accepted is not None:
            return self._sign(position, self._accepted, hashes, rollback=True)
        previous = self._read(row)
        if self._newest is not None and (previous is None or previous.seq < self._newest.seq):
            raise AuditUnavailableError(f"The database lost {self._newest}.")
        if previous is not None and (previous.records, previous.epoch) == (position.records, position.epoch):
            return None
        return self._sign(position, previous, hashes)

    def _sign(
        self,
        position: LogPosition,
        previous: Checkpoint | None,
        hashes: ReadHashes,
        *,
        rollback: bool = False,
    ) -> SignedRows:
        trees = self._trees.up_to(position, hashes)
        roots = {chain: tree.root() for chain, tree in trees.items()}
        signed = self._signer.sign(position, previous, self._clock.now(), roots=roots, rollback=rollback)
        rows = [TreeRow(chain, tree.size, tree.stored(), signed.seq) for chain, tree in trees.items()]
        return SignedRows(CheckpointRow(signed.seq, signed.line), tuple(rows))

    def _read(self, row: CheckpointRow | None) -> Checkpoint | None:
        if row is None:
            return None
        if self._newest is not None and row.line == self._newest.line:
            return self._newest
        return self._believed(row.line)

    async def _deliver(self) -> None:
        while self._sink is not None:
            rows = await self._lacking()
            if not rows:
                return
            for row in rows:
                await self._sink.put(row.line)
            self._sunk_seq = rows[-1].seq
            await self._store.mark_delivered([row.seq for row in rows])

    async def _lacking(self) -> Sequence[CheckpointRow]:
        """Return what is to be delivered next.

        Replicas may have a file each, and each file must know of the newest. Programs lead to one place, and
        what one has taken is taken.
        """
        if not isinstance(self._sink, ReadableSink):
            return await self._store.undelivered(_DELIVERED_AT_ONCE)
        sunk = await self._sunk()  # anew: another process of this machine may write to it, too
        self._sunk_seq = max(self._sunk_seq, sunk.seq if sunk is not None else 0)
        return await self._store.behind(self._sunk_seq, _DELIVERED_AT_ONCE)

    def _note_failure(self, error: Exception) -> None:
        if not self._failing:  # once per outage
            _log.error("no checkpoint is signed or taken: %s", described(error))
        self._failing = True

    def _note_success(self) -> None:
        if self._failing:
            _log.warning("checkpoints are signed and taken again")
        self._failing = False
        self._succeeded_at = self._clock.now()
