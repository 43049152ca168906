"""A master key that a KMS wraps: made, opened, moved and rotated, on every cloud's emulator."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

import pytest

from kkp import app, kms
from kkp.authn.base import Authenticated
from kkp.authn.operator import LocalOperator
from kkp.cli.checks import examine
from kkp.cli.findings import Status
from kkp.config import Settings, load
from kkp.errors import ConfigError, ConflictError, KeyringUnavailableError
from kkp.model import Identity
from kkp.operations.base import Proposal
from kkp.operations.master_key import FinishMasterKey, Rotated, RotateMasterKey, ShowMasterKey
from kkp.store.master_keys import MasterKeyStore
from kkp.unlock import FileTarget, KMSTarget, Target
from kkp.ways import COMMAND
from tests.emulators import aws
from tests.emulators.clouds import CLOUDS, Cloud, Emulated

NOW = 1_800_000_000.0
PROPOSAL = Proposal(authenticated=Authenticated(LocalOperator().caller, 1))


def settings(directory: Path, environ: Mapping[str, str]) -> Settings:
    given = {
        "KKP_DATA_DIR": str(directory / ".kkp"),
        "KKP_CONFIG": "/dev/null",
        "KKP_KMS_TIMEOUT_MS": "2000",
        "KKP_KMS_ATTEMPTS": "1",
        **environ,
    }
    return load(given, COMMAND, schemes=kms.SCHEMES)


@asynccontextmanager
async def opened(
    directory: Path, environ: Mapping[str, str], *, create: bool = False
) -> AsyncIterator[app.Foundation]:
    async with app.foundation(settings(directory, environ), create=create) as base:
        yield base


def wrapped_by(cloud: Cloud, key: str = "") -> dict[str, str]:
    return {"KKP_MASTER_KEY_KMS": f"{cloud.uri}#{key or cloud.key}"}


async def rotate(base: app.Foundation, target: Target | None) -> Rotated:
    store = MasterKeyStore(base.database)
    operation = RotateMasterKey(
        store, base.master_keys, app.UNDER_THE_MASTER_KEY, base.clock, notice_seconds=0
    )
    return await operation.run(PROPOSAL, target)


async def finish(base: app.Foundation) -> None:
    await FinishMasterKey(MasterKeyStore(base.database), base.master_keys).run(PROPOSAL, None)


def target_of(base: app.Foundation, environ: Mapping[str, str]) -> KMSTarget:
    key = settings(base.settings.data_dir.parent, environ).master_key_kms
    assert key is not None
    return KMSTarget(key, base.settings.backend_limits)


def wraps(directory: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(directory / ".kkp/kkp.db")) as connection:
        return connection.execute(
            "SELECT opener, label FROM master_key_wraps WHERE opener <> 'former' ORDER BY 1"
        ).fetchall()


def identity(name: str) -> Identity:
    return Identity(name, ("service",), (), {}, NOW)


@pytest.mark.parametrize("emulated", CLOUDS.values(), ids=list(CLOUDS))
async def test_a_kms_key_wraps_the_master_key_opens_it_at_each_start_and_wraps_its_successor(
    emulated: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emulated(tmp_path, monkeypatch) as cloud:
        given = wrapped_by(cloud)
        async with opened(tmp_path, given, create=True) as base:
            await base.directory.add(identity("orders"))
            first = base.master_key.check_value()
        label = f"{cloud.uri.partition(':')[0]}://…#{cloud.key}"
        assert wraps(tmp_path) == [("kms", label)]
        assert not (tmp_path / ".kkp/master.key").exists()
        async with opened(tmp_path, given) as base, opened(tmp_path, given) as running:
            assert base.master_key.check_value() == first
            done = await rotate(base, target_of(base, given))
            assert (done.began, done.finished) == (True, True)
            assert wraps(tmp_path) == [("kms", label)]
            await running.directory.load()
            assert running.master_keys.marks == base.master_keys.marks
        async with opened(tmp_path, given) as base:
            assert base.master_key.check_value() != first
            assert base.directory.enabled("orders") is not None
            shown = await ShowMasterKey(MasterKeyStore(base.database)).run(PROPOSAL, None)
            assert (shown.wraps, shown.is_renewing, shown.former_opens) == ((label,), False, False)


async def test_a_process_that_runs_is_not_touched_by_an_outage_and_one_that_starts_says_what_to_do(
    tmp_path: Path,
) -> None:
    async with aws.emulated() as emulator:
        cloud = Cloud(emulator.uri, "alias/orders", emulator)
        given = wrapped_by(cloud)
        async with opened(tmp_path, given, create=True) as base:
            await base.directory.add(identity("orders"))
        async with opened(tmp_path, given) as running, opened(tmp_path, given) as other:
            emulator.fault = aws.refusing("KMSInternalException", 500)
            asked = len(emulator.operations)
            await running.directory.add(identity("billing"))
            await other.directory.load()
            assert {found.id for found in other.directory.all()} == {"orders", "billing"}
            assert len(emulator.operations) == asked
            before = running.master_key.check_value()
            with pytest.raises(ConfigError) as refused:
                await rotate(running, target_of(running, given))
            assert running.master_key.check_value() == before
            with pytest.raises(ConfigError) as not_started:
                await start(tmp_path, given)
        for error in (refused, not_started):
            (problem,) = error.value.problems
            assert problem.startswith(
                "KKP_MASTER_KEY_KMS: aws-kms://…#alias/orders can't be used for the master key: "
            )
            assert problem.endswith("`kkp doctor` tries it")
            assert emulator.endpoint not in problem


async def start(directory: Path, environ: Mapping[str, str]) -> None:
    async with opened(directory, environ):
        pass


async def test_an_outage_at_the_end_of_a_rotation_leaves_it_to_be_gone_on_with(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        async with opened(tmp_path, given, create=True) as base:
            target = target_of(base, given)
            decrypts = iter([False, True])  # as it is made, and once everything is renewed

            def fault(operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
                fails = operation == "Decrypt" and next(decrypts)
                return aws.error("KMSInternalException", 500) if fails else answer()

            emulator.fault = fault
            with pytest.raises(ConfigError, match="can't be used for the master key"):
                await rotate(base, target)
            emulator.fault = None
            assert (await rotate(base, target)) == Rotated(began=False, rows=0, finished=True)
        assert [opener for opener, _ in wraps(tmp_path)] == ["kms"]
        await start(tmp_path, given)


async def test_the_doctor_tries_the_key_and_opens_the_database_by_it(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        found = {finding.check: finding for finding in await examine(settings(tmp_path, given))}
        assert found["master key"].status is Status.OK
        assert found["master key"].detail == "aws-kms (aws-kms) wraps and unwraps under alias/orders"
        assert found["identities"].status is Status.OK
        emulator.set_state("alias/orders", "Disabled")
        found = {finding.check: finding for finding in await examine(settings(tmp_path, given))}
        assert (found["master key"].status, found["database"].status) == (Status.FAIL, Status.FAIL)
        assert found["master key"].cure == "enable the key, or cancel its deletion"


@pytest.mark.parametrize("emulated", CLOUDS.values(), ids=list(CLOUDS))
async def test_the_doctor_warns_where_anybody_can_wrap_and_the_master_key_is_not_named(
    emulated: Emulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with emulated(tmp_path, monkeypatch) as cloud:
        given = wrapped_by(cloud)
        async with opened(tmp_path, given, create=True) as base:
            named = naming(base, given)
        for environ, is_warned in ((given, cloud.uri.startswith("azure-keyvault:")), (named, False)):
            found = await examine(settings(tmp_path, environ))
            statuses = [each.status for each in found if each.check == "master key"]
            assert statuses == [Status.OK, *([Status.WARN] if is_warned else [])]


REFUSED: dict[str, Callable[[aws.AWSEmulator, Path], None]] = {
    "the blob was altered": lambda _kms, path: alter(path, "UPDATE master_key_wraps SET wrapped = x'00ff'"),
    "the blob is another's": lambda _kms, path: alter(
        path, "UPDATE master_key_wraps SET check_value = x'00'"
    ),
    "the key is disabled": lambda kms, _path: kms.set_state("alias/orders", "Disabled"),
    "the key awaits deletion": lambda kms, _path: kms.set_state("alias/orders", "PendingDeletion"),
    "the alias names another key": lambda kms, _path: kms.move_alias(
        "alias/orders", kms.add_key("alias/other")
    ),
    "access is denied": lambda kms, _path: setattr(kms, "fault", aws.refusing("AccessDeniedException")),
    "there is no wrap": lambda _kms, path: alter(path, "DELETE FROM master_key_wraps"),
    "the answer is another key": lambda kms, _path: setattr(kms, "fault", another_key),
}


def another_key(operation: str, answer: Callable[[], aws.Reply]) -> aws.Reply:
    change = aws.altering("Decrypt", lambda document: document.update(Plaintext="A" * 43 + "="))
    return change(operation, answer)


def alter(directory: Path, statement: str) -> None:
    with closing(sqlite3.connect(directory / ".kkp/kkp.db")) as connection, connection:
        assert connection.execute(statement).rowcount == 1


@pytest.mark.parametrize("spoil", REFUSED.values(), ids=[name.replace(" ", "-") for name in REFUSED])
async def test_it_does_not_start_when(spoil: Callable[[aws.AWSEmulator, Path], None], tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        spoil(emulator, tmp_path)
        with pytest.raises(ConfigError) as refused:
            await start(tmp_path, given)
        (problem,) = refused.value.problems
        assert problem.startswith("KKP_MASTER_KEY_KMS: ")


async def make(directory: Path, environ: Mapping[str, str]) -> None:
    async with opened(directory, environ, create=True):
        pass


async def test_the_key_moves_from_a_file_to_a_kms_to_another_kms_and_back_while_everybody_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        CLOUDS["aws"](tmp_path, monkeypatch) as aws_kms,
        CLOUDS["vault"](tmp_path, monkeypatch) as vault,
    ):
        own: dict[str, str] = {}
        in_file = {"KKP_MASTER_KEY_FILE": str(tmp_path / "new.key")}
        ways = [own, wrapped_by(aws_kms), wrapped_by(vault), wrapped_by(vault, "billing"), in_file]
        async with opened(tmp_path, own, create=True) as base:
            await base.directory.add(identity("orders"))
        seen = set()
        for former, new in pairwise(ways):
            async with opened(tmp_path, former) as base, opened(tmp_path, former) as running:
                target = target_of(base, new) if new is not in_file else FileTarget(tmp_path / "new.key")
                done = await rotate(base, target)
                assert (done.began, done.finished) == (True, False)
                for given in (former, new):  # both open it now, as replicas are restarted one by one
                    async with opened(tmp_path, given) as restarted:
                        assert restarted.directory.enabled("orders") is not None
                with pytest.raises(ConflictError, match="was given the former master key itself"):
                    await finish(base)
                await running.directory.load()
                async with opened(tmp_path, new) as restarted:
                    await finish(restarted)
                    seen.add(restarted.master_key.check_value())
                await running.directory.load()
                assert running.directory.enabled("orders") is not None
            with pytest.raises(ConfigError):
                await start(tmp_path, former)
        assert len(seen) == len(ways) - 1
        assert wraps(tmp_path) == []


async def test_who_is_given_a_file_where_a_kms_wraps_the_key_is_told_so(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
    (tmp_path / "a.key").write_text("A" * 43 + "\n")
    (tmp_path / "a.key").chmod(0o600)
    with pytest.raises(
        ConfigError, match=r"which aws-kms://…#alias/orders wraps; set KKP_MASTER_KEY_KMS to it"
    ):
        await start(tmp_path, {"KKP_MASTER_KEY_FILE": str(tmp_path / "a.key")})


async def test_a_database_that_is_not_there_is_not_made_by_a_start(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        (tmp_path / ".kkp").mkdir(mode=0o700)
        with pytest.raises(ConfigError, match="there is no database yet to hold the wrapped master key"):
            await start(tmp_path, given)
        assert not list((tmp_path / ".kkp").iterdir())


async def test_the_key_is_in_no_file_log_or_error_in_the_clear(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        async with opened(tmp_path, given, create=True) as base:
            first = base.master_key.present.handed_to(bytes)
            await rotate(base, target_of(base, given))
            second = base.master_key.present.handed_to(bytes)
    for path in (tmp_path / ".kkp").iterdir():
        content = path.read_bytes()
        for key in (first, second):
            assert key not in content
            assert key.hex().encode() not in content
    assert first.hex() not in caplog.text


# KKP_MASTER_KEY_CHECK: which key may be used, named outside of the database.


def naming(base: app.Foundation, given: Mapping[str, str]) -> dict[str, str]:
    return {**given, "KKP_MASTER_KEY_CHECK": base.master_key.check_value().hex()}


def wrap_rows(directory: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(directory / ".kkp/kkp.db")) as connection:
        return connection.execute("SELECT * FROM master_key_wraps").fetchall()


def put_back(directory: Path, check_value: bytes, rows: list[tuple[object, ...]]) -> None:
    """Do what a database writer can: have it name another key, with the wraps that were there."""
    with closing(sqlite3.connect(directory / ".kkp/kkp.db")) as connection, connection:
        connection.execute("UPDATE state SET master_key_check = ?, epoch = epoch + 1", (check_value,))
        connection.execute("DELETE FROM master_key_wraps")
        connection.executemany("INSERT INTO master_key_wraps VALUES (?, ?, ?, ?, ?, ?)", rows)


async def test_a_former_wrap_that_is_put_back_is_not_believed_where_the_present_key_is_named(
    tmp_path: Path,
) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        async with opened(tmp_path, given) as base:
            leaked, rows = base.master_key.check_value(), wrap_rows(tmp_path)
            await rotate(base, target_of(base, given))
            pinned = naming(base, given)
        async with opened(tmp_path, pinned) as running:
            put_back(tmp_path, leaked, rows)
            with pytest.raises(ConfigError, match="KKP_MASTER_KEY_CHECK: it does not name the master key"):
                await start(tmp_path, pinned)
            with pytest.raises(KeyringUnavailableError, match="that KKP_MASTER_KEY_CHECK does not"):
                await running.master_keys.take_up()


async def test_with_the_former_key_named_a_rotation_ends_only_once_the_new_one_is(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        async with opened(tmp_path, given) as base:
            former = naming(base, given)
        async with opened(tmp_path, former) as base:
            assert (await rotate(base, target_of(base, former))).finished is False
            await start(tmp_path, former)  # a restart meanwhile finds the new key by the former one
            new = naming(base, given)
            with pytest.raises(ConflictError, match="was given the former master key itself"):
                await finish(base)
        async with opened(tmp_path, new) as base:
            await finish(base)
        await start(tmp_path, new)
        with pytest.raises(ConfigError, match="KKP_MASTER_KEY_CHECK"):
            await start(tmp_path, former)


async def test_two_keys_may_be_named_of_which_one_is_the_present_one(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        async with opened(tmp_path, given) as base:
            await rotate(base, target_of(base, given))
            check = base.master_key.check_value().hex()
        await start(tmp_path, {**given, "KKP_MASTER_KEY_CHECK": f"{'0' * 64},{check}"})


async def test_a_clock_that_was_ahead_as_the_key_was_made_does_not_keep_a_rotation_from_its_end(
    tmp_path: Path,
) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        alter(tmp_path, "UPDATE master_key_wraps SET created_at = created_at + 86400")
        async with opened(tmp_path, given) as base:
            for _ in range(2):
                assert (await rotate(base, target_of(base, given))).finished is True
        assert [opener for opener, _ in wraps(tmp_path)] == ["kms"]


async def test_a_kms_is_asked_for_the_present_key_first_and_for_eight_at_most(tmp_path: Path) -> None:
    async with aws.emulated() as emulator:
        given = wrapped_by(Cloud(emulator.uri, "alias/orders", emulator))
        await make(tmp_path, given)
        plant = (
            "INSERT INTO master_key_wraps SELECT randomblob(32), 'kms', wrapped, key_version, label,"
            " created_at + 9 FROM master_key_wraps LIMIT 1"
        )
        for _ in range(20):
            alter(tmp_path, plant)
        before = emulator.operations.count("Decrypt")
        await start(tmp_path, given)
        assert emulator.operations.count("Decrypt") == before + 1
        with closing(sqlite3.connect(tmp_path / ".kkp/kkp.db")) as connection, connection:
            connection.execute("UPDATE state SET master_key_check = x'00'")
        with pytest.raises(ConfigError):
            await start(tmp_path, given)
        assert emulator.operations.count("Decrypt") == before + 1 + 8
