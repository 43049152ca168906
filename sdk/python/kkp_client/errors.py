"""Every error that this package raises on purpose.

`code` is what a program branches on, `reason` says which rule it was where there are several; both are
stable, and the same in every language. A message is written for a log: neither it nor any other property
holds a token, a key, a proof, a plaintext or an answer's body.

```
KKPError
├── ConfigurationError            invalid_configuration
├── TokenError                    token_invalid, token_expired, audience_mismatch
├── KeysUnavailableError          keys_unavailable
├── RevocationsUnavailableError   revocations_unavailable
├── EnvelopeInvalidError          envelope_invalid
├── TransportError                unreachable, timeout, bad_answer
└── ProblemError                  the code of KKP's answer
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

TokenReason: TypeAlias = Literal[
    "malformed",
    "wrong_algorithm",
    "wrong_type",
    "wrong_claims",
    "wrong_issuer",
    "wrong_audience",
    "expired",
    "not_yet_valid",
    "unknown_key",
    "wrong_signature",
    "revoked",
    "proof_missing",
    "wrong_certificate",
    "wrong_proof",
    "not_bound",
]
KeysReason: TypeAlias = Literal["no_keys", "keys_too_old"]
RevocationsReason: TypeAlias = Literal["no_list", "list_too_old", "older_list"]
TransportCode: TypeAlias = Literal["unreachable", "timeout", "bad_answer"]

_CODES: Final[Mapping[str, str]] = {"expired": "token_expired", "wrong_audience": "audience_mismatch"}
_TOKEN_MESSAGES: Final[Mapping[TokenReason, str]] = {
    "malformed": "The token is malformed.",
    "wrong_algorithm": "The token is signed with another algorithm than EdDSA.",
    "wrong_type": "The token is of another type.",
    "wrong_claims": "A claim of the token is missing or malformed.",
    "wrong_issuer": "The token is another issuer's.",
    "wrong_audience": "The token is for another audience.",
    "expired": "The token has expired.",
    "not_yet_valid": "The token is not valid yet; one of the clocks may be off.",
    "unknown_key": "The token is signed by a key that is not in the issuer's key set.",
    "wrong_signature": "The token's signature is wrong.",
    "revoked": "The token was revoked.",
    "proof_missing": "The token is bound to a key, and nothing was shown that proves to have it.",
    "wrong_certificate": "The token is bound to another certificate.",
    "wrong_proof": "The DPoP proof is malformed, for something else, not in time, or was used before.",
    "not_bound": "There is a DPoP proof, and the token names no key for it.",
}
_KEYS_MESSAGES: Final[Mapping[KeysReason, str]] = {
    "no_keys": "There is no key set of KKP's.",
    "keys_too_old": "The key set of KKP's is too old to be used.",
}
_REVOCATIONS_MESSAGES: Final[Mapping[RevocationsReason, str]] = {
    "no_list": "There is no revocation list of KKP's.",
    "list_too_old": "The revocation list of KKP's is too old to be used.",
    "older_list": "The revocation list of KKP's is older than one that was accepted.",
}


class KKPError(Exception):
    """The root of the tree.

    Attributes:
        code: What it is. Stable.
        reason: Which of several rules it was, where there are several. Stable.
        status: The HTTP status, where KKP answered.
        request_id: What KKP's log calls the request.
        decision_id: What KKP's audit calls the decision.
        reasons: Why policy decided so, as far as it says.
        retry_after_seconds: When it may work, where KKP said so.
        approval_id: What to hand to somebody who may approve it, where KKP wants that first.
        approval_expires_at: Until when it waits for them, in Unix seconds.
    """

    code: str = "internal"

    def __init__(  # noqa: PLR0913  what an answer of KKP's tells
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        decision_id: str | None = None,
        reasons: Sequence[str] = (),
        retry_after_seconds: float | None = None,
        approval_id: str | None = None,
        approval_expires_at: int | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.reason = reason
        self.status = status
        self.request_id = request_id
        self.decision_id = decision_id
        self.reasons = tuple(reasons)
        self.retry_after_seconds = retry_after_seconds
        self.approval_id = approval_id
        self.approval_expires_at = approval_expires_at


class ConfigurationError(KKPError):
    """What a client or a verifier was made with can't be used."""

    code = "invalid_configuration"


class TokenError(KKPError):
    """The verdict on a token: it is refused, for this reason."""

    code = "token_invalid"

    @classmethod
    def because(cls, reason: TokenReason, about: str = "") -> TokenError:
        """Return the refusal for a reason; `about` says more, and nothing of what was shown."""
        message = _TOKEN_MESSAGES[reason]
        if about:
            message = f"{message.removesuffix('.')}: {about}."
        return cls(message, code=_CODES.get(reason), reason=reason)

    @classmethod
    def of_another_issuer(cls, expected: str) -> TokenError:
        """Return the refusal of another issuer's token, which names the one that was configured."""
        return cls.because("wrong_issuer", f"expected {expected}; see the option issuer")


class KeysUnavailableError(KKPError):
    """There is no key set that a token could be verified with."""

    code = "keys_unavailable"

    @classmethod
    def because(cls, reason: KeysReason, failure: str = "") -> KeysUnavailableError:
        """Return the error for a reason, which says what could not be fetched, if that is why."""
        return cls(_with(_KEYS_MESSAGES[reason], failure), reason=reason)


class RevocationsUnavailableError(KKPError):
    """There is no revocation list that can be relied on."""

    code = "revocations_unavailable"

    @classmethod
    def because(cls, reason: RevocationsReason, failure: str = "") -> RevocationsUnavailableError:
        """Return the error for a reason, which says what could not be fetched, if that is why."""
        return cls(_with(_REVOCATIONS_MESSAGES[reason], failure), reason=reason)


class EnvelopeInvalidError(KKPError):
    """An envelope, or a stream, is malformed or was tampered with; found here, or by KKP."""

    code = "envelope_invalid"


class TransportError(KKPError):
    """KKP could not be asked (`unreachable`, `timeout`), or what answered is not KKP (`bad_answer`)."""

    code = "unreachable"


class ProblemError(KKPError):
    """KKP refused; `code` is that of its answer."""


def _with(message: str, failure: str) -> str:
    return f"{message} {failure}." if failure else message
