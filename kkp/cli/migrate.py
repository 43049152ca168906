"""`kkp migrate`: bring the database of an older release to this release's layout.

It is one transaction: however it ends, the database has the old layout or the new one, whole. Two at once do
it once. A KKP that still runs on the old layout writes nothing more from then on, and is unready; so stop
every one of them first, and keep a backup: there is no way back.

It is recorded in the audit log, in the new layout; killed between the two, it leaves no record.

Exit codes: 0 the database has this release's layout; 1 `--check` found an older one, or it was migrated and
could not be recorded; 2 it can't be migrated.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from kkp import app
from kkp.cli.common import OK, REFUSED, origin, settings
from kkp.config import Settings
from kkp.errors import AuditUnavailableError, KeyringUnavailableError
from kkp.master_key import MasterKey
from kkp.model import Credentials
from kkp.operations.migration import Migrated, RecordMigration
from kkp.store import schema
from kkp.store.master_keys import insert_kept
from kkp.store.opening import layout_version, migrate_database

_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
_EPILOG: Final = (
    "Exit codes: 0 it has this release's layout; 1 --check found an older one, or it was migrated and could "
    "not be recorded; 2 it can't be migrated."
)
_OLDER: Final = (
    "The database has layout {}, and this release reads {}: stop every KKP on it, and run `kkp migrate`."
)


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    migrate = commands.add_parser(
        "migrate", help="bring an older release's database to this release's layout", epilog=_EPILOG
    )
    migrate.add_argument("--check", action="store_true", help="only tell whether that is needed")
    migrate.set_defaults(command=_migrate)


def _migrate(options: argparse.Namespace) -> int:
    return asyncio.run(_run(settings(), check_only=options.check))


async def _run(chosen: Settings, *, check_only: bool) -> int:
    master_key = await app.master_key_of(chosen)
    before = await layout_version(chosen, master_key_check=master_key.check_value())
    if before != schema.SCHEMA_VERSION and check_only:
        print(_OLDER.format(before, schema.SCHEMA_VERSION))
        return REFUSED
    if before != schema.SCHEMA_VERSION:
        before = await _brought_on(chosen, master_key)
    if before == schema.SCHEMA_VERSION:  # it was, or somebody else was faster
        print(f"The database has layout {schema.SCHEMA_VERSION}, which is this release's.")
        return OK
    print(f"Migrated the database from layout {before} to layout {schema.SCHEMA_VERSION}.")
    await _record(chosen, Migrated(before, schema.SCHEMA_VERSION))
    return OK


async def _brought_on(chosen: Settings, master_key: MasterKey) -> int:
    from kkp.store.migrations import migration  # noqa: PLC0415  Alembic takes longer to load than most commands

    revisions = migration.Revisions(migration.DIRECTORY)
    keep = partial(insert_kept, master_key.keep())
    return await migrate_database(chosen, migration.Migration(master_key.check_value(), revisions, keep))


async def _record(chosen: Settings, migrated: Migrated) -> None:
    """Record it, and take the time for it that a request would not have: it can't be made up for later."""
    for pause_seconds in _PAUSES_SECONDS:
        with suppress(AuditUnavailableError, KeyringUnavailableError):
            return await _try_to_record(chosen, migrated)
        await asyncio.sleep(pause_seconds)
    return await _try_to_record(chosen, migrated)


async def _try_to_record(chosen: Settings, migrated: Migrated) -> None:
    async with app.foundation(chosen, create=False) as base:
        await base.operator_pipeline().run(RecordMigration(), migrated, Credentials(), origin())
