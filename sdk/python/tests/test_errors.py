"""The error tree: codes and reasons are what the contract says, and errors survive being sent elsewhere."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any, get_args

import pytest

from kkp_client import errors
from kkp_client.revocations import verify_revocation_list
from kkp_client.sync_verifier import SyncTokenVerifier
from kkp_client.token_cache import HeldToken
from kkp_client.tokens import verify_token
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer

CODES = {
    errors.ConfigurationError: "invalid_configuration",
    errors.TokenError: "token_invalid",
    errors.KeysUnavailableError: "keys_unavailable",
    errors.RevocationsUnavailableError: "revocations_unavailable",
    errors.EnvelopeInvalidError: "envelope_invalid",
}


def test_each_kind_has_its_code() -> None:
    assert {kind: kind("…").code for kind in CODES} == CODES


@pytest.mark.parametrize("reason", get_args(errors.TokenReason))
def test_each_reason_has_its_code_and_a_sentence(reason: errors.TokenReason) -> None:
    error = errors.TokenError.because(reason)
    codes = {"expired": "token_expired", "wrong_audience": "audience_mismatch"}
    assert (error.code, error.reason) == (codes.get(reason, "token_invalid"), reason)
    assert str(error).endswith(".")


def test_another_issuers_token_is_refused_with_the_issuer_that_was_expected() -> None:
    ours = Issuer(1)
    for document, verify in (
        (ours.token(iss="https://evil.example"), partial(verify_token, audience=AUDIENCE)),
        (ours.revocations(iss="https://evil.example"), verify_revocation_list),
    ):
        with pytest.raises(errors.TokenError) as refused:
            verify(document, keys=ours.keys(), now=NOW, issuer=ISSUER)
        assert refused.value.reason == "wrong_issuer"
        told = "The token is another issuer's: expected https://kkp.example; see the option issuer."
        assert str(refused.value) == told


HELD = HeldToken.lasting("t.t.t", "Bearer", expires_at=0, life_seconds=300, since=0)


@pytest.mark.parametrize("token", [None, HELD, b"t.t.t", 7], ids=lambda token: type(token).__name__)
def test_what_is_no_text_is_no_token(token: Any) -> None:
    ours = Issuer(1)
    with pytest.raises(errors.TokenError) as refused:
        verify_token(token, keys=ours.keys(), now=NOW, issuer=ISSUER, audience=AUDIENCE)
    assert refused.value.reason == "malformed"
    with (
        SyncTokenVerifier(ISSUER, audience=AUDIENCE) as verifier,
        pytest.raises(errors.TokenError) as refused,
    ):
        verifier.verify(token)
    assert refused.value.reason == "malformed"


def test_an_error_is_the_same_after_pickling() -> None:
    error = errors.ProblemError("Refused.", code="policy_denied", status=403, reasons=["roles.no_grant"])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert (str(again), vars(again)) == (str(error), vars(error))
