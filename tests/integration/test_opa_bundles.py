"""The OPA configuration that we ship, run as its README says: what is active, and what is logged.

A bundle server of the test's own serves what a test puts there. OPA asks it every second instead of every
ten; nothing else of the configuration is changed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kkp.authz.opa import OPAPolicy
from kkp.errors import PolicyUnavailableError
from kkp.model import PolicyInput
from tests.decision_cases import CASES, question
from tests.opa import NOT_SHIPPED, OPA, POLICY, ROOT, find_opa, readme_commands, require_opa, running, until
from tests.promises import Recorder

pytestmark = [
    pytest.mark.promise(22),
    pytest.mark.skipif(find_opa() is None, reason="no OPA here: `make rego` builds one where Go is"),
]

TIMEOUT_SECONDS = 5.0
GRANTED = next(question(case) for case in CASES if case["expect"]["allow"])
SIGNATURES = ".signatures.json"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory in which the README's first commands have run: keys, and the files to build from."""
    return new_release(tmp_path_factory.mktemp("release"))


def new_release(directory: Path) -> Path:
    """Run the README's first commands in a directory."""
    shutil.copytree(POLICY, directory / "policy")
    shutil.copytree(ROOT / "deploy", directory / "deploy", ignore=NOT_SHIPPED)
    for command in readme_commands():
        if command.startswith("openssl"):
            shell(command, directory)
    return directory


def shell(command: str, directory: Path) -> None:
    path = f"{Path(require_opa()).parent}:{os.environ['PATH']}"
    subprocess.run(  # noqa: S602  the README's own command, as a person would paste it
        command, shell=True, check=True, cwd=directory, env={**os.environ, "PATH": path}, capture_output=True
    )


def build(release: Path, revision: str) -> bytes:
    """Build and sign a bundle by the README's command."""
    (command,) = (command for command in readme_commands() if command.startswith("opa build"))
    assert "--revision 1 " in command
    shell(command.replace("--revision 1 ", f"--revision '{revision}' "), release)
    return (release / "kkp.tar.gz").read_bytes()


@dataclass
class BundleServer:
    """What OPA downloads, and how often it has."""

    content: bytes = b""
    status: int = 200
    served: int = 0
    server: TestServer = field(init=False)

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path == "/bundles/kkp.tar.gz"
        self.served += 1
        return web.Response(body=self.content, status=self.status, content_type="application/gzip")

    async def publish(self, content: bytes, status: int = 200) -> None:
        """Serve this from now on, and wait until OPA has made up its mind about it."""
        self.content, self.status, before = content, status, self.served
        await until(lambda: self.served >= before + 2)  # by then the first answer is dealt with


@pytest.fixture
async def bundles() -> AsyncIterator[BundleServer]:
    """Return a running bundle server that has nothing to serve yet."""
    async with serving_bundles() as served:
        yield served


@asynccontextmanager
async def serving_bundles(content: bytes = b"") -> AsyncIterator[BundleServer]:
    """Run a bundle server for the duration of the block."""
    served = BundleServer(content)
    application = web.Application()
    application.router.add_get("/{path:.*}", served.answer)
    served.server = TestServer(application)
    async with served.server:
        yield served


@contextmanager
def shipped(release: Path, bundles: BundleServer, directory: Path) -> Iterator[OPA]:
    """Run the README's `opa run`, on another socket and with another bundle server."""
    (command,) = (command for command in readme_commands() if " opa run " in command)
    url = f"unix://{directory}/opa.sock"
    for ours, tests in {
        "https://policy.example/bundles": str(bundles.server.make_url("/bundles")),
        "unix:///run/opa.sock": url,
        "opa run ": f"exec {require_opa()} run --set bundles.kkp.polling.min_delay_seconds=1 "
        "--set bundles.kkp.polling.max_delay_seconds=1 ",
    }.items():
        assert command.count(ours) == 1
        command = command.replace(ours, tests)
    with running(["/bin/sh", "-c", f"cd {release} && {command}"], directory, url) as opa:
        yield opa


@asynccontextmanager
async def connected(opa: OPA) -> AsyncIterator[OPAPolicy]:
    policy = await OPAPolicy.connect(opa.url, timeout_seconds=TIMEOUT_SECONDS)
    try:
        yield policy
    finally:
        await policy.close()


async def verdict(policy: OPAPolicy) -> str:
    """Return what decided about a question that every release allows, or `unavailable`."""
    try:
        decision = await policy.decide(PolicyInput(json.dumps(GRANTED).encode()))
    except PolicyUnavailableError:
        return "unavailable"
    assert decision.allow
    return decision.revision


async def active(policy: OPAPolicy, revision: str) -> None:
    """Wait until this revision decides, and see that readiness says so too."""
    async with asyncio.timeout(30):
        while await verdict(policy) != revision:  # noqa: ASYNC110  OPA sets no event
            await asyncio.sleep(0.05)
    await policy.ping()
    assert policy.revision == revision


# --- altering bundles


def unpack(bundle: bytes) -> Files:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        members = [member for member in archive if member.isfile()]
        return {member.name: archive.extractfile(member).read() for member in members}  # type: ignore[union-attr]  # a file


def pack(files: Mapping[str, bytes], *more: tuple[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in [*files.items(), *more]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def name_of(files: Files, end: str) -> str:
    (name,) = (name for name in files if name.endswith(end))
    return name


def without(files: Files, end: str) -> Files:
    name = name_of(files, end)
    return {other: content for other, content in files.items() if other != name}


def replacing(files: Files, end: str, old: bytes, new: bytes) -> bytes:
    name = name_of(files, end)
    assert old in files[name]
    return pack({**files, name: files[name].replace(old, new)})


def token_of(files: Files) -> str:
    (token,) = json.loads(files[name_of(files, SIGNATURES)])["signatures"]
    return str(token)


def claims_of(files: Files) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token_of(files), options={"verify_signature": False})
    return claims


def carrying(files: Files, *tokens: str, **more: object) -> bytes:
    """Pack the files with these signatures in place of their own."""
    document = {"signatures": list(tokens), **more}
    return pack({**files, name_of(files, SIGNATURES): json.dumps(document).encode()})


def encoded(part: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def signed_unchecked(files: Files, algorithm: str, key: bytes) -> str:
    """Sign by an algorithm that PyJWT would not use this key with."""
    signed = f"{encoded({'alg': algorithm})}.{encoded(claims_of(files))}"
    tag = hmac.new(key, signed.encode(), hashlib.sha256).digest() if key else b""
    return f"{signed}.{base64.urlsafe_b64encode(tag).decode().rstrip('=')}"


@cache
def other_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Released:
    """What an attacker has; and the keys as well, for bundles that are signed badly on purpose."""

    good: bytes
    older: bytes
    directory: Path

    @property
    def files(self) -> Files:
        return unpack(self.good)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        pem = (self.directory / "policy-signing.key").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return key

    @property
    def public_pem(self) -> bytes:
        return (self.directory / "policy-signing.pub").read_bytes()

    def resigned(self, **claims: object) -> bytes:
        """Sign the files' own claims anew with the right key, but for these."""
        changed = {
            name: value for name, value in {**claims_of(self.files), **claims}.items() if value is not None
        }
        return carrying(self.files, jwt.encode(changed, self.key, algorithm="ES256"))


HOSTILE = b'package kkp.authz\n\ndecision := {"allow": true, "reasons": ["a.b"], "obligations": {}}\n'
PATCH = json.dumps(
    {"data": [{"op": "upsert", "path": "/kkp/settings/bearer_tokens", "value": "any"}]}
).encode()


def tampered_signature(r: Released) -> bytes:
    head, payload, signature = token_of(r.files).split(".")
    flipped = "B" if signature[0] == "A" else "A"
    return carrying(r.files, f"{head}.{payload}.{flipped}{signature[1:]}")


def tampered_claims(r: Released) -> bytes:
    head, _, signature = token_of(r.files).split(".")
    files = [
        {**entry, "hash": "0" * 64} if entry["name"].endswith("authz.rego") else entry
        for entry in claims_of(r.files)["files"]
    ]
    return carrying(r.files, f"{head}.{encoded({**claims_of(r.files), 'files': files})}.{signature}")


ALTERED: Mapping[str, Callable[[Released], bytes]] = {
    "without a signature": lambda r: pack(without(r.files, SIGNATURES)),
    "with an empty list of signatures": lambda r: carrying(r.files),
    "with a signature that is no token": lambda r: carrying(r.files, "signed"),
    "with an empty signature file": lambda r: pack({**r.files, name_of(r.files, SIGNATURES): b""}),
    "signed by another key": lambda r: carrying(
        r.files, jwt.encode(claims_of(r.files), other_key(), algorithm="ES256")
    ),
    "signed by another key under its own name": lambda r: carrying(
        r.files, jwt.encode({**claims_of(r.files), "keyid": "mine"}, other_key(), "ES256", {"kid": "mine"})
    ),
    "signed by the public key as a shared secret": lambda r: carrying(
        r.files, signed_unchecked(r.files, "HS256", r.public_pem)
    ),
    "signed by the algorithm none": lambda r: carrying(r.files, signed_unchecked(r.files, "none", b"")),
    "signed for no scope": lambda r: r.resigned(scope=None),
    "signed for another scope": lambda r: r.resigned(scope="kkp-test"),
    "with another bundle's signature": lambda r: carrying(r.files, token_of(unpack(r.older))),
    "with a changed signature": tampered_signature,
    "with changed claims under the signature": tampered_claims,
    "with a second, foreign signature": lambda r: carrying(
        r.files, jwt.encode(claims_of(r.files), other_key(), algorithm="ES256"), token_of(r.files)
    ),
    "with a changed policy": lambda r: replacing(
        r.files, "kkp/authz/authz.rego", b'"allow": false', b'"allow": true'
    ),
    "with one more byte in a policy": lambda r: replacing(r.files, "tokens.rego", b"package", b" package"),
    "with a changed role": lambda r: replacing(
        r.files, "data.json", b'"bearer_tokens":"bound"', b'"bearer_tokens":"any"'
    ),
    "with a changed revision": lambda r: replacing(r.files, ".manifest", b'"42', b'"43'),
    "with wider roots": lambda r: replacing(r.files, ".manifest", b'["kkp"]', b'["kkp","system"]'),
    "with a policy too many": lambda r: pack(r.files, ("/kkp/more.rego", HOSTILE)),
    "with a policy too few": lambda r: pack(without(r.files, "tokens.rego")),
    "with data too many": lambda r: pack(r.files, ("/kkp/more/data.json", b'{"more": true}')),
    "with a policy under another name": lambda r: pack(
        without(r.files, "tokens.rego"), ("/kkp/other.rego", r.files[name_of(r.files, "tokens.rego")])
    ),
    "with a file twice, the second one changed": lambda r: pack(
        r.files, (name_of(r.files, "kkp/authz/authz.rego"), HOSTILE)
    ),
    "with a file outside of the bundle": lambda r: pack(r.files, ("../../kkp/more.rego", HOSTILE)),
    "with compiled code too many": lambda r: pack(r.files, ("/policy.wasm", b"\0asm\1\0\0\0")),
    "that is an unsigned patch": lambda r: pack(
        {"/.manifest": r.files[name_of(r.files, ".manifest")], "/patch.json": PATCH}
    ),
    "that is a patch with the whole bundle's signature": lambda r: pack(
        {
            "/.manifest": r.files[name_of(r.files, ".manifest")],
            "/patch.json": PATCH,
            SIGNATURES: r.files[name_of(r.files, SIGNATURES)],
        }
    ),
    "cut short": lambda r: r.good[: len(r.good) // 2],
    "that is no archive": lambda _: b"<html>moved</html>",
    "that is empty": lambda _: b"",
}


@pytest.fixture(scope="module")
def released(release: Path) -> Released:
    return Released(build(release, "42-good"), build(release, "41-older"), release)


def test_there_are_enough_altered_bundles_and_each_is_another(released: Released) -> None:
    made = {alter(released) for alter in ALTERED.values()}
    assert len(made) == len(ALTERED) >= 20
    assert released.good not in made


@pytest.mark.parametrize("name", ALTERED)
async def test_opa_never_activates_a_bundle(
    name: str, released: Released, bundles: BundleServer, tmp_path: Path, record_promise: Recorder
) -> None:
    bundles.content = ALTERED[name](released)
    with shipped(released.directory, bundles, tmp_path) as opa:
        await until(lambda: "Bundle load failed" in opa.log)
        async with connected(opa) as policy:
            with pytest.raises(PolicyUnavailableError):
                await policy.ping()
            assert await verdict(policy) == "unavailable"
    record_promise(22, "altered bundles", 1)


async def test_the_active_bundle_outlives_altered_ones_and_a_new_release_replaces_it(
    released: Released, bundles: BundleServer, tmp_path: Path
) -> None:
    bundles.content = released.good
    with shipped(released.directory, bundles, tmp_path) as opa:
        async with connected(opa) as policy:
            await active(policy, "kkp@42-good")
            for alter in list(ALTERED.values())[::5]:
                await bundles.publish(alter(released))
                assert await verdict(policy) == "kkp@42-good"
            await bundles.publish(b"gone", status=404)
            assert await verdict(policy) == "kkp@42-good"
            bundles.content, bundles.status = build(released.directory, "43"), 200
            await active(policy, "kkp@43")


OLDER = ["41-older", "42-other", "0042-other", "7", "", "next", "v99"]


async def test_an_older_release_with_a_good_signature_decides_nothing(
    released: Released, bundles: BundleServer, tmp_path: Path
) -> None:
    bundles.content = released.good
    with shipped(released.directory, bundles, tmp_path) as opa:
        async with connected(opa) as policy:
            await active(policy, "kkp@42-good")
            for revision in OLDER:
                await bundles.publish(build(released.directory, revision))
                with pytest.raises(PolicyUnavailableError, match="went back behind kkp@42-good"):
                    await policy.ping()
                assert await verdict(policy) == "unavailable"
            bundles.content = released.good
            await active(policy, "kkp@42-good")


async def test_a_revision_that_is_not_a_short_code_decides_nothing(
    released: Released, bundles: BundleServer, tmp_path: Path
) -> None:
    bundles.content = build(released.directory, "42 of our policies")
    with shipped(released.directory, bundles, tmp_path) as opa:
        await until(lambda: bundles.served >= 2)
        async with connected(opa) as policy:
            with pytest.raises(PolicyUnavailableError, match="not a short code"):
                await policy.ping()
            assert await verdict(policy) == "unavailable"


# --- the configuration's other promises

CANARY = "canary-5f1e"
PRIVATE: dict[str, Any] = {
    **GRANTED,
    "caller": {
        **GRANTED["caller"],
        "attributes": {f"{CANARY}-1": f"{CANARY}-2"},
        "grants": [
            {**grant, "audiences": [f"{CANARY}-3"], "policy_claims": {f"{CANARY}-4": [f"{CANARY}-5"]}}
            for grant in GRANTED["caller"]["grants"]
        ],
    },
    "claims": {**GRANTED["claims"], "sub": f"{CANARY}-6", "policy_claims": {f"{CANARY}-7": f"{CANARY}-8"}},
    "request": {
        **GRANTED["request"],
        "context": {f"{CANARY}-9": f"{CANARY}-10"},
        "envelope": {
            "backend": "aws",
            "key_id": f"{CANARY}-11",
            "context": {f"{CANARY}-12": f"{CANARY}-13"},
            "associated_data": f"{CANARY}-14",
        },
        "subject": f"{CANARY}-15",
        "identity": {"id": f"{CANARY}-16", "attributes": {f"{CANARY}-17": f"{CANARY}-18"}},
    },
    f"{CANARY}-19": f"{CANARY}-20",
}


async def test_a_decision_log_says_what_an_operator_needs_and_nothing_private(
    released: Released, bundles: BundleServer, tmp_path: Path
) -> None:
    bundles.content = released.good
    with shipped(released.directory, bundles, tmp_path) as opa:
        async with connected(opa) as policy:
            await active(policy, "kkp@42-good")
            decision = await policy.decide(PolicyInput(json.dumps(PRIVATE).encode()))
            explained = await policy.explain(PolicyInput(json.dumps(PRIVATE).encode()))
            for document in [
                f"{CANARY}-21",
                [f"{CANARY}-22"],
                {"caller": f"{CANARY}-23", "action": [f"{CANARY}-24"]},
            ]:
                await policy.decide(PolicyInput(json.dumps(document).encode()))
        logged = [json.loads(line) for line in opa.log.splitlines()]
    decisions = {line["decision_id"]: line for line in logged if line["msg"] == "Decision Log"}
    assert CANARY not in json.dumps(logged)
    assert CANARY not in repr(explained)
    assert explained.decision.policy_decision_id in decisions
    assert decision.policy_decision_id is not None
    line = decisions[decision.policy_decision_id]
    assert line["bundles"] == {"kkp": {"revision": "42-good"}}
    assert line["path"] == "kkp/authz/decision"
    assert line["result"]["reasons"] == list(decision.reasons)
    caller = {name: GRANTED["caller"][name] for name in ("id", "issuer", "kind", "method", "roles")}
    assert line["input"] == {
        "action": GRANTED["action"],
        "caller": caller,
        "environment": GRANTED["environment"],
        "request": {name: GRANTED["request"][name] for name in ("backend", "key_id")},
    }


REFUSED: list[tuple[str, str, object]] = [
    ("GET", "/v1/policies", None),
    ("GET", "/v1/data", None),
    ("GET", "/v1/config", None),
    ("POST", "/v1/data", {"input": {}}),
    ("POST", "/v1/query", {"query": "data"}),
    ("POST", "/v1/compile", {"query": "data.kkp.authz.allow"}),
    ("POST", "/v0/data/kkp/authz/decision", {}),
    ("PUT", "/v1/data/kkp/settings/bearer_tokens", "any"),
    ("PUT", "/v1/data/system/log/mask", []),
    ("PATCH", "/v1/data/kkp", []),
    ("DELETE", "/v1/policies/deploy/opa/system/log/log.rego", None),
]


async def test_nobody_can_read_or_replace_the_policy_and_the_mask_through_the_socket(
    released: Released, bundles: BundleServer, tmp_path: Path
) -> None:
    bundles.content = released.good
    with shipped(released.directory, bundles, tmp_path) as opa:
        connector = aiohttp.UnixConnector(opa.socket_path)
        async with connected(opa) as policy, aiohttp.ClientSession(connector=connector) as session:
            await active(policy, "kkp@42-good")
            for method, path, document in REFUSED:
                async with session.request(method, f"http://localhost{path}", json=document) as response:
                    assert response.status == 401, path
            hostile = {"data": HOSTILE, "headers": {"Content-Type": "text/plain"}}
            async with session.put("http://localhost/v1/policies/more", **hostile) as response:  # type: ignore[arg-type]  # as aiohttp takes them
                assert response.status == 401
            for path in ("/health", "/metrics"):
                async with session.get(f"http://localhost{path}") as response:
                    assert response.status == 200, path
            assert await verdict(policy) == "kkp@42-good"


async def test_a_boolean_policy_can_be_shipped_as_well(
    released: Released, bundles: BundleServer, tmp_path: Path
) -> None:
    with TemporaryDirectory() as temporary:
        other = Path(temporary)
        shutil.copytree(released.directory, other, dirs_exist_ok=True)
        shutil.rmtree(other / "policy")
        (other / "policy/kkp/authz").mkdir(parents=True)
        (other / "policy/.manifest").write_text('{"roots": ["kkp"], "rego_version": 1}')
        (other / "policy/kkp/authz/authz.rego").write_text(
            "package kkp.authz\n\ndefault allow := false\n\nallow if input.caller.id\n"
        )
        bundles.content = build(other, "1")
    with shipped(released.directory, bundles, tmp_path) as opa:
        async with connected(opa) as policy:
            await active(policy, "kkp@1")


def test_every_command_of_the_readme_is_run_here() -> None:
    run_here = ("openssl ", "opa build ", "KKP_BUNDLE_URL=https://policy.example/bundles opa run ")
    commands = readme_commands()
    assert len(commands) == 4
    assert all(command.startswith(run_here) for command in commands)


def test_opa_does_not_start_without_the_key(release: Path, bundles: BundleServer, tmp_path: Path) -> None:
    (command,) = (command for command in readme_commands() if " opa run " in command)
    option = "--set-file keys.kkp-policy.key=policy-signing.pub"
    assert option in command
    refused = subprocess.run(  # noqa: S602  the README's own command, without one option
        command.replace(option, "")
        .replace("opa run", f"{require_opa()} run")
        .replace("/run/opa", f"{tmp_path}/opa"),
        shell=True,
        check=False,
        cwd=release,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert refused.returncode != 0
    assert "no keys provided for key ID kkp-policy" in refused.stderr + refused.stdout
