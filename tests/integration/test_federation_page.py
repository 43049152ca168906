"""What docs/callers/federation.md tells to configure and to type does, as it stands there, what it says."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jwt

from kkp.authn import jwks, jwks_client
from kkp.issuers import Issuer
from kkp.mappings import Rule
from tests.emulators.listener import Asked, Listener, Said
from tests.harness import running
from tests.integration.test_readme import commands, shell
from tests.issuer import FakeIssuer

PAGE = Path(__file__).parents[2] / "docs/callers/federation.md"
AUDIENCE = "https://kkp.example"
_TOKEN_PLACE = "/var/run/secrets/kkp/token"
_KEYS = {"k8s": "/openid/v1/jwks", "github": "/.well-known/jwks", "spire": "/keys"}


def issued(name: str) -> tuple[FakeIssuer, str]:
    """Return an issuer of the page, and a token as it makes them."""
    issuer = FakeIssuer({"key-1": "P-256" if name == "spire" else "RSA"}, int(time.time()))
    claims = issuer.claims(**CLAIMS[name])
    return issuer, issuer.sign(claims, algorithm="ES256" if name == "spire" else "RS256")


CLAIMS: dict[str, dict[str, Any]] = {
    "k8s": {
        "iss": "https://kubernetes.default.svc.cluster.local",
        "aud": [AUDIENCE],
        "sub": "system:serviceaccount:shop:orders",
        "kubernetes.io": {
            "namespace": "shop",
            "node": {"name": "node-1", "uid": "1c0b6c9e"},
            "pod": {"name": "orders-7", "uid": "c6a5c1f5"},
            "serviceaccount": {"name": "orders", "uid": "14ee3fa4"},
        },
    },
    "github": {
        "iss": "https://token.actions.githubusercontent.com",
        "aud": AUDIENCE,
        "sub": "repo:octo-org/octo-repo:environment:production",
        "ref": "refs/heads/main",
        "environment": "production",
        "repository": "octo-org/octo-repo",
        "repository_id": "7654321",
        "repository_owner_id": "1234567",
        "job_workflow_ref": "octo-org/octo-repo/.github/workflows/release.yml@refs/heads/main",
        "run_attempt": "1",
    },
    "spire": {
        "iss": ...,
        "aud": [AUDIENCE],
        "sub": "spiffe://example.org/shop/orders",
        "nbf": ...,
        "jti": ...,
    },
}


def samples(place: Listener, directory: Path) -> str:
    """Return the page's tables, whose keys are fetched from here."""
    text = "\n".join(re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    (directory / "own-token").write_text("own")
    text = re.sub(r'jwks_url = "https://[^/]+/', f'jwks_url = "{place.url}/', text)
    text = re.sub(r"^jwks_ca_file = .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r'jwks_token_file = "[^"]+"', f'jwks_token_file = "{directory / "own-token"}"', text)


async def test_every_kind_of_workload_gets_a_token_with_its_lines(tmp_path: Path) -> None:
    issuers = {name: issued(name) for name in _KEYS}

    def answer(asked: Asked) -> Said:
        if asked.target == f"/token?run=1&audience={AUDIENCE}":
            return Said(200, json.dumps({"value": issuers["github"][1]}).encode())
        keys = {path: issuers[name][0].jwks() for name, path in _KEYS.items()}
        return Said(200, keys[asked.target], {"Content-Type": "application/json"})

    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "token").write_text(issuers["k8s"][1])
    svid = json.dumps(
        [{"svids": [{"spiffe_id": "spiffe://example.org/shop/orders", "svid": issuers["spire"][1]}]}]
    )
    agent = tmp_path / "spire-agent"
    agent.write_text(f"#!/bin/sh\necho '{svid}'\n")
    agent.chmod(0o700)
    await shell(tmp_path, "\n".join(commands("issuer", PAGE)))
    with Listener(answer) as place:
        config = tmp_path / "kkp.toml"
        config.write_text(config.read_text() + samples(place, tmp_path))
        async with running(tmp_path, KKP_CONFIG=str(config), KKP_ISSUER="") as server:
            environ = {
                "KKP": f"http://{server.host}:{server.port}",
                "PATH": f"{tmp_path}:{os.environ['PATH']}",
                "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "job",
                "ACTIONS_ID_TOKEN_REQUEST_URL": f"{place.url}/token?run=1",
            }

            async def typed(*markers: str) -> list[str]:
                script = "\n".join(block for marker in markers for block in commands(marker, PAGE))
                script = script.replace(_TOKEN_PLACE, str(tmp_path / "token"))
                printed = await shell(tmp_path, script, environ=environ)
                return printed.replace("}{", "}\n{").splitlines()  # curl ends no line

            token, sealed = await typed("exchange", "as a bearer")
            assert json.loads(sealed)["envelope"]["key_id"] == "alias/orders"
            tokens = {"example": token}
            for name, marker in (("k8s", "kubernetes"), ("github", "github"), ("spire", "spiffe")):
                (tokens[name],) = await typed(marker)
    told = {
        name: jwt.decode(json.loads(token)["token"], options={"verify_signature": False})
        for name, token in tokens.items()
    }
    assert {name: claims["sub"] for name, claims in told.items()} == {
        "example": "example:orders",
        "k8s": "k8s:system:serviceaccount:shop:orders",
        "github": "github:repo:octo-org/octo-repo:environment:production",
        "spire": "spire:spiffe://example.org/shop/orders",
    }
    assert {name: claims["federated"] for name, claims in told.items()} == {
        "example": {"mapping": "example/orders", "attributes": {"team": "shop"}},
        "k8s": {"mapping": "k8s/orders", "attributes": {"namespace": "shop"}},
        "github": {"mapping": "github/release", "attributes": {}},
        "spire": {"mapping": "spire/orders", "attributes": {}},
    }


def test_the_tables_of_the_page_name_every_member_and_its_default() -> None:
    page = PAGE.read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| *([^|]*?) *\|", page, re.MULTILINE))
    assert rows.keys() >= set(Issuer.__struct_fields__) - {"rules"}
    defaults = dict(zip(Issuer.__struct_fields__, Issuer.__struct_defaults__, strict=True))
    for name in ("keys_secs", "max_lifetime_secs", "subject"):
        assert rows[name] == f"`{defaults[name]}`"
    assert rows["algorithms"] == f"`{json.dumps(defaults['algorithms'])}`"
    assert rows["single_use"] == "`false`"
    assert all(f"`{name}`" in page for name in Rule.__struct_fields__)


def test_the_times_of_the_page_are_those_of_the_code() -> None:
    page = PAGE.read_text()
    assert f"never more than once in {jwks.PAUSE_SECONDS:.0f} s" in page
    assert f"there within {jwks_client.FETCH_SECONDS:.0f} s" in page
    assert jwks._FETCHES_WHILE_A_SET_SERVES == 12
