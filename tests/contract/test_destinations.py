"""KKP connects to where it was told to and nowhere else, whatever answers, environment and name service say.

A trap listens beside every place that KKP talks to. Who else is connected to, Python itself tells by its
audit hook; of gRPC, which has a core of its own, the trap alone does.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from azure.keyvault.keys._shared import http_challenge_cache

from kkp import issuers
from kkp.authn.jwks_client import JWKSClient, _PlacesOnly, tls_context
from kkp.authz.opa import OPAPolicy
from kkp.authz.opa_address import check_opa
from kkp.errors import ConfigError, IssuerUnavailableError, KKPError
from kkp.issuers import Issuer
from kkp.kms import check, connect
from kkp.kms.base import Resources
from kkp.mappings import Rule
from kkp.master_key import MasterKey
from kkp.model import BackendLimits
from tests.emulators import aws, azure, gcp, sts
from tests.emulators.listener import Answer, Listener, Said, always, redirecting
from tests.fakes.local_keys import LocalKeysInMemory
from tests.promises import Recorder
from tests.tls import Authority

# urllib3 leaves the socket of a redirect that it was not to follow to the collector, which warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*socket:pytest.PytestUnraisableExceptionWarning"
)

LIMITS = BackendLimits(timeout_seconds=5.0)

_connected: list[set[Any]] = []


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and _connected:
        _connected[-1].add(arguments[1])


sys.addaudithook(_see)


@contextmanager
def watching() -> Iterator[set[Any]]:
    """Collect the addresses that anybody in this process connects to."""
    _connected.append(set())
    try:
        yield _connected[-1]
    finally:
        _connected.pop()


@dataclass(frozen=True)
class Stage:
    """What a place is set up with; a listener stands in its stead."""

    directory: Path
    environ: pytest.MonkeyPatch
    place: Listener
    authority: Authority

    def set(self, variables: Mapping[str, str]) -> None:
        """Set variables of the environment."""
        for name, value in variables.items():
            self.environ.setenv(name, value)


Use = Callable[[Stage], Awaitable[None]]


async def describe(uri: str, key: str) -> None:
    """Connect to a backend and ask it for a key."""
    backend = await connect(uri, Resources(MasterKey(b"m" * 32), LocalKeysInMemory(), LIMITS))
    try:
        await backend.describe(key)
    finally:
        await backend.close()


async def aws_kms(stage: Stage) -> None:
    stage.set({**aws.NO_AMBIENT, **aws.CREDENTIALS})
    await describe(f"aws-kms://eu-west-1?endpoint={stage.place.url}", "alias/orders")


async def aws_token_service(stage: Stage) -> None:
    stage.set(sts.environment(stage.directory, stage.place.url))
    await describe("aws-kms://eu-west-1", "alias/orders")


def _without_a_role(stage: Stage) -> None:
    stage.set({**aws.NO_AMBIENT, **dict.fromkeys(aws.CREDENTIALS, "")})


async def aws_instance_metadata(stage: Stage) -> None:
    _without_a_role(stage)
    stage.set(
        {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{stage.place.url}/"}
    )
    await describe("aws-kms://eu-west-1", "alias/orders")


async def aws_container_metadata(stage: Stage) -> None:
    _without_a_role(stage)
    stage.environ.setattr("botocore.utils.ContainerMetadataFetcher.RETRY_ATTEMPTS", 1)
    stage.environ.setattr("botocore.utils.ContainerMetadataFetcher.SLEEP_TIME", 0)
    stage.set({"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{stage.place.url}/role"})
    await describe("aws-kms://eu-west-1", "alias/orders")


async def google_token_endpoint(stage: Stage) -> None:
    account = stage.directory / "account.json"
    gcp.write_account(account, f"{stage.place.url}/token")
    stage.set({"GOOGLE_APPLICATION_CREDENTIALS": str(account)})
    await describe(f"gcp-kms://{gcp.RING}?endpoint=127.0.0.1:{stage.place.port}", "orders")


async def vault(stage: Stage) -> None:
    stage.set({"VAULT_TOKEN": "root-token"})
    await describe(f"vault-transit://127.0.0.1:{stage.place.port}/transit?tls=off", "orders")


async def vault_login(stage: Stage) -> None:
    stage.set({"VAULT_ROLE_ID": "role-1", "VAULT_SECRET_ID": "secret-1"})
    await describe(f"vault-transit://127.0.0.1:{stage.place.port}/transit?tls=off&auth=approle", "orders")


async def opa(stage: Stage) -> None:
    policy = await OPAPolicy.connect(stage.place.url, timeout_seconds=5, ca_file=None, rule=None)
    try:
        await policy.ping()
    finally:
        await policy.close()


async def fetch(issuer: Issuer) -> bytes:
    """Fetch an issuer's keys."""
    client = JWKSClient()
    try:
        return await client.fetch(issuer, tls_context("k8s", issuer.ca_file))
    finally:
        await client.close()


async def issuer_keys(stage: Stage) -> None:
    await fetch(Issuer(jwks_url=f"{stage.place.url}/keys"))


def _name_service(stage: Stage, leads: Mapping[str, Callable[[], Listener]]) -> None:
    """Have each of these names lead to a listener, and no other name anywhere."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host == "127.0.0.1":
            return real(host, port, *arguments, **options)
        if host not in leads:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("127.0.0.1", leads[host]().port, *arguments, **options)

    stage.environ.setattr(socket, "getaddrinfo", getaddrinfo)


def certified(authority: Authority, directory: Path, host: str) -> ssl.SSLContext:
    """Return what a server of this name shows."""
    authority.issue(directory, host)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / f"{host}.crt", directory / f"{host}.key")
    return context


def _azure(stage: Stage, leads: Mapping[str, Callable[[], Listener]]) -> None:
    http_challenge_cache.clear()
    stage.set(
        {
            "SSL_CERT_FILE": str(stage.authority.write_certificate(stage.directory, "ca.crt")),
            "AZURE_TENANT_ID": azure.TENANT,
            "AZURE_CLIENT_ID": azure.TENANT,
            "AZURE_CLIENT_SECRET": azure.CLIENT_SECRET,
        }
    )
    _name_service(stage, leads)


async def azure_key_vault(stage: Stage) -> None:
    _azure(stage, {azure.VAULT_HOST: lambda: stage.place})
    await describe(azure.URI, "orders")


CHALLENGE = f'Bearer authorization="https://{azure.LOGIN_HOST}/{azure.TENANT}", resource="{azure.RESOURCE}"'


def challenging(challenge: str = CHALLENGE) -> Answer:
    """Ask for a token, as Key Vault does."""
    return always(Said(401, b"{}", {"WWW-Authenticate": challenge}))


async def microsoft_entra(stage: Stage) -> None:
    tls = certified(stage.authority, stage.directory, azure.VAULT_HOST)
    with Listener(challenging(), tls) as key_vault:
        _azure(stage, {azure.VAULT_HOST: lambda: key_vault, azure.LOGIN_HOST: lambda: stage.place})
        await describe(azure.URI, "orders")


# By what they are called; those that are reached by name have a certificate of that name.
PLACES: Mapping[str, tuple[Use, str | None]] = {
    "AWS KMS": (aws_kms, None),
    "AWS's token service": (aws_token_service, None),
    "the metadata service of an instance": (aws_instance_metadata, None),
    "the metadata service of a container": (aws_container_metadata, None),
    "Google's token endpoint": (google_token_endpoint, None),
    "Azure Key Vault": (azure_key_vault, azure.VAULT_HOST),
    "Microsoft Entra": (microsoft_entra, azure.LOGIN_HOST),
    "Vault": (vault, None),
    "Vault's login": (vault_login, None),
    "OPA": (opa, None),
    "an issuer's keys": (issuer_keys, None),
}
REDIRECTS: Mapping[str, tuple[int, str]] = {
    "moves for good": (301, "http://127.0.0.1:{port}/"),
    "is found elsewhere": (302, "http://127.0.0.1:{port}/"),
    "says to see elsewhere": (303, "http://127.0.0.1:{port}/"),
    "moves for now, body and all": (307, "http://127.0.0.1:{port}/"),
    "moves for good, body and all": (308, "http://127.0.0.1:{port}/"),
    "moves without a scheme": (307, "//127.0.0.1:{port}/"),
    "moves to the metadata service": (302, "http://169.254.169.254/latest/meta-data/"),
    "moves to a file": (302, "file:///etc/passwd"),
}


@pytest.fixture
def trap() -> Iterator[Listener]:
    """A place that nobody was told of."""
    with Listener(always(Said(200, b"{}", {"Content-Type": "application/json"}))) as listener:
        yield listener


@contextmanager
def staged(
    place: str, answer: Answer, directory: Path, environ: pytest.MonkeyPatch
) -> Iterator[tuple[Stage, Use]]:
    """Have a place answer so."""
    use, host = PLACES[place]
    authority = Authority("Test")
    with Listener(answer, None if host is None else certified(authority, directory, host)) as listener:
        yield Stage(directory, environ, listener, authority), use


async def used(stage: Stage, use: Use) -> set[Any]:
    """Use a place, whatever comes of it, and return who else was connected to, beyond this machine."""
    with watching() as connected:
        with suppress(KKPError):
            async with asyncio.timeout(30):
                await use(stage)
        # A Unix socket's address is a text; the trap, on this machine as well, counts for itself.
        return {address for address in connected if address[0] != "127.0.0.1"}


@pytest.mark.promise(34)
@pytest.mark.parametrize(("status", "location"), REDIRECTS.values(), ids=REDIRECTS.keys())
@pytest.mark.parametrize("place", PLACES)
async def test_a_redirect_is_not_followed_when(  # noqa: PLR0913, PLR0917  the table's columns
    place: str,
    status: int,
    location: str,
    trap: Listener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_promise: Recorder,
) -> None:
    answer = redirecting(status, location.format(port=trap.port))
    with staged(place, answer, tmp_path, monkeypatch) as (stage, use):
        elsewhere = await used(stage, use)
        assert stage.place.requests

    record_promise(34, "destinations", 1, elsewhere=len(elsewhere) + trap.connections)
    assert not elsewhere
    assert not trap.connections


CAPITALS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SMALL = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
# The variables, the scheme that they name, and who is excepted.
PROXIES: Mapping[str, tuple[tuple[str, ...], str, str]] = {
    "in capitals": (CAPITALS, "http", ""),
    "in small letters": (SMALL, "http", ""),
    "for everybody but another host": (CAPITALS + SMALL, "http", "example.com,[::1],127.0.0.2"),
    "for everybody, where nobody is excepted, badly": (CAPITALS + SMALL, "https", ";*"),
    "of SOCKS": (("ALL_PROXY", "all_proxy", "socks_proxy"), "socks5", ""),
}


def set_proxies(environ: pytest.MonkeyPatch, spelling: str, trap: Listener) -> None:
    """Have the environment name the trap as everybody's proxy."""
    names, scheme, no_proxy = PROXIES[spelling]
    for name in names:
        environ.setenv(name, f"{scheme}://127.0.0.1:{trap.port}")
    for name in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
        environ.setenv(name, no_proxy)


@pytest.mark.promise(34)
@pytest.mark.parametrize("spelling", PROXIES)
@pytest.mark.parametrize("place", PLACES)
async def test_no_proxy_of_the_environment_is_used(  # noqa: PLR0913, PLR0917  the table's columns
    place: str,
    spelling: str,
    trap: Listener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_promise: Recorder,
) -> None:
    set_proxies(monkeypatch, spelling, trap)
    with staged(place, always(Said(400)), tmp_path, monkeypatch) as (stage, use):
        elsewhere = await used(stage, use)
        assert stage.place.requests

    record_promise(34, "destinations", 1, elsewhere=len(elsewhere) + trap.connections)
    assert not elsewhere
    assert not trap.connections


@pytest.mark.promise(34)
@pytest.mark.parametrize("spelling", PROXIES)
async def test_cloud_kms_is_spoken_to_through_no_proxy_of_the_environment(
    spelling: str,
    trap: Listener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_promise: Recorder,
) -> None:
    set_proxies(monkeypatch, spelling, trap)
    async with gcp.cloud_kms(tmp_path, monkeypatch) as server:
        await describe(server.uri, "orders")
        assert server.calls

    record_promise(34, "destinations", 1, elsewhere=trap.connections)
    assert not trap.connections


CHALLENGES = {
    "another tenant's host": f'Bearer authorization="https://{{trap}}/{azure.TENANT}", '
    f'resource="{azure.RESOURCE}"',
    "another resource": f'Bearer authorization="https://{azure.LOGIN_HOST}/{azure.TENANT}", '
    'resource="https://{trap}"',
}


@pytest.mark.promise(34)
@pytest.mark.parametrize("challenge", CHALLENGES.values(), ids=CHALLENGES.keys())
async def test_a_vault_that_names_someone_else_to_ask_for_a_token_sends_nobody_there(
    challenge: str,
    trap: Listener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_promise: Recorder,
) -> None:
    answer = challenging(challenge.format(trap=f"127.0.0.1:{trap.port}"))
    with staged("Azure Key Vault", answer, tmp_path, monkeypatch) as (stage, use):
        elsewhere = await used(stage, use)
        assert stage.place.requests

    record_promise(34, "destinations", 1, elsewhere=len(elsewhere) + trap.connections)
    assert not elsewhere
    assert not trap.connections


NOWHERE = {
    "AWS KMS without TLS": "aws-kms://eu-west-1?endpoint=http://kms.example",
    "AWS KMS at the metadata service": "aws-kms://eu-west-1?endpoint=http://169.254.169.254",
    "AWS KMS in a file": "aws-kms://eu-west-1?endpoint=file:///etc/passwd",
    "AWS KMS behind a user": "aws-kms://eu-west-1?endpoint=https://kms.example@evil.example",
    "AWS KMS at a name of this machine's, without TLS": "aws-kms://eu-west-1?endpoint=http://localhost:1",
    "AWS KMS at a path": "aws-kms://eu-west-1?endpoint=https://kms.example/latest/meta-data",
    "AWS KMS at loopback in octal": "aws-kms://eu-west-1?endpoint=http://0177.0.0.1",
    "AWS KMS at loopback in one number": "aws-kms://eu-west-1?endpoint=http://2130706433",
    "AWS KMS at the metadata service, as IPv6": "aws-kms://eu-west-1?endpoint=http://[::ffff:169.254.169.254]",
    "AWS KMS in a region that is a host": "aws-kms://evil.example",
    "AWS KMS in a region with a path": "aws-kms://eu-west-1/..",
    "a key vault of somebody else's": "azure-keyvault://kkp.vault.azure.net.evil.example",
    "a key vault at an address": "azure-keyvault://169.254.169.254",
    "a key vault on a port": "azure-keyvault://kkp.vault.azure.net:8443",
    "a key vault behind a user": "azure-keyvault://kkp.vault.azure.net@evil.example",
    "a key vault with a fragment": "azure-keyvault://evil.example#.vault.azure.net",
    "Cloud KMS behind a scheme": f"gcp-kms://{gcp.RING}?endpoint=unix:/run/evil.sock",
    "Cloud KMS at a URL": f"gcp-kms://{gcp.RING}?endpoint=http://169.254.169.254",
    "Cloud KMS behind a user": f"gcp-kms://{gcp.RING}?endpoint=cloudkms.googleapis.com@evil.example",
    "Cloud KMS twice": f"gcp-kms://{gcp.RING}?endpoint=a.example&endpoint=b.example",
    "Vault without TLS": "vault-transit://vault.example/transit?tls=off",
    "Vault at the metadata service without TLS": "vault-transit://169.254.169.254:80/latest?tls=off",
    "Vault at a name of this machine's, without TLS": "vault-transit://localhost:8200/transit?tls=off",
    "Vault behind a user": "vault-transit://vault.example@evil.example/transit",
    "Vault above its mount": "vault-transit://vault.example/transit/../sys",
    "Vault with a query of its own": "vault-transit://vault.example/transit?redirect=evil.example",
    "a web page": "https://evil.example/",
    "a file": "file:///etc/passwd",
}


@pytest.mark.promise(34)
@pytest.mark.parametrize("uri", NOWHERE.values(), ids=NOWHERE.keys())
def test_a_uri_is_refused_with_a_cure_and_nobody_is_reached_of(uri: str, record_promise: Recorder) -> None:
    with watching() as connected, pytest.raises(ConfigError) as caught:
        check({"backend": uri})
    record_promise(34, "destinations", 1, elsewhere=len(connected))
    assert not connected
    told = str(caught.value)
    assert "://" in told or "endpoint is a host" in told  # how to write it


NO_OPA = {
    "without TLS": "http://opa.example:8181",
    "at the metadata service": "http://169.254.169.254",
    "at a name of this machine's, without TLS": "http://localhost:8181",
    "in a file": "file:///etc/passwd",
    "behind a user": "http://127.0.0.1@evil.example",
    "with a path": "http://127.0.0.1:8181/v1",
    "with TLS and no authority of its own": "https://opa.example",
    "at loopback in one number": "http://2130706433:8181",
}


@pytest.mark.promise(34)
@pytest.mark.parametrize("url", NO_OPA.values(), ids=NO_OPA.keys())
def test_an_opa_is_refused_with_a_cure_and_not_reached(url: str, record_promise: Recorder) -> None:
    with watching() as connected:
        problems = check_opa(url, None)
    record_promise(34, "destinations", 1, elsewhere=len(connected))
    assert not connected
    assert len(problems) == 1
    assert "give" in problems[0] or "name" in problems[0]


NO_KEYS = {
    "without TLS": "http://issuer.example/keys",
    "at the metadata service": "http://169.254.169.254/latest/meta-data/",
    "at the metadata service, with TLS": "https://169.254.169.254/keys",
    "at the metadata service, as IPv6": "https://[::ffff:169.254.169.254]/keys",
    "at the metadata service, through NAT64": "https://[64:ff9b::a9fe:a9fe]/keys",
    "at AWS's metadata service by IPv6": "https://[fd00:ec2::254]/keys",
    "at Azure's host": "https://168.63.129.16/keys",
    "at Alibaba's metadata service": "https://100.100.100.200/keys",
    "at every address": "https://0.0.0.0/keys",
    "at every address, as IPv6": "https://[::]/keys",
    "at loopback, as IPv6 of IPv4": "http://[::ffff:127.0.0.1]/keys",
    "at a group of hosts": "https://224.0.0.1/keys",
    "at a name of this machine's, without TLS": "http://localhost/keys",
    "at loopback in octal": "http://0177.0.0.1/keys",
    "at loopback in one number": "http://2130706433/keys",
    "at loopback in hexadecimal": "http://0x7f.0.0.1/keys",
    "at loopback in short": "http://127.1/keys",
    "at loopback in one number, with TLS": "https://2130706433/keys",
    "at loopback in hexadecimal, with TLS": "https://0x7f000001/keys",
    "in a file": "file:///etc/passwd",
    "by FTP": "ftp://issuer.example/keys",
    "in itself": "data:application/json,{}",
    "at a socket": "unix:///run/keys.sock",
    "behind a user": "https://issuer.example@evil.example/keys",
    "behind a user and a password": "https://a:b@evil.example/keys",
    "with a fragment": "https://evil.example/#issuer.example",
    "with a backslash": "https://issuer.example\\@evil.example/keys",
    "with a space": "https://issuer.example /keys",
    "with a line break": "https://issuer.example/keys\nHost: evil.example",
    "with a tab": "https://issuer\t.example/keys",
    "beyond ASCII": "https://\u0456ssuer.example/keys",
    "on port 0": "https://issuer.example:0/keys",
    "on a port that is too high": "https://issuer.example:65536/keys",
    "on a port that is none": "https://issuer.example:http/keys",
    "on no port": "https://issuer.example:/keys",
    "without a host": "https:///keys",
    "without a scheme": "issuer.example/keys",
    "with nothing": "https://",
    "at a name with an underscore": "https://_dmarc.example/keys",
    "at a name with a dot too many": "https://issuer..example/keys",
    "in brackets that do not close": "https://[::1/keys",
    "at an interface of its own": "https://[fe80::1%25eth0]/keys",
}


@pytest.mark.promise(34)
@pytest.mark.parametrize("url", NO_KEYS.values(), ids=NO_KEYS.keys())
def test_a_place_for_keys_is_refused_with_a_cure_and_not_reached(url: str, record_promise: Recorder) -> None:
    rules = {"all": Rule(match={"sub": "*"}, roles=["service"])}
    issuer = Issuer(issuer="https://issuer.example", jwks_url=url, rules=rules)
    with watching() as connected:
        problems = list(issuers.problems({"k8s": issuer}, "https://kkp.example", None))
    record_promise(34, "destinations", 1, elsewhere=len(connected))
    assert not connected
    assert len(problems) == 1
    assert problems[0].startswith("[issuers.k8s]: jwks_url: ")
    assert problems[0].endswith("give https://host/path")
    assert "evil" not in problems[0]


NO_PLACES = (
    "127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "169.254.169.254", "169.254.170.2", "fe80::1",  # noqa: S104  nothing is bound
    "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "224.0.0.1", "ff02::1", "240.0.0.1",
    "255.255.255.255", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::", "2002:a9fe:a9fe::1",
)  # fmt: skip


@pytest.mark.promise(34)
@pytest.mark.parametrize("address", NO_PLACES)
@pytest.mark.parametrize("scheme_and_port", ["https", "https on another port"])
async def test_a_name_that_leads_to_this_machine_or_a_metadata_service_is_not_followed(
    address: str, scheme_and_port: str, monkeypatch: pytest.MonkeyPatch, record_promise: Recorder
) -> None:
    """Whether it always did, or has been led there since it was configured (DNS rebinding)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def getaddrinfo(_host: Any, port: Any, *_: Any, **__: Any) -> Any:
        return [(family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)[: 4 if ":" in address else 2])]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = ":8443" if scheme_and_port != "https" else ""
    with watching() as connected, pytest.raises(IssuerUnavailableError):
        await fetch(Issuer(jwks_url=f"https://issuer.example{port}/keys"))
    record_promise(34, "destinations", 1, elsewhere=len(connected))
    assert not connected


@pytest.mark.promise(34)
async def test_of_the_addresses_of_a_name_only_those_are_tried_that_are_places(
    monkeypatch: pytest.MonkeyPatch, record_promise: Recorder
) -> None:
    addresses = ["127.0.0.1", "192.0.2.7", "169.254.169.254"]

    def getaddrinfo(_host: Any, port: Any, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    found = await _PlacesOnly().resolve("issuer.example", 443)
    assert [each["host"] for each in found] == ["192.0.2.7"]
    record_promise(34, "destinations", 1)


@pytest.mark.promise(34)
@pytest.mark.parametrize("speaks", ["TLS with a certificate of its own making", "no TLS"])
async def test_a_place_for_keys_that_can_not_prove_its_name_has_nothing_said_to_it(
    speaks: str, tmp_path: Path, record_promise: Recorder
) -> None:
    evil, authority = tmp_path / "evil", Authority("Test")
    evil.mkdir()
    (tmp_path / "token").write_text("secret")
    tls = None if speaks == "no TLS" else certified(Authority("Evil"), evil, "127.0.0.1")
    ca_file = str(authority.write_certificate(tmp_path, "ca.crt"))
    with Listener(always(Said(200, b"{}")), tls) as elsewhere:
        with pytest.raises(IssuerUnavailableError):
            await fetch(
                Issuer(
                    jwks_url=f"https://127.0.0.1:{elsewhere.port}/keys",
                    jwks_ca_file=ca_file,
                    jwks_token_file=str(tmp_path / "token"),
                )
            )
        assert elsewhere.connections
    record_promise(34, "destinations", 1, told=len(elsewhere.requests))
    assert not elsewhere.requests


async def named_aws(stage: Stage, host: str) -> None:
    stage.set({**aws.NO_AMBIENT, **aws.CREDENTIALS})
    await describe(f"aws-kms://eu-west-1?endpoint=https://{host}", "alias/orders")


async def named_vault(stage: Stage, host: str) -> None:
    stage.set({"VAULT_TOKEN": "root-token"})
    ca_file = stage.directory / "ca.crt"
    await describe(f"vault-transit://{host}/transit?ca_file={ca_file}", "orders")


async def named_opa(stage: Stage, host: str) -> None:
    policy = await OPAPolicy.connect(
        f"https://{host}", timeout_seconds=5, ca_file=stage.directory / "ca.crt", rule=None
    )
    try:
        await policy.ping()
    finally:
        await policy.close()


async def named_azure(stage: Stage, _host: str) -> None:
    http_challenge_cache.clear()
    await describe(azure.URI, "orders")


NAMED: Mapping[str, tuple[Callable[[Stage, str], Awaitable[None]], str]] = {
    "AWS KMS": (named_aws, "kms.example"),
    "Azure Key Vault": (named_azure, azure.VAULT_HOST),
    "Vault": (named_vault, "vault.example"),
    "OPA": (named_opa, "opa.example"),
}


@pytest.mark.promise(34)
@pytest.mark.parametrize("place", NAMED)
@pytest.mark.parametrize("speaks", ["TLS with a certificate of its own making", "no TLS"])
async def test_a_name_that_leads_elsewhere_at_the_next_look_up_has_nothing_said_to_it(
    place: str,
    speaks: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_promise: Recorder,
) -> None:
    use, host = NAMED[place]
    evil, authority = tmp_path / "evil", Authority("Test")
    evil.mkdir()
    rebound = None if speaks == "no TLS" else certified(Authority("Evil"), evil, host)
    with (
        Listener(always(Said(503)), certified(authority, tmp_path, host)) as listener,
        Listener(always(Said(200, b"{}")), rebound) as elsewhere,
    ):
        stage, leads = Stage(tmp_path, monkeypatch, listener, authority), [listener]
        _azure(stage, {host: lambda: leads[0]})
        stage.set({"AWS_CA_BUNDLE": str(tmp_path / "ca.crt")})
        for leads[0] in (listener, elsewhere):
            with pytest.raises(KKPError):
                await use(stage, host)
        assert listener.requests
        assert elsewhere.connections

    record_promise(34, "destinations", 1, told=len(elsewhere.requests))
    assert not elsewhere.requests
