"""Client certificates with a real `kkp serve`, openssl and curl: what the page says, as it stands there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import jwt
import pytest

from kkp import app
from kkp.config import given
from kkp.ways import SERVE
from tests import opa
from tests.client_certificates import Authority
from tests.integration.process import KKP, kkp, launched, listening
from tests.integration.test_readme import commands, shell
from tests.integration.test_serve import settings

PAGE = Path(__file__).parents[2] / "docs/callers/mtls.md"
CALLER = "mesh:spiffe://example.org/ns/shop/sa/orders"


@pytest.fixture(scope="module")
def opa_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An OPA with the bundled policy."""
    with opa.serving(tmp_path_factory.mktemp("opa"), "--bundle", str(opa.POLICY)) as running:
        yield running.url


def block(*markers: str) -> str:
    return "\n".join(text for marker in markers for text in commands(marker, PAGE))


async def test_the_page_is_true_of_a_server_that_runs(tmp_path: Path, opa_url: str) -> None:
    await shell(tmp_path, block("certificates", "settings"))
    path = f"{KKP.parent}:{os.environ['PATH']}"
    environ = settings(opa_url, PATH=path, KKP_LISTEN_ADDR="127.0.0.1:0")
    assert (await kkp(tmp_path, "init", environ=environ)).code == 0
    async with launched(tmp_path, command="serve", environ=environ) as process:
        url = urlsplit(await listening(process, tmp_path))
        environ["KKP"] = f"https://localhost:{url.port}"

        issued = json.loads(await shell(tmp_path, block("ask"), environ=environ))
        token = jwt.decode(issued["token"], options={"verify_signature": False})
        assert (token["sub"], token["federated"]) == (CALLER, {"mapping": "mesh/orders", "attributes": {}})

        script = block("bind", "steal") + '\necho "$TOKEN"'
        opened, refused, bound = (await shell(tmp_path, script, environ=environ)).splitlines()
        assert (opened, refused) == ("hello", "token_invalid")
        der = ssl.PEM_cert_to_DER_cert((tmp_path / "orders.crt").read_text())
        thumbprint = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).rstrip(b"=").decode()
        claims = jwt.decode(bound, options={"verify_signature": False})
        assert claims["cnf"] == {"x5t#S256": thumbprint}

        found = await kkp(tmp_path, "doctor", "--json", environ=environ)
        checks = [each for each in json.loads(found.out)["checks"] if each["check"] == "client certificates"]
        assert [(each["status"], each["detail"]) for each in checks] == [
            ("ok", "they are optional, in TLS; 1 rules make callers of them"),
            ("ok", "clients-ca.crt: 1 authorities, for every table without its own"),
        ]

        (tmp_path / "clients-ca.crt").write_bytes(Authority.new("the next").pem)
        await until_refused(environ["KKP"], tmp_path)  # though nobody told it
        process.terminate()
        assert await process.wait() == 0
    log = (tmp_path / "kkp.err").read_text()
    assert "Traceback" not in log
    assert bound not in log


async def until_refused(url: str, directory: Path) -> None:
    """Connect with the page's certificate until that is not accepted any more."""
    context = ssl.create_default_context(cafile=str(directory / "tls.crt"))
    context.load_cert_chain(directory / "orders.crt", directory / "orders.key")
    async with asyncio.timeout(30):
        while True:
            async with aiohttp.ClientSession() as session:
                try:
                    async with session.get(f"{url}/healthz", ssl=context) as response:
                        assert response.status == 200
                except aiohttp.ClientError:
                    return
            await asyncio.sleep(0.05)


def test_every_setting_and_every_refusal_of_the_page_is_one() -> None:
    page = PAGE.read_text()
    named = set(re.findall(r"KKP_[A-Z_]+", page))
    assert named <= {item.name for item in given({}, SERVE)}
    modules = (
        "authn/mtls.py",
        "web/certificate_chains.py",
        "web/client_certificates.py",
        "web/forwarded_certificate.py",
    )
    told = " ".join((Path(app.__file__).parent / name).read_text() for name in modules)
    told = told.replace("{CERTIFICATE}", "Client-Cert")
    refusals = re.findall(r"^\| 40[01] `(?:… )?([^`]+\.)`", page, re.MULTILINE)
    assert len(refusals) == 6
    assert [text for text in refusals if text not in told] == []


def test_every_link_of_the_page_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target
