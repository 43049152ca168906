"""Keeps a SQLite file from running anything of its own.

A trigger or a view is code that the file brings along, and whoever writes the file can plant one, also while
KKP has it open: one that drops each new audit record and puts the chain's head back would let KKP act without
any record. KKP's own layout has neither, so whatever runs inside one is denied, and with it the statement.

SQLite asks when it compiles a statement, and compiles anew after every change of the schema; a compiled
statement costs nothing more.
"""

from __future__ import annotations

import sqlite3


def deny_planted_code(connection: sqlite3.Connection) -> None:
    """Let statements alone act on this connection, and nothing that runs inside a trigger or a view.

    A statement that would set one off fails with `sqlite3.DatabaseError`.
    """
    connection.set_authorizer(_authorize)


def _authorize(
    _action: int, _first: str | None, _second: str | None, _database: str | None, inside: str | None
) -> int:
    return sqlite3.SQLITE_OK if inside is None else sqlite3.SQLITE_DENY
