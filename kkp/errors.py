"""Every error KKP raises on purpose.

Nothing here knows HTTP: `kkp.web.problems` gives each `code` its status. A code is stable: clients branch
on it. The message is written for the caller, so it never holds a key, a token, a plaintext, a credential
or another caller's data. An exception that is not in this tree is a bug and reaches the caller as
`internal`, without a text.

```
KKPError
├── InvalidRequestError               invalid_request
│   ├── UnsupportedGrantError         invalid_request
│   ├── InvalidScopeError             invalid_request
│   └── InvalidTargetError            invalid_request
├── UnsupportedMediaTypeError         unsupported_media_type
├── PayloadTooLargeError              payload_too_large
├── AuthenticationError
│   ├── UnauthenticatedError          unauthenticated
│   │   └── CertificateInvalidError   unauthenticated   (and its connection ends)
│   ├── TokenInvalidError             token_invalid
│   │   └── ProofRequiredError        token_invalid
│   ├── TokenExpiredError             token_expired
│   └── DPoPProofError                invalid_dpop_proof
│       └── DPoPNonceError            use_dpop_nonce
├── ClientAuthenticationError         unauthenticated
├── TLSRequiredError                  tls_required
├── DeniedError
│   ├── PolicyDeniedError             policy_denied
│   ├── RevokedError                  revoked
│   ├── ScopeMismatchError            scope_mismatch
│   ├── ContextMismatchError          context_mismatch
│   ├── AudienceMismatchError         audience_mismatch
│   ├── ApprovalRequiredError         approval_required
│   ├── ApprovalInvalidError          approval_invalid
│   └── SelfApprovalError             self_approval
├── NotFoundError                     not_found
│   ├── UnknownBackendError           unknown_backend
│   └── UnknownKeyError               unknown_key
│       └── KeyElsewhereError         unknown_key
├── ConflictError                     conflict
│   └── KeyDisabledError              key_disabled
├── EnvelopeInvalidError              envelope_invalid
├── RateLimitedError                  rate_limited
│   └── PasswordsBusyError            rate_limited
├── OverloadedError                   overloaded
├── KMSError
│   ├── KMSDeniedError                kms_denied
│   │   ├── CredentialsExpiredError   kms_denied
│   │   └── ClockSkewError            kms_denied
│   ├── KMSUnavailableError           kms_unavailable
│   │   ├── KMSThrottledError         kms_unavailable
│   │   └── KeyNotReadyError          kms_unavailable
│   └── InvalidWrapError              envelope_invalid
├── IssuerUnavailableError            issuer_unavailable
├── PolicyUnavailableError            policy_unavailable
├── AuditUnavailableError             audit_unavailable
├── KeyringUnavailableError           keyring_unavailable
│   └── StateUntrustedError           keyring_unavailable
├── StaleProposalError                keyring_unavailable   (the pipeline starts over)
├── ConfigError                       never reaches a caller: start-up is refused
└── PolicyLoadError                   never reaches a caller: start-up is refused
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class KKPError(Exception):
    """The root of the tree. `code` is stable, `str(error)` is safe to show to the caller."""

    code: ClassVar[str] = "internal"


def described(error: BaseException) -> str:
    """Return what a log may say of an error: one of ours in its own words, any other by its type alone.

    The text of a foreign error may show what it was working on, a key above all.
    """
    return str(error) if isinstance(error, KKPError) else type(error).__name__


class InvalidRequestError(KKPError):
    """The request is malformed; nothing was done."""

    code = "invalid_request"


class UnsupportedGrantError(InvalidRequestError):
    """The OAuth grant type is not one that KKP offers."""


class InvalidScopeError(InvalidRequestError):
    """The OAuth scope is not made of operations that a token can be for."""


class InvalidTargetError(InvalidRequestError):
    """What an OAuth client would have a token for is missing, malformed, or more than one thing."""


class UnsupportedMediaTypeError(KKPError):
    """The body has a media type or a content coding that the endpoint does not read."""

    code = "unsupported_media_type"


class PayloadTooLargeError(KKPError):
    """The body, or the plaintext in it, is over its limit."""

    code = "payload_too_large"


class AuthenticationError(KKPError):
    """Who is calling could not be established."""

    code = "unauthenticated"


class UnauthenticatedError(AuthenticationError):
    """No credential, or one that is unknown or disabled: the caller cannot tell which."""

    code = "unauthenticated"


class CertificateInvalidError(UnauthenticatedError):
    """A client certificate that proves nothing, or not any more; or none where one is demanded."""


class TokenInvalidError(AuthenticationError):
    """A KKP token that does not verify, or whose subject is unknown or disabled."""

    code = "token_invalid"


class ProofRequiredError(TokenInvalidError):
    """A KKP token that is bound to a key, without a DPoP proof that the request comes from whoever has it."""


class TokenExpiredError(AuthenticationError):
    """A KKP token that verifies but whose `exp` has passed."""

    code = "token_expired"


class DPoPProofError(AuthenticationError):
    """A DPoP proof that is malformed, was made for another request or token, or not in time (RFC 9449)."""

    code = "invalid_dpop_proof"


class DPoPNonceError(DPoPProofError):
    """A DPoP proof without the nonce that KKP demands, or with one that has ended.

    Args:
        nonce: The one to be used.
    """

    code = "use_dpop_nonce"

    def __init__(self, nonce: str) -> None:
        super().__init__("The DPoP proof needs the nonce that the header DPoP-Nonce of this answer has.")
        self.nonce = nonce


class ClientAuthenticationError(KKPError):
    """An OAuth client would prove who it is as a client, and KKP knows no clients: nothing was looked at."""

    code = "unauthenticated"


class TLSRequiredError(KKPError):
    """The request came past the proxy that terminates TLS; nothing of it was read."""

    code = "tls_required"


class DeniedError(KKPError):
    """The caller is known and may not do this. Every refusal is on record."""

    code = "policy_denied"


class PolicyDeniedError(DeniedError):
    """The policy said no.

    Args:
        message: One sentence for the caller.
        reasons: The reason codes that the policy marks public.
    """

    code = "policy_denied"

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)


class RevokedError(DeniedError):
    """The key or its backend was revoked at KKP, or the token would be void. Raised only after policy."""

    code = "revoked"


class ScopeMismatchError(DeniedError):
    """The token is for another backend, key, operation or caller."""

    code = "scope_mismatch"


class ContextMismatchError(DeniedError):
    """A context pair of the request or the token contradicts the envelope's authenticated context."""

    code = "context_mismatch"


class AudienceMismatchError(DeniedError):
    """The token is for another audience than the one expected."""

    code = "audience_mismatch"


class ApprovalRequiredError(DeniedError):
    """Somebody else must approve this first; nothing was done.

    Args:
        approval_id: Names the request for approval, which the caller hands to somebody.
        expires_at: Until when it waits, in Unix seconds.
    """

    code = "approval_required"

    def __init__(self, approval_id: str, expires_at: float) -> None:
        super().__init__("Somebody else must approve this first: hand them the approval_id.")
        self.approval_id = approval_id
        self.expires_at = expires_at


class ApprovalInvalidError(DeniedError):
    """A release that is not good for this request, or not any more. One message for all.

    Args:
        approval_id: Of the approval that it was for, where KKP signed it; for the record.
    """

    code = "approval_invalid"

    def __init__(self, approval_id: str | None = None) -> None:
        super().__init__("The approval is for another request or caller, was used, or is over.")
        self.approval_id = approval_id


class SelfApprovalError(DeniedError):
    """Whoever would approve is behind the request."""

    code = "self_approval"


class NotFoundError(KKPError):
    """What was asked for does not exist."""

    code = "not_found"


class UnknownBackendError(NotFoundError):
    """No backend of that name is configured. Raised only after policy, so names can't be probed."""

    code = "unknown_backend"


class UnknownKeyError(NotFoundError):
    """The backend has no such key. Raised only after policy, so names can't be probed."""

    code = "unknown_key"


class KeyElsewhereError(UnknownKeyError):
    """The name says itself that the key is in another region, ring or vault than the backend's."""


class ConflictError(KKPError):
    """The request contradicts the present state; the message says when or how it would not."""

    code = "conflict"


class KeyDisabledError(ConflictError):
    """The key exists but is disabled or awaits deletion."""

    code = "key_disabled"


class EnvelopeInvalidError(KKPError):
    """The envelope is malformed or failed a check. One message for all, so that none becomes an oracle."""

    code = "envelope_invalid"

    def __init__(self) -> None:
        super().__init__(
            "The envelope is malformed, was altered, does not belong to this key, or is detached where a "
            "whole one is wanted, or whole where a detached one is."
        )


class RateLimitedError(KKPError):
    """The caller, or its address, asks more often than anybody may; nothing was done.

    Args:
        retry_after_seconds: When to ask again, in whole seconds, 1 or more.
        cost: How many requests it counts as.
        whose: What is limited, `caller` or `address`.
    """

    code = "rate_limited"

    def __init__(self, retry_after_seconds: int, cost: int = 1, whose: str = "caller") -> None:
        counted = f", and this one counts as {cost}" if cost > 1 else ""
        super().__init__(f"Too many requests of this {whose}{counted}; try again later.")
        self.retry_after_seconds = retry_after_seconds


class PasswordsBusyError(RateLimitedError):
    """More passwords wait to be checked than may, of all or of one address; nothing was done."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.args = ("Too many passwords wait to be checked; try again later.",)


class OverloadedError(KKPError):
    """The bodies of other requests take all the memory that bodies may take; nothing was done.

    Attributes:
        retry_after_seconds: When to ask again.
    """

    code = "overloaded"
    retry_after_seconds: ClassVar[int] = 1


class KMSError(KKPError):
    """A backend did not do what it was asked to. Vendor exceptions stop at the adaptor and become these."""

    code = "kms_unavailable"


class KMSDeniedError(KMSError):
    """The backend refused KKP's own credentials."""

    code = "kms_denied"


class CredentialsExpiredError(KMSDeniedError):
    """The backend refused KKP's own credentials because their time is over, or they were revoked."""


class ClockSkewError(KMSDeniedError):
    """The backend refused KKP's own credentials because this machine's clock is off."""


class KMSUnavailableError(KMSError):
    """The backend could not be reached, failed, or gave an answer that can't be trusted."""

    code = "kms_unavailable"


class KMSThrottledError(KMSUnavailableError):
    """The backend asked for fewer requests."""


class KeyNotReadyError(KMSUnavailableError):
    """The backend answers, and can't use this one key at the moment; others it may."""


class InvalidWrapError(KMSError):
    """The backend could not open the wrapped key: altered, another key's, or another context's."""

    code = "envelope_invalid"


class IssuerUnavailableError(KKPError):
    """None of an issuer's keys is known, so nobody can tell whether the credential is good."""

    code = "issuer_unavailable"


class PolicyUnavailableError(KKPError):
    """The policy engine gave no usable decision; nothing was done."""

    code = "policy_unavailable"


class AuditUnavailableError(KKPError):
    """The audit record could not be made durable; nothing was done."""

    code = "audit_unavailable"


class KeyringUnavailableError(KKPError):
    """There is no signing key, or no keyring state recent enough, to act on."""

    code = "keyring_unavailable"


class StateUntrustedError(KeyringUnavailableError):
    """A stored row failed its authentication: somebody wrote to the database by hand."""


class StaleProposalError(KKPError):
    """The clock or the state moved between the decision and the act; the pipeline starts over."""

    code = "keyring_unavailable"


class ConfigError(KKPError):
    """The configuration can't be used.

    Args:
        problems: Every problem found, each with its cure; never just the first.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class PolicyLoadError(KKPError):
    """The policy can't be used: it does not parse, is unsafe in this engine, or has no default."""
