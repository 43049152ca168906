"""`kkp init`: make what `kkp serve` never makes by itself.

That is the data directory, its master key, unless one is given, and an empty database. Nothing that exists is
touched: a database is refused, and a master key that is there already is the new database's.
"""

from __future__ import annotations

import argparse
import asyncio

from kkp import app
from kkp.cli.common import OK, settings
from kkp.cli.master import named
from kkp.config import Settings
from kkp.errors import ConfigError
from kkp.store.opening import is_empty

_MADE = """\
Made {database}, an empty database under the master key {master_key}.
Keep a copy of that key, and keep it away from copies of the database: together they open everything.
To have no other believed, set {check}, which is no secret.
Make the first administrator with: kkp identity add NAME --role admin"""

_WRAPPED = """\
Made {database}, an empty database under a master key that {key} wraps.
Never delete that key of the KMS: without it nobody opens the database, or any copy of it.
To have no other master key believed, set {check}, which is no secret.
Make the first administrator with: kkp identity add NAME --role admin"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    init = commands.add_parser("init", help="make a data directory, a master key and an empty database")
    init.set_defaults(command=_init)


def _init(_options: argparse.Namespace) -> int:
    chosen = settings()
    if not asyncio.run(is_empty(chosen)):
        problem = f"KKP_DATABASE_URL: {_name(chosen)} exists, and stays as it is"
        other = "another KKP_DATA_DIR" if chosen.postgres is None else "another database in KKP_DATABASE_URL"
        raise ConfigError([f"{problem}; serve it with `kkp serve`, or name {other}"])
    check = asyncio.run(_make(chosen))
    if chosen.master_key_kms is not None:
        print(_WRAPPED.format(database=_name(chosen), key=chosen.master_key_kms.label, check=check))
        return OK
    master_key = chosen.master_key_file if chosen.master_key is None else "in KKP_MASTER_KEY"
    print(_MADE.format(database=_name(chosen), master_key=master_key, check=check))
    return OK


def _name(chosen: Settings) -> str:
    """Return what to call the database: of a URL no more than whom to ask for it."""
    address = chosen.postgres
    return str(chosen.database_path) if address is None else f"{address.database} on {address.host}"


async def _make(chosen: Settings) -> str:
    async with app.foundation(chosen, create=True) as base:  # opening it lays it out
        return named(base.master_key)
