"""Whatever fails in whatever order: no receipt without its record, and no log that does not verify."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kkp.audit.base import AuditEntry, ChainHead, Receipt, RecordType
from kkp.audit.chain import first_record, link, read_body, record_hash
from kkp.audit.log import AuditLog
from kkp.audit.verify import StoredRow, verify_rows
from kkp.errors import AuditUnavailableError
from kkp.master_key import MasterKey
from kkp.model import Action
from tests.fakes.audit_store import Failure, FakeAuditStore
from tests.fakes.clock import FakeClock

pytestmark = pytest.mark.promise(30)

Step = tuple[Failure | None, int, bool]  # how the store fails, how many records, whether a late commit lands

steps = st.lists(
    st.tuples(st.sampled_from([None, None, *Failure]), st.integers(1, 4), st.booleans()),
    min_size=1,
    max_size=8,
)


async def commit_some(log: AuditLog, first: int, count: int) -> list[Receipt | BaseException]:
    entries = [
        AuditEntry(action=Action.ENCRYPT, decision="allow", decision_id=str(first + i)) for i in range(count)
    ]
    return await asyncio.gather(*map(log.commit, entries), return_exceptions=True)


async def run(plan: list[Step]) -> tuple[FakeAuditStore, dict[str, Receipt]]:
    """Run one boot over a store that fails as planned; return what was acknowledged, by decision."""
    store, acknowledged, number = FakeAuditStore(), dict[str, Receipt](), 0
    log = AuditLog(store, MasterKey(bytes(32)), FakeClock(0.0), "boot", deadline_seconds=0.004)
    await log.start()
    for failure, count, lands in plan:
        store.failure = failure
        for offset, result in enumerate(await commit_some(log, number, count)):
            if isinstance(result, Receipt):
                acknowledged[str(number + offset)] = result
            else:
                assert isinstance(result, AuditUnavailableError)
        number += count
        if lands:
            store.land_late_commits()
    store.failure = None
    await log.close()
    return store, acknowledged


@settings(max_examples=40, deadline=None)
@given(steps)
def test_every_receipt_has_its_record_and_the_chain_never_forks(plan: list[Step]) -> None:
    store, acknowledged = asyncio.run(run(plan))
    rows = store.stored_rows()
    assert verify_rows(rows, rows[:1]).findings == ()
    numbers = {body.get("decision_id"): body["seq"] for body in map(json.loads, store.bodies())}
    assert {decision: receipt.seq for decision, receipt in acknowledged.items()}.items() <= numbers.items()
    assert len({receipt.seq for receipt in acknowledged.values()}) == len(acknowledged)


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(
    st.lists(text, min_size=1, max_size=8),
    st.floats(0, 2**35),
    st.binary(min_size=32, max_size=32),
    st.integers(0),
)
def test_a_record_says_what_it_was_given(values: list[str], now: float, previous: bytes, seq: int) -> None:
    chain, seq = values[0], seq % 2**53
    row = link(ChainHead(chain, seq, previous), now, RecordType.DECISION, {"reasons": values})
    body = read_body(row.body)
    assert (body.chain, body.seq, body.prev) == (chain, seq + 1, previous.hex())
    assert json.loads(row.body)["reasons"] == values
    assert row.hash == record_hash(row.body)


@st.composite
def logs(draw: st.DrawFn) -> list[StoredRow]:
    """Boots of various lengths, written at the same time; each names the heads that none before it named."""
    heads: dict[str, ChainHead] = {}
    carried: dict[str, int] = {}
    rows: list[StoredRow] = []
    for turn in draw(st.lists(st.integers(0, 5), min_size=2, max_size=30)):
        chain = f"boot-{turn}"
        if chain in heads:
            row = link(heads[chain], turn, RecordType.DECISION, {"decision_id": str(len(rows))})
        else:
            frontier = [head for head in heads.values() if carried.get(head.chain) != head.seq]
            row = first_record(chain, turn, "0.1.0", frontier)
            carried.update({head.chain: head.seq for head in frontier})
        heads[chain] = ChainHead(chain, row.seq, row.hash)
        rows.append(StoredRow(chain, *row))
    return rows


def firsts(rows: list[StoredRow]) -> list[StoredRow]:
    return [row for row in rows if row.seq == 1]


@given(logs())
def test_a_sound_log_raises_no_alarm(rows: list[StoredRow]) -> None:
    assert verify_rows(rows, firsts(rows)).clean


@given(logs(), st.data())
def test_a_log_with_one_bit_changed_names_the_record(rows: list[StoredRow], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(rows) - 1))
    row = rows[index]
    assert isinstance(row.body, bytes)
    body = bytearray(row.body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = [*rows[:index], row._replace(body=bytes(body)), *rows[index + 1 :]]
    found = verify_rows(changed, firsts(changed)).findings
    assert (row.chain, row.seq) in {(finding.chain, finding.seq) for finding in found}


@given(logs(), st.data())
def test_a_log_that_lacks_a_record_with_a_successor_is_not_clean(
    rows: list[StoredRow], data: st.DataObject
) -> None:
    last = {row.chain: index for index, row in enumerate(rows)}
    index = data.draw(st.integers(0, len(rows) - 1))
    later_boot = any(row.seq == 1 for row in rows[index + 1 :])
    changed = [*rows[:index], *rows[index + 1 :]]
    clean = verify_rows(changed, firsts(changed)).clean
    assert clean == (last[rows[index].chain] == index and not later_boot)
