"""Whether a PostgreSQL schema is laid out exactly as this release does it.

A trigger, a rule, a policy, a default or an unlogged table can drop audit records, or lose them, while each
statement succeeds; a function or an operator of the schema can take the place of PostgreSQL's own. So the
schema `kkp` must hold what our tables are, part by part, and nothing else. What is expected is told from
`kkp.store.schema`, in the words of PostgreSQL's catalogue; the names of constraints don't matter.

It is KKP's alone: its role owns the schema and all that is in it, and nobody else was given the right to
make anything there, or to do more to a table than to read it. Whoever could, would take KKP's place.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Final, TypeAlias, final

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Constraint,
    Dialect,
    Index,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import ColumnCollectionConstraint

from kkp.store import schema
from kkp.store.base import Work
from kkp.store.layout import differences

SCHEMA: Final = "kkp"

_Part: TypeAlias = tuple[str, str, str]  # what it is, its name, and all that matters of it
_DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

# Each row is a part. What `pg_get_expr` tells is compared without its parentheses and spaces. What is laid
# out for comparison alone is temporary, and told as if it stayed; nothing temporary can be in `kkp` itself.
_PARTS = text("""
WITH ours AS (
  SELECT c.* FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema
)
SELECT CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'relation of kind ' || relkind::text END,
       relname::text,
       concat_ws(' ', 'persistence', translate(relpersistence::text, 't', 'p'), 'row security',
                 relrowsecurity, relforcerowsecurity)
FROM ours WHERE relkind NOT IN ('i', 'I', 'S', 'c')
UNION ALL
SELECT 'column', concat_ws('.', relname, a.attname),
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), 'not null', a.attnotnull,
                 'identity', a.attidentity, 'generated', a.attgenerated, 'default',
                 (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d
                  WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum),
                 'collated', (SELECT a.attcollation <> t.typcollation FROM pg_catalog.pg_type t
                              WHERE t.oid = a.atttypid))
FROM ours JOIN pg_catalog.pg_attribute a ON a.attrelid = ours.oid
WHERE relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'constraint', relname::text,
       concat_ws(' ', k.contype, pg_get_expr(k.conbin, k.conrelid),
                 (SELECT string_agg(a.attname, ',' ORDER BY array_position(k.conkey, a.attnum))
                  FROM pg_catalog.pg_attribute a
                  WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND k.contype <> 'c'),
                 'valid', k.convalidated, 'deferrable', k.condeferrable)
FROM ours JOIN pg_catalog.pg_constraint k ON k.conrelid = ours.oid WHERE k.contype <> 'n'
UNION ALL
SELECT 'index', relname::text,
       concat_ws(' ', (SELECT t.relname FROM pg_catalog.pg_class t WHERE t.oid = i.indrelid),
                 (SELECT string_agg(pg_get_indexdef(i.indexrelid, n, true), ',' ORDER BY n)
                  FROM generate_series(1, i.indnatts) n),
                 pg_get_expr(i.indpred, i.indrelid),
                 'unique', i.indisunique, 'valid', i.indisvalid AND i.indisready)
FROM ours JOIN pg_catalog.pg_index i ON i.indexrelid = ours.oid
WHERE NOT (i.indisvalid AND EXISTS (
  SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u')))
UNION ALL
SELECT 'sequence', relname::text,
       concat_ws(' ', translate(relpersistence::text, 't', 'p'), format_type(s.seqtypid, NULL), s.seqstart,
                 s.seqincrement, s.seqmin, s.seqcache, s.seqcycle)
FROM ours JOIN pg_catalog.pg_sequence s ON s.seqrelid = ours.oid
UNION ALL
SELECT 'trigger', concat_ws('.', relname, t.tgname), '' FROM ours
JOIN pg_catalog.pg_trigger t ON t.tgrelid = ours.oid
UNION ALL
SELECT 'rule', concat_ws('.', relname, r.rulename), '' FROM ours
JOIN pg_catalog.pg_rewrite r ON r.ev_class = ours.oid
UNION ALL
SELECT 'policy', concat_ws('.', relname, p.polname), '' FROM ours
JOIN pg_catalog.pg_policy p ON p.polrelid = ours.oid
UNION ALL
SELECT 'inheritance', relname::text, '' FROM ours
JOIN pg_catalog.pg_inherits h ON ours.oid IN (h.inhrelid, h.inhparent) WHERE relkind IN ('r', 'p')
UNION ALL
SELECT 'function', p.proname::text, '' FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = :schema
UNION ALL
SELECT 'operator', o.oprname::text, '' FROM pg_catalog.pg_operator o
JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace WHERE n.nspname = :schema
UNION ALL
SELECT 'type', t.typname::text, '' FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = :schema AND t.typelem = 0
  AND NOT EXISTS (SELECT FROM ours WHERE ours.oid = t.typrelid AND relkind <> 'c')
UNION ALL
SELECT 'owner', concat_ws(' of ', pg_get_userbyid(relowner), relname), ''
FROM ours WHERE relkind IN ('r', 'S') AND pg_get_userbyid(relowner) <> current_user
UNION ALL
SELECT 'owner', concat_ws(' of ', pg_get_userbyid(nspowner), nspname), ''
FROM pg_catalog.pg_namespace n
WHERE nspname = :schema AND n.oid <> pg_my_temp_schema() AND pg_get_userbyid(nspowner) <> current_user
UNION ALL
SELECT 'right', concat_ws(' on ', g.privilege_type, r.relname), '' FROM (
  SELECT relname, relowner, relacl FROM ours
  UNION ALL
  SELECT relname, relowner, a.attacl FROM ours JOIN pg_catalog.pg_attribute a ON a.attrelid = ours.oid
) r, aclexplode(r.relacl) g WHERE g.grantee <> r.relowner AND g.privilege_type <> 'SELECT'
UNION ALL
SELECT 'right', concat_ws(' on ', g.privilege_type, n.nspname), ''
FROM pg_catalog.pg_namespace n, aclexplode(n.nspacl) g
WHERE n.nspname = :schema AND g.grantee <> n.nspowner AND g.privilege_type <> 'USAGE'
""")
_NAMES = text("""
SELECT c.relname FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'kkp'
""")
_HAS_SCHEMA = text("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = 'kkp'")
_MAKE_SCHEMA = text("CREATE SCHEMA kkp")
_LAY_OUT_TEMPORARILY = text("SET LOCAL search_path = pg_temp")
_TEMPORARY = text("SELECT nspname FROM pg_catalog.pg_namespace WHERE oid = pg_my_temp_schema()")


@final
class PostgreSQLCatalogue:
    """What the schema has in it."""

    anothers = f"KKP_DATABASE_URL: the schema {SCHEMA} there is another program's; name another database"

    def names(self, connection: Connection) -> set[str]:
        """Return the names of whatever is laid out, KKP's or not."""
        return set(connection.execute(_NAMES).scalars())

    def foreign_parts(self, connection: Connection) -> list[str]:
        """Return what is there that KKP did not lay out, and what is lacking; nothing if all is well."""
        return differences(_parts_of(connection, SCHEMA), _ours())

    def foreign_to(self, connection: Connection, lay_out: Work[None]) -> list[str]:
        """Return the same, measured by what `lay_out` lays out where the session's temporary tables are."""
        return differences(_parts_of(connection, SCHEMA), _laid_out(connection, lay_out))


def make_schema(connection: Connection) -> None:
    """Make the schema unless it is there: who may lay out tables need not be allowed to make one."""
    if connection.execute(_HAS_SCHEMA).first() is None:
        connection.execute(_MAKE_SCHEMA)


def _parts_of(connection: Connection, namespace: str) -> Counter[_Part]:
    rows = connection.execute(_PARTS, {"schema": namespace})
    return _counted((kind, name, detail) for kind, name, detail in rows)


def _laid_out(connection: Connection, lay_out: Work[None]) -> Counter[_Part]:
    trial = connection.begin_nested()
    try:
        connection.execute(_LAY_OUT_TEMPORARILY)
        lay_out(connection)
        return _parts_of(connection, connection.execute(_TEMPORARY).scalar_one())
    finally:
        trial.rollback()  # of the path as well


@lru_cache(maxsize=1)
def _ours() -> Counter[_Part]:
    return _counted(part for table in schema.metadata.tables.values() for part in _parts(table))


def _counted(parts: Iterable[tuple[str, str, str]]) -> Counter[_Part]:
    return Counter((kind, name, _bare(detail)) for kind, name, detail in parts)


def _parts(table: Table) -> Iterator[_Part]:
    yield "table", table.name, "persistence p row security f f"
    for column in table.columns:
        yield "column", f"{table.name}.{column.name}", _column(column)
        if column.identity is not None:
            yield "sequence", f"{table.name}_{column.name}_seq", "p bigint 1 1 1 1 f"
    for constraint in chain(table.constraints, *(column.constraints for column in table.columns)):
        yield "constraint", table.name, f"{_constraint(constraint)} valid t deferrable f"
    for index in table.indexes:
        yield "index", str(index.name), _index(index)


def _column(column: Column[object]) -> str:
    identity = "" if column.identity is None else "a"
    of_type = column.type.compile(dialect=_DIALECT)
    not_null = "f" if column.nullable else "t"
    return f"{of_type} not null {not_null} identity {identity} generated default collated f"


def _constraint(constraint: Constraint) -> str:
    if isinstance(constraint, CheckConstraint):
        return f"c {constraint.sqltext}"
    if isinstance(constraint, ColumnCollectionConstraint):
        letter = "u" if isinstance(constraint, UniqueConstraint) else "p"
        return f"{letter} {','.join(column.name for column in constraint.columns)}"
    raise TypeError(constraint)  # of a kind that no table of ours has had


def _index(index: Index) -> str:
    assert index.table is not None  # noqa: S101  it stands in a table's own list
    columns = ",".join(str(column.name) for column in index.columns)
    where = index.dialect_options["postgresql"]["where"]
    condition = (
        "" if where is None else str(where.compile(dialect=_DIALECT)).replace(f"{index.table.name}.", "")
    )
    unique = "t" if index.unique else "f"
    return f"{index.table.name} {columns} {condition} unique {unique} valid t"


def _bare(detail: str) -> str:
    return re.sub(r"[()\s]", "", detail).lower()
