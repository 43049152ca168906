"""A whole KKP in this process, on a real socket: what HTTP tests talk to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from kkp import kms
from kkp.app import development
from kkp.clock import Clock
from kkp.config import Settings, load
from kkp.peers import Peers
from kkp.ways import DEV
from kkp.web.routes import Services, make_application
from kkp.web.server import edge_of, serving
from tests import described

ISSUER = "https://kkp.test"


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, read."""

    status: int
    headers: Mapping[str, str]
    raw: bytes
    json: Any = field(repr=False)

    def problem(self) -> str:
        """Return the code of a problem document, having checked its form."""
        assert self.headers["Content-Type"].startswith("application/problem+json"), self
        assert self.headers["Cache-Control"] == "no-store"
        assert self.json["status"] == self.status
        assert set(self.json) <= {
            "type", "title", "status", "code", "detail", "request_id", "decision_id", "reasons",
            "approval_id", "approval_expires_at",
        }  # fmt: skip
        code: str = self.json["code"]
        return code

    def refusal(self) -> tuple[str, str]:
        """Return the OAuth error and the code that a form is refused with, having checked its members."""
        assert self.headers["Content-Type"] == "application/json", self
        assert (self.headers["Cache-Control"], self.headers["Pragma"]) == ("no-store", "no-cache")
        assert ("WWW-Authenticate" in self.headers) == (self.status == 401)
        assert set(self.json) <= {
            "error", "error_description", "code", "request_id", "decision_id", "reasons",
            "approval_id", "approval_expires_at",
        }  # fmt: skip
        assert re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", self.json["error_description"])
        return self.json["error"], self.json["code"]


@dataclass(slots=True)
class Client:
    """Speaks to a running server, whose data directory it knows."""

    session: aiohttp.ClientSession
    data_dir: Path

    @property
    def root_key(self) -> str:
        """The service key of the identity `root`."""
        return (self.data_dir / "root.key").read_text().strip()

    async def request(
        self,
        method: str,
        path: str,
        *,
        credential: str | None = None,
        headers: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> Answer:
        """Send one request, and hold its answer against the API's document.

        `credential` becomes the bearer.
        """
        sent = dict(headers or {})
        if credential is not None:
            sent["Authorization"] = f"Bearer {credential}"
        async with self.session.request(method, path, headers=sent, **arguments) as response:
            raw = await response.read()
            described.check(method, path, response.status, response.headers.get("Content-Type", ""), raw)
            is_json = "json" in response.headers.get("Content-Type", "")
            return Answer(
                response.status,
                response.headers,
                raw,
                await response.json(content_type=None) if is_json else None,
            )

    async def post(self, path: str, document: Any = None, *, credential: str | None = None) -> Answer:
        """POST a JSON document."""
        return await self.request(
            "POST", path, credential=credential, json=document if document is not None else {}
        )

    async def get(self, path: str, *, credential: str | None = None) -> Answer:
        """GET."""
        return await self.request("GET", path, credential=credential)

    async def add_identity(
        self,
        name: str,
        *grants: Mapping[str, Any],
        roles: tuple[str, ...] = ("service",),
        attributes: Mapping[str, str] | None = None,
    ) -> str:
        """Add an identity and return its service key."""
        document = {"id": name, "roles": roles, "grants": grants, "attributes": attributes or {}}
        answer = await self.post("/identities", document, credential=self.root_key)
        assert answer.status == 201, answer.raw
        key: str = answer.json["service_key"]
        return key

    async def token(self, credential: str, **members: Any) -> str:
        """Mint a token; by default for aws alias/orders, to encrypt and to decrypt."""
        document = {
            "audience": "orders-db",
            "backend": "aws",
            "key_id": "alias/orders",
            "ops": ["encrypt", "decrypt"],
            **members,
        }
        answer = await self.post("/token", document, credential=credential)
        assert answer.status == 200, answer.raw
        token: str = answer.json["token"]
        return token

    async def seal(self, credential: str, **members: Any) -> dict[str, Any]:
        """Seal; by default `hello` under aws alias/orders."""
        document: dict[str, Any] = {
            "backend": "aws",
            "key_id": "alias/orders",
            "plaintext": "hello",
            **members,
        }
        if "plaintext_b64" in members:
            del document["plaintext"]
        answer = await self.post("/envelope/encrypt", document, credential=credential)
        assert answer.status == 200, answer.raw
        envelope: dict[str, Any] = answer.json["envelope"]
        return envelope

    async def records(self) -> list[dict[str, Any]]:
        """Return the whole audit log as the API shows it."""
        records: list[dict[str, Any]] = []
        after = ""
        while True:
            page = (await self.get(f"/audit?limit=1000{after}", credential=self.root_key)).json
            records += page["records"]
            if len(page["records"]) < 1000:
                return records
            after = f"&after={page['next']}"


@dataclass(slots=True)
class KKP(Client):
    """A running server in this process, and a client that speaks to it."""

    settings: Settings
    services: Services
    host: str
    port: int


def grant(key_id: str = "alias/orders", **members: Any) -> dict[str, Any]:
    """Return a grant; by default to encrypt and decrypt under aws alias/orders for orders-db."""
    return {
        "backend": "aws",
        "key_id": key_id,
        "ops": ["encrypt", "decrypt"],
        "audiences": ["orders-db"],
        **members,
    }


def detached(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Return an envelope without its nonce and ciphertext."""
    return {name: value for name, value in envelope.items() if name not in {"nonce", "ciphertext"}}


def settings_for(directory: Path, **environ: str) -> Settings:
    """Return settings for a data directory below this one, on a free port."""
    given = {
        "KKP_DATA_DIR": str(directory / ".kkp"),
        "KKP_LISTEN_ADDR": "127.0.0.1:0",
        "KKP_ISSUER": ISSUER,
        "KKP_CONFIG": "/dev/null",
        "KKP_CALLER_RATE_PER_SEC": "0",  # a test is one caller in a hurry
        "KKP_ADDRESS_RATE_PER_SEC": "0",
        **environ,
    }
    return load(given, DEV, schemes=kms.SCHEMES)


@asynccontextmanager
async def running(
    directory: Path, *, clock: Clock | None = None, peers: Peers | None = None, **environ: str
) -> AsyncIterator[KKP]:
    """Run KKP for the duration of the block."""
    settings = settings_for(directory, **environ)
    async with (
        development(settings, clock=clock) as services,
        serving(
            make_application(services), settings.listen, edge_of(services, peers=peers or Peers())
        ) as address,
        aiohttp.ClientSession(f"http://{address}") as session,
    ):
        yield KKP(session, settings.data_dir, settings, services, address.host, address.port)
