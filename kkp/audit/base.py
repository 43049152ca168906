"""The nouns of the audit, and the port through which its records become durable.

One chain per process boot. A chain's first record, `start`, carries the heads of all other chains that no
first record carries yet at their present head: a frontier. Transitively it covers every chain there is, and
yet it does not grow with the number of boots. A chain that was cut or deleted after another one started is
found, because that other one still names the record that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol

import msgspec

from kkp.model import JSON, Action
from kkp.rows import ChainedRow, ChainHead

__all__ = [
    "ApprovalExpired",
    "AuditEntry",
    "AuditStore",
    "BreakGlass",
    "ChainHead",
    "ChainedRow",
    "FailedAuthentication",
    "Outcome",
    "Probe",
    "Pruned",
    "RateLimited",
    "Receipt",
    "RecordType",
    "RollbackAccepted",
]


class RecordType(StrEnum):
    """What a record is about. A name is never reused."""

    START = "start"
    DECISION = "decision"
    OUTCOME = "outcome"
    FAILED_AUTHENTICATION = "failed_authentication"
    RATE_LIMITED = "rate_limited"
    PROBE = "probe"
    ROLLBACK_ACCEPTED = "rollback_accepted"
    BREAK_GLASS = "break_glass"
    PRUNED = "pruned"
    APPROVAL_EXPIRED = "approval_expired"


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, as the pipeline hands it over; None is "does not apply" and is not recorded.

    Attributes:
        action: What policy was asked about.
        decision: `error` when the policy engine gave no usable answer.
        reasons: The policy's reason codes.
        caller: The qualified id of who asked.
        method: How the caller was proven.
        policy_revision: Which policy decided.
        policy_decision_id: Under which id the policy engine logs the decision itself.
        decision_id: What the caller is told, to find this record by.
        epoch: The epoch of the state that was decided on.
        backend: The backend asked for.
        key_id: The key asked for.
        source_backend: The backend that an envelope is moved from; `backend` is then where it goes.
        source_key_id: The key that it is moved from.
        kid: The key that is about to sign a token.
        jti: The id of the token that was presented or is about to be signed.
        iat: When that token was issued.
        exp: When that token ends.
        aud: That token's audience.
        claims_digest: SHA-256 over the claims that are about to be signed.
        approval: The id of the approval that it is about, asks for or takes.
        context_names: The names, never the values, of the encryption context.
        result: The result code; None until it is known.
        count: How many items of a batch it is about.
        request_id: The request that the decision belongs to.
        peer: The address it came from.
        private: Values of which only a keyed digest is recorded, each separated by its field's name.
        policy_input: The canonical policy input, recorded sealed; empty for none.
    """

    action: Action
    decision: Literal["allow", "deny", "error"]
    reasons: tuple[str, ...] = ()
    caller: str | None = None
    method: str | None = None
    policy_revision: str | None = None
    policy_decision_id: str | None = None
    decision_id: str | None = None
    epoch: int | None = None
    backend: str | None = None
    key_id: str | None = None
    source_backend: str | None = None
    source_key_id: str | None = None
    kid: str | None = None
    jti: str | None = None
    iat: int | None = None
    exp: int | None = None
    aud: str | None = None
    claims_digest: str | None = None
    approval: str | None = None
    context_names: tuple[str, ...] = ()
    result: str | None = None
    count: int | None = None
    request_id: str | None = None
    peer: str | None = None
    private: Mapping[str, str] = {}
    policy_input: bytes = b""

    def __repr__(self) -> str:
        """Name the entry, and nothing that its record protects."""
        return f"AuditEntry({self.decision_id!r})"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended whose decision is already on record as `ref`, a `chain:seq`.

    Of a batch, `count` is how many of the decision's items ended like this.
    """

    ref: str
    result: str
    count: int | None = None


@dataclass(frozen=True, slots=True)
class FailedAuthentication:
    """How often a peer failed to authenticate, for one reason, since the last such record."""

    peer: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class RateLimited:
    """How often a caller was refused for asking too often, since the last such record."""

    caller: str
    count: int


@dataclass(frozen=True, slots=True)
class RollbackAccepted:
    """That the operator went on with a database which is behind a checkpoint, named by its hash in hex."""

    checkpoint: str


@dataclass(frozen=True, slots=True)
class BreakGlass:
    """What was done past KKP, as a file of `kkp.audit.break_glass` told it, and that record's hash in hex."""

    imported: Mapping[str, JSON]
    imported_hash: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """Which chains' first records are about to be deleted; each with the last of them and the checkpoint."""

    prunings: Sequence[Mapping[str, JSON]]


@dataclass(frozen=True, slots=True)
class ApprovalExpired:
    """That nobody approved a request (`result` is `waiting`), or used an approval (`approved`), in time."""

    approval: str
    result: str


class Probe(NamedTuple):
    """That the log could be written again after a failure, by a record of at least so many bytes."""

    size_bytes: int


class Receipt(msgspec.Struct, frozen=True):
    """Proof that a record is durable, with the epoch that its own transaction read."""

    chain: str
    seq: int
    epoch: int


class AuditStore(Protocol):
    """Where records become durable. What it raises is its own; the log takes any error for "unknown".

    The pair (chain, seq) is unique: that is what keeps a chain from forking when a commit that was given
    up on turns out to have happened.
    """

    async def open_chain(self, chain: str, make_first: Callable[[Sequence[ChainHead]], ChainedRow]) -> int:
        """Insert a chain's first record and return the epoch, all in one transaction.

        `make_first` is given the heads of all other chains that no chain's first record carries at their
        present position; from then on they count as carried.
        """

    async def append(self, chain: str, rows: Sequence[ChainedRow]) -> int:
        """Insert all rows, move the chain's head and return the epoch, in one durable transaction.

        When it raises, either all rows are in or none.
        """

    async def chain_head(self, chain: str) -> ChainHead | None:
        """Return the last durable record of a chain, None if there is none."""

    async def input_key(self, day: str, sealed: bytes) -> bytes:
        """Store a day's sealed key unless the day has one; return the one that is stored."""

    async def read(self, after: tuple[str, int] | None, limit: int) -> Sequence[tuple[str, ChainedRow]]:
        """Return up to `limit` records behind the one named, each with its chain, in order of insertion."""
