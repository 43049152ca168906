"""The error tree: codes and reasons are what the contract says, and errors survive being sent elsewhere."""

from __future__ import annotations

import pickle
from typing import get_args

import pytest

from kkp_client import errors

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


def test_an_error_is_the_same_after_pickling() -> None:
    error = errors.ProblemError("Refused.", code="policy_denied", status=403, reasons=["roles.no_grant"])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own
    assert (str(again), vars(again)) == (str(error), vars(error))
