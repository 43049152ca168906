"""What an approval is bound to, and who is behind a request."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp.approvals import decisive, digest_of, is_behind, names_of, one_spelling
from kkp.errors import StateUntrustedError
from kkp.model import Action, Caller

LEFT_OUT = {"iat", "nbf", "exp", "jti"}
QUESTION: dict[str, Any] = {
    "action": "decrypt",
    "caller": {
        "id": "orders",
        "kind": "service",
        "roles": ["service"],
        "issuer": "kkp",
        "method": "kkp_token",
        "attributes": {"team": "a"},
        "grants": [{"backend": "aws", "key_id": "*", "ops": ["decrypt"]}],
    },
    "claims": {
        "iss": "kkp", "sub": "orders", "aud": "db", "iat": 1, "nbf": 1, "exp": 301, "jti": "one",
        "backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"],
        "policy_claims": {"environment": "prod"}, "context": {"table": "orders"}, "act": {"sub": "broker"},
        "cnf": {"jkt": "thumbprint"},
        "federated": {"mapping": "k8s/orders", "attributes": {"namespace": "shop"}},
    },
    "request": {
        "backend": "aws",
        "key_id": "alias/orders",
        "context": {"purpose": "audit", "number": 1, "nothing": None},
        "envelope": {
            "backend": "aws", "key_id": "alias/orders",
            "context": {"table": "orders"}, "associated_data": "row 7",
        },
        "ttl_seconds": None,
    },
    "environment": {"time": "2026-01-01T00:00:00Z", "client_ip": "10.0.0.7"},
}  # fmt: skip


def digest(question: Any) -> str:
    return digest_of(decisive(json.dumps(question).encode()))


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the document with each of its members, on whatever level, changed a little."""
    for name in list(value):
        other = deepcopy(value)
        match value[name]:
            case dict():
                for below, nested in changed(value[name]):
                    yield f"{name}.{below}", {**value, name: nested}
                other[name]["one more"] = "member"
            case list():
                other[name].append("one more")
            case None:
                other[name] = 1
            case int():
                other[name] += 1
            case str(text):
                other[name] = text[:-1] + chr(ord(text[-1]) ^ 1)
        yield name, other


def is_decisive(place: str) -> bool:
    """Tell what docs/formats.md says of a member of this question."""
    folder, _, name = place.partition(".")
    if folder == "caller":
        return name in {"id", "issuer", "kind", "method"}
    if folder == "claims":
        return name not in LEFT_OUT
    return folder in {"action", "request"}


CHANGES = [(place, question) for place, question in changed(QUESTION) if place != "caller"]


@pytest.mark.parametrize(("place", "question"), CHANGES, ids=[place for place, _ in CHANGES])
def test_one_bit_of_a_decisive_member_is_another_approval_and_of_any_other_is_none(
    place: str, question: Any
) -> None:
    if place == "action":
        question["action"] = "encrypt"
    assert (digest(question) != digest(QUESTION)) is is_decisive(place), place


def test_every_kind_of_member_was_changed() -> None:
    places = {place for place, _ in CHANGES}
    assert places >= {
        "action",
        "claims.jti",
        "claims.act.sub",
        "claims.cnf.jkt",
        "claims.federated.mapping",
        "claims.federated.attributes.namespace",
        "request.envelope.context.table",
        "caller.method",
    }
    assert len(places) == len(CHANGES) > 40


@pytest.mark.parametrize("action", [*Action])
def test_the_token_itself_counts_where_the_operation_is_about_it(action: Action) -> None:
    by_scope = {"issue_token", "encrypt", "decrypt", "rewrap", "generate_data_key", "release_data_key"}
    asked = {**QUESTION, "action": action}
    for name in LEFT_OUT:
        other = {**asked, "claims": {**asked["claims"], name: "another"}}
        assert (digest(other) == digest(asked)) is (action in by_scope)


def test_the_document_has_one_spelling() -> None:
    shuffled = {name: QUESTION[name] for name in reversed(QUESTION)}
    assert decisive(json.dumps(shuffled, indent=1).encode()) == decisive(json.dumps(QUESTION).encode())
    assert decisive(json.dumps(QUESTION).encode()).startswith(b'{"action":"decrypt","caller":{"id":"orders",')


class Persons(dict[str, str]):
    """Whose identities and accounts are, by name."""

    def person_of(self, name: str) -> str | None:
        return self.get(name)


KNOWN = Persons(
    {
        "user:1": "alice@example.com",
        "laptop": "Alice@Example.com",
        "pager": "user:1",
        "pager-2": "pager",
        "round": "about",
        "about": "round",
        "bobs": "bob@example.com",
    }
)


def caller(name: str, **attributes: str) -> Caller:
    return Caller(name, "service", (), "kkp", "service_key", attributes)


@pytest.mark.parametrize(
    ("approver", "behind", "expected"),
    [
        (caller("alice"), ["orders"], False),
        (caller("alice"), ["orders", "alice"], True),
        (caller("alice"), ["ALICE"], True),
        (caller("alice-2", person="alice"), ["alice"], True),
        (caller("alice-2", person="Alice"), ["alice"], True),
        (caller("alice-2", team="alice"), ["alice"], False),
        (caller("k8s:alice"), ["alice"], False),
        (caller("k8s:alice"), ["k8s:alice"], True),
        (caller("k8s:alice"), ["idp:alice"], False),
        (caller("k8s:alice", person="alice"), ["alice"], True),
        (caller("user:1"), ["user:1"], True),
        (caller("alice"), ["alice-2"], False),
        (caller("stra\u00dfe"), ["STRASSE"], True),
        (caller("user:1"), ["laptop"], True),
        (caller("laptop"), ["user:1"], True),
        (caller("USER:1"), ["laptop"], True),
        (caller("pager"), ["laptop"], True),
        (caller("laptop"), ["pager-2"], True),
        (caller("idp:7", person="alice@example.com"), ["user:1"], True),
        (caller("idp:7", person="pager-2"), ["user:1"], True),
        (caller("user:1"), ["idp:7", "alice@example.com"], True),
        (caller("round"), ["about"], True),
        (caller("round"), ["laptop"], False),
        (caller("bobs"), ["user:1", "pager"], False),
        (caller("user:2"), ["user:1"], False),
        (caller("idp:7", person="bob@example.com"), ["user:1", "laptop"], False),
    ],
)
def test_whoever_has_a_name_of_those_behind_it_is_behind_it(
    approver: Caller,
    behind: list[str],
    expected: bool,  # noqa: FBT001  a column of the table
) -> None:
    assert is_behind(approver, behind, KNOWN) is expected


def test_a_row_of_before_has_small_letters_and_counts_in_full() -> None:
    for behind in (["alice@example.com"], ["laptop"]):
        assert is_behind(caller("pager"), behind, KNOWN)
        assert not is_behind(caller("bobs"), behind, KNOWN)


def test_whether_somebody_is_behind_it_is_not_told_where_the_names_can_t_be_believed() -> None:
    class Untrusted(Persons):
        def person_of(self, name: str) -> str | None:
            raise StateUntrustedError(name)

    with pytest.raises(StateUntrustedError):
        is_behind(caller("alice"), ["orders"], Untrusted())


def test_a_caller_says_its_own_name_and_its_person_s() -> None:
    assert names_of("alice", {}) == {"alice"}
    assert names_of("alice-2", {"person": "Alice@Example.com"}) == {"alice-2", "Alice@Example.com"}


SAME = [
    ("alice@example.com", "ALICE@EXAMPLE.COM"),
    ("alice@example.com", " alice@example.com\n"),
    ("alice@example.com", "al\u200bice@exa\u00admple.com\ufeff"),
    ("alice@example.com", "\uff41lice\uff20example.com"),
    ("jos\u00e9@example.com", "jose\u0301@example.com"),
    ("stra\u00dfe", "STRASSE"),
    ("\ufb01lip", "filip"),
    ("Alice Smith", "alice\u00a0smith"),
    ("alice@m\u00fcller.de", "alice@xn--mller-kva.de"),
    ("alice@mail.M\u00dcLLER.de", "alice@mail.XN--MLLER-KVA.de"),
    ("alice@stra\u00dfe.de", "alice@xn--strae-oqa.de"),
    ("\u0130pek", "i\u0307pek"),
]
DIFFERENT = [
    ("alice@example.com", "alice@example.org"),
    ("alice@example.com", "alice+1@example.com"),
    ("alice@example.com", "a.lice@example.com"),
    ("alice@example.com", "\u0430lice@example.com"),
    ("alice", "alice@example.com"),
    ("k8s:alice", "alice"),
    ("jos\u00e9", "jose"),
    ("alice@example.com", "example.com"),
    ("xn--mller-kva.de", "m\u00fcller.de"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_name_has_one_spelling(one: str, other: str) -> None:
    assert one_spelling(one) == one_spelling(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_names_stay_different(one: str, other: str) -> None:
    assert one_spelling(one) != one_spelling(other)


@pytest.mark.parametrize("label", ["xn--", "xn--\u00e9", "xn--99999999999", "xn--a-\u0430", "xn--a b"])
def test_a_domain_that_is_none_is_left_as_it_is(label: str) -> None:
    assert one_spelling(f"alice@{label}") == one_spelling(f"ALICE@{label}")
    assert one_spelling(f"alice@{label}") != one_spelling("alice@example.com")


@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}|user:[0-9a-f]{16}", fullmatch=True))
def test_a_name_that_is_looked_up_is_its_own_spelling(name: str) -> None:
    assert one_spelling(name) == name


@given(st.text())
def test_every_text_has_one_spelling_however_its_letters_are_composed(text: str) -> None:
    composed, decomposed = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    assert one_spelling(composed) == one_spelling(decomposed) == one_spelling(text)
