"""No token, proof or key is in what an object or an error shows of itself, or in what hangs from an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from kkp_client import jws
from kkp_client.dpop import DPoPKey, PresentedProof, ProofChecks
from kkp_client.errors import KKPError
from kkp_client.guards._admission import Shown
from kkp_client.key_cache import Answer
from kkp_client.keys import PublicKey
from kkp_client.replay_memory import ReplayMemory
from kkp_client.revocations import verify_revocation_list
from kkp_client.sync_verifier import SyncTokenVerifier
from kkp_client.tokens import TOKEN_TYPE, verify_token
from kkp_client.verifier import TokenVerifier
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer
from tests.test_vectors import vectors

OURS = Issuer(1)
TOKEN = OURS.token()
PRIVATE = Ed25519PrivateKey.generate()
KEY = DPoPKey(PRIVATE)
PROOF = KEY.proof(method="GET", url="https://orders.example/rows", now=NOW, token=TOKEN)
PRESENTED = PresentedProof(PROOF, "GET", "https://orders.example/rows")
RAW = PRIVATE.private_bytes(
    serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
)

OBJECTS: list[Any] = [
    KEY,
    PRESENTED,
    ProofChecks(TOKEN, NOW, 5, ReplayMemory()),
    ReplayMemory(),
    jws.split(TOKEN, 8192),
    jws.read(TOKEN, typ=TOKEN_TYPE, max_characters=8192),
    Shown("GET", "/rows", [f"Bearer {TOKEN}"], [PROOF], b"der"),
    Answer(200, {}, TOKEN.encode()),
    verify_revocation_list(OURS.revocations(), keys=OURS.keys(), now=NOW, issuer=ISSUER),
    PublicKey(PRIVATE.public_key().public_bytes_raw()),
    TokenVerifier("https://kkp.example", audience=AUDIENCE),
    SyncTokenVerifier("https://kkp.example", audience=AUDIENCE),
    verify_token(TOKEN, keys=OURS.keys(), now=NOW, issuer=ISSUER, audience=AUDIENCE),
]
SECRETS = [segment for text in (TOKEN, PROOF) for segment in text.split(".")]


@pytest.mark.parametrize("shown", OBJECTS, ids=lambda shown: type(shown).__name__)
def test_an_object_shows_no_secret(shown: Any) -> None:
    for text in (repr(shown), str(shown), f"{shown}"):
        assert not [secret for secret in SECRETS if secret in text]
        assert repr(RAW) not in text
        assert RAW.hex() not in text


def everything_of(error: BaseException) -> Iterator[str]:
    """Yield what an error, and what hangs from it, shows of itself."""
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None:
            continue
        yield f"{each} {each!r} {each.args} {vars(each)}"
        pending += [each.__cause__, each.__context__]


@pytest.mark.parametrize("name", ["tokens_v1", "proofs_v1"])
def test_a_refusal_shows_nothing_of_what_was_refused(name: str) -> None:
    refused = [case for case in vectors(name)["cases"] if "code" in case["expected"]]
    for case in refused:
        shown = case["proof"] or {"proof": "", "method": "", "url": ""}
        with pytest.raises(KKPError) as refusal:
            verify_token(
                case["token"],
                keys=OURS.keys(),
                now=case["now"],
                issuer=case["issuer"],
                audience="nobody",
                proof=PresentedProof(shown["proof"], shown["method"], shown["url"]),
                proof_memory=ReplayMemory(),
            )
        segments = f"{case['token']}.{shown['proof']}".split(".")
        text = " ".join(everything_of(refusal.value))
        assert not [segment for segment in segments if len(segment) > 16 and segment in text], case["name"]
    assert len(refused) > 100


def test_a_proof_that_is_refused_hangs_from_no_error() -> None:
    token = OURS.token(cnf={"jkt": KEY.thumbprint})
    with pytest.raises(KKPError) as refusal:
        verify_token(
            token,
            keys=OURS.keys(),
            now=NOW,
            issuer=ISSUER,
            audience=AUDIENCE,
            proof=PresentedProof(f"{PROOF[:-1]}!", "GET", PRESENTED.url),
            proof_memory=ReplayMemory(),
        )
    assert refusal.value.reason == "wrong_proof"
    assert (refusal.value.__context__, refusal.value.__cause__) == (None, None)
