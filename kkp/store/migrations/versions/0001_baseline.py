"""Layout 3, the first one that a release wrote."""

from __future__ import annotations

from alembic import op
from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Identity,
    Integer,
    Text,
    UniqueConstraint,
    text,
)

from kkp.store.schema import Bytes, Count

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Lay out an empty database."""
    _make_state()
    _make_keys_and_identities()
    _make_audit()
    _make_revoked_tokens()


def _make_state() -> None:
    op.create_table(
        "state",
        Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
        Column("schema_version", Integer, nullable=False),
        Column("master_key_check", Bytes, nullable=False),
        Column("epoch", Count, nullable=False),
        Column("last_served_at", Double),
        Column("clock_high_water", Double, nullable=False),
        Column("write_checks", Count, nullable=False),
    )


def _make_keys_and_identities() -> None:
    op.create_table(
        "ring_keys",
        Column("kid", Text, primary_key=True),
        Column("generation", Count, nullable=False, unique=True),
        Column("public_jwk", Text, nullable=False),
        Column("created_at", Double, nullable=False),
        Column("activate_at", Double, nullable=False),
        Column("revoked_at", Double),
        Column("mac", Bytes, nullable=False),
    )
    op.create_table(
        "ring_private_keys",
        Column("kid", Text, primary_key=True),
        Column("sealed", Bytes, nullable=False),
    )
    op.create_table(
        "identities",
        Column("id", Text, primary_key=True),
        Column("document", Text, nullable=False),
        Column("created_at", Double, nullable=False),
        Column("disabled_at", Double),
        Column("mac", Bytes, nullable=False),
    )
    op.create_table(
        "local_keys",
        Column("key_id", Text, primary_key=True),
        Column("version", Integer, primary_key=True),
        Column("created_at", Double, nullable=False),
        Column("sealed", Bytes, nullable=False),
    )


def _make_audit() -> None:
    op.create_table(
        "audit_records",
        Column("position", Count, Identity(always=True), primary_key=True),
        Column("chain", Text, nullable=False),
        Column("seq", Count, nullable=False),
        Column("hash", Bytes, nullable=False),
        Column("body", Bytes, nullable=False),
        UniqueConstraint("chain", "seq"),
    )
    op.create_table(
        "audit_chains",
        Column("chain", Text, primary_key=True),
        Column("head_seq", Count, nullable=False),
        Column("head_hash", Bytes, nullable=False),
        Column("carried_seq", Count),
    )
    op.create_table(
        "audit_input_keys",
        Column("day", Text, primary_key=True),
        Column("sealed", Bytes, nullable=False),
    )
    op.create_table(
        "checkpoints",
        Column("seq", Count, primary_key=True, autoincrement=False),
        Column("line", Bytes, nullable=False),
        Column("delivered", Boolean, nullable=False),
    )
    op.create_index(
        "checkpoints_undelivered",
        "checkpoints",
        ["seq"],
        sqlite_where=text("delivered IS 0"),
        postgresql_where=text("delivered IS false"),
    )


def _make_revoked_tokens() -> None:
    op.create_table(
        "revoked_tokens",
        Column("jti", Text, primary_key=True),
        Column("exp", Count, nullable=False, index=True),
        Column("revoked_at", Double, nullable=False),
        Column("revoked_by", Text, nullable=False, index=True),
        Column("epoch", Count, nullable=False, index=True),
        Column("mac", Bytes, nullable=False),
    )
