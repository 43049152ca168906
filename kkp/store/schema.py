"""The tables.

Evolution: `schema_version` in the one row of `state` says which layout a database has, and nothing else does.
A release reads its own layout and refuses every other one, older or newer, before it writes anything;
`kkp migrate` brings an older one on. Columns are added, never reused, and each change is a new layout: one
more revision in `kkp/store/migrations/versions`, and the next number here. `schema_version` and
`master_key_check` stay what they are in every layout: they are read before it is known which one it is.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
)

SCHEMA_VERSION = 10
FIRST_LAYOUT = 3  # the oldest that can be migrated: what the first revision makes
EPOCH_CHANNEL = "kkp_epoch"  # where PostgreSQL tells each new epoch

metadata = MetaData()

# SQLite's integers have 64 bits whatever they are called, and only INTEGER may be its row's own number.
Count = Integer().with_variant(BigInteger(), "postgresql")


class Bytes(LargeBinary):
    """Bytes as they stand. SQLite keeps any type in any column; who checks a row's MAC refuses the others."""

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Leave the value alone."""


# One row. The epoch is what every change of the ring, of identities or of grants bumps; the audit reads it
# in the transaction that it commits anyway.
state = Table(
    "state",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1"), primary_key=True, autoincrement=False),
    Column("schema_version", Integer, nullable=False),
    Column("master_key_check", Bytes, nullable=False),
    Column("epoch", Count, nullable=False),
    Column("last_served_at", Double),
    Column("clock_high_water", Double, nullable=False),
    Column("write_checks", Count, nullable=False),  # counts the attempts to write that readiness makes
)

# Each epoch of the last ones, by a mark of its own. A number alone doesn't tell two histories apart: one may
# have been lost with its server, and another one be counted by it since.
epochs = Table(
    "epochs",
    metadata,
    Column("epoch", Count, primary_key=True, autoincrement=False),
    Column("mark", Bytes, nullable=False),
)

ring_keys = Table(
    "ring_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("generation", Count, nullable=False, unique=True),
    Column("public_jwk", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("activate_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("mac", Bytes, nullable=False),
)

# Private halves stand apart from the ring, so that they can be deleted soon after retirement.
ring_private_keys = Table(
    "ring_private_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("sealed", Bytes, nullable=False),
)

identities = Table(
    "identities",
    metadata,
    Column("id", Text, primary_key=True),
    Column("document", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("disabled_at", Double),
    Column("mac", Bytes, nullable=False),
)

# People. `epoch` is the one that a row's last change brought about, so that replicas read only what is new to
# them, and that of two changes at a time the second one is noticed.
accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("epoch", Count, nullable=False, index=True),
    Column("sealed", Bytes, nullable=False),
)

local_keys = Table(
    "local_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("sealed", Bytes, nullable=False),
)

# `position` is the order of insertion, over all chains. On PostgreSQL it is not the order of commits: see
# `Database.settled_position`.
audit_records = Table(
    "audit_records",
    metadata,
    Column("position", Count, Identity(always=True), primary_key=True),
    Column("chain", Text, nullable=False),
    Column("seq", Count, nullable=False),
    Column("hash", Bytes, nullable=False),
    Column("body", Bytes, nullable=False),
    UniqueConstraint("chain", "seq"),
)

# Where each chain stands, so that opening a new one need not read them all. Not evidence: verification
# reads the records alone. `carried_seq` is the head that a later chain's first record carries.
audit_chains = Table(
    "audit_chains",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("head_seq", Count, nullable=False),
    Column("head_hash", Bytes, nullable=False),
    Column("carried_seq", Count),
)

audit_input_keys = Table(
    "audit_input_keys",
    metadata,
    Column("day", Text, primary_key=True),
    Column("sealed", Bytes, nullable=False),
)

# Signed, so it protects itself. `delivered` says whether a sink outside of the database has it.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Count, primary_key=True, autoincrement=False),
    Column("line", Bytes, nullable=False),
    Column("delivered", Boolean, nullable=False),
)
# Nearly always empty: a year of checkpoints is not to be searched at each new one for what is undelivered.
_undelivered = checkpoints.c.delivered.is_(false())
Index("checkpoints_undelivered", checkpoints.c.seq, sqlite_where=_undelivered, postgresql_where=_undelivered)

# How far the Merkle tree of each chain was followed: nobody reads a chain twice. Not evidence: whoever goes
# on from a row compares its root with the one that the checkpoint lists.
audit_trees = Table(
    "audit_trees",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("size", Count, nullable=False),
    Column("frontier", Bytes, nullable=False),
    Column("checkpoint", Count, nullable=False),
)

# Of each chain whose first records were deleted: the signed statement of which, as they were. It protects
# itself.
audit_prunings = Table(
    "audit_prunings",
    metadata,
    Column("chain", Text, primary_key=True),
    Column("line", Bytes, nullable=False),
)

# Tokens that were revoked before their `exp`. `epoch` is the one that the revocation brought about, so that
# replicas read only what is new to them.
revoked_tokens = Table(
    "revoked_tokens",
    metadata,
    Column("jti", Text, primary_key=True),
    Column("exp", Count, nullable=False, index=True),
    Column("revoked_at", Double, nullable=False),
    Column("revoked_by", Text, nullable=False, index=True),
    Column("epoch", Count, nullable=False, index=True),
    Column("mac", Bytes, nullable=False),
)

# What is revoked beside single tokens, few enough to be read whole. `id` is a digest of kind and names, so
# there is one row for each thing. `before` is a subject's alone, `backend` a key's.
revocations = Table(
    "revocations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("backend", Text),
    Column("name", Text, nullable=False),
    Column("before", Count),
    Column("revoked_at", Double, nullable=False),
    Column("revoked_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("mac", Bytes, nullable=False),
)

# What may be used once and was: an assertion, a proof. `digest` is the SHA-256 of what names it, and `kind`
# says of what sort it is. A row goes once nobody would take it any more, used or not.
used_once = Table(
    "used_once",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("digest", Bytes, primary_key=True),
    Column("expires_at", Double, nullable=False, index=True),
)

# Operations that wait for somebody's approval or, once `decided_by` is there, for their one use. A row goes
# when it is used, denied, or over.
approvals = Table(
    "approvals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("caller", Text, nullable=False),
    Column("behind", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("break_glass", Count, nullable=False),
    Column("valid_seconds", Count, nullable=False),
    Column("asked_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("decided_by", Text),
    Column("decided_at", Double),
    Column("reason", Text, nullable=False),
    Column("mac", Bytes, nullable=False),
)

# Master keys, each wrapped by what `opener` says: a key of a KMS, or the master key before or after it.
# `state.master_key_check` says which one is the present one. One that its successor opens is there as long as
# rows may be under it: while the master key is being rotated.
master_key_wraps = Table(
    "master_key_wraps",
    metadata,
    Column("check_value", Bytes, primary_key=True),
    Column("opener", Text, primary_key=True),
    Column("wrapped", Bytes, nullable=False),
    Column("key_version", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

# What outlives the master key that it was derived from, sealed under the present one.
kept_secrets = Table(
    "kept_secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("sealed", Bytes, nullable=False),
)
