"""The Python client of KKP: verifies tokens offline, encrypts and decrypts, streams large files.

What it does is the contract in sdk/README.md, which the TypeScript client keeps as well.
"""

from kkp_client.claims import Claims
from kkp_client.client import KKPClient
from kkp_client.dpop import DPoPKey, PresentedProof
from kkp_client.errors import (
    ConfigurationError,
    EnvelopeInvalidError,
    KeysUnavailableError,
    KKPError,
    ProblemError,
    RevocationsUnavailableError,
    TokenError,
    TransportError,
)
from kkp_client.local import LocalEnvelope, SyncLocalEnvelope
from kkp_client.messages import EncryptItem, Opened, Scope
from kkp_client.replay_memory import ReplayMemory
from kkp_client.sync_client import SyncKKPClient
from kkp_client.sync_verifier import SyncTokenVerifier
from kkp_client.token_cache import HeldToken
from kkp_client.tokens import verify_token
from kkp_client.verifier import TokenVerifier

__all__ = [
    "Claims",
    "ConfigurationError",
    "DPoPKey",
    "EncryptItem",
    "EnvelopeInvalidError",
    "HeldToken",
    "KKPClient",
    "KKPError",
    "KeysUnavailableError",
    "LocalEnvelope",
    "Opened",
    "PresentedProof",
    "ProblemError",
    "ReplayMemory",
    "RevocationsUnavailableError",
    "Scope",
    "SyncKKPClient",
    "SyncLocalEnvelope",
    "SyncTokenVerifier",
    "TokenError",
    "TokenVerifier",
    "TransportError",
    "verify_token",
]
