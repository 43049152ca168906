"""What the database holds, row by row.

These shapes are shared by the store, which keeps them, and by the rooms that own them, which give them
meaning: the store knows no rule, and no room knows SQL. Times are Unix seconds. A `mac` is an HMAC under a
subkey of the master key, written and checked by the room that owns the row, so that a row planted or
changed by hand is never believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class RingRow(NamedTuple):
    """A signing key's public half and its times."""

    kid: str
    generation: int
    public_jwk: str
    created_at: float
    activate_at: float
    revoked_at: float | None
    mac: bytes


class RingSnapshot(NamedTuple):
    """The whole ring as one transaction read it."""

    epoch: int
    rows: tuple[RingRow, ...]
    sealed_private: Mapping[str, bytes]
    last_served_at: float | None
    clock_high_water: float


class IdentityRow(NamedTuple):
    """A local service identity; `document` is its roles, grants, attributes and service keys in JSON."""

    id: str
    document: str
    created_at: float
    disabled_at: float | None
    mac: bytes


class IdentitySnapshot(NamedTuple):
    """Every identity as one transaction read them."""

    epoch: int
    identities: tuple[IdentityRow, ...]


class AccountRow(NamedTuple):
    """A person's account: everything but its id is sealed.

    Attributes:
        epoch: The one that its last change brought about; nothing protects it.
    """

    id: str
    epoch: int
    sealed: bytes


class AccountSnapshot(NamedTuple):
    """The accounts changed since an epoch, as one transaction read them."""

    epoch: int
    accounts: tuple[AccountRow, ...]


class RevokedTokenRow(NamedTuple):
    """The id of a token that was revoked before its `exp`, and until when it must be remembered."""

    jti: str
    exp: int
    revoked_at: float
    revoked_by: str
    mac: bytes


class RevocationRow(NamedTuple):
    """What is revoked beside single tokens; `before` is a subject's alone, `backend` a key's."""

    id: str
    kind: str
    backend: str | None
    name: str
    before: int | None
    revoked_at: float
    revoked_by: str
    reason: str
    mac: bytes


class NewRevokedToken(NamedTuple):
    """A token to be revoked.

    Attributes:
        row: As it is to be stored.
        at_most: How many tokens may be revoked before it.
        share: How many of these may be its caller's; None for any number.
    """

    row: RevokedTokenRow
    at_most: int
    share: int | None


class RevocationSnapshot(NamedTuple):
    """The tokens revoked since an epoch and all that is revoked beside them, as one transaction read them."""

    epoch: int
    clock_high_water: float
    tokens: tuple[RevokedTokenRow, ...]
    others: tuple[RevocationRow, ...]


class ApprovalRow(NamedTuple):
    """An operation that somebody asked to be let do, and who approved it, once somebody has.

    Attributes:
        id: Random.
        caller: Who asked.
        behind: The names of everybody who is behind the request, as a JSON list.
        digest: SHA-256 over the document, in hex.
        document: What exactly would be done, in JSON.
        break_glass: 1 if it is an emergency, else 0.
        valid_seconds: How long it may be done once it is approved, at most.
        asked_at: When it was asked for.
        expires_at: Until when it waits; once approved, until when it may be done.
        decided_by: Who approved it; None: it waits.
        decided_at: When that was.
        reason: Why, in their words.
        mac: An HMAC over all the others.
    """

    id: str
    caller: str
    behind: str
    digest: str
    document: str
    break_glass: int
    valid_seconds: int
    asked_at: float
    expires_at: float
    decided_by: str | None
    decided_at: float | None
    reason: str
    mac: bytes


class ApprovalSnapshot(NamedTuple):
    """Everything that waits for approval, or for its use, as one transaction read it."""

    epoch: int
    rows: tuple[ApprovalRow, ...]


class LocalKeyRow(NamedTuple):
    """One version of a key of the `local://` backend, sealed under the master key."""

    key_id: str
    version: int
    created_at: float
    sealed: bytes


class ChainedRow(NamedTuple):
    """One audit record: the bytes as they were hashed."""

    seq: int
    hash: bytes
    body: bytes


class ChainHead(NamedTuple):
    """The last record of an audit chain."""

    chain: str
    seq: int
    hash: bytes


class TreeRow(NamedTuple):
    """How far the Merkle tree of a chain was followed, and the number of the checkpoint that lists its root.

    What it says is not believed before the root was compared with that checkpoint's.
    """

    chain: str
    size: int
    frontier: bytes
    checkpoint: int


class LogPosition(NamedTuple):
    """Where the whole audit log stands, as one transaction read it.

    Attributes:
        epoch: The state's epoch.
        records: How many records there were ever.
        heads: The heads that no chain's first record carries, which commit to every other chain, and some
            whose root no checkpoint lists yet.
        trees: Their trees, as far as there is one.
    """

    epoch: int
    records: int
    heads: tuple[ChainHead, ...]
    trees: tuple[TreeRow, ...] = ()


class CheckpointRow(NamedTuple):
    """A signed checkpoint: its number and its line, as it was signed."""

    seq: int
    line: bytes


class ChainState(NamedTuple):
    """What the tables say of a chain.

    Attributes:
        chain: Its id.
        head_seq: The number of its last record.
        carried_seq: That of the head which a first record of another chain carries.
        listed_seq: Up to which record a checkpoint lists its tree.
        listed_by: The number of that checkpoint.
        is_delivered: Whether the sink has it.
        pruning: The signed line that says which of its records are gone; None: none.
    """

    chain: str
    head_seq: int
    carried_seq: int | None
    listed_seq: int | None
    listed_by: int | None
    is_delivered: bool | None
    pruning: object


class LogLook(NamedTuple):
    """What a look at the log costs next to nothing to tell.

    Attributes:
        epoch: The state's epoch.
        last_position: That of the record that was inserted last; it rises with each.
        newest: The newest checkpoint; None if there is none.
    """

    epoch: int
    last_position: int
    newest: CheckpointRow | None


class SignedRows(NamedTuple):
    """A new checkpoint, and the trees whose roots it lists."""

    checkpoint: CheckpointRow
    trees: tuple[TreeRow, ...] = ()


class Standing(NamedTuple):
    """What the database holds of that which a checkpoint lists.

    Attributes:
        epoch: The state's epoch.
        records: How many records there are.
        hashes: For each head that was asked about, the stored hash; None where there is no such record.
    """

    epoch: int
    records: int
    hashes: tuple[object, ...]


class KeyWrap(NamedTuple):
    """A master key, wrapped.

    Attributes:
        check_value: Whose wrap it is: the master key's check value.
        opener: What opens it: `kms`, or the check value, in hex, of another master key.
        wrapped: The blob.
        key_version: The KMS key's version.
        label: The KMS key, for people: its scheme and its id; nothing trusts it.
        created_at: When it was wrapped.
    """

    check_value: bytes
    opener: str
    wrapped: bytes
    key_version: str
    label: str
    created_at: float


class MasterKeyMarks(NamedTuple):
    """Which master keys rows are under, as one transaction read it.

    Attributes:
        present: The check value of the key that everything new is under.
        former: That of the one before it; None where nothing is under that any more.
    """

    present: bytes
    former: bytes | None


class MasterKeyState(NamedTuple):
    """Everything that the database says of its master key.

    Attributes:
        marks: Which keys rows are under.
        wraps: Every wrapped key.
        kept: The secrets that outlive their master key, sealed, by purpose.
    """

    marks: MasterKeyMarks
    wraps: tuple[KeyWrap, ...]
    kept: Mapping[str, bytes]
