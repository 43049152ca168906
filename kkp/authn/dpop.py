"""DPoP proofs as part of a credential: in time, with the nonce of the day, and good for one request.

Rules that hold here:
- A request has one proof at the most. One that is there is verified, whatever else the request presents.
- A proof is good for as long as anybody could reasonably take to send it: `PROOF_SECONDS` after its `iat`, or
  the life of its nonce. So long its `jti` is remembered, by all replicas, together with the key that signed
  it: nobody can use up another's.
- A nonce is what an HMAC makes of the present minute, so every replica of a database knows those of all the
  others, and none remembers any. It bounds when a proof can have been made by KKP's clock, whatever the
  client's says: nobody who has a client's key in hand for a moment makes proofs for later.

```
nonce = BASE64URL(HMAC-SHA-256(subkey kkp/dpop-nonce/v1, minute as 8 bytes big-endian)[:16])
```
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, Protocol, final

from kkp import dpop
from kkp.authn.base import Once
from kkp.clock import Clock
from kkp.errors import DPoPNonceError, DPoPProofError
from kkp.model import Credentials

PROOF_SECONDS: Final = 60
NONCE_SECONDS: Final = 60  # after which there is a new one; the one before it is good for as long again
_PURPOSE: Final = "kkp/dpop-nonce/v1"
_NONCE_BYTES: Final = 16
_KIND: Final = "dpop"


class MACs(Protocol):
    """The master key, as nonces need it."""

    def mac(self, purpose: str, data: bytes) -> bytes:
        """Return the MAC of the data under the purpose's subkey."""


class ProvenKey(NamedTuple):
    """A key that whoever sent a request has.

    Attributes:
        jkt: Its RFC 7638 thumbprint.
        once: What keeps the proof from being sent again.
    """

    jkt: str
    once: Once


@final
class Nonces:
    """Nonces that all replicas give alike.

    Args:
        master_key: The root of what they are derived from.
        clock: What time it is.
    """

    def __init__(self, master_key: MACs, clock: Clock) -> None:
        self._master_key = master_key
        self._clock = clock

    def present(self) -> str:
        """Return the one to be used now."""
        return self._of(math.floor(self._clock.now() / NONCE_SECONDS))

    def expiry(self, nonce: str) -> float | None:
        """Return when a nonce ends that is good now; None for any other."""
        present = math.floor(self._clock.now() / NONCE_SECONDS)
        for number in (present, present - 1, present + 1):  # the last by a replica whose clock is ahead
            if nonce == self._of(number):
                return float((number + 2) * NONCE_SECONDS)
        return None

    def _of(self, number: int) -> str:
        return dpop.base64url(self._master_key.mac(_PURPOSE, number.to_bytes(8))[:_NONCE_BYTES])


@final
class Proofs:
    """Verifies the proofs of requests.

    Args:
        clock: What time it is.
        issuer: What the URL of every request begins with, in the client's eyes.
        clock_error_seconds: S, how far clocks may be apart.
        nonces: Where proofs must have one; else None, and `iat` says when they were made.
    """

    def __init__(
        self, clock: Clock, *, issuer: str, clock_error_seconds: float, nonces: Nonces | None = None
    ) -> None:
        self._clock = clock
        self._issuer = issuer
        self._clock_error_seconds = clock_error_seconds
        self._nonces = nonces

    def prove(self, credentials: Credentials, token: str | None) -> ProvenKey | None:
        """Return the key that the request proves to come from; None where it has no proof.

        Args:
            credentials: What the request presented.
            token: The KKP token among that, which the proof must name.

        Raises:
            DPoPProofError: What is there proves nothing.
            DPoPNonceError: It lacks the nonce.
        """
        if not credentials.unverified_proofs:
            return None
        if len(credentials.unverified_proofs) > 1:
            raise DPoPProofError("There is more than one DPoP header.")
        (unverified_proof,) = credentials.unverified_proofs
        url = self._issuer + credentials.path
        proof = dpop.verify(unverified_proof, method=credentials.method, url=url, token=token)
        # Remembered for longer by 2S: another replica's clock may be behind, and that of who forgets ahead.
        expires_at = self._expiry(proof) + 2 * self._clock_error_seconds
        return ProvenKey(
            proof.jkt, Once(_KIND, f"{proof.jkt} {proof.jti}".encode(), expires_at, DPoPProofError)
        )

    def _expiry(self, proof: dpop.Proof) -> float:
        """Return when a proof can't be sent any more."""
        if self._nonces is None:
            return self._expiry_by_time(proof)
        expires_at = self._nonces.expiry(proof.nonce)
        if expires_at is None:
            raise DPoPNonceError(self._nonces.present())
        return expires_at

    def _expiry_by_time(self, proof: dpop.Proof) -> float:
        now = self._clock.now()
        expires_at = proof.iat + PROOF_SECONDS + self._clock_error_seconds
        if not proof.iat - self._clock_error_seconds <= now < expires_at:
            raise DPoPProofError(
                "The DPoP proof is too old, or the clock that it was made by is off: see `iat`."
            )
        return expires_at
