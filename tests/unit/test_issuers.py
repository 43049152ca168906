"""The tables of issuers: how they are written, and that everything wrong is told with its cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kkp.config import Settings, load
from kkp.errors import ConfigError
from kkp.kms import SCHEMES
from kkp.ways import DEV
from tests.issuer import FakeIssuer, public_jwk

RULES = {"all": {"match": {"sub": "*"}, "roles": ["service"]}}
GOOD: dict[str, Any] = {
    "issuer": "https://issuer.example",
    "jwks_url": "https://issuer.example/keys",
    "rules": RULES,
}
TOML = """
[issuers.k8s]
issuer = "https://kubernetes.default.svc"
jwks_url = "https://kubernetes.default.svc/openid/v1/jwks"
jwks_ca_file = "ca.crt"
jwks_token_file = "token"
algorithms = ["RS256"]
required = { "kubernetes.io/namespace" = "shop" }

[issuers.k8s.rules.orders]
match = { sub = "system:serviceaccount:shop:orders" }
roles = ["service"]
attributes_from = { namespace = "kubernetes.io/namespace" }
grants = [{ backend = "aws", key_id = "alias/orders", ops = ["decrypt"], audiences = ["orders-db"] }]

[issuers.k8s.rules.rest]
match = { sub = "*" }
roles = ["auditor"]
"""


def settings(**environ: str) -> Settings:
    return load({"KKP_CONFIG": "/dev/null", **environ}, DEV, schemes=SCHEMES)


def of_environment(tables: Any) -> Settings:
    return settings(KKP_ISSUERS=json.dumps(tables))


def of_file(directory: Path, text: str, **environ: str) -> Settings:
    (directory / "kkp.toml").write_text(text)
    return settings(KKP_CONFIG=str(directory / "kkp.toml"), **environ)


def test_with_nothing_set_nobody_is_trusted() -> None:
    assert settings().issuers == {}


def test_tables_of_the_file_are_read_with_their_rules_in_order(tmp_path: Path) -> None:
    issuer = of_file(tmp_path, TOML).issuers["k8s"]
    assert list(issuer.rules) == ["orders", "rest"]
    assert issuer.required == {"kubernetes.io/namespace": "shop"}
    assert (issuer.ca_file, issuer.token_file) == (Path("ca.crt"), Path("token"))
    assert (issuer.who, issuer.subject, issuer.single_use) == ("https://kubernetes.default.svc", "sub", False)
    assert (issuer.keys_secs, issuer.max_lifetime_secs, issuer.audience) == (3600, 86_400, None)


def test_the_environment_s_tables_take_the_place_of_all_of_the_file_s_which_is_warned_of(
    tmp_path: Path,
) -> None:
    chosen = of_file(tmp_path, TOML, KKP_ISSUERS=json.dumps({"other": GOOD}))
    assert list(chosen.issuers) == ["other"]
    assert any("KKP_ISSUERS in the environment replaces all issuers" in text for text in chosen.warnings)


def test_a_loose_beginning_is_warned_of() -> None:
    rules = {"all": {"match": {"sub": "repo:acme*"}, "roles": ["service"]}}
    (warning,) = of_environment({"github": {**GOOD, "rules": rules, "required": {"a": "b*"}}}).warnings[1:]
    assert warning.startswith("[issuers.github.rules.all] match sub: ")


def test_a_private_key_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        of_file(
            tmp_path,
            '[issuers.a]\nissuer = "https://a"\nkeys = [{ kty = "OKP", kid = "a", d = "hidden" }]\n'
            'rules.a = { match = { sub = "a" }, roles = ["service"] }\n',
        )
    assert "a private half stands there" in str(refused.value)
    assert "hidden" not in str(refused.value)


MALFORMED = {
    "a text": ('issuers = "k8s"', "`issuers` is a table for each issuer"),
    "a list": ("issuers = []", "`issuers` is a table for each issuer"),
    "an issuer that is a text": ('[issuers]\nk8s = "https://k8s"', "[issuers.k8s]: Expected `object`"),
    "a member that there is not": (
        '[issuers.k8s]\nurl = "x"',
        "[issuers.k8s]: Object contains unknown field `url`",
    ),
    "a rule that is a text": ('[issuers.k8s.rules]\na = "x"', "[issuers.k8s] rules[...]: Expected `object`"),
    "a role that is a text": (
        '[issuers.k8s.rules.a]\nmatch = { sub = "a" }\nroles = "service"',
        "[issuers.k8s] rules[...].roles: Expected `array`",
    ),
}


@pytest.mark.parametrize(("text", "told"), MALFORMED.values(), ids=MALFORMED.keys())
def test_the_form_is_told_by_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        of_file(tmp_path, text)
    assert told in str(refused.value)
    assert "KKP_ISSUERS" not in str(refused.value)


@pytest.mark.parametrize("text", ["k8s", "[]", '{"k8s":1}', '{"k8s":{"hidden":1}}', "{" * 50])
def test_what_the_environment_has_is_not_repeated_where_it_can_t_be_used(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(KKP_ISSUERS=text)
    (problem,) = refused.value.problems
    assert problem.startswith("KKP_ISSUERS: its value can't be used")
    assert "hidden" not in problem


def given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in {**GOOD, **members}.items() if value is not ...}


KEYS = FakeIssuer().jwk_list()
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a name in capitals": ({"K8s": GOOD}, "[issuers.K8s]: an issuer's name is"),
    "a name with a colon": ({"a:b": GOOD}, "[issuers.a:b]: an issuer's name is"),
    "a name with a slash": ({"a/b": GOOD}, "[issuers.a/b]: an issuer's name is"),
    "a name with a dot": ({"a.b": GOOD}, "[issuers.a.b]: an issuer's name is"),
    "a name that is too long": ({"a" * 33: GOOD}, "an issuer's name is"),
    "KKP's own name": ({"kkp": GOOD}, "[issuers.kkp]: an issuer's name is"),
    "the name of people": ({"user": GOOD}, "[issuers.user]: an issuer's name is"),
    "the operator's name": ({"operator": GOOD}, "[issuers.operator]: an issuer's name is"),
    "no issuer": ({"a": given(issuer=...)}, "it takes issuer, the exact `iss`, or trust_domain"),
    "an issuer and a trust domain": ({"a": given(trust_domain="b")}, "it takes issuer, the exact `iss`, or"),
    "KKP itself": ({"a": given(issuer="http://127.0.0.1:8080")}, "its issuer is KKP itself"),
    "two tables about one": ({"a": GOOD, "b": GOOD}, "[issuers.b]: it is the issuer of [issuers.a] as well"),
    "a trust domain with a scheme": (
        {"a": given(issuer=..., trust_domain="spiffe://b")},
        "trust_domain: it is the host of its SPIFFE IDs",
    ),
    "a trust domain in capitals": (
        {"a": given(issuer=..., trust_domain="B")},
        "trust_domain: it is the host",
    ),
    "a trust domain with another subject": (
        {"a": given(issuer=..., trust_domain="b", subject="name")},
        "subject: a JWT-SVID names its holder",
    ),
    "a shared secret": ({"a": given(algorithms=["HS256"])}, "algorithms: HS256 is not taken"),
    "no signature": ({"a": given(algorithms=["none"])}, "algorithms: none is not taken"),
    "no keys": ({"a": given(jwks_url=...)}, "it takes jwks_url, or keys"),
    "keys and a place for them": ({"a": given(keys=KEYS)}, "it takes jwks_url, or keys"),
    "keys that are none": ({"a": given(jwks_url=..., keys=[{}])}, "keys: it has no key that KKP can use"),
    "a secret for a key": (
        {"a": given(jwks_url=..., keys=[{"kty": "oct", "kid": "a", "k": "hidden"}])},
        "keys: it has no key that KKP can use",
    ),
    "two keys of one name": (
        {"a": given(jwks_url=..., keys=[*KEYS, public_jwk("P-384", "key-1")])},
        "keys: two of its keys have one kid",
    ),
    "an authority for keys that are given": (
        {"a": given(jwks_url=..., keys=KEYS, jwks_ca_file="ca.crt")},
        "jwks_ca_file and jwks_token_file are for a jwks_url",
    ),
    "a place without TLS": ({"a": given(jwks_url="http://issuer.example/hidden")}, "jwks_url: without TLS"),
    "keys for too short a time": ({"a": given(keys_secs=599)}, "keys_secs: give seconds from 600 to 86400"),
    "keys for too long a time": ({"a": given(keys_secs=86_401)}, "keys_secs: give seconds from 600 to 86400"),
    "tokens without a life": ({"a": given(max_lifetime_secs=0)}, "max_lifetime_secs: give seconds from 1"),
    "tokens for ever": (
        {"a": given(max_lifetime_secs=366 * 86_400 + 1)},
        "max_lifetime_secs: give seconds from",
    ),
    "no rule": ({"a": given(rules={})}, "[issuers.a] has no rule"),
    "a backend that there is not": (
        {
            "a": given(
                rules={
                    "all": {
                        **RULES["all"],
                        "grants": [{"backend": "moon", "key_id": "a", "ops": ["decrypt"]}],
                    }
                }
            )
        },
        "[issuers.a.rules.all] grants[0]: no backend is called moon; there are aws, azure, gcp, local",
    ),
}


@pytest.mark.parametrize(("tables", "told"), WRONG.values(), ids=WRONG.keys())
def test_it_is_refused_with_its_cure_to_have(tables: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        of_environment(tables)
    (problem,) = refused.value.problems
    assert told in problem
    assert "hidden" not in problem


@pytest.mark.parametrize(
    "members",
    [
        {"keys_secs": 600},
        {"keys_secs": 86_400},
        {"max_lifetime_secs": 1},
        {"max_lifetime_secs": 366 * 86_400},
        {"jwks_url": "http://127.0.0.1:8000/keys"},
        {"jwks_url": "https://[::1]:8000/keys"},
        {"jwks_url": "https://10.0.0.7/keys?appid=a"},
        {"jwks_url": ..., "keys": KEYS},
        {"issuer": ..., "trust_domain": "example.org"},
        {"issuer": ..., "trust_domain": "shop_1.example-2.org"},
        {"audience": "https://elsewhere.example"},
        {"algorithms": ["EdDSA", "PS512"]},
    ],
)
def test_it_is_taken_to_have(members: dict[str, Any]) -> None:
    assert of_environment({"a" * 32: given(**members)}).issuers
