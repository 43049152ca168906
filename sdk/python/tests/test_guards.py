"""Guards of aiohttp, Starlette and FastAPI, with real tokens: one table of what is let in, and how not."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from kkp_client.claims import Claims
from kkp_client.dpop import DPoPKey
from kkp_client.errors import ConfigurationError, KKPError
from kkp_client.guards._admission import Admission, Refusal, Shown
from kkp_client.guards.aiohttp import CLAIMS, Guard
from kkp_client.guards.starlette import RefusedError, answer_refused, guard
from kkp_client.tokens import certificate_sha256
from kkp_client.verifier import TokenVerifier
from tests.fake_clock import FakeClock
from tests.fake_kkp import KEYS, FakeKKP
from tests.issuer import AUDIENCE, ISSUER, NOW, Issuer

OURS = Issuer(1)
KEY = DPoPKey.generate()
URL = "https://orders.example/api"
TOKEN = OURS.token()
BOUND = OURS.token(cnf={"jkt": KEY.thumbprint})
ALGS = 'algs="ES256 EdDSA"'
NOTHING_SHOWN = f'Bearer realm="kkp", DPoP realm="kkp", {ALGS}'
INVALID = 'Bearer realm="kkp", error="invalid_token"'
PROOF_REFUSED = f'DPoP realm="kkp", error="invalid_dpop_proof", {ALGS}'
PROOF_WANTED = f'DPoP realm="kkp", error="invalid_token", {ALGS}'

Headers = list[tuple[str, str]]
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


def proof(method: str = "GET", url: str = f"{URL}/rows", token: str = BOUND, key: DPoPKey = KEY) -> str:
    return key.proof(method=method, url=url, now=NOW, token=token)


@asynccontextmanager
async def aiohttp_middleware(verifier: TokenVerifier, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = web.Application(middlewares=[Guard(verifier, **options).middleware])
    app.router.add_get("/rows", _answer_claims)
    async with _aiohttp(app) as client:
        yield client


@asynccontextmanager
async def aiohttp_handler(verifier: TokenVerifier, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = web.Application()
    app.router.add_get("/rows", Guard(verifier, **options).protect(_answer_claims))
    async with _aiohttp(app) as client:
        yield client


async def _answer_claims(request: web.Request) -> web.Response:
    return web.json_response(request[CLAIMS].as_json())


@asynccontextmanager
async def _aiohttp(
    app: web.Application, tls: ssl.SSLContext | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client:
            yield client
    finally:
        await runner.cleanup()


@asynccontextmanager
async def fastapi_dependency(verifier: TokenVerifier, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app, caller = FastAPI(), guard(verifier, **options)

    async def rows(claims: Annotated[Claims, Depends(caller)]) -> dict[str, Any]:
        return claims.as_json()

    rows.__annotations__["claims"] = Annotated[Claims, Depends(caller)]  # `caller` is no name of the module
    app.get("/rows")(rows)
    app.add_exception_handler(RefusedError, answer_refused)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:
        yield client


@asynccontextmanager
async def starlette_handler(verifier: TokenVerifier, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    caller = guard(verifier, **options)

    async def rows(request: Request) -> JSONResponse:
        return JSONResponse((await caller(request)).as_json())

    app = Starlette(routes=[Route("/rows", rows)])
    app.add_exception_handler(RefusedError, answer_refused)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:
        yield client


FRAMEWORKS: list[Serve] = [aiohttp_middleware, aiohttp_handler, fastapi_dependency, starlette_handler]


@pytest.fixture
def kkp() -> Iterator[FakeKKP]:
    with FakeKKP(OURS) as kkp:
        yield kkp


@pytest.fixture
def verifier(kkp: FakeKKP) -> TokenVerifier:
    return TokenVerifier(kkp.url, audience=AUDIENCE, issuer=ISSUER, clock=FakeClock())


LET_IN: dict[str, Headers] = {
    "a bearer token": [("Authorization", f"Bearer {TOKEN}")],
    "a scheme in small letters": [("Authorization", f"bearer {TOKEN}")],
    "a bound token with its proof": [("Authorization", f"DPoP {BOUND}"), ("DPoP", "<proof>")],
}
REFUSED: dict[str, tuple[Headers, str, str | None, str]] = {
    "nothing": ([], "unauthenticated", None, NOTHING_SHOWN),
    "another scheme": ([("Authorization", "Basic YTpi")], "unauthenticated", None, NOTHING_SHOWN),
    "a token without a scheme": ([("Authorization", TOKEN)], "unauthenticated", None, NOTHING_SHOWN),
    "a scheme without a token": ([("Authorization", "Bearer")], "unauthenticated", None, NOTHING_SHOWN),
    "two tokens": (
        [("Authorization", f"Bearer {TOKEN}"), ("Authorization", f"Bearer {TOKEN}")],
        "unauthenticated",
        None,
        NOTHING_SHOWN,
    ),
    "no KKP token": ([("Authorization", "Bearer abc")], "token_invalid", "malformed", INVALID),
    "a token for somebody else": (
        [("Authorization", f"Bearer {OURS.token(aud='billing-db')}")],
        "audience_mismatch",
        "wrong_audience",
        INVALID,
    ),
    "an expired token": (
        [("Authorization", f"Bearer {OURS.token(iat=0, nbf=0, exp=1)}")],
        "token_expired",
        "expired",
        f'{INVALID}, error_description="expired"',
    ),
    "a bound token as a bearer": (
        [("Authorization", f"Bearer {BOUND}")],
        "token_invalid",
        "proof_missing",
        PROOF_WANTED,
    ),
    "a bound token as a bearer, with its proof": (
        [("Authorization", f"Bearer {BOUND}"), ("DPoP", "<proof>")],
        "token_invalid",
        "proof_missing",
        PROOF_WANTED,
    ),
    "a bound token without a proof": (
        [("Authorization", f"DPoP {BOUND}")],
        "token_invalid",
        "proof_missing",
        PROOF_WANTED,
    ),
    "two proofs": (
        [("Authorization", f"DPoP {BOUND}"), ("DPoP", "<proof>"), ("DPoP", "<proof>")],
        "token_invalid",
        "wrong_proof",
        PROOF_REFUSED,
    ),
    "a proof for another method": (
        [("Authorization", f"DPoP {BOUND}"), ("DPoP", proof(method="POST"))],
        "token_invalid",
        "wrong_proof",
        PROOF_REFUSED,
    ),
    "a proof for another path": (
        [("Authorization", f"DPoP {BOUND}"), ("DPoP", proof(url=f"{URL}/other"))],
        "token_invalid",
        "wrong_proof",
        PROOF_REFUSED,
    ),
    "a proof for what the Host header says": (
        [
            ("Authorization", f"DPoP {BOUND}"),
            ("DPoP", proof(url="https://thief.example/rows")),
            ("Host", "thief.example"),
        ],
        "token_invalid",
        "wrong_proof",
        PROOF_REFUSED,
    ),
    "a proof by another key": (
        [("Authorization", f"DPoP {BOUND}"), ("DPoP", proof(key=DPoPKey.generate()))],
        "token_invalid",
        "wrong_proof",
        PROOF_REFUSED,
    ),
    "a token that is bound to nothing, as DPoP": (
        [("Authorization", f"DPoP {TOKEN}")],
        "token_invalid",
        "not_bound",
        PROOF_WANTED,
    ),
    "a proof beside a token that is bound to nothing": (
        [("Authorization", f"Bearer {TOKEN}"), ("DPoP", proof(token=TOKEN))],
        "token_invalid",
        "not_bound",
        PROOF_WANTED,
    ),
    "a token that is bound to a certificate": (
        [("Authorization", f"Bearer {OURS.token(cnf={'x5t#S256': certificate_sha256(b'der')})}")],
        "token_invalid",
        "proof_missing",
        PROOF_WANTED,
    ),
}


def with_proofs(headers: Headers) -> Headers:
    return [(name, proof() if value == "<proof>" else value) for name, value in headers]


@pytest.mark.parametrize("serve", FRAMEWORKS)
@pytest.mark.parametrize("name", LET_IN)
async def test_a_good_token_is_turned_into_its_caller(
    verifier: TokenVerifier, serve: Serve, name: str
) -> None:
    async with serve(verifier, url=URL) as client:
        answer = await client.get("/rows?page=2", headers=with_proofs(LET_IN[name]))
    assert answer.status_code == 200, answer.text
    assert answer.json()["sub"] == "orders"


@pytest.mark.parametrize("serve", FRAMEWORKS)
@pytest.mark.parametrize("name", REFUSED)
async def test_anything_else_is_refused_with_a_challenge(
    verifier: TokenVerifier, serve: Serve, name: str
) -> None:
    headers, code, reason, challenge = REFUSED[name]
    told: list[KKPError] = []
    async with serve(verifier, url=URL, on_refused=told.append) as client:
        answer = await client.get("/rows", headers=with_proofs(headers))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == challenge
    assert answer.headers["Cache-Control"] == "no-store"
    assert code in answer.text
    assert [(error.code, error.reason) for error in told] == [(code, reason)]
    assert reason is None or reason == "expired" or reason not in answer.text, (
        "strangers are told the code alone"
    )


@pytest.mark.parametrize("serve", FRAMEWORKS)
async def test_a_proof_is_taken_once(verifier: TokenVerifier, serve: Serve) -> None:
    headers = {"Authorization": f"DPoP {BOUND}", "DPoP": proof()}
    async with serve(verifier, url=URL) as client:
        statuses = [(await client.get("/rows", headers=headers)).status_code for _ in range(2)]
    assert statuses == [200, 401]


@pytest.mark.parametrize("serve", FRAMEWORKS)
async def test_without_keys_it_is_nobodys_fault_and_says_nothing_of_where_they_are(
    kkp: FakeKKP, verifier: TokenVerifier, serve: Serve
) -> None:
    kkp.replies[KEYS] = lambda: (500, {}, b"")
    async with serve(verifier, url=URL) as client:
        answer = await client.get("/rows", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 503
    assert "WWW-Authenticate" not in answer.headers
    assert "keys_unavailable" in answer.text
    assert kkp.url not in answer.text


@pytest.mark.parametrize("serve", FRAMEWORKS)
async def test_a_refusal_is_a_problem_document(verifier: TokenVerifier, serve: Serve) -> None:
    async with serve(verifier, url=URL) as client:
        answer = await client.get("/rows")
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = {"type": "about:blank", "title": "Unauthorized", "status": 401, "code": "unauthenticated"}
    assert answer.json() == problem
    assert answer.headers["WWW-Authenticate"] == NOTHING_SHOWN


async def test_an_application_that_is_not_told_how_answers_as_its_framework_does(
    verifier: TokenVerifier,
) -> None:
    caller = guard(verifier, url=URL)

    async def rows(request: Request) -> JSONResponse:
        return JSONResponse((await caller(request)).as_json())

    app = Starlette(routes=[Route("/rows", rows)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://any") as client:
        answer = await client.get("/rows")
    assert (answer.status_code, answer.text) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == NOTHING_SHOWN


async def test_what_is_no_refusal_is_not_answered_as_one() -> None:
    with pytest.raises(LookupError):
        await answer_refused(Request({"type": "http"}), LookupError())


async def test_the_middleware_guards_what_has_no_handler_as_well(verifier: TokenVerifier) -> None:
    async with aiohttp_middleware(verifier, url=URL) as client:
        assert (await client.get("/nothing")).status_code == 401


@pytest.mark.parametrize("serve", FRAMEWORKS)
@pytest.mark.parametrize(
    "url", ["orders.example", "https://orders.example?x=1", "https://a:b@orders.example"]
)
async def test_a_guard_without_a_url_of_its_own_is_not_made(
    verifier: TokenVerifier, serve: Serve, url: str
) -> None:
    with pytest.raises(ConfigurationError):
        async with serve(verifier, url=url):
            pytest.fail("it was made")


async def test_starlette_takes_a_certificate_from_whoever_is_trusted_with_it(verifier: TokenVerifier) -> None:
    token = OURS.token(cnf={"x5t#S256": certificate_sha256(b"der")})
    found: dict[str, bytes | None] = {"mine": b"der", "another": b"other", "none": None}

    def certificate(request: Request) -> bytes | None:
        return found[request.headers["x-certificate"]]

    async with starlette_handler(verifier, url=URL, certificate=certificate) as client:
        statuses = {
            name: (
                await client.get("/rows", headers={"Authorization": f"Bearer {token}", "X-Certificate": name})
            ).status_code
            for name in found
        }
    assert statuses == {"mine": 200, "another": 401, "none": 401}


class Certified:
    """A certificate that is its own authority, in files and contexts."""

    def __init__(self, folder: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
            .not_valid_after(dt.datetime(2120, 1, 1, tzinfo=dt.UTC))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.file = folder / f"{name}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM) + private)
        self.sha256 = certificate_sha256(self.certificate.public_bytes(serialization.Encoding.DER))


async def test_aiohttp_takes_the_certificate_of_its_own_connection(
    verifier: TokenVerifier, tmp_path: Path
) -> None:
    server, mine, another = (Certified(tmp_path, name) for name in ("server", "mine", "another"))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(server.file)
    tls.verify_mode = ssl.CERT_OPTIONAL
    for client in (mine, another):
        tls.load_verify_locations(client.file)
    app = web.Application(middlewares=[Guard(verifier, url=URL).middleware])
    app.router.add_get("/rows", _answer_claims)
    token = OURS.token(cnf={"x5t#S256": mine.sha256})
    statuses = []
    async with _aiohttp(app, tls) as plain:
        for shown in (mine, another, None):
            context = ssl.create_default_context(cafile=str(server.file))
            if shown is not None:
                context.load_cert_chain(shown.file)
            url = str(plain.base_url.copy_with(scheme="https", host="localhost"))
            async with httpx.AsyncClient(verify=context, trust_env=False, base_url=url) as https:
                answer = await https.get("/rows", headers={"Authorization": f"Bearer {token}"})
                statuses.append(answer.status_code)
    assert statuses == [200, 401, 401]


async def test_a_target_that_would_go_on_with_the_services_host_is_a_path_like_another(
    verifier: TokenVerifier,
) -> None:
    """Some servers hand on whatever stands in the request line."""
    admission = Admission(verifier, url="https://orders.example")

    async def admitted(path: str, url: str) -> Claims | Refusal:
        return await admission.admit(Shown("GET", path, [f"DPoP {BOUND}"], [proof(url=url)]))

    refused = await admitted(".thief.example/rows", "https://orders.example.thief.example/rows")
    assert isinstance(refused, Refusal)
    assert isinstance(await admitted("rows", "https://orders.example/rows"), Claims)
