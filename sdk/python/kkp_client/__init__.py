"""The Python client of KKP: verifies tokens offline, encrypts and decrypts, streams large files.

What it does is the contract in sdk/README.md, which the TypeScript client keeps as well.
"""

from kkp_client.claims import Actor, Claims, Confirmation, Federated
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
from kkp_client.keys import KeySet, read_key_set
from kkp_client.local import LocalEnvelope, SyncLocalEnvelope
from kkp_client.messages import EncryptItem, Opened, Scope
from kkp_client.replay_memory import ReplayMemory
from kkp_client.revocations import RevocationList, Revocations, verify_revocation_list
from kkp_client.sync_client import SyncKKPClient
from kkp_client.sync_verifier import SyncTokenVerifier
from kkp_client.token_cache import HeldToken
from kkp_client.tokens import certificate_sha256, verify_token
from kkp_client.verifier import TokenVerifier

__all__ = [
    "Actor",
    "Claims",
    "ConfigurationError",
    "Confirmation",
    "DPoPKey",
    "EncryptItem",
    "EnvelopeInvalidError",
    "Federated",
    "HeldToken",
    "KKPClient",
    "KKPError",
    "KeySet",
    "KeysUnavailableError",
    "LocalEnvelope",
    "Opened",
    "PresentedProof",
    "ProblemError",
    "ReplayMemory",
    "RevocationList",
    "Revocations",
    "RevocationsUnavailableError",
    "Scope",
    "SyncKKPClient",
    "SyncLocalEnvelope",
    "SyncTokenVerifier",
    "TokenError",
    "TokenVerifier",
    "TransportError",
    "certificate_sha256",
    "read_key_set",
    "verify_revocation_list",
    "verify_token",
]
