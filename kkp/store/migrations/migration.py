"""Brings a database of an older layout to this release's, revision by revision, in one transaction.

- `state.schema_version` alone says which layout there is; Alembic keeps no table of its own. The first
  revision makes layout `FIRST_LAYOUT`, and each one after it the next.
- The old layout is looked at as closely as a start looks at its own: it must be, part by part, what the
  revisions up to it lay out in an empty place. So a trigger that is planted in an old database does not come
  along into the new one, nor meet what the revisions do.
- What comes out must be, part by part, what this release lays out itself. Else nothing is kept.

Who calls it excludes all other writers, and ends the transaction.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any, Final, final

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, update

from kkp.errors import ConfigError
from kkp.store import schema
from kkp.store.base import Work
from kkp.store.layout import Catalogue, migratable, no_rows, refuse_altered

DIRECTORY: Final = Path(__file__).parent

_KEEPS: Final = 5  # the layout that has kept_secrets; before it no master key was ever rotated
_WRONG = (
    "KKP_DATABASE_URL: migrated, the layout of the database would not be this release's ({}); "
    "it is as it was, and stays of use to the release that wrote it"
)


@final
class Revisions:
    """The revisions, the oldest first.

    Args:
        directory: What has them in its `versions`.
    """

    def __init__(self, directory: Path) -> None:
        # It would tell whoever waits for the command of a "non-transactional DDL" that is none.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.scripts: Final = (*ScriptDirectory(str(directory)).walk_revisions(),)[::-1]

    def lay_out(self, layout: int, connection: Connection) -> None:
        """Run those that make this layout, in an empty database."""
        self.migrate(connection, schema.FIRST_LAYOUT - 1, layout)

    def migrate(self, connection: Connection, before: int, after: int) -> None:
        """Run those that make one layout of another."""
        first, end = (layout - schema.FIRST_LAYOUT + 1 for layout in (before, after))
        # Alembic, by itself, would note in a table of its own what it has run; nobody here has it do so.
        with Operations.context(MigrationContext.configure(connection)):
            for script in self.scripts[first:end]:
                module: Any = script.module
                module.upgrade()


@final
class Migration:
    """What migrates, for any kind of database.

    Args:
        master_key_check: Derived from the master key; says whether it is the one the rows are under.
        revisions: How.
        keep: Writes what outlives the master key, where the older layout had no place for it.
    """

    def __init__(self, master_key_check: bytes, revisions: Revisions, keep: Work[None] = no_rows) -> None:
        self._master_key_check = master_key_check
        self._revisions = revisions
        self._keep = keep

    def __call__(self, catalogue: Catalogue) -> Work[int]:
        """Return what migrates, and tells which layout there was; one of this release's is left alone."""
        look = migratable(catalogue, self._master_key_check)

        def work(connection: Connection) -> int:
            before = look(connection)
            if before != schema.SCHEMA_VERSION:
                refuse_altered(catalogue.foreign_to(connection, partial(self._revisions.lay_out, before)))
                self._revisions.migrate(connection, before, schema.SCHEMA_VERSION)
                if before < _KEEPS:
                    self._keep(connection)
                connection.execute(update(schema.state).values(schema_version=schema.SCHEMA_VERSION))
                _check(catalogue.foreign_parts(connection))
            return before

        return work


def _check(foreign_parts: list[str]) -> None:
    if foreign_parts:
        raise ConfigError([_WRONG.format("; ".join(foreign_parts[:3]))])
