"""What every database must do alike, on a real SQLite file and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from kkp.audit.base import RecordType
from kkp.audit.chain import link
from kkp.errors import ConfigError, ConflictError, KeyringUnavailableError, RateLimitedError
from kkp.rows import (
    ChainedRow,
    ChainHead,
    ChainState,
    CheckpointRow,
    IdentityRow,
    LocalKeyRow,
    LogPosition,
    NewRevokedToken,
    RevocationRow,
    RevokedTokenRow,
    RingRow,
    SignedRows,
    TreeRow,
)
from kkp.store.audit import AuditStore
from kkp.store.base import Database, bump_epoch
from kkp.store.checkpoints import CheckpointStore, ReadHashes
from kkp.store.identities import IdentityStore
from kkp.store.local_keys import LocalKeyStore
from kkp.store.retention import RetentionStore
from kkp.store.revocations import RevocationStore
from kkp.store.ring import RingStore
from kkp.store.schema import SCHEMA_VERSION
from tests.chains import Opening, open_chain, record
from tests.databases import CHECK, Place

FIRST = RingRow("kid-1", 1, '{"kty":"OKP"}', 100.25, 200.5, None, b"\0mac\xff")
SECOND = RingRow("kid-2", 2, '{"kty":"OKP"}', 300.0, 400.0, None, b"mac 2")
ORDERS = IdentityRow("orders", "{}", 100.25, None, b"\0mac\xff")


@pytest.fixture
async def database(place: Place) -> AsyncIterator[Database]:
    database = await place.open()
    yield database
    await database.close()


@pytest.fixture
async def replica(database: Database, place: Place) -> AsyncIterator[Database]:
    """Another process's view of the same database."""
    replica = await place.open()
    yield replica
    await replica.close()


# Opening.


async def test_an_empty_database_is_laid_out_at_epoch_one(database: Database) -> None:
    assert await database.epoch() == 1
    snapshot = await RingStore(database).load_ring()
    assert (snapshot.rows, snapshot.sealed_private) == ((), {})
    assert (snapshot.last_served_at, snapshot.clock_high_water) == (None, 0.0)


@pytest.mark.promise(32)
async def test_what_was_committed_is_there_after_reopening(place: Place) -> None:
    for expected in (1, 2, 3):
        database = await place.open()
        assert await database.epoch() == expected
        await database.write(bump_epoch)
        await database.close()


@pytest.mark.parametrize("check", [b"another check", b"", CHECK + b"\0", CHECK[:-1]])
async def test_another_master_key_is_refused(database: Database, place: Place, check: bytes) -> None:
    with pytest.raises(ConfigError, match=r"\AKKP_MASTER_KEY: .* another master key") as refusal:
        await place.open(check)
    assert len(refusal.value.problems) == 1
    assert await database.epoch() == 1


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, 99])
async def test_another_layout_is_refused_naming_both(database: Database, place: Place, version: int) -> None:
    place.by_hand(f"UPDATE state SET schema_version = {version}")  # noqa: S608  a number of ours
    with pytest.raises(ConfigError, match=rf"layout {version} and this release reads {SCHEMA_VERSION};"):
        await place.open()
    with pytest.raises(ConfigError, match="layout"):
        await place.open(b"another")


async def test_a_state_row_that_is_gone_is_not_made_anew(place: Place) -> None:
    await (await place.open()).close()
    place.by_hand("DELETE FROM state")
    with pytest.raises(ConfigError, match="can't be opened"):
        await place.open(b"another")


async def test_of_processes_that_lay_out_one_database_together_all_find_one_layout(place: Place) -> None:
    databases = await asyncio.gather(*(place.open() for _ in range(4)))
    try:
        assert [await database.epoch() for database in databases] == [1] * 4
    finally:
        for database in databases:
            await database.close()


async def test_what_reads_can_not_write(database: Database) -> None:
    with pytest.raises(KeyringUnavailableError):
        await database.read(bump_epoch)
    assert await database.epoch() == 1


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def fail(connection: Connection) -> None:
        bump_epoch(connection)
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        await database.write(fail)
    assert await database.epoch() == 1
    await database.write(bump_epoch)
    assert await database.epoch() == 2


async def test_two_replicas_see_each_other_s_commits(database: Database, replica: Database) -> None:
    await database.write(bump_epoch)
    assert await replica.epoch() == 2
    await RingStore(replica).insert_ring_key(FIRST, b"sealed")
    assert (await RingStore(database).load_ring()).rows == (FIRST,)


async def test_no_bump_is_lost_between_replicas(database: Database, replica: Database) -> None:
    async def bump(each: Database) -> None:
        for _ in range(25):  # one after the other: who waits behind 49 others may be refused
            await each.write(bump_epoch)

    await asyncio.gather(bump(database), bump(replica))
    assert await database.epoch() == await replica.epoch() == 51


@pytest.mark.promise(29)
async def test_a_locked_database_refuses_writes_and_serves_reads(database: Database, place: Place) -> None:
    async with place.locked():
        with pytest.raises(KeyringUnavailableError, match=r"\AThe state database is not available\.\Z"):
            await RingStore(database).insert_ring_key(FIRST, b"sealed")
        assert (await RingStore(database).load_ring()).rows == ()
    await RingStore(database).insert_ring_key(FIRST, b"sealed")
    assert (await RingStore(database).load_ring()).rows == (FIRST,)


async def test_a_caller_that_stops_waiting_breaks_nothing(database: Database, place: Place) -> None:
    async with place.locked():
        waiting = asyncio.ensure_future(database.write(bump_epoch))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    epoch = await database.epoch()
    await database.write(bump_epoch)
    assert await database.epoch() in {epoch + 1, epoch + 2}


async def test_a_check_tells_of_a_lock_that_reading_does_not_notice(database: Database, place: Place) -> None:
    async with place.locked():
        assert await database.epoch() == 1
        with pytest.raises(KeyringUnavailableError):
            await database.check()


async def test_a_cancelled_check_leaves_the_others_their_answer(database: Database) -> None:
    first = asyncio.create_task(database.check())
    await asyncio.sleep(0)
    second = asyncio.create_task(database.check())
    await asyncio.sleep(0)
    first.cancel()
    await second
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_table_that_is_gone_is_no_empty_ring(database: Database, place: Place) -> None:
    place.by_hand("DROP TABLE ring_keys")
    with pytest.raises(KeyringUnavailableError):
        await RingStore(database).load_ring()


async def test_a_ring_key_its_private_half_and_the_epoch_are_one_transaction(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    snapshot = await store.load_ring()
    assert snapshot.rows == (FIRST, SECOND)
    assert snapshot.sealed_private == {"kid-1": b"sealed 1", "kid-2": b"sealed 2"}
    assert snapshot.epoch == 3


CONFLICTING = {
    "the same generation": SECOND._replace(generation=1),
    "the same kid": SECOND._replace(kid="kid-1"),
    "the same row": FIRST,
}


@pytest.mark.parametrize("row", CONFLICTING.values(), ids=CONFLICTING.keys())
async def test_a_generation_and_a_kid_exist_once(database: Database, row: RingRow) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    before = await store.load_ring()
    with pytest.raises(ConflictError):
        await store.insert_ring_key(row, b"sealed 2")
    assert await store.load_ring() == before


async def test_a_public_half_is_not_kept_without_its_private_half(database: Database, place: Place) -> None:
    place.by_hand("INSERT INTO ring_private_keys VALUES ('kid-1', 'sealed')")
    with pytest.raises(ConflictError):
        await RingStore(database).insert_ring_key(FIRST, b"sealed")
    snapshot = await RingStore(database).load_ring()
    assert (snapshot.rows, snapshot.epoch) == ((), 1)


async def test_of_replicas_that_rotate_together_one_wins(database: Database, replica: Database) -> None:
    rows = [FIRST._replace(kid=f"kid-{number}") for number in range(10)]
    stores = [RingStore(database), RingStore(replica)]
    outcomes = await asyncio.gather(
        *(stores[number % 2].insert_ring_key(row, b"sealed") for number, row in enumerate(rows)),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 9
    assert (await stores[0].load_ring()).epoch == 2


async def test_rows_come_in_the_order_of_their_generation(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND, b"sealed 2")
    await store.insert_ring_key(FIRST, b"sealed 1")
    assert [row.generation for row in (await store.load_ring()).rows] == [1, 2]


async def test_promotion_lowers_activate_at_and_nothing_else(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    wanted = SECOND._replace(
        generation=9, public_jwk="other", created_at=1.0, activate_at=399.5, revoked_at=1.0, mac=b"new mac"
    )
    await store.promote_ring_key(wanted, former_mac=SECOND.mac)
    snapshot = await store.load_ring()
    assert snapshot.rows == (FIRST, SECOND._replace(activate_at=399.5, mac=b"new mac"))
    assert snapshot.epoch == 4


@pytest.mark.parametrize("activate_at", [400.0, 400.001, 500.0])
async def test_promotion_never_raises_or_repeats(database: Database, activate_at: float) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND, b"sealed")
    before = await store.load_ring()
    again = SECOND._replace(activate_at=activate_at, mac=b"new mac")
    with pytest.raises(ConflictError):
        await store.promote_ring_key(again, former_mac=SECOND.mac)
    assert await store.load_ring() == before


async def test_a_key_is_not_promoted_again_to_an_earlier_time_by_who_has_not_seen_the_first(
    database: Database,
) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND, b"sealed")
    promoted = SECOND._replace(activate_at=350.0, mac=b"new mac")
    await store.promote_ring_key(promoted, former_mac=SECOND.mac)
    with pytest.raises(ConflictError):
        await store.promote_ring_key(promoted._replace(activate_at=349.0), former_mac=SECOND.mac)
    assert (await store.load_ring()).rows == (promoted,)


async def test_a_revoked_or_unknown_key_is_not_promoted(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(SECOND._replace(revoked_at=350.0), b"sealed")
    before = await store.load_ring()
    for row in (SECOND._replace(activate_at=1.0), FIRST._replace(activate_at=1.0)):
        with pytest.raises(ConflictError):
            await store.promote_ring_key(row, former_mac=row.mac)
    assert await store.load_ring() == before


async def test_of_two_promotions_to_one_time_one_wins(database: Database, replica: Database) -> None:
    await RingStore(database).insert_ring_key(SECOND, b"sealed")
    wanted = SECOND._replace(activate_at=350.0, mac=b"new mac")
    outcomes = await asyncio.gather(
        *(RingStore(each).promote_ring_key(wanted, former_mac=SECOND.mac) for each in (database, replica)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConflictError", "NoneType"]


REVOKED = FIRST._replace(revoked_at=350.0, mac=b"revoked mac")


PROMOTED = SECOND._replace(activate_at=350.0, mac=b"promoted mac")


THIRD = RingRow("kid-3", 3, '{"kty":"OKP"}', 350.0, 350.0, None, b"mac 3")


async def test_a_revocation_and_the_promotion_with_it_are_one_transaction(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    await store.revoke_ring_key(REVOKED._replace(created_at=1.0), promoted=PROMOTED, created=None)
    snapshot = await store.load_ring()
    assert snapshot.rows == (REVOKED, PROMOTED)
    assert snapshot.sealed_private == {"kid-2": b"sealed 2"}
    assert snapshot.epoch == 4


async def test_a_revocation_and_the_key_made_with_it_are_one_transaction(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.revoke_ring_key(REVOKED, promoted=None, created=(THIRD, b"sealed 3"))
    snapshot = await store.load_ring()
    assert snapshot.rows == (REVOKED, THIRD)
    assert snapshot.sealed_private == {"kid-3": b"sealed 3"}
    assert snapshot.epoch == 3


@pytest.mark.parametrize(
    ("row", "promoted", "created"),
    [
        pytest.param(REVOKED._replace(kid="kid-9"), None, None, id="the key is unknown"),
        pytest.param(REVOKED._replace(activate_at=199.0), None, None, id="the key was promoted since"),
        pytest.param(REVOKED, PROMOTED._replace(kid="kid-9"), None, id="the one to promote is unknown"),
        pytest.param(REVOKED, PROMOTED._replace(activate_at=400.0), None, id="it has begun since"),
        pytest.param(REVOKED, None, (THIRD._replace(generation=2), b"s"), id="the generation is taken"),
    ],
)
async def test_a_revocation_happens_whole_or_not_at_all_when(
    database: Database, row: RingRow, promoted: RingRow | None, created: tuple[RingRow, bytes] | None
) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    before = await store.load_ring()
    with pytest.raises(ConflictError):
        await store.revoke_ring_key(row, promoted=promoted, created=created)
    assert await store.load_ring() == before


async def test_a_key_is_revoked_once(database: Database, replica: Database) -> None:
    await RingStore(database).insert_ring_key(FIRST, b"sealed 1")
    stores = [RingStore(database), RingStore(replica)]
    outcomes = await asyncio.gather(
        *(stores[n % 2].revoke_ring_key(REVOKED, promoted=None, created=None) for n in range(6)),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 5
    assert (await stores[0].load_ring()).rows == (REVOKED,)


@pytest.mark.parametrize(
    ("notes", "latest"),
    [([5.0], 5.0), ([5.0, 7.5], 7.5), ([7.5, 5.0], 7.5), ([5.0, 5.0], 5.0), ([5.0, 9.0, 7.0], 9.0)],
)
async def test_the_note_of_serving_and_the_clock_s_high_water_only_rise(
    database: Database, notes: list[float], latest: float
) -> None:
    store = RingStore(database)
    for at in notes:
        await store.note_served(at)
    snapshot = await store.load_ring()
    assert (snapshot.last_served_at, snapshot.clock_high_water) == (latest, latest)
    assert snapshot.epoch == 1


async def test_only_the_private_halves_named_are_deleted(database: Database) -> None:
    store = RingStore(database)
    await store.insert_ring_key(FIRST, b"sealed 1")
    await store.insert_ring_key(SECOND, b"sealed 2")
    await store.delete_private_keys(["kid-1", "kid-9"])
    await store.delete_private_keys([])
    snapshot = await store.load_ring()
    assert snapshot.sealed_private == {"kid-2": b"sealed 2"}
    assert snapshot.rows == (FIRST, SECOND)


async def test_an_identity_and_the_epoch_are_one_transaction(database: Database) -> None:
    store = IdentityStore(database)
    await store.insert_identity(ORDERS)
    snapshot = await store.load_identities()
    assert snapshot.identities == (ORDERS,)
    assert snapshot.epoch == 2


async def test_a_name_exists_once(database: Database) -> None:
    store = IdentityStore(database)
    await store.insert_identity(ORDERS)
    before = await store.load_identities()
    with pytest.raises(ConflictError):
        await store.insert_identity(ORDERS._replace(document="other", mac=b"other"))
    assert await store.load_identities() == before


async def test_a_row_is_replaced_only_where_it_still_is_what_was_read(database: Database) -> None:
    store = IdentityStore(database)
    await store.insert_identity(ORDERS)
    changed = ORDERS._replace(document="other", disabled_at=200.0, mac=b"new mac")
    assert await store.replace_identity(changed, former_mac=ORDERS.mac)
    snapshot = await store.load_identities()
    assert (snapshot.epoch, snapshot.identities) == (3, (changed,))
    for row in (ORDERS._replace(disabled_at=300.0), changed._replace(id="nobody")):
        assert not await store.replace_identity(row, former_mac=ORDERS.mac)
    assert await store.load_identities() == snapshot


async def test_local_key_versions_come_oldest_first_and_by_their_key(database: Database) -> None:
    store = LocalKeyStore(database)
    rows = [LocalKeyRow("default", version, 1.5, bytes([version])) for version in (2, 1, 3)]
    for row in [*rows, LocalKeyRow("other", 1, 1.5, b"other")]:
        await store.add_local_key(row)
    assert await store.local_key_versions("default") == [rows[1], rows[0], rows[2]]
    assert await store.local_key_versions("missing") == []


async def test_a_version_that_exists_is_kept_as_it_is(database: Database) -> None:
    store = LocalKeyStore(database)
    await store.add_local_key(LocalKeyRow("default", 1, 1.5, b"first"))
    await store.add_local_key(LocalKeyRow("default", 1, 2.5, b"second"))
    assert await store.local_key_versions("default") == [LocalKeyRow("default", 1, 1.5, b"first")]
    assert await database.epoch() == 1


async def test_records_are_appended_and_answered_with_the_epoch_of_their_transaction(
    database: Database,
) -> None:
    store = AuditStore(database)
    assert await store.open_chain("a", Opening()) == 1
    await database.write(bump_epoch)
    assert await store.append("a", [record(2), record(3)]) == 2
    assert await store.chain_head("a") == ChainHead("a", 3, b"hash 3")
    assert await store.chain_head("b") is None
    assert [row for _, row in await store.read(None, 10)] == [record(1), record(2), record(3)]


async def test_a_new_chain_carries_every_head_that_no_chain_carries_yet(database: Database) -> None:
    store = AuditStore(database)
    assert await open_chain(store, "b") == []
    await store.append("b", [record(2)])
    assert await open_chain(store, "a") == [ChainHead("b", 2, b"hash 2")]
    assert await open_chain(store, "c") == [ChainHead("a", 1, b"hash a1")]
    await store.append("b", [record(3)])
    await store.append("a", [record(2)])
    assert await open_chain(store, "d") == [
        ChainHead("a", 2, b"hash 2"),
        ChainHead("b", 3, b"hash 3"),
        ChainHead("c", 1, b"hash c1"),
    ]
    assert await open_chain(store, "e") == [ChainHead("d", 1, b"hash d1")]


async def test_a_chain_whose_first_record_could_not_be_made_carries_nothing(database: Database) -> None:
    def fail(_heads: Sequence[ChainHead]) -> ChainedRow:
        raise LookupError("on purpose")

    store = AuditStore(database)
    await open_chain(store, "a")
    with pytest.raises(LookupError, match="on purpose"):
        await store.open_chain("b", fail)
    assert await open_chain(store, "c") == [ChainHead("a", 1, b"hash a1")]


@pytest.mark.parametrize("size", [1, 2, 255, 256])
async def test_a_batch_of_any_size_is_kept_whole_and_in_order(database: Database, size: int) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await database.write(bump_epoch)
    batch = [record(seq, "a") for seq in range(2, size + 2)]
    assert await store.append("a", batch) == 2
    assert await store.read(("a", 1), 300) == [("a", row) for row in batch]
    assert await open_chain(store, "b") == [ChainHead("a", size + 1, batch[-1].hash)]


async def test_a_record_is_never_written_twice_and_a_batch_is_whole_or_not_at_all(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    with pytest.raises((sqlite3.IntegrityError, IntegrityError)):
        await store.append("a", [record(2), record(2, "forged ")])
    with pytest.raises(IntegrityError):
        await store.open_chain("a", Opening("forged "))
    assert await store.read(None, 10) == [("a", record(1, "a"))]
    assert await store.chain_head("a") == ChainHead("a", 1, b"hash a1")


async def test_a_chain_that_was_never_opened_takes_nothing(database: Database) -> None:
    with pytest.raises(KeyringUnavailableError, match="did not keep the audit records"):
        await AuditStore(database).append("a", [record(1)])
    assert await AuditStore(database).read(None, 10) == []


async def test_records_are_read_in_the_order_of_insertion_over_all_chains(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "z")
    await open_chain(store, "a")
    await store.append("z", [record(2), record(3)])
    await store.append("a", [record(2)])
    everything = [(chain, row.seq) for chain, row in await store.read(None, 10)]
    assert everything == [("z", 1), ("a", 1), ("z", 2), ("z", 3), ("a", 2)]


async def test_records_of_a_type_are_found_and_what_only_speaks_of_it_is_not(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    head = ChainHead("a", 1, b"")
    speaking = link(head, 0.0, RecordType.OUTCOME, {"ref": '"type":"break_glass"', "result": "break_glass"})
    meant = link(ChainHead("a", 2, b""), 0.0, RecordType.BREAK_GLASS, {"imported": {}, "imported_hash": ""})
    await store.append("a", [speaking, meant])
    assert await store.of_type("break_glass") == [meant]
    assert await store.of_type("outcome") == [speaking]
    assert await store.of_type("probe") == []


async def test_pages_join_without_gap_or_overlap(database: Database) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    await open_chain(store, "b")
    for number in range(4, 10):
        await store.append("a" if number % 2 else "b", [record(number // 2)])
    everything = await store.read(None, 100)
    for limit in (1, 2, 3, 7, 8, 9):
        pages: list[tuple[str, ChainedRow]] = []
        after: tuple[str, int] | None = None
        while page := await store.read(after, limit):
            assert len(page) <= limit
            pages += page
            after = (page[-1][0], page[-1][1].seq)
        assert pages == everything


@pytest.mark.parametrize("after", [("a", 2), ("a", 0), ("b", 1), ("", 1), ("a", 10**15)])
async def test_a_cursor_that_was_never_given_out_yields_nothing(
    database: Database, after: tuple[str, int]
) -> None:
    store = AuditStore(database)
    await open_chain(store, "a")
    assert await store.read(after, 10) == []


async def test_the_first_input_key_of_a_day_stays(database: Database, replica: Database) -> None:
    assert await AuditStore(database).input_key("2026-01-01", b"first") == b"first"
    assert await AuditStore(replica).input_key("2026-01-01", b"second") == b"first"
    assert await AuditStore(replica).input_key("2026-01-02", b"third") == b"third"


# Checkpoints.


async def test_a_checkpoint_is_made_of_where_the_log_stands_and_the_newest_one(database: Database) -> None:
    audit, store = AuditStore(database), CheckpointStore(database)
    seen: list[tuple[CheckpointRow | None, LogPosition]] = []

    def make(newest: CheckpointRow | None, position: LogPosition, _hashes: ReadHashes) -> SignedRows:
        seen.append((newest, position))
        return SignedRows(CheckpointRow(len(seen), b"line %d" % len(seen)))

    await store.add(make)
    await open_chain(audit, "a")
    await audit.append("a", [record(2)])
    await open_chain(audit, "b")
    await database.write(bump_epoch)
    await store.add(make)
    assert seen == [
        (None, LogPosition(1, 0, ())),
        (
            CheckpointRow(1, b"line 1"),
            LogPosition(2, 3, (ChainHead("a", 2, b"hash 2"), ChainHead("b", 1, b"hash b1"))),
        ),
    ]
    standing = await store.standing([ChainHead("a", 2, b""), ChainHead("a", 3, b"")])
    assert (standing.epoch, standing.records, standing.hashes) == (2, 3, (b"hash 2", None))


async def test_a_chain_that_is_carried_is_listed_until_a_checkpoint_has_its_tree(database: Database) -> None:
    audit, store = AuditStore(database), CheckpointStore(database)
    await open_chain(audit, "a")
    await audit.append("a", [record(2)])
    await open_chain(audit, "b")
    position = await store.position()
    assert [head.chain for head in position.heads] == ["a", "b"]
    assert position.trees == ()
    tree = TreeRow("a", 2, b"frontier", 1)
    await store.add(lambda *_: SignedRows(CheckpointRow(1, b"line"), (tree,)))
    position = await store.position()
    assert [head.chain for head in position.heads] == ["b"]
    await audit.append("a", [record(3)])
    position = await store.position()
    assert [head.chain for head in position.heads] == ["a", "b"]
    assert position.trees == (tree,)
    later = tree._replace(size=3, frontier=b"later", checkpoint=2)
    await store.add(lambda *_: SignedRows(CheckpointRow(2, b"line"), (later,)))
    assert (await store.position()).trees == (later,)


async def test_of_many_chains_without_a_tree_some_are_listed_at_a_time(database: Database) -> None:
    audit, store = AuditStore(database), CheckpointStore(database)
    for number in range(70):
        await open_chain(audit, f"{number:03}")
    heads = (await store.position()).heads
    assert [head.chain for head in heads] == [f"{number:03}" for number in range(64)] + ["069"]


async def test_a_checkpoint_is_made_of_the_hashes_that_its_own_transaction_sees(database: Database) -> None:
    audit, store = AuditStore(database), CheckpointStore(database)
    await open_chain(audit, "a")
    await audit.append("a", [record(2), record(3)])
    await open_chain(audit, "b")
    seen: list[Sequence[object]] = []
    await store.add(lambda _newest, _position, hashes: seen.append(hashes("a", 1, 3)))
    assert seen == [[b"hash 2", b"hash 3"]]
    assert await store.hashes("a", 0, 2) == [b"hash a1", b"hash 2"]
    assert await store.hashes("a", 3, 9) == []


async def test_records_are_pruned_with_the_statement_that_they_are_gone_or_not_at_all(
    database: Database,
) -> None:
    audit, checkpoints, store = AuditStore(database), CheckpointStore(database), RetentionStore(database)
    await open_chain(audit, "a")
    await audit.append("a", [record(2), record(3), record(4)])
    await open_chain(audit, "b")
    tree = TreeRow("a", 4, b"frontier", 1)
    await checkpoints.add(lambda *_: SignedRows(CheckpointRow(1, b"line"), (tree,)))
    before = ChainState("a", 4, 4, 4, 1, is_delivered=False, pruning=None)
    assert await store.chains() == [before, ChainState("b", 1, None, None, None, None, None)]
    await checkpoints.mark_delivered([1])
    await store.prune("a", None, b"first", 0, 2)
    assert [row.seq for row in await store.records("a", 0, 9)] == [3, 4]
    assert await checkpoints.pruning("a") == b"first"
    for known, after, upto in ((None, 2, 3), (b"other", 2, 3), (b"first", 0, 3), (b"first", 2, 5)):
        with pytest.raises(ConflictError):
            await store.prune("a", known, b"second", after, upto)
    assert (await store.chains())[0] == before._replace(is_delivered=True, pruning=b"first")
    await store.prune("a", b"first", b"second", 2, 4)
    assert await audit.chain_head("a") == ChainHead("a", 4, b"hash 4")
    assert await audit.chain_head("none") is None
    assert await store.records("a", 0, 9) == []
    assert (await checkpoints.pruning("a"), await checkpoints.pruning("b")) == (b"second", None)
    assert (await checkpoints.position()).records == 5  # there were ever


async def test_checkpoints_are_read_by_what_was_delivered_and_by_what_is_behind_a_number(
    database: Database,
) -> None:
    store = CheckpointStore(database)
    rows = [CheckpointRow(seq, b"line %d" % seq) for seq in (1, 2, 3)]
    made = iter(rows)
    for row in rows:
        assert await store.add(lambda *_: SignedRows(next(made))) == row
    assert await store.add(lambda *_: None) is None
    assert await store.newest() == rows[2]
    assert (await store.at(2), await store.at(4)) == (rows[1], None)
    assert await store.undelivered(2) == rows[:2]
    await store.mark_delivered([1, 2, 3])
    assert await store.undelivered(2) == []
    assert (await store.behind(0, 2), await store.behind(1, 9)) == (rows[:2], rows[1:])
    assert await store.behind(3, 9) == []


# What is revoked.


def new_token(number: int, *, by: str = "orders", at_most: int = 9, share: int | None = 9) -> NewRevokedToken:
    row = RevokedTokenRow(f"jti {number}", 2**33 + number, 1.5, by, b"\0mac")
    return NewRevokedToken(row, at_most, share)


async def let_time_pass(database: Database, to: float) -> None:
    """Have a server note what time it is."""
    await RingStore(database).note_served(to)


async def revoke_tokens(
    database: Database, *tokens: NewRevokedToken, now: float = 2.0**33
) -> list[type[Exception] | None]:
    outcomes = await RevocationStore(database).insert_revoked_tokens(tokens, now=now, remembered_seconds=1.0)
    return [None if outcome is None else type(outcome) for outcome in outcomes]


async def test_revoked_tokens_are_read_by_the_epoch_that_they_brought_about(database: Database) -> None:
    store, tokens = RevocationStore(database), [new_token(n) for n in (1, 2)]
    for token in [*tokens, tokens[0]]:
        assert await revoke_tokens(database, token) == [None]
    snapshot = await store.load_revocations(since_epoch=0)
    assert (snapshot.epoch, sorted(snapshot.tokens)) == (3, [token.row for token in tokens])
    assert (await store.load_revocations(since_epoch=2)).tokens == (tokens[1].row,)


async def test_tokens_revoked_together_are_judged_each_alone_and_bump_the_epoch_once(
    database: Database,
) -> None:
    store = RevocationStore(database)
    assert await revoke_tokens(database, new_token(1, share=1)) == [None]
    asked = [
        new_token(1, share=1),  # there already, and takes no more room
        new_token(2, share=1),
        new_token(3, by="billing", share=1),
        new_token(3, by="billing", share=1),
        new_token(4, by="billing", share=1),
        new_token(5, by="stock", at_most=2),
        new_token(6, by="root", at_most=3, share=None),
        new_token(7, by="root", at_most=3, share=None),
    ]
    assert await revoke_tokens(database, *asked) == [
        None, RateLimitedError, None, None, RateLimitedError, KeyringUnavailableError, None,
        KeyringUnavailableError,
    ]  # fmt: skip
    snapshot = await store.load_revocations(since_epoch=0)
    assert (snapshot.epoch, {row.jti for row in snapshot.tokens}) == (3, {"jti 1", "jti 3", "jti 6"})
    assert await revoke_tokens(database, asked[0], asked[1]) == [None, RateLimitedError]
    assert (await store.load_revocations(since_epoch=0)).epoch == 3


async def test_room_comes_back_when_what_is_revoked_has_expired(database: Database) -> None:
    first, second = new_token(1, at_most=1, share=1), new_token(2, at_most=1, share=1)
    await revoke_tokens(database, first)
    await let_time_pass(database, 2.0**33 + 2)
    assert await revoke_tokens(database, second, now=2.0**33 + 2) == [KeyringUnavailableError]
    await let_time_pass(database, 2.0**33 + 3)
    assert await revoke_tokens(database, second, now=2.0**33 + 3) == [None]
    assert (await RevocationStore(database).load_revocations(since_epoch=0)).tokens == (second.row,)


async def test_a_clock_that_is_ahead_forgets_nothing_that_the_others_still_need(database: Database) -> None:
    """One machine's clock, or whoever sets it, must not let tokens live again at everybody else's."""
    store, ahead = RevocationStore(database), 2.0**34
    for seen in (0.0, 2.0**33):  # of a new database, and of one that is served
        await let_time_pass(database, seen)
        await revoke_tokens(database, new_token(1))
        await store.put_revocation(SUBJECT, now=2.0**33, remembered_seconds=1.0, at_most=1)
        await revoke_tokens(database, new_token(2), now=ahead)
        await store.put_revocation(KEY, now=ahead, remembered_seconds=1.0, at_most=1)
        snapshot = await store.load_revocations(since_epoch=0)
        assert {row.jti for row in snapshot.tokens} == {"jti 1", "jti 2"}
        assert snapshot.others == (KEY, SUBJECT)
    behind = SUBJECT._replace(id="id-3", name="billing", before=2**34)
    await let_time_pass(database, ahead)
    await revoke_tokens(database, new_token(3), now=2.0**33)
    await store.put_revocation(behind, now=2.0**33, remembered_seconds=1.0, at_most=2)
    snapshot = await store.load_revocations(since_epoch=0)
    assert (len(snapshot.tokens), len(snapshot.others)) == (3, 3)


KEY = RevocationRow("id-1", "key", "aws", "alias/orders", None, 1.5, "root", "caf\xe9", b"\0mac\xff")
SUBJECT = RevocationRow("id-2", "subject", None, "orders", 2**33, 1.5, "root", "", b"mac 2")


async def test_what_is_revoked_is_kept_as_it_is_and_there_once(database: Database, replica: Database) -> None:
    store, other = RevocationStore(database), RevocationStore(replica)
    for row in (KEY, SUBJECT):
        assert await store.put_revocation(row, now=0.0, remembered_seconds=0.0, at_most=1) == row
    assert (
        await other.put_revocation(KEY._replace(reason="again"), now=0.0, remembered_seconds=0.0, at_most=1)
        == KEY
    )
    snapshot = await other.load_revocations(since_epoch=0)
    assert (snapshot.epoch, snapshot.others) == (3, (KEY, SUBJECT))
    assert snapshot.clock_high_water == 0.0


async def test_a_subject_is_revoked_further_and_never_less_far(database: Database) -> None:
    store = RevocationStore(database)
    earlier, later = SUBJECT._replace(before=2**33 - 1), SUBJECT._replace(before=2**33 + 1, mac=b"mac 3")
    for row, stands in ((SUBJECT, SUBJECT), (earlier, SUBJECT), (later, later), (SUBJECT, later)):
        assert await store.put_revocation(row, now=0.0, remembered_seconds=0.0, at_most=1) == stands
    snapshot = await store.load_revocations(since_epoch=0)
    assert (snapshot.epoch, snapshot.others) == (3, (later,))


async def test_so_many_of_a_kind_are_kept_and_those_that_have_run_out_are_not(database: Database) -> None:
    store = RevocationStore(database)
    await store.put_revocation(SUBJECT, now=0.0, remembered_seconds=0.0, at_most=1)
    another, now = SUBJECT._replace(id="id-3", name="billing", before=2**34), 2.0**33 + 2
    await let_time_pass(database, now)
    with pytest.raises(ConflictError, match="As many of this kind"):
        await store.put_revocation(another, now=now, remembered_seconds=2.0, at_most=1)
    await store.put_revocation(KEY, now=0.0, remembered_seconds=0.0, at_most=1)
    await store.put_revocation(another, now=now, remembered_seconds=1.0, at_most=1)
    assert (await store.load_revocations(since_epoch=0)).others == (KEY, another)


async def test_exactly_the_row_that_was_seen_is_lifted_and_once(
    database: Database, replica: Database
) -> None:
    store, other = RevocationStore(database), RevocationStore(replica)
    await store.put_revocation(KEY, now=0.0, remembered_seconds=0.0, at_most=1)
    assert not await other.delete_revocation(KEY._replace(mac=b"another"))
    lifted = await asyncio.gather(store.delete_revocation(KEY), other.delete_revocation(KEY))
    assert sorted(lifted) == [False, True]
    snapshot = await store.load_revocations(since_epoch=0)
    assert (snapshot.epoch, snapshot.others) == (3, ())


async def test_replicas_that_revoke_one_thing_together_agree_on_the_row(
    database: Database, replica: Database
) -> None:
    stores = [RevocationStore(database), RevocationStore(replica)]
    rows = [KEY._replace(revoked_by=f"root-{number}") for number in range(6)]
    puts = (
        stores[n % 2].put_revocation(row, now=0.0, remembered_seconds=0.0, at_most=1)
        for n, row in enumerate(rows)
    )
    assert len(set(await asyncio.gather(*puts))) == 1
    assert (await stores[0].load_revocations(since_epoch=0)).epoch == 2
