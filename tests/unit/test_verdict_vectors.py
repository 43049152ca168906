"""The verdicts that both SDKs are held to, and KKP's own on the same tokens, proofs, key sets and lists."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec
import pytest

from kkp import jwk, tokens
from kkp.authn.dpop import Proofs
from kkp.errors import KKPError, TokenInvalidError
from kkp.model import Credentials
from kkp.revocations import ListClaims, RevocationKind, entry_id
from kkp.tokens import Claims, Confirmation
from tests.fakes.clock import FakeClock
from tests.vectors import curve, files, forging
from tests.vectors.altered_calls import Altered

Case = dict[str, Any]

FILES: Final = {name: files.read(name) for name in files.FILES}
VERDICTS: Final = [
    pytest.param(FILES[name], case, id=case["name"])
    for name in ("tokens_v1.json", "proofs_v1.json")
    for case in FILES[name]["cases"]
]
KEY_SETS: Final = FILES["key_sets_v1.json"]["cases"]
LISTS: Final = FILES["revocation_lists_v1.json"]["cases"]


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# The files.


@cache
def made() -> Mapping[str, Case]:
    return files.made()


def test_the_files_are_what_the_contract_makes_of_them() -> None:
    assert {name: files.merged(file, made()[name]) for name, file in FILES.items()} == FILES


@pytest.mark.parametrize("change", ["altered", "taken out", "altered in what they share"])
def test_cases_that_were_committed_are_never(change: str) -> None:
    now = made()["revocation_lists_v1.json"]
    committed = json.loads(json.dumps(now))
    if change == "altered":
        committed["cases"][3]["now"] += 1
    elif change == "taken out":
        committed["cases"].append({**committed["cases"][0], "name": "another"})
    else:
        committed["key_sets"]["two keys"] += " "
    with pytest.raises(ValueError, match="would change"):
        files.merged(committed, now)


def test_new_cases_stand_behind_those_that_were_committed() -> None:
    now = made()["revocation_lists_v1.json"]
    committed = {**now, "cases": now["cases"][5:]}
    names = [case["name"] for case in files.merged(committed, now)["cases"]]
    assert names == [case["name"] for case in now["cases"][5:] + now["cases"][:5]]


def test_every_step_and_reason_of_the_contract_has_its_cases() -> None:
    seen = {
        (case["expected"].get("code"), case["expected"].get("reason"))
        for name in ("tokens_v1.json", "proofs_v1.json", "revocation_lists_v1.json")
        for case in FILES[name]["cases"]
    }
    told = (files.DIRECTORY.parent / "README.md").read_text()
    rows = [row.split("|") for row in told.splitlines() if row.startswith("| ") and row.count("|") == 5]
    contract = {
        (code.strip(" `"), reason.strip(" `"))
        for _, step, _, code, reason, _ in rows
        if step.strip().isdigit()
    }
    assert len(contract) == 19
    assert contract | {("revocations_unavailable", "older_list"), (None, None)} == seen


@pytest.mark.parametrize("message", [b"", b"a", bytes(range(256))])
def test_what_is_signed_by_the_book_is_what_a_library_signs(message: bytes) -> None:
    assert curve.sign(forging.SIGNER.seed, message) == forging.SIGNER.sign(message)


def test_a_call_that_was_altered_at_random_comes_out_the_same_each_time() -> None:
    one, other = Altered(), Altered()
    for number in range(20):
        assert one.token_call(number) == other.token_call(number)
        assert one.list_call(number) == other.list_call(number)
        assert one.key_set_call(number) == other.key_set_call(number)


# What KKP says.


def says(file: Case, case: Case) -> Claims:
    """Return the claims of a token that KKP takes, as far as form, key, signature, times and binding go."""
    claims = verified(file, case)
    proven = Confirmation(jkt=proven_key(case), x5t_s256=case["certificate_sha256"])
    if claims.cnf is not None and not claims.cnf.is_met_by(proven):
        raise TokenInvalidError("another key, or none")
    return claims


def verified(file: Case, case: Case) -> Claims:
    keys = {} if case["keys"] is None else public_keys(file["key_sets"][case["keys"]["set"]])
    _, claims = tokens.verify(case["token"], keys, issuer=case["issuer"])
    tokens.check_times(claims, now=case["now"], clock_error_seconds=case["leeway"])
    return claims


def public_keys(document: str) -> dict[str, bytes]:
    try:
        found = jwk.read_set(document.encode())
    except ValueError:
        return {}
    return {kid: key.key for kid, key in found.items()}


def proven_key(case: Case) -> str | None:
    """Return the thumbprint of the key that a request proves to have."""
    proof = case["proof"]
    if proof is None:
        return None
    proofs = Proofs(
        FakeClock(case["now"]), issuer=proof["url"], clock_error_seconds=case["leeway"], nonces=None
    )
    shown = Credentials(unverified_proofs=(proof["proof"],), method=proof["method"])
    found = proofs.prove(shown, case["token"])
    return None if found is None else found.jkt


@pytest.mark.promise(13, 15)
@pytest.mark.parametrize(("file", "case"), VERDICTS)
def test_kkp_says_of(file: Case, case: Case) -> None:
    try:
        claims = says(file, case)
    except KKPError:
        assert case["server"] == "refuses"
    else:
        assert case["server"] == "accepts"
        if "claims" in case["expected"]:
            assert answered(claims) == case["expected"]["claims"]


def answered(claims: Claims) -> Case:
    """Return claims as the cases have them."""
    return {"context": {}, **json.loads(tokens.encode_claims(claims))}


@pytest.mark.parametrize("case", KEY_SETS, ids=lambda case: str(case["name"]))
def test_kkp_reads_of_the_key_set(case: Case) -> None:
    document = case["document"].encode() if "document" in case else decoded(case["document_base64url"])
    expected = {kid: decoded(x) for kid, x in (case["expected"]["keys"] or {}).items()}
    try:
        read = jwk.read_set(document + b" " * case["spaces"])
    except ValueError:
        assert case["server"] == ("none" if expected else "same")
    else:
        found = {kid: key.key for kid, key in read.items()}
        assert case["server"] == ("same" if found == expected else "more")
        assert expected.items() <= found.items()


@pytest.mark.promise(10)
def test_a_token_is_revoked_where_an_entry_of_kkp_s_is_about_it() -> None:
    asked = [
        case
        for case in FILES["tokens_v1.json"]["cases"]
        if case["revocations"] and case["revocations"]["list"]
    ]
    lists = FILES["tokens_v1.json"]["revocation_lists"]
    told = {case["name"]: case["expected"].get("reason") for case in asked}
    found = {case["name"]: is_about(case, lists) for case in asked if told[case["name"]] in {None, "revoked"}}
    assert found == {name: told[name] == "revoked" for name in found}
    assert sum(found.values()) >= 15


def is_about(case: Case, lists: Case) -> bool:
    listed = msgspec.json.decode(decoded(lists[case["revocations"]["list"]].split(".")[1]), type=ListClaims)
    claims = verified(FILES["tokens_v1.json"], case)
    return (
        claims.jti in listed.tokens
        or claims.iat <= listed.subjects.get(entry_id(RevocationKind.SUBJECT, claims.sub), -1)
        or entry_id(RevocationKind.IDENTITY, claims.sub) in listed.identities
        or entry_id(RevocationKind.IDENTITY, claims.asked_by) in listed.identities
        or entry_id(RevocationKind.KEY, claims.backend, claims.key_id) in listed.keys
        or entry_id(RevocationKind.BACKEND, claims.backend) in listed.backends
    )


def test_the_lists_that_are_taken_have_the_claims_of_those_that_kkp_signs() -> None:
    taken = [case for case in LISTS if "claims" in case["expected"]]
    assert len(taken) >= 39
    for case in taken:
        claims = msgspec.json.decode(decoded(case["list"].split(".")[1]), type=ListClaims)
        once = {
            name: list(dict.fromkeys(getattr(claims, name))) for name in ("identities", "keys", "backends")
        }
        assert {**msgspec.to_builtins(claims), **once} == case["expected"]["claims"], case["name"]
