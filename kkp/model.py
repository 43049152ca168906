"""The nouns that the rooms share: who calls, what they would do, what was decided.

Plain frozen data without behaviour or I/O. Trust lives in the type: `Credentials` are what a request
claims, `Caller` is what was proven.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import msgspec

JSON: TypeAlias = Any  # a value that msgspec or json produced; the checks are at its use


class Action(StrEnum):
    """What policy is asked about, and what the audit records. A name is never reused."""

    ISSUE_TOKEN = "issue_token"  # noqa: S105  the name of an action
    ENCRYPT = "encrypt"
    DECRYPT = "decrypt"
    REWRAP = "rewrap"
    GENERATE_DATA_KEY = "generate_data_key"
    RELEASE_DATA_KEY = "release_data_key"
    ROTATE_SIGNING_KEY = "rotate_signing_key"
    REVOKE_SIGNING_KEY = "revoke_signing_key"
    ROTATE_MASTER_KEY = "rotate_master_key"
    RETIRE_MASTER_KEY = "retire_master_key"
    READ_KEY = "read_key"
    INTROSPECT_TOKEN = "introspect_token"  # noqa: S105  the name of an action
    REVOKE_TOKEN = "revoke_token"  # noqa: S105  the name of an action
    REVOKE = "revoke"
    LIFT_REVOCATION = "lift_revocation"
    READ_REVOCATIONS = "read_revocations"
    MANAGE_IDENTITY = "manage_identity"
    MANAGE_ACCOUNT = "manage_account"
    SIGN_UP = "sign_up"
    LOG_IN = "log_in"
    LOG_OUT = "log_out"
    CHANGE_PASSWORD = "change_password"  # noqa: S105  the name of an action
    READ_AUDIT = "read_audit"
    EXPLAIN_POLICY = "explain_policy"
    IMPORT_AUDIT = "import_audit"
    PRUNE_AUDIT = "prune_audit"
    APPROVE = "approve"
    MIGRATE = "migrate"


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an identity may do, and on which key.

    Attributes:
        backend: The configured backend's name.
        key_id: An exact key id, or a prefix that ends in `*`.
        ops: Envelope operations.
        audiences: The audiences a token under this grant may name.
        policy_claims: For each claim name, the values a token may carry.
        max_ttl: The longest token lifetime in seconds, where the grant limits it.
    """

    backend: str
    key_id: str
    ops: tuple[str, ...]
    audiences: tuple[str, ...] = ()
    policy_claims: dict[str, tuple[str, ...]] = {}
    max_ttl: int | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """When a service key was made, and from when on it is dead; None: it does not expire."""

    created_at: float
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A local service: its name, what it may do, whether it still may, and its keys, the newest first."""

    id: str
    roles: tuple[str, ...]
    grants: tuple[Grant, ...]
    attributes: Mapping[str, str]
    created_at: float
    disabled_at: float | None = None
    service_keys: tuple[KeyTimes, ...] = ()


@dataclass(frozen=True, slots=True)
class PresentedCertificate:
    """A client certificate that TLS verified, for whoever holds its private key.

    Attributes:
        sha256: The digest of its DER form.
        spiffe_ids: The SPIFFE IDs that it names.
        dns_names: The DNS names that it names.
        bundles: The bundles of authorities that its issuer is in (`kkp.certificates`).
    """

    sha256: bytes
    spiffe_ids: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    bundles: frozenset[str] = frozenset()


class Credentials(msgspec.Struct, frozen=True):
    """What a request presented, unverified but for the certificate.

    Attributes:
        unverified_bearer: The value of the `Authorization` header, behind its scheme.
        unverified_token: A KKP token carried in the body.
        scheme: Which scheme that header has.
        unverified_proofs: The values of the `DPoP` headers.
        method: The request's method, which a proof must name.
        path: The request's path, likewise.
        certificate: The client's, if there is one.
        unverified_release: The value of the `KKP-Approval` header.
    """

    unverified_bearer: str | None = None
    unverified_token: str | None = None
    scheme: Literal["bearer", "dpop"] = "bearer"
    unverified_proofs: tuple[str, ...] = ()
    method: str = ""
    path: str = ""
    certificate: PresentedCertificate | None = None
    unverified_release: str | None = None

    def __repr__(self) -> str:
        """Name the scheme and the certificate, and nothing that is good for anything."""
        return f"Credentials(scheme={self.scheme!r}, certificate={self.certificate!r})"


class Caller(msgspec.Struct, frozen=True):
    """Who is calling, proven. The policy input holds it as it stands here.

    Attributes:
        id: Qualified name: `orders`, `k8s:system:serviceaccount:…`, `user:…`.
        kind: `service`, `user`, `operator`, or `anonymous` for whoever signs up or logs in.
        roles: Role names, looked up now.
        issuer: Who vouches for the identity; `kkp` for local services.
        method: How it was proven: `service_key`, `session`, `kkp_token`, `local_operator`, or `none`.
        attributes: Facts about the identity that policy may use.
        grants: What it may do, looked up now.
    """

    id: str
    kind: str
    roles: tuple[str, ...]
    issuer: str
    method: str
    attributes: Mapping[str, str] = {}
    grants: tuple[Grant, ...] = ()


@dataclass(frozen=True, slots=True)
class ApprovalDemand:
    """That somebody else must approve first.

    Attributes:
        valid_seconds: How long what is approved may be done, from the approval on, at most.
        wait_seconds: How long the request for it waits.
        is_break_glass: Whether it is for emergencies: the approval takes a reason, and everybody is told.
    """

    valid_seconds: int
    wait_seconds: int
    is_break_glass: bool


class Decision(msgspec.Struct, frozen=True):
    """What policy decided.

    Attributes:
        allow: Only literal `true` of the policy becomes True.
        reasons: Stable codes of the form `package.rule`.
        public_reasons: Those that the policy lets the caller see.
        obligations: Those that the operation keeps; an unknown one has already become a denial.
        approval: The one that the road keeps: that somebody else must approve first.
        revision: Which policy decided.
        policy_decision_id: Under which id the policy engine logs the decision itself, if it does.
    """

    allow: bool
    reasons: tuple[str, ...]
    public_reasons: tuple[str, ...] = ()
    obligations: Mapping[str, JSON] = {}
    approval: ApprovalDemand | None = None
    revision: str = ""
    policy_decision_id: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and what of the policy it came by.

    Attributes:
        decision: As it would be taken.
        rules: The rules that had a value on the way to it, by their paths below `data`, sorted.
    """

    decision: Decision
    rules: tuple[str, ...]


class PolicyInput(msgspec.Struct, frozen=True):
    """One question to the policy engine, as `policy/README.md` describes it.

    Attributes:
        encoded: Canonical JSON, encoded once: these bytes are decided on, and sealed in the audit. They hold
            no plaintext, token, key or ciphertext.
    """

    encoded: bytes

    def __repr__(self) -> str:
        """Say nothing of the question."""
        return "PolicyInput(…)"

    @property
    def document(self) -> Mapping[str, JSON]:
        """The same as an object, for an engine that does not take bytes."""
        document: Mapping[str, JSON] = msgspec.json.decode(self.encoded)
        return document


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """What one backend may take of KKP, the same for each.

    Attributes:
        timeout_seconds: The longest that a caller waits for a call, whatever it consists of.
        attempts: How often a call that failed is made at most.
        concurrency: How many calls are under way at most.
        breaker_failures: After how many failures in a row the backend is left alone.
        breaker_seconds: For how long at most, until one call tries whether it is back.
    """

    timeout_seconds: float = 5.0
    attempts: int = 3
    concurrency: int = 32
    breaker_failures: int = 10
    breaker_seconds: float = 5.0
