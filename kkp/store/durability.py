"""Whether a PostgreSQL server keeps what it says it has committed, asked by each new session.

A setting counts as it is in force for the session, whoever set it: the server, the database or the role. What
is in force for commits is then held fast, because a reload of the server's settings would change it under a
session that is in use. What only the server as a whole is set to can't be held; each commit looks at it
(`IS_KEPT`). The role is asked about, too: one that is held to no rights is more than KKP needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

OLDEST_SERVER: Final = 13

# `set_config` returns the value that it is given: the one that is in force already.
PROBE: Final = """
SELECT current_setting('server_version_num')::int AS version,
       current_setting('server_encoding') AS encoding,
       current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('data_sync_retry') AS data_sync_retry,
       set_config('synchronous_commit', current_setting('synchronous_commit'), false) AS synchronous_commit,
       current_setting('default_transaction_read_only') AS read_only,
       pg_is_in_recovery() AS in_recovery,
       (SELECT rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user) AS is_boundless
"""

# What a reload may change under a session.
IS_KEPT: Final = "(current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on')"

_RELOAD = "in postgresql.conf, or by ALTER SYSTEM, and reload the server"
_REQUIRED: Mapping[str, tuple[str, str]] = {
    "fsync": ("on", f"a crash loses or breaks what was committed; set fsync = on {_RELOAD}"),
    "full_page_writes": ("on", f"a crash may leave torn pages; set full_page_writes = on {_RELOAD}"),
    "data_sync_retry": ("off", "a failed fsync would pass for a good one later; set data_sync_retry = off"),
}


def problems(row: Mapping[str, Any]) -> Iterator[str]:
    """Tell what of the answer to `PROBE` makes the server unfit, each with its cure."""
    if row["version"] < OLDEST_SERVER * 10_000:
        major = row["version"] // 10_000
        yield f"the server is PostgreSQL {major}; give one of release {OLDEST_SERVER} or newer"
    if row["encoding"] != "UTF8":
        yield (
            f"its encoding is {row['encoding']}; make it anew with: CREATE DATABASE … ENCODING 'UTF8' "
            "TEMPLATE template0"
        )
    for name, (safe, consequence) in _REQUIRED.items():
        if row[name] != safe:
            yield f"{name} is {row[name]}, so {consequence}"
    if row["synchronous_commit"] == "off":
        yield (
            "synchronous_commit is off, so a crash loses what was committed; set it to on where it was set "
            "off: in postgresql.conf, by ALTER DATABASE … RESET synchronous_commit, or by ALTER ROLE … RESET "
            "synchronous_commit"
        )
    if row["is_boundless"]:
        yield (
            "the role is a superuser, or passes by row security, so whoever takes KKP over has the server; "
            "give KKP a role of its own: CREATE ROLE kkp LOGIN"
        )
    if row["in_recovery"]:
        yield "the server is a standby or recovers, and can't be written; give the primary's address"
    elif row["read_only"] == "on":
        yield (
            "default_transaction_read_only is on, so nothing can be written; set it to off where it was set: "
            "the server, the database, or the role"
        )
