"""A whole KKP in this process that asks for client certificates, and clients that have some."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from kkp import certificates
from kkp.app import development
from kkp.errors import AuthenticationError
from kkp.peers import Peers, parse_networks
from kkp.pipeline import Origin
from kkp.web.authorities import ReloadingAuthorities, reloading_authorities
from kkp.web.client_certificates import ClientCertificates
from kkp.web.routes import Services, make_application
from kkp.web.server import Edge, serving
from kkp.web.tls import ReloadingTLS
from tests.client_certificates import Authority, Holder
from tests.harness import Client, settings_for
from tests.http.certificates import new_pair

GRANT = {
    "backend": "aws",
    "key_id": "alias/orders",
    "ops": ["encrypt", "decrypt"],
    "audiences": ["orders-db", "https://kkp.test"],
}
ORDERS = "spiffe://example.org/ns/shop/sa/orders"
TABLES: Mapping[str, Any] = {
    "mesh": {
        "trust_domain": "example.org",
        "rules": {"orders": {"match": {"spiffe_id": ORDERS}, "roles": ["service"], "grants": [GRANT]}},
    },
    "hosts": {
        "rules": {
            "web": {"match": {"dns_name": "web.shop.example"}, "roles": ["service"], "grants": [GRANT]},
            "www": {"match": {"dns_name": "www.shop.example"}, "roles": ["service"], "grants": [GRANT]},
        }
    },
    "partner": {
        "trust_domain": "partner.example",
        "ca_file": "partner.pem",
        "rules": {"all": {"match": {"spiffe_id": "spiffe://partner.example/*"}, "roles": ["service"]}},
    },
}
ROOT = Authority.new("clients")
PARTNER = Authority.new("partner")
SERVER = new_pair()


@dataclass(slots=True)
class Server:
    """A running server.

    Attributes:
        directory: Where its files are: `ca.pem`, `partner.pem`, `tls.crt`, `tls.key`.
        later: By how many seconds it takes the time to be later than it is, as it judges certificates.
        counted: Whom it refused for a certificate, and why.
        connections: How often a client of it has connected.
    """

    directory: Path
    url: str
    services: Services = field(repr=False)
    tls: ReloadingTLS | None
    authorities: ReloadingAuthorities
    later: float = 0.0
    counted: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0

    @property
    def root_key(self) -> str:
        """The service key of the identity `root`."""
        return (self.directory / ".kkp/root.key").read_text().strip()

    def trust(self, *authorities: Authority) -> None:
        """Have it accept these, and nobody else, for what has no bundle of its own."""
        (self.directory / "ca.pem").write_bytes(b"".join(each.pem for each in authorities))
        self.authorities.reload()
        if self.tls is not None:
            self.tls.reload()

    @asynccontextmanager
    async def client(self, holder: Holder | None = None) -> AsyncIterator[Client]:
        """Speak to it over one connection, with this certificate."""

        async def count(*_: object) -> None:
            self.connections += 1

        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(count)
        connector = aiohttp.TCPConnector(ssl=self.context(holder), limit=1)
        async with aiohttp.ClientSession(self.url, connector=connector, trace_configs=[tracing]) as session:
            yield Client(session, self.directory / ".kkp")

    def context(self, holder: Holder | None = None) -> ssl.SSLContext:
        """Return what a client with this certificate has."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # it goes by its address here
        context.load_verify_locations(cadata=SERVER.cert_pem.decode())
        if holder is not None:
            context.load_cert_chain(*holder.write(self.directory, "client"))
        return context


@asynccontextmanager
async def running(  # noqa: PLR0913  each with a default
    directory: Path,
    *,
    has_tls: bool = True,
    is_required: bool = False,
    is_forwarded: bool = False,
    proxies: str = "",
    environ: Mapping[str, str] = {},
) -> AsyncIterator[Server]:
    """Run KKP for the duration of the block."""
    SERVER.write(directory)
    (directory / "ca.pem").write_bytes(ROOT.pem)
    (directory / "partner.pem").write_bytes(PARTNER.pem)
    tables = json.loads(json.dumps(TABLES))
    tables["partner"]["ca_file"] = str(directory / "partner.pem")
    settings = replace(
        settings_for(directory, **environ),
        certificates=certificates.read(json.dumps(tables)),
        client_ca_file=directory / "ca.pem",
    )
    authorities = reloading_authorities(settings.client_ca_files)
    tls = None
    if has_tls:
        files = directory / "tls.crt", directory / "tls.key"
        tls = ReloadingTLS(*files, authorities)
    peers = Peers(parse_networks(proxies))
    async with development(settings) as services:

        def count(origin: Origin, error: AuthenticationError) -> None:
            server.counted.append((origin.client_ip, error.code))
            services.pipeline.count_failure(origin, error)

        judge = ClientCertificates(
            authorities,
            peers,
            lambda: time.time() + server.later,
            count,
            is_required=is_required,
            is_forwarded=is_forwarded,
        )
        context = tls.context if tls is not None else None
        edge = Edge(peers, judge)
        async with serving(make_application(services), settings.listen, edge, tls=context) as address:
            url = f"{'https' if has_tls else 'http'}://{address}"
            server = Server(directory, url, services, tls, authorities)
            yield server
