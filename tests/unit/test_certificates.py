"""The tables `[certificates.NAME]`, and the settings beside them: what is taken, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kkp import kms
from kkp.app import PRODUCTION_CHECKS
from kkp.certificates import is_host, is_workload
from kkp.config import Settings, load
from kkp.errors import ConfigError
from kkp.ways import DEV, SERVE
from tests.client_certificates import Authority
from tests.http.certificates import new_pair

RULE = {"match": {"spiffe_id": "spiffe://example.org/orders"}, "roles": ["service"]}
HOST_RULE = {"match": {"dns_name": "web.shop.example"}, "roles": ["service"]}
MESH: dict[str, Any] = {"trust_domain": "example.org", "rules": {"orders": RULE}}
TLS = {"KKP_TLS_CERT_FILE": "tls.crt", "KKP_TLS_KEY_FILE": "tls.key"}
CA = {"KKP_CLIENT_CA_FILE": "ca.pem"}
FORWARDED = {"KKP_FORWARDED_CLIENT_CERT": "1", "KKP_TRUSTED_PROXIES": "10.0.0.1"}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".kkp").mkdir()
    for name in ("master.key", "kkp.db"):
        (tmp_path / ".kkp" / name).touch()
    new_pair().write(tmp_path)
    for name in ("ca.pem", "partner.pem"):
        (tmp_path / name).write_bytes(Authority.new(name).pem)


def served(tables: dict[str, Any] | None = None, /, **environ: str) -> Settings:
    given = {
        "KKP_ISSUER": "https://kkp.example.com",
        "KKP_LISTEN_ADDR": "127.0.0.1:8443",
        "KKP_OPA_URL": "http://127.0.0.1:8181",
        "KKP_BACKENDS": "local=local://",
        "KKP_CHECKPOINT_SINK": "command:/bin/true",
        **({} if tables is None else {"KKP_CERTIFICATES": json.dumps(tables)}),
        **environ,
    }
    return load(given, SERVE, schemes=kms.SCHEMES, checks=PRODUCTION_CHECKS)


def problem(tables: dict[str, Any] | None = None, /, **environ: str) -> str:
    with pytest.raises(ConfigError) as refusal:
        served(tables, **environ)
    (told,) = refusal.value.problems
    return told


def test_without_any_nobody_has_a_client_certificate() -> None:
    assert served().client_ca_files == {}


def test_tables_of_the_file_arrive_with_their_authorities() -> None:
    Path("kkp.toml").write_text(
        """
[certificates.mesh]
trust_domain = "example.org"

[certificates.mesh.rules.orders]
match = { spiffe_id = "spiffe://example.org/orders" }
roles = ["service"]
grants = [{ backend = "local", key_id = "default", ops = ["decrypt"] }]

[certificates.partner]
ca_file = "partner.pem"

[certificates.partner.rules.web]
match = { dns_name = "web.partner.example" }
roles = ["service"]
"""
    )
    chosen = served(**TLS, **CA, KKP_CLIENT_CERT="required")
    assert list(chosen.certificates) == ["mesh", "partner"]
    assert chosen.client_ca_files == {"": Path("ca.pem"), "partner": Path("partner.pem")}
    assert chosen.requires_client_certificate
    assert chosen.warnings == ()


def test_tables_with_authorities_of_their_own_need_no_others() -> None:
    tables = {"mesh": {**MESH, "ca_file": "partner.pem"}}
    chosen = served(tables, **TLS, KKP_CLIENT_CERT="required")
    assert chosen.client_ca_files == {"mesh": Path("partner.pem")}


def test_a_bundle_alone_lets_tokens_be_bound() -> None:
    chosen = served(**TLS, **CA)
    assert (chosen.certificates, chosen.requires_client_certificate) == ({}, False)


def test_a_proxy_may_forward_them_with_and_without_tls() -> None:
    assert served({"mesh": MESH}, **CA, **FORWARDED).takes_forwarded_certificates
    assert served({"mesh": MESH}, **CA, **FORWARDED, **TLS).takes_forwarded_certificates


def test_a_beginning_that_ends_within_a_name_is_a_warning() -> None:
    loose = {**RULE, "match": {"spiffe_id": "spiffe://example.org/ord*"}}
    (warning,) = served({"mesh": {**MESH, "rules": {"orders": loose}}}, **TLS, **CA).warnings
    assert warning.startswith("[certificates.mesh.rules.orders] match spiffe_id: ")


REFUSED: dict[str, tuple[dict[str, Any] | None, dict[str, str], str]] = {
    "a bundle, where no certificate can arrive": (None, CA, "KKP_CLIENT_CA_FILE: no client certificate can"),
    "tables, where no certificate can arrive": (
        {"mesh": MESH},
        CA,
        "KKP_CERTIFICATES: no client certificate",
    ),
    "certificates required, of nobody": (
        None,
        {**TLS, "KKP_CLIENT_CERT": "required"},
        "KKP_CLIENT_CA_FILE: no client certificate is accepted without it",
    ),
    "certificates forwarded, of nobody": (None, {**TLS, **FORWARDED}, "KKP_CLIENT_CA_FILE: no client"),
    "certificates forwarded by nobody": (
        None,
        {**TLS, **CA, "KKP_FORWARDED_CLIENT_CERT": "1"},
        "KKP_FORWARDED_CLIENT_CERT: no proxy is named",
    ),
    "neither optional nor required": (
        None,
        {**TLS, **CA, "KKP_CLIENT_CERT": "yes"},
        "KKP_CLIENT_CERT: 'yes' can't be used; give optional, or required",
    ),
    "a bundle that is not there": (
        None,
        {**TLS, "KKP_CLIENT_CA_FILE": "no.pem"},
        "KKP_CLIENT_CA_FILE: no.pem can't be read (No such file or directory)",
    ),
    "a bundle that is none": (
        None,
        {**TLS, "KKP_CLIENT_CA_FILE": "tls.key"},
        "KKP_CLIENT_CA_FILE: tls.key can't be used: it is no bundle of certificates in PEM",
    ),
    "a bundle with a server's certificate": (
        None,
        {**TLS, "KKP_CLIENT_CA_FILE": "tls.crt"},
        "KKP_CLIENT_CA_FILE: tls.crt can't be used: certificate 1 of it is no authority's",
    ),
    "a table's bundle that is not there": (
        {"mesh": {**MESH, "ca_file": "no.pem"}},
        TLS,
        "[certificates.mesh] ca_file: no.pem can't be read",
    ),
    "a table without authorities": ({"mesh": MESH}, TLS, "[certificates.mesh]: nobody vouches for its"),
    "a table without rules": (
        {"mesh": {"trust_domain": "example.org"}},
        {**TLS, **CA},
        "[certificates.mesh] has no rule",
    ),
    "a name that only KKP may give": ({"user": MESH}, {**TLS, **CA}, "[certificates.user]: its name is"),
    "a name with a colon": ({"a:b": MESH}, {**TLS, **CA}, "[certificates.a:b]: its name is"),
    "a trust domain that is none": (
        {
            "mesh": {
                "trust_domain": "spiffe://x",
                "rules": {"o": {**RULE, "match": {"spiffe_id": "spiffe://spiffe://x/o"}}},
            }
        },
        {**TLS, **CA},
        "[certificates.mesh]: trust_domain: it is the host",
    ),
    "one trust domain twice": (
        {"mesh": MESH, "again": MESH},
        {**TLS, **CA},
        "[certificates.again]: its trust domain is that of [certificates.mesh] too",
    ),
    "a SPIFFE ID of another trust domain": (
        {"mesh": {**MESH, "rules": {"o": {**RULE, "match": {"spiffe_id": "spiffe://example.com/o"}}}}},
        {**TLS, **CA},
        "[certificates.mesh.rules.o] match: no other ID gets here than one that begins",
    ),
    "anything as a SPIFFE ID": (
        {"mesh": {**MESH, "rules": {"o": {**RULE, "match": {"spiffe_id": "*"}}}}},
        {**TLS, **CA},
        "[certificates.mesh.rules.o] match: no other ID gets here than one that begins",
    ),
    "a beginning of a host": (
        {"hosts": {"rules": {"w": {**HOST_RULE, "match": {"dns_name": "web.*"}}}}},
        {**TLS, **CA},
        "[certificates.hosts.rules.w] match: give a host's whole name",
    ),
    "a host in capitals": (
        {"hosts": {"rules": {"w": {**HOST_RULE, "match": {"dns_name": "Web.example"}}}}},
        {**TLS, **CA},
        "[certificates.hosts.rules.w] match: give a host's whole name",
    ),
    "a rule that looks at the subject": (
        {"hosts": {"rules": {"w": {**HOST_RULE, "match": {"cn": "web"}}}}},
        {**TLS, **CA},
        "[certificates.hosts.rules.w]: a certificate of this kind tells its dns_name, and nothing else",
    ),
    "an attribute from elsewhere": (
        {"hosts": {"rules": {"w": {**HOST_RULE, "attributes_from": {"who": "sub"}}}}},
        {**TLS, **CA},
        "[certificates.hosts.rules.w]: a certificate of this kind tells its dns_name",
    ),
    "a grant for a backend that there is not": (
        {
            "mesh": {
                **MESH,
                "rules": {"o": {**RULE, "grants": [{"backend": "aws", "key_id": "*", "ops": ["decrypt"]}]}},
            }
        },
        {**TLS, **CA},
        "[certificates.mesh.rules.o] grants[0]: no backend is called aws",
    ),
    "the name of an issuer": (
        {"mesh": MESH},
        {
            **TLS,
            **CA,
            "KKP_ISSUERS": json.dumps(
                {
                    "mesh": {
                        "issuer": "https://issuer.example",
                        "jwks_url": "https://issuer.example/keys",
                        "rules": {"a": {"match": {"sub": "a"}, "roles": ["service"]}},
                    }
                }
            ),
        },
        "[certificates.mesh]: [issuers.mesh] has the name",
    ),
}


@pytest.mark.parametrize(("tables", "environ", "beginning"), REFUSED.values(), ids=REFUSED.keys())
def test_serving_is_refused_on(
    tables: dict[str, Any] | None, environ: dict[str, str], beginning: str
) -> None:
    assert problem(tables, **environ).startswith(beginning)


def test_every_name_that_is_an_issuers_too_is_told_at_once_with_the_cure() -> None:
    issuers = "".join(
        f"""
[issuers.{name}]
issuer = "https://{name}.example"
jwks_url = "https://{name}.example/keys"
[issuers.{name}.rules.a]
match = {{ sub = "a" }}
roles = ["service"]
"""
        for name in ("mesh", "hosts", "github")
    )
    Path("kkp.toml").write_text(issuers)
    with pytest.raises(ConfigError) as refusal:
        served(
            {"mesh": MESH, "hosts": {"rules": {"w": HOST_RULE}}, "spare": {"rules": {"w": HOST_RULE}}},
            **TLS,
            **CA,
        )
    assert refusal.value.problems == (
        "[certificates.mesh]: [issuers.mesh] has the name, and so its callers would; give it another",
        "[certificates.hosts]: [issuers.hosts] has the name, and so its callers would; give it another",
    )


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"mesh": 1}', '{"mesh": {"cn": "x"}}', '{"mesh": {"rules": []}}']
)
def test_what_is_no_table_is_refused_without_repeating_it(text: str) -> None:
    assert problem(**TLS, **CA, KKP_CERTIFICATES=text).startswith("KKP_CERTIFICATES: its value can't be used")


def test_the_file_says_where_a_table_is_wrong() -> None:
    Path("kkp.toml").write_text("[certificates.mesh]\ntrust_domain = 1\n")
    assert problem(**TLS, **CA) == (
        "kkp.toml: [certificates.mesh] trust_domain: Expected `str`, got `int`; see docs/callers/mtls.md"
    )


def test_tables_of_the_environment_replace_those_of_the_file_with_a_warning() -> None:
    Path("kkp.toml").write_text('[certificates.mesh]\ntrust_domain = "example.org"\n')
    (warning,) = served({"other": MESH}, **TLS, **CA).warnings
    assert warning == "KKP_CERTIFICATES in the environment replaces all certificates of kkp.toml"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KKP_CLIENT_CA_FILE", "ca.pem"),
        ("KKP_CLIENT_CERT", "optional"),
        ("KKP_FORWARDED_CLIENT_CERT", "0"),
        ("KKP_CERTIFICATES", json.dumps({"mesh": MESH})),
    ],
)
def test_development_takes_none_of_it(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load({name: text, "KKP_ISSUER": "https://kkp.test"}, DEV, schemes=kms.SCHEMES)
    assert any(told.startswith(f"{name}: not taken by `kkp dev`") for told in refusal.value.problems)


@pytest.mark.parametrize("text", ["a", "a.b", "a-1.b", "0", "a" * 63, ".".join(["a" * 49] * 5)])
def test_a_host_is(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "A",
        "a_b",
        "*.a",
        "a\n",
        "a" * 64,
        ".".join(["a" * 63] * 4),
        "ä",
    ],
)
def test_a_host_is_not(text: str) -> None:
    assert not is_host(text)


def test_a_spiffe_id_has_2048_characters_at_the_most() -> None:
    beginning = "spiffe://example.org/"
    assert is_workload(beginning + "a" * (2048 - len(beginning)))
    assert not is_workload(beginning + "a" * (2049 - len(beginning)))
