"""Rotating the master key: every genuine row is renewed, no other, and nobody writes under the old key.

Replicas here are whole foundations on one database, in one process.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from kkp import app, data_dir
from kkp.approvals import Wanted
from kkp.audit.sealing import InputKeys, PrivateDigests
from kkp.authn import identities, revocations
from kkp.authn.accounts import Account
from kkp.authn.base import Authenticated
from kkp.authn.operator import LocalOperator
from kkp.errors import (
    ConfigError,
    ConflictError,
    KeyringUnavailableError,
    StaleProposalError,
    StateUntrustedError,
)
from kkp.kms.local import DEFAULT_KEY_ID, LocalKMS, ensure_default_key
from kkp.master_key import KEPT, MasterKey, RootKey
from kkp.model import ApprovalDemand, Grant, Identity
from kkp.operations.base import Proposal
from kkp.operations.master_key import (
    FinishMasterKey,
    Rotated,
    RotateMasterKey,
    ShowMasterKey,
    Standing,
)
from kkp.renewal import Renewable
from kkp.revocations import RevocationKind
from kkp.rows import ApprovalRow, IdentityRow, LocalKeyRow, MasterKeyMarks, RevocationRow, RingRow
from kkp.store import schema
from kkp.store.approvals import ApprovalStore
from kkp.store.audit import AuditStore
from kkp.store.base import Work
from kkp.store.identities import IdentityStore
from kkp.store.local_keys import LocalKeyStore
from kkp.store.master_keys import BATCH, MasterKeyStore
from kkp.store.revocations import RevocationStore
from kkp.store.ring import RingStore
from kkp.unlock import FileTarget, Target, Unlocked, unlock
from tests.harness import settings_for
from tests.postgres import PostgreSQL
from tests.scale import SCALE

NOW = 1_800_000_000.0
CONTEXT = {"table": "orders"}
DATA_KEY = bytes(range(32))
URLS: dict[Path, str] = {}  # of the data directories whose database is a PostgreSQL
PROPOSAL = Proposal(authenticated=Authenticated(LocalOperator().caller, 1))
WANTED = Wanted(
    "orders",
    ("orders",),
    b'{"action":"decrypt","request":{"backend":"aws","key_id":"alias/orders"}}',
    ApprovalDemand(600, 3600, is_break_glass=False),
)
ANY_DOCUMENT = '{"roles":["admin"],"grants":[],"attributes":{},"service_keys":[]}'


@asynccontextmanager
async def replica(directory: Path, key: str = "", *, create: bool = False) -> AsyncIterator[app.Foundation]:
    """Open the data directory, with the key in a file of this name; by default with its own."""
    given = {"KKP_MASTER_KEY_FILE": str(directory / key)} if key else {}
    if directory in URLS:
        given["KKP_DATABASE_URL"] = URLS[directory]
    async with app.foundation(settings_for(directory, **given), create=create) as base:
        yield base


def identity(name: str) -> Identity:
    grants = (Grant("aws", "alias/orders", ("encrypt",)),)
    return Identity(name, ("service",), grants, {}, NOW, None)


async def fill(base: app.Foundation) -> None:
    """Make a row of every kind."""
    await base.keyring().start()
    await base.directory.add(identity("orders"))
    await base.accounts().add(
        Account(id="user:1", email="ann@example.com", roles=("user",), created_at=NOW, password="kept")
    )
    revoked = base.revocations()
    await revoked.revoke_token("a-token", int(base.clock.now()) + 300, by="orders")
    await revoked.revoke(RevocationKind.BACKEND, "gcp", by="boss", reason="")
    waiting = base.approvals(base.keyring())
    await waiting.load()
    await waiting.ask(WANTED, waiting.required(WANTED))
    await ensure_default_key(LocalKeyStore(base.database, base.master_keys), base.master_key, base.clock)
    await input_keys(base).for_day("2026-01-01")


def input_keys(base: app.Foundation) -> InputKeys:
    return InputKeys(AuditStore(base.database, base.master_keys), base.master_key)


@pytest.fixture
async def base(
    tmp_path: Path, request: pytest.FixtureRequest, patience: None
) -> AsyncIterator[app.Foundation]:
    """A replica with the key that the database was made with, and a row of every kind."""
    if getattr(request, "param", "sqlite") == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgres_server")
        URLS[tmp_path] = server.url(server.empty_database())
    async with replica(tmp_path, create=True) as made:
        await fill(made)
        yield made


# Where the whole database matters; the rest is one implementation for both.
ON_BOTH = pytest.mark.parametrize("base", ["sqlite", "postgresql"], indirect=True)


def rotation(base: app.Foundation) -> RotateMasterKey:
    store = MasterKeyStore(base.database)
    return RotateMasterKey(store, base.master_keys, app.UNDER_THE_MASTER_KEY, base.clock, notice_seconds=0)


async def rotate(base: app.Foundation, target: Target | None) -> Rotated:
    return await rotation(base).run(PROPOSAL, target)


async def finish(base: app.Foundation) -> None:
    await FinishMasterKey(MasterKeyStore(base.database), base.master_keys).run(PROPOSAL, None)


def new_file(directory: Path, name: str = "new.key") -> FileTarget:
    return FileTarget(directory / name)


def key_in(path: Path) -> RootKey:
    return RootKey(data_dir.master_key(path, may_create=False))


async def rows_of(base: app.Foundation, rows: Renewable) -> list[tuple[tuple[Any, ...], Any]]:
    """Return what each row's bytes are made of, and what is signed or sealed."""
    table = schema.metadata.tables[rows.table]
    beside = schema.metadata.tables[rows.beside or rows.table]
    columns = [table.c[name] if name in table.c else beside.c[name] for name in rows.columns]
    query = select(*columns, table.c[rows.column])
    if rows.beside:
        (key,) = rows.identified_by
        query = query.join(beside, table.c[key] == beside.c[key])
    found = await base.database.read(lambda connection: connection.execute(query).all())
    return [(tuple(row)[:-1], row[-1]) for row in found]


async def all_rows(base: app.Foundation) -> list[object]:
    return [row for rows in app.UNDER_THE_MASTER_KEY for row in await rows_of(base, rows)]


async def under(base: app.Foundation, present: RootKey, former: RootKey) -> dict[str, set[bool]]:
    """Tell of each table whether its rows are under the one key, the other, or both."""
    return {
        rows.table: {rows.renew(values, stored, present, former) is None for values, stored in found}
        for rows in app.UNDER_THE_MASTER_KEY
        if (found := await rows_of(base, rows))
    }


def execute(path: Path, statement: str, *values: object) -> int:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).rowcount


def database_of(directory: Path) -> Path:
    return directory / ".kkp/kkp.db"


# What is renewed.


def test_every_column_that_is_signed_or_sealed_is_renewed() -> None:
    protected = {
        (table.name, column.name)
        for table in schema.metadata.tables.values()
        for column in table.columns
        if column.name in {"mac", "sealed"}
    }
    assert {(rows.table, rows.column) for rows in app.UNDER_THE_MASTER_KEY} == protected
    for rows in app.UNDER_THE_MASTER_KEY:
        table = schema.metadata.tables[rows.table]
        assert {column.name for column in table.primary_key} == set(rows.identified_by) <= set(rows.columns)


@ON_BOTH
async def test_after_a_rotation_every_row_is_under_the_new_key_and_none_opens_under_the_old(
    base: app.Foundation, tmp_path: Path
) -> None:
    old = base.master_key.present
    done = await rotate(base, new_file(tmp_path))
    new = key_in(tmp_path / "new.key")
    tables = await under(base, new, old)
    assert tables.keys() == {rows.table for rows in app.UNDER_THE_MASTER_KEY}
    assert set().union(*tables.values()) == {True}
    assert await under(base, new, new) == tables
    for rows in app.UNDER_THE_MASTER_KEY:
        for values, stored in await rows_of(base, rows):
            with pytest.raises(StateUntrustedError):
                rows.renew(values, stored, old, old)
    assert done == Rotated(began=True, rows=len(await all_rows(base)), finished=False)


@ON_BOTH
async def test_more_rows_than_a_batch_are_all_renewed(base: app.Foundation, tmp_path: Path) -> None:
    revoked, exp = base.revocations(), int(base.clock.now()) + 300
    await asyncio.gather(  # one is there already
        *(
            revoked.revoke_token(f"token-{number}", exp, by="orders", is_limited=False)
            for number in range(2 * BATCH)
        )
    )
    old = base.master_key.present
    await rotate(base, new_file(tmp_path))
    assert (await under(base, base.master_key.present, old))["revoked_tokens"] == {True}
    assert len(await rows_of(base, revocations.TOKEN_ROWS)) == 2 * BATCH + 1


async def test_what_others_rely_on_outlives_the_key_it_was_derived_from(
    base: app.Foundation, tmp_path: Path
) -> None:
    before = [base.master_key.derive(purpose) for purpose in KEPT]
    signer = (await app.checkpoint_signer(base.settings)).public_key
    for name in ("second.key", "third.key"):
        await rotate(base, new_file(tmp_path, name))
        assert [base.master_key.derive(purpose) for purpose in KEPT] == before
        async with replica(tmp_path, name) as restarted:
            await finish(restarted)
            assert [restarted.master_key.derive(purpose) for purpose in KEPT] == before
            assert (await app.checkpoint_signer(restarted.settings)).public_key == signer
        await base.directory.load()
    assert base.master_key.derive("kkp/ring/v1") == key_in(tmp_path / "third.key").derive("kkp/ring/v1")


# Replicas.


@ON_BOTH
async def test_a_replica_reads_and_writes_before_during_and_after_a_rotation(
    base: app.Foundation, tmp_path: Path
) -> None:
    async with replica(tmp_path) as other:
        keyring, kms = (
            other.keyring(),
            LocalKMS(LocalKeyStore(other.database, other.master_keys), other.master_key),
        )
        await keyring.start()
        wrapped = await kms.wrap(DEFAULT_KEY_ID, DATA_KEY, CONTEXT)
        await rotate(base, new_file(tmp_path))
        await keyring.load()
        await other.directory.add(identity("billing"))
        await keyring.rotate()
        await kms.close()  # what it has unsealed is forgotten
        assert await kms.unwrap(DEFAULT_KEY_ID, wrapped, CONTEXT) == DATA_KEY
        assert other.master_keys.marks == base.master_keys.marks
    await base.directory.load()
    assert {found.id for found in base.directory.all()} == {"orders", "billing"}
    tables = await under(base, base.master_key.present, base.master_key.present)
    assert set().union(*tables.values()) == {True}


@ON_BOTH
async def test_a_write_that_was_signed_before_the_rotation_is_refused_and_goes_through_when_signed_anew(
    base: app.Foundation, tmp_path: Path
) -> None:
    async with replica(tmp_path) as slow:
        await rotate(base, new_file(tmp_path))
        with pytest.raises(StaleProposalError):
            await slow.directory.add(identity("billing"))
        assert [row for row, _ in await rows_of(base, identities.ROWS) if row[0] == "billing"] == []
        await slow.directory.add(identity("billing"))
    tables = await under(base, base.master_key.present, base.master_key.present)
    assert tables["identities"] == {True}


APPROVAL_ROW = ApprovalRow("id", "me", "[]", "", "{}", 0, 60, NOW, NOW + 60, None, None, "", b"mac")
WRITES: dict[str, Callable[[app.Foundation], Awaitable[object]]] = {
    "an identity is added": lambda base: base.directory.add(identity("billing")),
    "an identity is disabled": lambda base: base.directory.disable("orders", at=NOW),
    "a token is revoked": lambda base: base.revocations().revoke_token("another", int(NOW) + 9, by="orders"),
    "a backend is revoked": lambda base: RevocationStore(base.database, base.master_keys).put_revocation(
        RevocationRow("id", "backend", None, "aws", None, NOW, "boss", "", b"mac"),
        now=NOW,
        remembered_seconds=0,
        at_most=9,
    ),
    "an input key is stored": lambda base: AuditStore(base.database, base.master_keys).input_key(
        "2001-01-01", b"sealed"
    ),
    "a local key is added": lambda base: LocalKeyStore(base.database, base.master_keys).add_local_key(
        LocalKeyRow("other", 1, NOW, b"sealed")
    ),
    "an approval is asked for": lambda base: ApprovalStore(base.database, base.master_keys).insert_approval(
        APPROVAL_ROW, now=NOW, share=9, at_most=9
    ),
    "a request is approved": lambda base: ApprovalStore(base.database, base.master_keys).replace_approval(
        APPROVAL_ROW, former_mac=b"former mac"
    ),
    "a signing key is added": lambda base: RingStore(base.database, base.master_keys).insert_ring_key(
        RingRow("kid", 9, "{}", NOW, NOW, None, b"mac"), b"sealed"
    ),
    "a signing key is promoted": lambda base: RingStore(base.database, base.master_keys).promote_ring_key(
        RingRow("kid", 9, "{}", NOW, NOW, None, b"mac"), former_mac=b"former mac"
    ),
    "a signing key is revoked": lambda base: RingStore(base.database, base.master_keys).revoke_ring_key(
        RingRow("kid", 9, "{}", NOW, NOW, NOW, b"mac"), promoted=None, created=None
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=[name.replace(" ", "-") for name in WRITES])
async def test_no_kind_of_row_is_written_under_a_key_that_was_replaced(
    write: Callable[[app.Foundation], Awaitable[object]], base: app.Foundation, tmp_path: Path
) -> None:
    async with replica(tmp_path) as slow:
        await rotate(base, new_file(tmp_path))
        before = await all_rows(base)
        with pytest.raises(StaleProposalError):
            await write(slow)
        assert await all_rows(base) == before


async def test_a_day_that_begins_as_the_key_is_replaced_has_its_input_key_all_the_same(
    base: app.Foundation, tmp_path: Path
) -> None:
    async with replica(tmp_path) as slow:
        await rotate(base, new_file(tmp_path))
        await input_keys(slow).for_day("2026-01-02")
    tables = await under(base, base.master_key.present, base.master_key.present)
    assert tables["audit_input_keys"] == {True}


async def test_who_starts_in_the_moment_of_a_rotation_starts_all_the_same(
    base: app.Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated = asyncio.Event()

    async def unlock_and_be_overtaken(*arguments: Any, **named: Any) -> Unlocked:
        unlocked = await unlock(*arguments, **named)
        if not rotated.is_set():
            rotated.set()
            await rotate(base, new_file(tmp_path))
        return unlocked

    monkeypatch.setattr("kkp.app.unlock", unlock_and_be_overtaken)
    async with replica(tmp_path) as started:
        assert started.master_keys.marks == base.master_keys.marks


async def test_digests_are_made_under_the_present_key(base: app.Foundation, tmp_path: Path) -> None:
    digests = PrivateDigests(base.master_key)
    before = digests.of({"ip": "10.0.0.1"})
    await rotate(base, new_file(tmp_path))
    after = digests.of({"ip": "10.0.0.1"})
    assert (
        after == PrivateDigests(MasterKey.of(key_in(tmp_path / "new.key"))).of({"ip": "10.0.0.1"}) != before
    )


@ON_BOTH
async def test_the_former_key_is_believed_while_rows_are_renewed_and_not_a_moment_longer(
    base: app.Foundation, tmp_path: Path
) -> None:
    old = base.master_key.present
    async with replica(tmp_path) as other:
        cut_off(base, after=1)
        with pytest.raises(CutOffError):
            await rotate(base, new_file(tmp_path))
        await other.directory.load()
        assert (other.master_keys.warning() or "").startswith("the master key is being rotated")
        assert other.master_keys.marks == MasterKeyMarks(
            key_in(tmp_path / "new.key").check_value(), old.check_value()
        )
        mend(base)
        await rotate(base, None)
        forged = IdentityStore(other.database)  # who has the former key, and can write to the database
        await forged.insert_identity(signed_with(old, "forged"))
        with pytest.raises(StateUntrustedError):
            await other.directory.load()
        assert other.directory.enabled("forged") is None
        assert other.master_keys.warning() is None


def signed_with(key: RootKey, name: str) -> IdentityRow:
    row = IdentityRow(name, ANY_DOCUMENT, NOW, None, b"")
    rows = identities.ROWS
    return row._replace(mac=key.mac(rows.purpose, rows.signed(row)))


async def test_a_replica_that_was_away_all_the_while_takes_the_key_it_is_given_by_now(
    base: app.Foundation, tmp_path: Path
) -> None:
    async with replica(tmp_path) as away:
        await rotate_for_good(base, tmp_path)
        shutil.copy(tmp_path / "new.key", tmp_path / ".kkp/master.key")
        await away.directory.load()
        assert away.directory.enabled("orders") is not None


async def test_a_replica_that_was_away_and_has_no_way_to_the_key_believes_nothing(
    base: app.Foundation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(tmp_path) as away:
        await rotate_for_good(base, tmp_path)
        with pytest.raises(KeyringUnavailableError, match="this process was not given the new one"):
            await away.directory.load()
        with pytest.raises(KeyringUnavailableError, match="this process was not given the new one"):
            await away.directory.add(identity("billing"))
        (tmp_path / ".kkp/master.key").unlink()
        with pytest.raises(KeyringUnavailableError, match="can't be had here"):
            await away.directory.load()
    assert "KKP_MASTER_KEY_FILE" in caplog.text


async def rotate_for_good(base: app.Foundation, directory: Path) -> None:
    await rotate(base, new_file(directory))
    async with replica(directory, "new.key") as restarted:
        await finish(restarted)


async def test_a_process_never_goes_back_to_a_key_that_was_replaced(
    base: app.Foundation, tmp_path: Path
) -> None:
    old = base.master_key.present
    await rotate(base, new_file(tmp_path))
    execute(database_of(tmp_path), "DELETE FROM kept_secrets")
    execute(database_of(tmp_path), "UPDATE identities SET mac = ?", signed_with(old, "orders").mac)
    assert execute(database_of(tmp_path), "UPDATE state SET master_key_check = ?", old.check_value()) == 1
    for _attempt in range(2):
        with pytest.raises(KeyringUnavailableError, match="was replaced before"):
            await base.directory.load()
        with pytest.raises(KeyringUnavailableError, match="was replaced before"):
            await base.directory.add(identity("billing"))
    assert base.master_key.check_value() == key_in(tmp_path / "new.key").check_value()


async def test_a_wrap_of_the_former_key_that_is_put_back_later_is_not_followed(
    base: app.Foundation, tmp_path: Path
) -> None:
    cut_off(base, after=1)
    with pytest.raises(CutOffError):
        await rotate(base, new_file(tmp_path))
    with closing(sqlite3.connect(database_of(tmp_path))) as connection:
        kept = connection.execute("SELECT * FROM master_key_wraps WHERE opener = 'successor'").fetchone()
    mend(base)
    await rotate(base, None)
    execute(database_of(tmp_path), "INSERT INTO master_key_wraps VALUES (?, ?, ?, ?, ?, ?)", *kept)
    with pytest.raises(KeyringUnavailableError, match="was replaced before"):
        await base.directory.load()
    assert base.master_key.former is None


# What is cut off, forged or in the way.


class CutOffError(Exception):
    """Stands for kill -9."""


def cut_off(base: app.Foundation, *, after: int) -> None:
    """Let a replica die once it has committed so many transactions."""
    write, left = base.database.write, [after]

    async def until_then(work: Work[Any]) -> Any:
        if not left[0]:
            raise CutOffError
        done = await write(work)
        left[0] -= 1
        return done

    base.database.write = until_then  # type: ignore[method-assign]


def mend(base: app.Foundation) -> None:
    del base.database.write  # its class's own is there again


# The steps: begin, one batch of each table and the look whether there is more, settle; then a whole rotation.
STEPS = 2 + 2 * len(app.UNDER_THE_MASTER_KEY)

CUTS = range(STEPS + 1) if SCALE > 1 else [0, 1, 2, STEPS // 2, STEPS - 1, STEPS]


@pytest.mark.parametrize(
    ("base", "after"),
    [*(("sqlite", after) for after in CUTS), *(("postgresql", after) for after in (1, STEPS // 2))],
    indirect=["base"],
)
async def test_cut_off_at_any_step_it_goes_on_and_meanwhile_everything_is_read(
    after: int, base: app.Foundation, tmp_path: Path
) -> None:
    old = base.master_key.present
    cut_off(base, after=after)
    with contextlib.suppress(CutOffError):
        await rotate(base, new_file(tmp_path))
    given = ["", "new.key"] if after else [""]
    for name in given:
        async with replica(tmp_path, name) as started:
            await everything_is_read(started)
    if not after:
        with pytest.raises(ConfigError, match="another master key, or that was rotated"):
            await started_with(tmp_path, "new.key")
    async with replica(tmp_path) as operator:
        if after < STEPS:
            await rotate(operator, new_file(tmp_path))
    new = key_in(tmp_path / "new.key")
    assert set().union(*(await under(base, new, old)).values()) == {True}
    async with replica(tmp_path, "new.key") as restarted:
        await finish(restarted)
        await everything_is_read(restarted)
    with pytest.raises(ConfigError, match="another master key, or that was rotated"):
        await started_with(tmp_path, "")


async def started_with(directory: Path, name: str) -> None:
    async with replica(directory, name):
        pass


async def everything_is_read(base: app.Foundation) -> None:
    revoked, keyring = base.revocations(), base.keyring()
    people = base.accounts()
    await keyring.load()
    await revoked.load()
    await people.load()
    assert people.enabled("user:1") is not None
    assert "a-token" in {each.id for each in revoked.page("", 9)}
    assert revoked.is_stopped("gcp", None)
    waiting = base.approvals(keyring)
    await waiting.load()
    assert [each.caller for each in waiting.page("", 9)] == ["orders"]
    assert base.directory.enabled("orders") is not None
    kms = LocalKMS(LocalKeyStore(base.database, base.master_keys), base.master_key)
    wrapped = await kms.wrap(DEFAULT_KEY_ID, DATA_KEY, CONTEXT)
    assert await kms.unwrap(DEFAULT_KEY_ID, wrapped, CONTEXT) == DATA_KEY
    await input_keys(base).for_day("2026-01-01")


FORGERIES: dict[str, str] = {
    "identities": "UPDATE identities SET document = replace(document, 'service', 'admin')",
    "a planted identity": "INSERT INTO identities SELECT 'me', document, 0, NULL, mac FROM identities",
    "accounts": "UPDATE accounts SET id = 'user:2'",
    "ring_keys": "UPDATE ring_keys SET activate_at = activate_at - 1",
    "ring_private_keys": "UPDATE ring_private_keys SET sealed = randomblob(length(sealed))",
    "revoked_tokens": "UPDATE revoked_tokens SET exp = exp - 1",
    "revocations": "UPDATE revocations SET name = 'aws'",
    "approvals": "UPDATE approvals SET decided_by = 'me'",
    "local_keys": "UPDATE local_keys SET version = version + 1",
    "audit_input_keys": "UPDATE audit_input_keys SET day = '1999-01-01' WHERE day = '2026-01-01'",
    "text for a MAC": "UPDATE identities SET mac = 'x'",
    "a number for a blob": "UPDATE local_keys SET sealed = 7",
    "nothing for a blob": "UPDATE local_keys SET sealed = x''",
}


@pytest.mark.promise(11)
@pytest.mark.parametrize("forge", FORGERIES.values(), ids=[name.replace(" ", "-") for name in FORGERIES])
async def test_a_row_that_somebody_wrote_by_hand_is_not_made_ours_by_a_rotation(
    forge: str, base: app.Foundation, tmp_path: Path
) -> None:
    path, table = database_of(tmp_path), forge.split()[2 if forge.startswith("INSERT") else 1]
    old = base.master_key.present
    assert execute(path, forge) >= 1
    with pytest.raises(StateUntrustedError, match=rf"\AA row of {table} failed its authentication \(\("):
        await rotate(base, new_file(tmp_path))
    forged = [
        stored
        for rows in app.UNDER_THE_MASTER_KEY
        for values, stored in await rows_of(base, rows)
        if rows.table == table and not is_genuine(rows, values, stored, base.master_key.present, old)
    ]
    assert forged
    with pytest.raises(StateUntrustedError):
        await rotate(base, None)
    for gone in {table, table.replace("ring_keys", "ring_private_keys")}:
        execute(path, f"DELETE FROM {gone}")  # noqa: S608  one of the names above
    assert await rotate(base, None)
    assert base.master_key.former is None


def is_genuine(rows: Renewable, values: Any, stored: Any, present: RootKey, former: RootKey) -> bool:
    try:
        rows.renew(values, stored, present, former)
    except StateUntrustedError:
        return False
    return True


async def test_a_private_half_without_its_key_is_not_renewed(base: app.Foundation, tmp_path: Path) -> None:
    execute(
        database_of(tmp_path),
        "INSERT INTO ring_private_keys SELECT 'a' || kid, sealed FROM ring_private_keys",
    )
    with pytest.raises(StateUntrustedError, match="A row of ring_private_keys"):
        await rotate(base, new_file(tmp_path))


async def test_a_kept_secret_that_was_altered_is_noticed(base: app.Foundation, tmp_path: Path) -> None:
    await rotate(base, new_file(tmp_path))
    assert execute(database_of(tmp_path), "UPDATE kept_secrets SET sealed = randomblob(92)") == len(KEPT)
    with pytest.raises(StateUntrustedError):
        await started_with(tmp_path, "new.key")


@asynccontextmanager
async def naming(
    directory: Path, check_value: bytes, *, key: str = "", create: bool = False
) -> AsyncIterator[app.Foundation]:
    """Open the data directory where KKP_MASTER_KEY_CHECK names the master key."""
    given = {"KKP_MASTER_KEY_FILE": str(directory / key)} if key else {}
    chosen = settings_for(directory, KKP_MASTER_KEY_CHECK=check_value.hex(), **given)
    async with app.foundation(chosen, create=create) as base:
        yield base


async def test_the_former_key_s_row_that_is_put_back_is_not_believed_where_the_present_key_is_named(
    base: app.Foundation, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(database_of(tmp_path))) as connection:
        cut_off(base, after=1)
        with pytest.raises(CutOffError):
            await rotate(base, new_file(tmp_path))
        query = "SELECT * FROM master_key_wraps WHERE opener = 'successor'"
        row = connection.execute(query).fetchone()
    mend(base)
    await rotate(base, None)
    async with replica(tmp_path, "new.key") as restarted:
        await finish(restarted)
        check_value = restarted.master_key.check_value()
    async with naming(tmp_path, check_value, key="new.key") as running:
        execute(database_of(tmp_path), "INSERT INTO master_key_wraps VALUES (?, ?, ?, ?, ?, ?)", *row)
        with pytest.raises(KeyringUnavailableError, match="that KKP_MASTER_KEY_CHECK does not"):
            await running.directory.load()
        with pytest.raises(
            ConfigError, match=r"\AKKP_MASTER_KEY_CHECK: .* rows are under another one besides"
        ):
            async with naming(tmp_path, check_value, key="new.key"):
                pass


async def test_replicas_that_name_the_former_key_go_on_and_start_in_the_middle_of_a_rotation(
    base: app.Foundation, tmp_path: Path
) -> None:
    former = base.master_key.check_value()
    async with naming(tmp_path, former) as running:
        cut_off(base, after=1)
        with pytest.raises(CutOffError):
            await rotate(base, new_file(tmp_path))
        await running.directory.load()
        async with naming(tmp_path, former) as started:
            assert started.master_keys.marks == running.master_keys.marks == base.master_keys.marks
        mend(base)
        await rotate(base, None)
        await running.directory.load()
        async with naming(tmp_path, former) as started:
            assert started.master_key.former is None
    async with naming(tmp_path, base.master_key.check_value(), key="new.key") as started:
        await finish(started)


async def test_a_key_that_is_not_named_is_not_used_for_a_new_database_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unset it where the database is a new one"):
        async with naming(tmp_path, bytes(32), create=True):
            pass
    assert not database_of(tmp_path).exists()


@pytest.mark.parametrize("name", KEPT)
async def test_a_kept_secret_that_was_deleted_is_not_derived_anew(
    name: str, base: app.Foundation, tmp_path: Path
) -> None:
    async with replica(tmp_path) as running:
        assert execute(database_of(tmp_path), "DELETE FROM kept_secrets WHERE name = ?", name) == 1
        with pytest.raises(StateUntrustedError, match="lacks secrets that outlive its master key"):
            await started_with(tmp_path, "")  # before any rotation, too
        with pytest.raises(StateUntrustedError):
            await rotate(base, new_file(tmp_path))
        with pytest.raises(StateUntrustedError):
            await running.directory.load()


async def test_without_a_target_there_must_be_something_to_go_on_with(
    base: app.Foundation, tmp_path: Path
) -> None:
    with pytest.raises(ConflictError, match="give --to-file PATH for a new file"):
        await rotate(base, None)
    await rotate(base, new_file(tmp_path))
    with pytest.raises(ConflictError, match="The last rotation is not finished"):
        await rotate(base, None)
    with pytest.raises(ConflictError, match="The last rotation is not finished"):
        await rotate(base, new_file(tmp_path, "third.key"))
    assert not (tmp_path / "third.key").exists()


async def test_the_end_waits_for_the_new_key_and_for_every_row(base: app.Foundation, tmp_path: Path) -> None:
    cut_off(base, after=1)
    with pytest.raises(CutOffError):
        await rotate(base, new_file(tmp_path))
    async with replica(tmp_path, "new.key") as restarted:
        with pytest.raises(ConflictError, match="Rows may still be under the former key"):
            await finish(restarted)
        await rotate(restarted, None)
    mend(base)
    async with replica(tmp_path, "new.key") as restarted:
        assert (
            await standing(restarted)
        ).former_opens is False  # it was given the new one, and saw it to the end
        await finish(restarted)


async def test_who_was_given_the_former_key_can_t_end_it(base: app.Foundation, tmp_path: Path) -> None:
    await rotate(base, new_file(tmp_path))
    with pytest.raises(ConflictError, match="This command was given the former master key itself"):
        await finish(base)
    assert (await standing(base)).former_opens is True


async def standing(base: app.Foundation) -> Standing:
    return await ShowMasterKey(MasterKeyStore(base.database)).run(PROPOSAL, None)


@ON_BOTH
async def test_two_commands_at_a_time_make_one_rotation(base: app.Foundation, tmp_path: Path) -> None:
    async with replica(tmp_path) as other:
        targets = [new_file(tmp_path, "a.key"), new_file(tmp_path, "b.key")]
        done = await asyncio.gather(
            rotate(base, targets[0]), rotate(other, targets[1]), return_exceptions=True
        )
        refused = [error for error in done if isinstance(error, ConflictError)]
        assert len(refused) <= 1
        await base.directory.load()
        await other.directory.load()
        assert base.master_keys.marks == other.master_keys.marks
    present = base.master_key.present
    assert set().union(*(await under(base, present, present)).values()) == {True}


async def test_the_file_of_an_attempt_that_was_cut_off_is_the_new_key(
    base: app.Foundation, tmp_path: Path
) -> None:
    cut_off(base, after=0)
    with pytest.raises(CutOffError):
        await rotate(base, new_file(tmp_path))
    made = key_in(tmp_path / "new.key").check_value()
    mend(base)
    await rotate(base, new_file(tmp_path))
    assert base.master_key.check_value() == made


async def test_a_file_with_the_present_key_or_one_that_was_replaced_holds_no_new_one(
    base: app.Foundation, tmp_path: Path
) -> None:
    first = FileTarget(tmp_path / ".kkp/master.key")
    with pytest.raises(
        ConflictError, match=r"/\.kkp/master\.key holds the present master key, or one that was"
    ):
        await rotate(base, first)
    await rotate(base, new_file(tmp_path))
    async with replica(tmp_path, "new.key") as restarted:
        await finish(restarted)
        before = restarted.master_keys.marks
        for no_new_one in (first, new_file(tmp_path)):
            with pytest.raises(ConflictError, match="nothing was rotated"):
                await rotate(restarted, no_new_one)
        assert restarted.master_keys.marks == before


async def test_a_file_that_is_there_is_used_and_that_is_said(
    base: app.Foundation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = (await new_file(tmp_path).make(NOW)).key.check_value()
    assert not caplog.records
    await rotate(base, new_file(tmp_path))
    assert f"{tmp_path}/new.key is there and is used; delete it for a fresh key" in caplog.text
    assert base.master_key.check_value() == made


async def test_a_link_that_is_there_is_no_new_key(base: app.Foundation, tmp_path: Path) -> None:
    await new_file(tmp_path, "elsewhere").make(NOW)
    (tmp_path / "new.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"\A--to-file: .*new\.key can't be opened"):
        await rotate(base, new_file(tmp_path))


async def test_a_file_of_somebody_else_s_is_no_new_key(
    base: app.Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await new_file(tmp_path).make(NOW)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match=r"\A--to-file: .*new\.key belongs to somebody else"):
        await rotate(base, new_file(tmp_path))


def files_with(directory: Path, content: bytes) -> list[str]:
    return [path.name for path in (directory / ".kkp").glob("kkp.db*") if content in path.read_bytes()]


async def test_what_leads_from_the_former_key_to_the_new_one_is_in_no_file_once_it_is_retired(
    base: app.Foundation, tmp_path: Path
) -> None:
    await rotate(base, new_file(tmp_path))
    with closing(sqlite3.connect(database_of(tmp_path))) as connection:
        query = "SELECT wrapped FROM master_key_wraps WHERE opener = 'predecessor'"
        (wrapped,) = connection.execute(query).fetchone()
    assert files_with(tmp_path, wrapped)
    async with replica(tmp_path, "new.key") as command:
        await finish(command)
    assert files_with(tmp_path, wrapped) == []  # while a server has the database open: `base`


async def test_where_somebody_reads_for_long_the_end_says_that_the_log_has_it_still(
    base: app.Foundation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kkp.store.sqlite._LOG_SECONDS", 0)
    await rotate(base, new_file(tmp_path))
    async with replica(tmp_path, "new.key") as command:
        with closing(sqlite3.connect(database_of(tmp_path))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM master_key_wraps").fetchall()
            with pytest.raises(KeyringUnavailableError, match="run once more: kkp master finish"):
                await finish(command)
        assert (await standing(command)).former_opens is False
        await finish(command)


@ON_BOTH
async def test_a_second_former_key_that_somebody_planted_is_named(
    base: app.Foundation, tmp_path: Path
) -> None:
    cut_off(base, after=1)
    with pytest.raises(CutOffError):
        await rotate(base, new_file(tmp_path))
    mend(base)
    table = schema.master_key_wraps
    planted = {
        "check_value": b"x", "opener": "successor", "wrapped": b"", "key_version": "", "label": "",
        "created_at": 0.0,
    }  # fmt: skip
    await base.database.write(lambda connection: connection.execute(table.insert().values(planted)))
    with pytest.raises(StateUntrustedError, match="names several former master keys"):
        await base.directory.load()
    with pytest.raises(ConfigError, match="names several former master keys"):
        await started_with(tmp_path, "new.key")


async def test_no_key_shows_in_a_log_a_repr_or_an_error(
    base: app.Foundation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    old = base.master_key.present
    await rotate(base, new_file(tmp_path))
    shown = " ".join([caplog.text, repr(base), repr(base.master_keys), repr(base.master_key), repr(old)])
    for key in (old, base.master_key.present):
        raw = key.handed_to(lambda raw: raw)
        for spelling in (raw.hex(), base64.urlsafe_b64encode(raw).decode().rstrip("="), repr(raw)[2:-1]):
            assert spelling not in shown
