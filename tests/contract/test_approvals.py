"""Approvals on a real SQLite file and on a real PostgreSQL, as three replicas see one database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
from nacl.signing import SigningKey

from kkp import tokens
from kkp.approvals import RELEASE_TYPE, ReleaseClaims, Wanted
from kkp.authz import approvals
from kkp.authz.approvals import SHARE, Approvals
from kkp.errors import (
    ApprovalInvalidError,
    ConflictError,
    KeyringUnavailableError,
    KKPError,
    NotFoundError,
    RateLimitedError,
    StaleProposalError,
    StateUntrustedError,
)
from kkp.master_key import MasterKey
from kkp.model import ApprovalDemand
from kkp.rows import ApprovalRow
from kkp.store.approvals import ApprovalStore, forget_approvals
from kkp.store.base import Database
from tests.databases import Place
from tests.fakes.clock import FakeClock

NOW = 1_800_000_000.0
ISSUER = "https://kkp.test"
DEMAND = ApprovalDemand(600, 3600, is_break_glass=False)
SIGNER = SigningKey(bytes(32))


PLANT = (
    "INSERT INTO approvals SELECT 'planted', caller, behind, digest, document, break_glass, valid_seconds,"
    " asked_at, expires_at, 'alice', 1, reason, mac FROM approvals"
)


class Ring:
    """One key, for good."""

    def public_keys(self, now: float) -> dict[str, bytes]:
        assert now > 0
        return {"kid": bytes(SIGNER.verify_key)}


def wanted(number: int = 0, caller: str = "orders", demand: ApprovalDemand = DEMAND) -> Wanted:
    """Return something to be approved; another number is something else."""
    document = {
        "action": "decrypt",
        "number": number,
        "request": {"backend": "aws", "key_id": "alias/orders"},
    }
    return Wanted(caller, (caller,), msgspec.json.encode(document), demand)


class Replica:
    """What one process knows."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.expired: list[tuple[str, str]] = []
        self.clock = clock
        self.approvals = Approvals(
            ApprovalStore(database),
            MasterKey(bytes(32)),
            Ring(),
            clock,
            issuer=ISSUER,
            clock_error_seconds=5,
            expired=self._expire,
        )

    async def _expire(self, approval_id: str, state: str) -> None:
        self.expired.append((approval_id, state))

    async def ask(self, asked: Wanted) -> str:
        """Have something wait."""
        required = self.approvals.required(asked)
        await self.approvals.ask(asked, required)
        await self.approvals.load()
        return required.approval_id

    async def approve(self, approval_id: str, asked: Wanted) -> str:
        """Approve it, and return the release."""
        await self.approvals.load()
        expires_at = int(self.clock.now()) + 600
        await self.approvals.approve(approval_id, by="alice", reason="", expires_at=expires_at)
        await self.approvals.load()
        return release(approval_id, asked, int(self.clock.now()), expires_at)


def release(approval_id: str, asked: Wanted, issued_at: int, expires_at: int) -> str:
    claims = ReleaseClaims(ISSUER, asked.caller, issued_at, expires_at, approval_id, asked.digest)
    return tokens.sign(
        msgspec.json.encode(claims), "kid", lambda data: SIGNER.sign(data).signature, RELEASE_TYPE
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
async def databases(place: Place) -> AsyncIterator[Sequence[Database]]:
    opened = [await place.open() for _ in range(3)]
    yield opened
    for database in opened:
        await database.close()


@pytest.fixture
async def replicas(databases: Sequence[Database], clock: FakeClock) -> Sequence[Replica]:
    made = [Replica(database, clock) for database in databases]
    for replica in made:
        await replica.approvals.load()
    return made


async def test_what_one_replica_hears_the_others_know(replicas: Sequence[Replica]) -> None:
    first, second, third = replicas
    asked = wanted()
    approval_id = await first.ask(asked)
    shown = await second.approve(approval_id, asked)
    await third.approvals.load()
    assert third.approvals.released(shown, asked, used=None) == approval_id
    await third.approvals.use(approval_id)
    for replica in replicas:
        await replica.approvals.load()
        with pytest.raises(ApprovalInvalidError):
            replica.approvals.released(shown, asked, used=None)


async def test_every_step_moves_the_epoch(replicas: Sequence[Replica], databases: Sequence[Database]) -> None:
    epochs = [await databases[0].epoch()]
    asked = wanted()
    approval_id = await replicas[0].ask(asked)
    epochs.append(await databases[0].epoch())
    await replicas[0].approve(approval_id, asked)
    epochs.append(await databases[0].epoch())
    await replicas[0].approvals.use(approval_id)
    epochs.append(await databases[0].epoch())
    await replicas[0].approvals.deny(await replicas[0].ask(wanted(1)))
    epochs.append(await databases[0].epoch())
    assert epochs == sorted(set(epochs))


async def known_approval(replicas: Sequence[Replica]) -> str:
    """Return the id of an approval that all of them know."""
    asked = wanted()
    approval_id = await replicas[0].ask(asked)
    await replicas[0].approve(approval_id, asked)
    for replica in replicas:
        await replica.approvals.load()
    return approval_id


async def test_of_a_thousand_uses_at_a_time_on_three_replicas_one_succeeds(
    replicas: Sequence[Replica],
) -> None:
    approval_id = await known_approval(replicas)
    told = await asyncio.gather(
        *(replicas[n % 3].approvals.use(approval_id) for n in range(1000)), return_exceptions=True
    )
    assert told.count(None) == 1
    refused = [each for each in told if each is not None]
    assert all(isinstance(each, KKPError) for each in refused)
    assert any(isinstance(each, ApprovalInvalidError) for each in refused)


async def test_the_same_request_at_two_replicas_at_a_time_waits_once(replicas: Sequence[Replica]) -> None:
    asked = wanted()
    required = [replica.approvals.required(asked) for replica in replicas]
    told = await asyncio.gather(
        *(replica.approvals.ask(asked, each) for replica, each in zip(replicas, required, strict=True)),
        return_exceptions=True,
    )
    assert told.count(None) == 1
    assert sum(isinstance(each, StaleProposalError) for each in told) == 2
    for replica in replicas:
        await replica.approvals.load()
    (only,) = {replica.approvals.required(asked).approval_id for replica in replicas}
    assert only == required[told.index(None)].approval_id


async def test_an_emergency_is_another_request_than_what_is_none(replicas: Sequence[Replica]) -> None:
    urgent = wanted(demand=ApprovalDemand(600, 3600, is_break_glass=True))
    ordinary, emergency = await replicas[0].ask(wanted()), await replicas[0].ask(urgent)
    assert ordinary != emergency
    shown = await replicas[0].approve(ordinary, wanted())
    with pytest.raises(ApprovalInvalidError):
        replicas[0].approvals.released(shown, urgent, used=None)


async def test_a_caller_has_its_share_of_what_waits_on_all_replicas(
    replicas: Sequence[Replica], clock: FakeClock
) -> None:
    for number in range(SHARE):
        await replicas[number % 3].approvals.load()
        await replicas[number % 3].ask(wanted(number))
    one_more = wanted(SHARE)
    with pytest.raises(RateLimitedError) as refused:
        await replicas[0].approvals.ask(one_more, replicas[0].approvals.required(one_more))
    assert refused.value.retry_after_seconds == 3600
    await replicas[0].ask(wanted(caller="billing"))
    clock.advance(3600)  # what waited is over, though nobody has swept it
    await replicas[0].ask(one_more)


async def test_the_table_is_bounded(databases: Sequence[Database], replicas: Sequence[Replica]) -> None:
    await replicas[0].ask(wanted())
    store = ApprovalStore(databases[1])
    (row,) = (await store.load_approvals()).rows
    other = row._replace(id="another", caller="billing")
    with pytest.raises(RateLimitedError):
        await store.insert_approval(other, now=NOW, share=SHARE, at_most=1)
    await store.insert_approval(other, now=NOW, share=SHARE, at_most=2)


async def test_what_an_emergency_takes_is_no_share_of_what_is_none(
    databases: Sequence[Database], replicas: Sequence[Replica]
) -> None:
    await replicas[0].ask(wanted())
    store = ApprovalStore(databases[1])
    (row,) = (await store.load_approvals()).rows
    with pytest.raises(StaleProposalError):
        await store.insert_approval(row._replace(id="same"), now=NOW, share=9, at_most=9)
    with pytest.raises(RateLimitedError):
        await store.insert_approval(row._replace(id="more", digest="2"), now=NOW, share=1, at_most=9)
    urgent = row._replace(id="urgent", break_glass=1)
    await store.insert_approval(urgent, now=NOW, share=1, at_most=9)
    with pytest.raises(RateLimitedError):
        await store.insert_approval(urgent._replace(id="urgent-2", digest="2"), now=NOW, share=1, at_most=9)


async def test_a_full_table_is_known_of_before_anything_is_written(
    replicas: Sequence[Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = replicas
    monkeypatch.setattr(approvals, "MAX_ROWS", 3)
    monkeypatch.setattr(approvals, "EMERGENCY_ROWS", 1)
    approved = await first.ask(wanted())
    await first.approve(approved, wanted())  # what nobody has used yet takes its place as well
    await first.ask(wanted(1))
    urgent = [wanted(number, demand=ApprovalDemand(600, 60, is_break_glass=True)) for number in (0, 1)]
    with pytest.raises(RateLimitedError) as by_database:
        await second.ask(wanted(caller="billing"))  # it has not heard of them
    writes: list[object] = []
    monkeypatch.setattr(first.approvals._store, "insert_approval", lambda row, **_: writes.append(row))
    with pytest.raises(RateLimitedError) as by_memory:
        await first.ask(wanted(caller="billing"))
    assert writes == []
    assert by_database.value.retry_after_seconds == by_memory.value.retry_after_seconds == 600
    await second.ask(urgent[0])
    with pytest.raises(RateLimitedError):
        await second.ask(urgent[1])


@pytest.mark.parametrize("is_kept", [True, False], ids=["committed", "not committed"])
async def test_a_use_whose_answer_is_lost_is_lost_or_not_and_never_two(
    replicas: Sequence[Replica], monkeypatch: pytest.MonkeyPatch, *, is_kept: bool
) -> None:
    approval_id = await known_approval(replicas)
    real = ApprovalStore.take_approval

    async def answering_too_late(store: ApprovalStore, row: ApprovalRow) -> bool:
        if is_kept:
            assert await real(store, row)
        raise KeyringUnavailableError("the answer was lost")

    with monkeypatch.context() as patches:
        patches.setattr(ApprovalStore, "take_approval", answering_too_late)
        with pytest.raises(KeyringUnavailableError):
            await replicas[0].approvals.use(approval_id)
    told = await asyncio.gather(
        *(replica.approvals.use(approval_id) for replica in replicas), return_exceptions=True
    )
    assert told.count(None) == (0 if is_kept else 1)
    assert sum(isinstance(each, ApprovalInvalidError) for each in told) == (3 if is_kept else 2)


async def test_of_two_who_approve_at_a_time_one_does(replicas: Sequence[Replica]) -> None:
    approval_id = await replicas[0].ask(wanted())
    await replicas[1].approvals.load()
    told = await asyncio.gather(
        *(
            replica.approvals.approve(approval_id, by=name, reason="", expires_at=int(NOW) + 600)
            for replica, name in zip(replicas, ("alice", "bob"), strict=False)
        ),
        return_exceptions=True,
    )
    assert told.count(None) == 1
    assert sum(isinstance(each, ConflictError) for each in told) == 1


async def test_what_somebody_denies_is_gone_whoever_approves_it_meanwhile(
    replicas: Sequence[Replica],
) -> None:
    approval_id = await replicas[0].ask(wanted())
    await replicas[1].approvals.load()
    approve = replicas[0].approvals.approve(approval_id, by="alice", reason="", expires_at=int(NOW) + 600)
    approved, denied = await asyncio.gather(
        approve, replicas[1].approvals.deny(approval_id), return_exceptions=True
    )
    assert denied is None
    assert approved is None or isinstance(approved, NotFoundError)
    await replicas[2].approvals.load()
    assert replicas[2].approvals.find(approval_id) is None


async def test_an_approval_is_taken_back_as_long_as_it_was_not_used(replicas: Sequence[Replica]) -> None:
    first, second, _ = replicas
    asked = wanted()
    approval_id = await first.ask(asked)
    shown = await first.approve(approval_id, asked)
    with pytest.raises(ConflictError):
        first.approvals.waiting(approval_id)
    await second.approvals.load()
    await second.approvals.deny(approval_id)
    with pytest.raises(ApprovalInvalidError):
        await first.approvals.use(approval_id)
    with pytest.raises(ApprovalInvalidError):
        first.approvals.released(shown, asked, used=None)
    await second.approvals.load()
    with pytest.raises(NotFoundError):
        await second.approvals.deny(approval_id)


async def test_a_release_that_waits_for_its_use_is_good_until_the_second_that_it_names(
    replicas: Sequence[Replica], clock: FakeClock
) -> None:
    asked = wanted()
    approval_id = await replicas[0].ask(asked)
    shown = await replicas[0].approve(approval_id, asked)
    clock.advance(599.999)
    assert replicas[0].approvals.released(shown, asked, used=None) == approval_id
    clock.advance(0.001)
    with pytest.raises(ApprovalInvalidError):
        replicas[0].approvals.released(shown, asked, used=None)


async def test_what_this_very_request_has_used_up_is_good_on_its_next_walk_alone(
    replicas: Sequence[Replica],
) -> None:
    asked = wanted()
    approval_id = await replicas[0].ask(asked)
    shown = await replicas[0].approve(approval_id, asked)
    await replicas[0].approvals.use(approval_id)
    await replicas[0].approvals.load()
    assert replicas[0].approvals.released(shown, asked, used=approval_id) == approval_id
    for other, used in ((asked, None), (asked, "another"), (wanted(1), approval_id)):
        with pytest.raises(ApprovalInvalidError):
            replicas[0].approvals.released(shown, other, used=used)


async def test_what_is_over_is_recorded_before_it_is_deleted(
    replicas: Sequence[Replica], clock: FakeClock, place: Place
) -> None:
    first, second, _ = replicas
    approved, waiting = await first.ask(wanted()), await first.ask(wanted(1))
    await first.approve(approved, wanted())
    clock.advance(610)
    await first.approvals.sweep()
    assert first.expired == []  # by a clock that is behind it may not be over
    clock.advance(0.001)
    await first.approvals.sweep()
    assert first.expired == [(approved, "approved")]
    clock.advance(3600)

    async def fail(*_: object) -> None:
        raise OSError("the audit is away")

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(second.approvals, "_expired", fail)
        with pytest.raises(OSError, match="away"):
            await second.approvals.sweep()
    assert len(await place.rows("SELECT id FROM approvals")) == 1
    await second.approvals.sweep()
    assert second.expired == [(waiting, "waiting")]
    await first.approvals.sweep()
    assert len(first.expired) == 1
    assert await place.rows("SELECT id FROM approvals") == []


async def test_an_accepted_rollback_forgets_everything(
    replicas: Sequence[Replica], databases: Sequence[Database]
) -> None:
    await replicas[0].ask(wanted())
    await databases[0].write(forget_approvals)
    await replicas[0].approvals.load()
    assert replicas[0].approvals.page("", 9) == []


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "forge",
    [
        "UPDATE approvals SET decided_by = 'alice', decided_at = 1",
        "UPDATE approvals SET behind = '[]'",
        "UPDATE approvals SET caller = 'me'",
        "UPDATE approvals SET digest = 'another'",
        "UPDATE approvals SET valid_seconds = 86400",
        PLANT,
    ],
    ids=["approved", "nobody behind it", "another caller", "another digest", "longer", "planted"],
)
async def test_a_row_written_by_hand_approves_nothing(
    forge: str, replicas: Sequence[Replica], place: Place
) -> None:
    asked = wanted()
    await replicas[0].ask(asked)
    place.by_hand(forge)
    for replica in replicas:
        with pytest.raises(StateUntrustedError):
            await replica.approvals.load()
        with pytest.raises(StateUntrustedError):
            replica.approvals.released("a.b.c", asked, used=None)
        with pytest.raises(StateUntrustedError):
            replica.approvals.required(asked)
        with pytest.raises(StateUntrustedError):
            replica.approvals.check_trusted()
    place.by_hand("DELETE FROM approvals")
    await replicas[0].approvals.load()
    replicas[0].approvals.check_trusted()
