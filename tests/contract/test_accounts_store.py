"""Accounts, on a real SQLite file and on a real PostgreSQL, by one replica and by several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from kkp.authn.accounts import Account, AccountDirectory, code_digest, new_account_id, new_code
from kkp.errors import ConflictError, StateUntrustedError, UnauthenticatedError
from kkp.master_key import MasterKey
from kkp.store.accounts import AccountStore
from kkp.store.base import Database
from tests.databases import Place

KEY = MasterKey(bytes(32))
EMAIL = "ann@example.com"
NOW = 1_800_000_000.0


@pytest.fixture
async def databases(place: Place) -> AsyncIterator[Sequence[Database]]:
    """As three replicas see one database."""
    databases = [await place.open() for _ in range(3)]
    yield databases
    for database in databases:
        await database.close()


async def directories(databases: Sequence[Database], key: MasterKey = KEY) -> list[AccountDirectory]:
    loaded = [AccountDirectory(AccountStore(database), key) for database in databases]
    for each in loaded:
        await each.load()
    return loaded


def account(email: str = EMAIL, **members: object) -> Account:
    return Account(id=new_account_id(), email=email, roles=("user",), created_at=NOW, **members)  # type: ignore[arg-type]  # what a test asks for


async def test_what_one_replica_adds_another_knows_when_it_has_read_it_again(
    databases: Sequence[Database],
) -> None:
    first, second, _ = await directories(databases)
    added = account(password="kept")
    await first.add(added)
    assert second.by_email(EMAIL) is None
    await second.load()
    known = second.by_email(EMAIL)
    assert known is not None
    assert (known.id, known.roles, known.password) == (added.id, ("user",), "kept")
    assert second.epoch == first.epoch == await databases[0].epoch()


async def test_whose_an_account_is_stays_known_whatever_its_state(
    databases: Sequence[Database], place: Place
) -> None:
    first, second, _ = await directories(databases)
    invited, disabled = account("bob@example.com"), account(disabled_at=NOW)
    for each in (invited, disabled):
        await first.add(each)
    await second.load()
    names = (invited.id, disabled.id, "user:0", "orders", "k8s:user:0")
    assert [second.person_of(name) for name in names] == ["bob@example.com", EMAIL, None, None, None]
    place.by_hand("UPDATE accounts SET id = id || '0', epoch = epoch + 1000")
    with pytest.raises(StateUntrustedError):
        await first.load()
    assert first.person_of("orders") is None  # it is no account, whatever they say
    with pytest.raises(StateUntrustedError):
        first.person_of("user:0")


async def test_only_what_was_changed_is_read_again(databases: Sequence[Database], place: Place) -> None:
    first, second, _ = await directories(databases)
    for number in range(3):
        await first.add(account(f"{number}@example.com"))
    await second.load()
    store = AccountStore(databases[0])
    changed = first.by_email("1@example.com")
    assert changed is not None
    await first.change(changed.id, lambda present: present.with_password("kept"))
    since = await store.load_accounts(since_epoch=second.epoch)
    assert [row.id for row in since.accounts] == [changed.id]
    await second.load()
    assert [each.password for each in second.all()].count("kept") == 1
    assert len(await place.rows("SELECT id FROM accounts")) == 3


async def test_of_many_who_add_one_address_at_a_time_on_three_replicas_one_does(
    databases: Sequence[Database],
) -> None:
    people = await directories(databases)
    told = await asyncio.gather(
        *(people[number % 3].add(account()) for number in range(30)), return_exceptions=True
    )
    assert told.count(None) == 1
    assert {type(outcome) for outcome in told} == {type(None), ConflictError}
    await people[0].load()
    assert len(people[0].all()) == 1


async def test_of_a_hundred_uses_of_one_code_at_a_time_on_three_replicas_one_counts(
    databases: Sequence[Database],
) -> None:
    people, code = await directories(databases), new_code()
    await people[0].add(account(code=code_digest(code), code_expires_at=NOW + 60))
    for each in people:
        await each.load()
    told = await asyncio.gather(
        *(people[number % 3].enrol(EMAIL, code, f"kept {number}", now=NOW) for number in range(100)),
        return_exceptions=True,
    )
    assert told.count(None) == 1
    assert {type(outcome) for outcome in told} == {type(None), UnauthenticatedError}
    for each in people:
        await each.load()
    assert {each.all()[0].password for each in people} == {f"kept {told.index(None)}"}


@pytest.mark.parametrize(
    ("now", "is_good"), [(NOW + 59.9, True), (NOW + 60, False)], ids=["just before its end", "at its end"]
)
async def test_a_code_is_good_until_its_end(
    databases: Sequence[Database],
    now: float,
    is_good: bool,  # noqa: FBT001  of a table
) -> None:
    (people, *_), code = await directories(databases), new_code()
    await people.add(account(code=code_digest(code), code_expires_at=NOW + 60))
    if is_good:
        await people.enrol(EMAIL, code, "kept", now=now)
    else:
        with pytest.raises(UnauthenticatedError):
            await people.enrol(EMAIL, code, "kept", now=now)
    assert (people.all()[0].password is not None) is is_good


async def test_changes_of_two_replicas_do_not_mix(databases: Sequence[Database]) -> None:
    first, second, _ = await directories(databases)
    await first.add(account())
    await second.load()
    name = first.all()[0].id
    await asyncio.gather(
        *(each.change(name, lambda present: present.with_password("kept")) for each in (first, second) * 2)
    )
    await first.load()
    assert first.all()[0].generation == 5


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    "alteration",
    [
        "UPDATE accounts SET sealed = (SELECT sealed FROM accounts WHERE id <> '{name}'), epoch = 1000",
        "INSERT INTO accounts SELECT 'user:planted', 1000, sealed FROM accounts WHERE id = '{name}'",
        "UPDATE accounts SET id = 'user:moved', epoch = 1000 WHERE id = '{name}'",
    ],
    ids=["another's row in its place", "a copy of a row", "a row of another name"],
)
async def test_a_row_that_was_altered_by_hand_makes_nobody_known(
    databases: Sequence[Database], place: Place, alteration: str
) -> None:
    people, other, fresh = await directories(databases)
    await people.add(account(password="kept"))
    await people.add(account("bob@example.com"))
    known = people.by_email(EMAIL)
    assert known is not None
    place.by_hand(alteration.format(name=known.id))
    for each in (other, fresh):
        with pytest.raises(StateUntrustedError):
            await each.load()
        for ask in (
            lambda each=each: each.enabled(known.id),
            lambda each=each: each.by_email(EMAIL),
            each.all,
        ):
            with pytest.raises(StateUntrustedError):
                ask()


async def test_the_rows_of_another_master_key_are_nobodys(databases: Sequence[Database]) -> None:
    people, *_ = await directories(databases)
    await people.add(account())
    with pytest.raises(StateUntrustedError):
        await directories(databases, MasterKey(bytes([1]) * 32))
