"""Token exchange without a server: what a form asks for, what is refused, and in which of OAuth's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

import msgspec
import pytest

from kkp import errors
from kkp.errors import (
    ClientAuthenticationError,
    InvalidRequestError,
    InvalidScopeError,
    InvalidTargetError,
    KKPError,
    UnsupportedGrantError,
)
from kkp.model import Credentials
from kkp.web import problems, schemas
from kkp.web.exchange import ACCESS_TOKEN, TOKEN_EXCHANGE, ExchangeRequest, read_form
from kkp.web.oauth import AT_TOKEN_ENDPOINT, BEHIND_A_BEARER

JWT = "urn:ietf:params:oauth:token-type:jwt"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"
SERVICE_KEY = "kkp_sk_" + "A" * 43
FORM: Mapping[str, str] = {
    "grant_type": TOKEN_EXCHANGE,
    "subject_token": SERVICE_KEY,
    "subject_token_type": ACCESS_TOKEN,
    "resource": "urn:kkp:key:aws:alias%2Forders",
    "audience": "orders-db",
    "scope": "encrypt decrypt",
}


def asked(**changes: str | None) -> ExchangeRequest:
    """Return what the form asks for with these changes; None leaves a member out."""
    members = {name: value for name, value in {**FORM, **changes}.items() if value is not None}
    return read_form([*members.items()]).request()


def test_a_form_asks_for_what_json_asks_for() -> None:
    document = {
        "audience": "orders-db", "backend": "aws", "key_id": "alias/orders", "ops": ["encrypt", "decrypt"]
    }  # fmt: skip
    in_json = msgspec.convert(document, schemas.TokenBody).request()
    expected = {name: getattr(in_json, name) for name in in_json.__struct_fields__}
    found = asked()
    assert {name: getattr(found, name) for name in expected} == expected


def test_the_subject_token_becomes_the_bearer_and_nothing_else_of_the_credentials_changes() -> None:
    body = read_form([*FORM.items()])
    beside = Credentials(unverified_proofs=("proof",), method="POST", path="/token")
    found = body.credentials(beside)
    assert found.unverified_bearer == SERVICE_KEY
    assert (found.unverified_proofs, found.method, found.path, found.scheme) == (
        ("proof",), "POST", "/token", "bearer",
    )  # fmt: skip
    assert SERVICE_KEY not in repr(body) + repr(found) + repr(body.request())


KEY_IDS = {
    "an alias": "alias/orders",
    "an ARN": "arn:aws:kms:eu-west-1:111122223333:key/0b1c",
    "a key with every character": "aZ0._:/@+=-",
    "the longest": "k" * 512,
}


@pytest.mark.parametrize("key_id", KEY_IDS.values(), ids=KEY_IDS)
def test_a_key_is_named_percent_encoded_or_as_a_urn_may_have_it(key_id: str) -> None:
    throughout = "".join(f"%{ord(character):02x}" for character in key_id)
    for quoted in (quote(key_id, safe=""), throughout, throughout.upper(), key_id):
        assert asked(resource=f"urn:kkp:key:aws:{quoted}").key_id == key_id


BAD_RESOURCES = {
    "no resource": None,
    "an empty one": "",
    "another scheme": "https://kkp.test/keys/aws/alias",
    "another name space": "urn:aws:key:aws:alias",
    "another kind of thing": "urn:kkp:backend:aws:alias",
    "another case": "URN:KKP:KEY:aws:alias",
    "no key": "urn:kkp:key:aws",
    "an empty key": "urn:kkp:key:aws:",
    "an empty backend": "urn:kkp:key::alias",
    "a backend with a capital": "urn:kkp:key:AWS:alias",
    "a backend of 33 characters": f"urn:kkp:key:{'a' * 33}:alias",
    "a backend that is encoded": "urn:kkp:key:%61ws:alias",
    "a key of 513 characters": f"urn:kkp:key:aws:{'k' * 513}",
    "a key of 513 characters, encoded": f"urn:kkp:key:aws:{'%6b' * 513}",
    "a broken escape": "urn:kkp:key:aws:alias%2",
    "an escape of nothing": "urn:kkp:key:aws:alias%zz",
    "a key that is encoded twice": "urn:kkp:key:aws:alias%252Forders",
    "a space": "urn:kkp:key:aws:alias orders",
    "an encoded space": "urn:kkp:key:aws:alias%20orders",
    "a newline at its end": "urn:kkp:key:aws:alias\n",
    "an encoded newline at its end": "urn:kkp:key:aws:alias%0A",
    "an encoded null": "urn:kkp:key:aws:alias%00",
    "a fragment": "urn:kkp:key:aws:alias#orders",
    "an encoded fragment": "urn:kkp:key:aws:alias%23orders",
    "a query": "urn:kkp:key:aws:alias?=orders",
    "an asterisk": "urn:kkp:key:aws:alias%2F*",
    "an encoded asterisk": "urn:kkp:key:aws:alias%2F%2A",
    "bytes that are not UTF-8": "urn:kkp:key:aws:alias%ff",
    "letters beyond ASCII": "urn:kkp:key:aws:alias%C3%A9",
    "a key that begins with a slash": "urn:kkp:key:aws:%2Forders",
}


@pytest.mark.parametrize("resource", BAD_RESOURCES.values(), ids=BAD_RESOURCES)
def test_a_resource_that_names_no_key_is_no_target(resource: str | None) -> None:
    with pytest.raises(InvalidTargetError):
        asked(resource=resource)


BAD_AUDIENCES = {
    "none": None,
    "an empty one": "",
    "one with a space": "orders db",
    "one of 257 characters": "a" * 257,
    "one beyond ASCII": "\u043erders-db",
    "one with a newline": "orders-db\n",
}


@pytest.mark.parametrize("audience", BAD_AUDIENCES.values(), ids=BAD_AUDIENCES)
def test_an_audience_that_can_not_be_meant_is_no_target(audience: str | None) -> None:
    with pytest.raises(InvalidTargetError):
        asked(audience=audience)


@pytest.mark.parametrize("name", ["resource", "audience"])
def test_a_token_is_for_one_key_and_one_audience(name: str) -> None:
    for value in (FORM[name], ""):
        with pytest.raises(InvalidTargetError, match=f"A token is for one `{name}`"):
            read_form([*FORM.items(), (name, value)])


SCOPES = {
    "left out": (None, ("decrypt",)),
    "empty, which is left out": ("", ("decrypt",)),
    "one": ("rewrap", ("rewrap",)),
    "all, in their order": ("rewrap encrypt decrypt", ("rewrap", "encrypt", "decrypt")),
}


@pytest.mark.parametrize(("scope", "ops"), SCOPES.values(), ids=SCOPES)
def test_a_scope_is_operations(scope: str | None, ops: tuple[str, ...]) -> None:
    assert asked(scope=scope).ops == ops


BAD_SCOPES = {
    "an operation that no token has": "sign",
    "one of them twice": "decrypt decrypt",
    "two spaces": "encrypt  decrypt",
    "a space before": " decrypt",
    "a space behind": "decrypt ",
    "a comma": "encrypt,decrypt",
    "a tab": "encrypt\tdecrypt",
    "capitals": "Decrypt",
    "four": "encrypt decrypt rewrap encrypt",
    "a newline at its end": "decrypt\n",
    "one that is endless": "decrypt " * 10_000,
}


@pytest.mark.parametrize("scope", BAD_SCOPES.values(), ids=BAD_SCOPES)
def test_another_scope_is_refused(scope: str) -> None:
    with pytest.raises(InvalidScopeError):
        asked(scope=scope)


@pytest.mark.parametrize("name", ["grant_type", "subject_token", "subject_token_type"])
def test_a_parameter_that_is_required_and_is_left_out_or_empty_is_named(name: str) -> None:
    for value in (None, ""):
        with pytest.raises(InvalidRequestError, match=f"missing required field `{name}`") as error:
            asked(**{name: value})
        assert type(error.value) is InvalidRequestError


@pytest.mark.parametrize(
    "grant", ["client_credentials", "refresh_token", "authorization_code", TOKEN_EXCHANGE.upper(), "x" * 9000]
)
def test_another_grant_is_not_offered(grant: str) -> None:
    with pytest.raises(UnsupportedGrantError) as error:
        asked(grant_type=grant)
    assert grant not in str(error.value)


# Another grant's parameters are not looked at: what is said is that there is no such grant.
def test_another_grant_with_nothing_beside_it_is_not_offered_either() -> None:
    with pytest.raises(UnsupportedGrantError):
        read_form([("grant_type", "client_credentials")])


SUBJECT_TYPES = {
    "a service key": (SERVICE_KEY, ACCESS_TOKEN),
    "a JWT": ("a.b.c", JWT),
    "an ID token": ("a.b.c", ID_TOKEN),
    "a JWT that is called an access token": ("a.b.c", ACCESS_TOKEN),
    "the longest": ("a" * 8192, ACCESS_TOKEN),
}


@pytest.mark.parametrize(("token", "kind"), SUBJECT_TYPES.values(), ids=SUBJECT_TYPES)
def test_a_subject_token_is_taken_as(token: str, kind: str) -> None:
    assert asked(subject_token=token, subject_token_type=kind) == asked()


BAD_SUBJECTS = {
    "a service key that is called a JWT": (SERVICE_KEY, JWT),
    "a service key that is called an ID token": (SERVICE_KEY, ID_TOKEN),
    "a JWT of four parts": ("a.b.c.d", JWT),
    "an encrypted JWT": ("a.b.c.d.e", JWT),
    "a refresh token": ("a.b.c", "urn:ietf:params:oauth:token-type:refresh_token"),
    "a SAML assertion": ("PHNhbWw+", "urn:ietf:params:oauth:token-type:saml2"),
    "a type by its short name": ("a.b.c", "jwt"),
    "a token with a space": ("a b", ACCESS_TOKEN),
    "a token with its scheme": (f"Bearer {SERVICE_KEY}", ACCESS_TOKEN),
    "a token with a newline": (f"{SERVICE_KEY}\n", ACCESS_TOKEN),
    "a token beyond ASCII": ("t\u00f6ken", ACCESS_TOKEN),
    "a token that is too long": ("a" * 8193, ACCESS_TOKEN),
}


@pytest.mark.parametrize(("token", "kind"), BAD_SUBJECTS.values(), ids=BAD_SUBJECTS)
def test_a_subject_token_is_refused_and_not_repeated(token: str, kind: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        asked(subject_token=token, subject_token_type=kind)
    assert type(error.value) is InvalidRequestError
    assert token not in str(error.value)


def test_the_issued_token_is_called_what_was_asked_for() -> None:
    assert asked().issued_token_type == ACCESS_TOKEN
    assert asked(requested_token_type=JWT).issued_token_type == JWT
    for kind in (ID_TOKEN, "urn:ietf:params:oauth:token-type:refresh_token", "jwt"):
        with pytest.raises(InvalidRequestError, match="requested_token_type"):
            asked(requested_token_type=kind)


@pytest.mark.parametrize(
    "members",
    [{"actor_token": "a.b.c", "actor_token_type": JWT}, {"actor_token": "a"}, {"actor_token_type": JWT}],
)
def test_an_actor_is_refused_and_not_ignored(members: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="no actor_token"):
        asked(**members)


@pytest.mark.parametrize("name", ["client_secret", "client_assertion", "client_assertion_type"])
def test_what_would_prove_a_client_is_refused_and_not_ignored(name: str) -> None:
    with pytest.raises(ClientAuthenticationError):
        asked(**{name: "s3cret"})


def test_a_client_may_name_itself_with_an_empty_secret() -> None:
    assert asked(client_id="orders", client_secret="") == asked()


@pytest.mark.parametrize(
    "name",
    ["backend", "key_id", "ops", "subject", "ttl_seconds", "policy_claims", "context", "request_context"],
)
def test_a_member_of_the_json_form_is_refused_and_not_ignored(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"`{name}` is for JSON alone"):
        asked(**{name: "1"})


def test_a_parameter_that_nobody_knows_is_ignored() -> None:
    assert asked(state="x", login_hint="y", **{"x" * 1000: "z"}) == asked()


def test_a_binding_is_asked_for_as_in_json() -> None:
    assert asked(binding="certificate").binding == "certificate"
    with pytest.raises(InvalidRequestError, match="Expected one of dpop, certificate"):
        asked(binding="tls")


@pytest.mark.parametrize("name", ["grant_type", "subject_token", "scope", "client_id", "state"])
def test_two_parameters_of_one_name_are_refused(name: str) -> None:
    for value in ("a", ""):
        with pytest.raises(InvalidRequestError, match="two members of one name"):
            read_form([*FORM.items(), (name, "a"), (name, value)])


def test_a_form_has_so_many_pairs_and_no_more() -> None:
    pairs = [b"a%d=1" % number for number in range(33)]
    assert len(schemas.form_pairs(b"&".join(pairs[:32]))) == 32
    with pytest.raises(InvalidRequestError):
        schemas.form_pairs(b"&".join(pairs))


# What a refusal is called.


def _kinds(kind: type[KKPError] = KKPError) -> Iterator[type[KKPError]]:
    for below in kind.__subclasses__():
        if below.code in problems.STATUS and below.code != "internal":
            yield below
        yield from _kinds(below)


TOLD = {
    errors.InvalidRequestError: ("invalid_request", 400),
    errors.UnsupportedGrantError: ("unsupported_grant_type", 400),
    errors.InvalidScopeError: ("invalid_scope", 400),
    errors.InvalidTargetError: ("invalid_target", 400),
    errors.ClientAuthenticationError: ("invalid_client", 401),
    errors.UnauthenticatedError: ("invalid_request", 400),
    errors.TokenInvalidError: ("invalid_request", 400),
    errors.TokenExpiredError: ("invalid_request", 400),
    errors.DPoPProofError: ("invalid_dpop_proof", 400),
    errors.DPoPNonceError: ("use_dpop_nonce", 400),
    errors.ScopeMismatchError: ("invalid_request", 400),
    errors.PolicyDeniedError: ("invalid_target", 400),
    errors.RevokedError: ("invalid_target", 400),
    errors.UnknownBackendError: ("invalid_target", 400),
    errors.PayloadTooLargeError: ("invalid_request", 413),
    errors.UnsupportedMediaTypeError: ("invalid_request", 415),
    errors.RateLimitedError: ("temporarily_unavailable", 429),
    errors.PolicyUnavailableError: ("temporarily_unavailable", 503),
    errors.AuditUnavailableError: ("temporarily_unavailable", 503),
    errors.KeyringUnavailableError: ("temporarily_unavailable", 503),
    errors.StateUntrustedError: ("temporarily_unavailable", 503),
    errors.StaleProposalError: ("temporarily_unavailable", 503),
}


@pytest.mark.parametrize(("kind", "told"), TOLD.items(), ids=lambda value: getattr(value, "__name__", None))
def test_the_token_endpoint_calls_it(kind: type[KKPError], told: tuple[str, int]) -> None:
    assert AT_TOKEN_ENDPOINT.of(kind) == told


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (errors.InvalidRequestError, ("invalid_request", 400)),
        (errors.UnauthenticatedError, ("invalid_token", 401)),
        (errors.TokenExpiredError, ("invalid_token", 401)),
        (errors.DPoPProofError, ("invalid_dpop_proof", 401)),
        (errors.DPoPNonceError, ("use_dpop_nonce", 401)),
        (errors.PolicyDeniedError, ("insufficient_scope", 403)),
        (errors.ScopeMismatchError, ("insufficient_scope", 403)),
        (errors.PayloadTooLargeError, ("invalid_request", 413)),
        (errors.RateLimitedError, ("temporarily_unavailable", 429)),
        (errors.KeyringUnavailableError, ("temporarily_unavailable", 503)),
    ],
)
def test_where_a_bearer_is_shown_it_is_called(kind: type[KKPError], told: tuple[str, int]) -> None:
    assert BEHIND_A_BEARER.of(kind) == told


def test_every_error_has_a_name_of_oauths_and_a_status_that_is_no_success() -> None:
    names = {
        "invalid_request", "invalid_client", "invalid_scope", "invalid_target", "unsupported_grant_type",
        "invalid_token", "insufficient_scope", "temporarily_unavailable", "invalid_dpop_proof",
        "use_dpop_nonce",
    }  # fmt: skip
    kinds = set(_kinds())
    assert set(TOLD) <= kinds
    for refusals in (AT_TOKEN_ENDPOINT, BEHIND_A_BEARER):
        for kind in kinds:
            name, status = refusals.of(kind)
            assert name in names
            assert status >= 400
