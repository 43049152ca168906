"""What the database's clock says, for `kkp.clock.DatabaseClock`. PostgreSQL's alone: SQLite has none."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from kkp.clock import Reading, steady_seconds

# Not `now()`, which is when the transaction began.
_TIME: Final = text("SELECT extract(epoch FROM clock_timestamp())::double precision")


def read_time(connection: Connection) -> Reading:
    """Ask for the time. Waiting for a connection is no part of the round trip."""
    before = steady_seconds()
    told = connection.execute(_TIME).scalar_one()
    return Reading(before, float(told), steady_seconds())
