"""Verifies KKP's tokens in threads: the twin of `kkp_client.verifier`, which keeps the same rules.

A verification runs in the thread that asks for it, as long as what it needs is at hand. What has to be
fetched is fetched in one thread beside it: there is one request at a time, however many threads ask.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack, final

from kkp_client.claims import Claims
from kkp_client.dpop import PresentedProof
from kkp_client.loop_thread import LoopThread
from kkp_client.verifier import TokenVerifier, VerifierOptions


@final
class SyncTokenVerifier:
    """Verifies tokens; threads may share it.

    Args:
        url: Where KKP is.
        **options: See VerifierOptions.

    Raises:
        ConfigurationError: It can't be made of these.
    """

    def __init__(self, url: str, **options: Unpack[VerifierOptions]) -> None:
        self._verifier = TokenVerifier(url, **options)
        self._thread = LoopThread()

    def __repr__(self) -> str:
        return f"Sync{self._verifier!r}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the thread that fetches."""
        self._thread.close()

    @property
    def highest_revocation_seq(self) -> int:
        """The highest `seq` of a list that was ever accepted; 0 before the first."""
        return self._verifier.highest_revocation_seq

    def prepare(self) -> None:
        """Fetch keys and list now: see `TokenVerifier.prepare`."""
        self._thread.run(self._verifier.prepare())

    def verify(
        self, token: str, *, proof: PresentedProof | None = None, certificate_sha256: str | None = None
    ) -> Claims:
        """Return the claims of a token that is good now: see `TokenVerifier.verify`."""
        verifier, thread = self._verifier, self._thread
        claims = verifier._at_hand(token, proof, certificate_sha256, thread.call)  # noqa: SLF001  its twin's
        if claims is not None:
            return claims
        return thread.run(verifier.verify(token, proof=proof, certificate_sha256=certificate_sha256))
