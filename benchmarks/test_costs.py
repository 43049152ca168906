"""What each part of the road costs in process, beside the floor that it stands on.

`FLOORS` says which floor belongs to which figure. A figure whose name ends in a number does so many
operations at once, and says so in `extra_info`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl.signing import SigningKey
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import inputs
from kkp import envelope, kms, tokens
from kkp.app import Foundation, foundation
from kkp.audit.base import AuditEntry
from kkp.authn.kkp_tokens import TokenVerifier
from kkp.authz.embedded import EmbeddedPolicy, default_policy_path
from kkp.authz.opa import OPAPolicy
from kkp.config import load
from kkp.keyring.rotation import Keyring
from kkp.kms.base import WrappedKey
from kkp.kms.guarded import Guarded
from kkp.kms.memory import MemoryKMS
from kkp.model import Action, BackendLimits
from kkp.ways import DEV
from tests.opa import OPA, require_opa, serving

KIBIBYTE = os.urandom(1024)
FLOORS = {
    "decide_sidecar": "opa_asked_directly",
    "mint": "ed25519_sign_nacl",
    "verify_uncached": "ed25519_verify_nacl",
    "verify_cached": "sha256_of_token",
    "seal": "aes_256_gcm_1_kib",
    "seal_with_wrap": "aes_256_gcm_1_kib",
    "open": "aes_256_gcm_1_kib",
    "open_with_unwrap": "aes_256_gcm_1_kib",
    "wrap_guarded": "wrap_bare",
    "audit_1": "fdatasync_1",
    "audit_64": "fdatasync_64",
}


@dataclass(frozen=True)
class World:
    """What the parts need, on a real database."""

    runner: asyncio.Runner
    base: Foundation
    keyring: Keyring
    kid: str


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with TemporaryDirectory() as directory, asyncio.Runner() as runner:
        environ = {
            "KKP_DATA_DIR": f"{directory}/.kkp",
            "KKP_CONFIG": "/dev/null",
            "KKP_ISSUER": inputs.ISSUER,
        }
        opening = foundation(load(environ, DEV, schemes=kms.SCHEMES), create=True)
        base = runner.run(opening.__aenter__())
        times = base.settings.ring_times
        keyring = base.keyring()
        runner.run(keyring.start())
        kid, _ = keyring.plan_expiry(base.clock.now(), times.token_ttl)
        yield World(runner, base, keyring, kid)
        runner.run(opening.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def token(world: World) -> str:
    now = int(world.base.clock.now())
    payload = tokens.encode_claims(inputs.claims(now, lifetime=300))
    return tokens.sign(payload, world.kid, partial(world.keyring.sign, world.kid))


@pytest.fixture(scope="module")
def policy() -> EmbeddedPolicy:
    return EmbeddedPolicy.load(default_policy_path(), {"bearer_tokens": "any"})


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401  whatever it returns
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waited")


def test_mint(benchmark: BenchmarkFixture, world: World) -> None:
    clock, lifetime = world.base.clock, world.base.settings.ring_times.token_ttl

    def mint() -> str:
        now = clock.now()
        kid, expiry = world.keyring.plan_expiry(now, lifetime)
        payload = tokens.encode_claims(inputs.claims(int(now), lifetime=expiry - int(now)))
        return tokens.sign(payload, kid, partial(world.keyring.sign, kid))

    minted = benchmark(mint)
    tokens.verify(minted, world.keyring.public_keys(clock.now()), issuer=inputs.ISSUER)


def test_verify_uncached(benchmark: BenchmarkFixture, world: World, token: str) -> None:
    keys = world.keyring.public_keys(world.base.clock.now())
    kid, _ = benchmark(tokens.verify, token, keys, issuer=inputs.ISSUER)
    assert kid == world.kid


def test_verify_cached(benchmark: BenchmarkFixture, world: World, token: str) -> None:
    revoked = world.base.revocations()
    verifier = TokenVerifier(
        world.keyring, revoked, world.base.clock, issuer=inputs.ISSUER, clock_error_seconds=5
    )
    assert benchmark(verifier.verify, token).iss == inputs.ISSUER


@pytest.mark.parametrize("action", ["issue_token", "decrypt"])
def test_decide(benchmark: BenchmarkFixture, policy: EmbeddedPolicy, action: str) -> None:
    question = inputs.question(Action(action))
    decision = benchmark(lambda: finish(policy.decide(question)))
    assert decision.allow, decision


@pytest.fixture(scope="module")
def opa() -> Iterator[OPA]:
    """Return an OPA of its own with the bundled policy; skip where there is none to run."""
    require_opa()
    with TemporaryDirectory() as temporary:
        directory = Path(temporary)
        shutil.copytree(default_policy_path(), directory / "policy")
        (directory / "policy/kkp/settings/data.json").write_text('{"approvals": [], "bearer_tokens": "any"}')
        with serving(directory, "--bundle", "policy", "--ignore", "*_test.rego") as running:
            yield running


def test_decide_sidecar(benchmark: BenchmarkFixture, opa: OPA) -> None:
    question = inputs.question(Action.ISSUE_TOKEN)
    with asyncio.Runner() as runner:
        policy = runner.run(OPAPolicy.connect(opa.url, timeout_seconds=5))
        loop = runner.get_loop()
        decision = benchmark(lambda: loop.run_until_complete(policy.decide(question)))
        runner.run(policy.close())
    assert decision.allow, decision


def test_opa_asked_directly(benchmark: BenchmarkFixture, opa: OPA) -> None:
    """The sidecar's part, and aiohttp's: the same question, and a look at nothing but the answer's value."""
    body = b'{"input":%s}' % inputs.question(Action.ISSUE_TOKEN).encoded
    url = "http://localhost/v1/data/kkp/authz/decision?strict-builtin-errors=true&provenance=true"

    async def ask(session: ClientSession) -> bool:
        async with session.post(url, data=body) as response:
            return json.loads(await response.read())["result"]["allow"] is True

    async def connect() -> ClientSession:
        return ClientSession(connector=UnixConnector(opa.socket_path))

    with asyncio.Runner() as runner:
        session = runner.run(connect())
        loop = runner.get_loop()
        assert benchmark(lambda: loop.run_until_complete(ask(session)))
        runner.run(session.close())


def _seal(data_key: bytes, wrapped: WrappedKey) -> envelope.Envelope:
    return envelope.seal(
        KIBIBYTE,
        data_key=data_key,
        context=inputs.CONTEXT,
        associated_data=None,
        backend="aws",
        key_id="alias/orders",
        key_version=wrapped.key_version,
        encrypted_data_key=wrapped.encrypted_data_key,
    )


def test_seal(benchmark: BenchmarkFixture) -> None:
    data_key = os.urandom(32)
    sealed = benchmark(_seal, data_key, WrappedKey(b"w" * 124, "1"))
    assert envelope.open(sealed, data_key) == KIBIBYTE


def test_seal_with_wrap(benchmark: BenchmarkFixture, world: World) -> None:
    aws = MemoryKMS("aws", world.base.master_key)

    def seal() -> envelope.Envelope:
        data_key = os.urandom(32)
        return _seal(data_key, finish(aws.wrap("alias/orders", data_key, inputs.CONTEXT)))

    assert benchmark(seal).wrap.backend == "aws"


def test_open(benchmark: BenchmarkFixture) -> None:
    data_key = os.urandom(32)
    assert benchmark(envelope.open, _seal(data_key, WrappedKey(b"w" * 124, "1")), data_key) == KIBIBYTE


def test_open_with_unwrap(benchmark: BenchmarkFixture, world: World) -> None:
    aws, data_key = MemoryKMS("aws", world.base.master_key), os.urandom(32)
    wrapped = finish(aws.wrap("alias/orders", data_key, inputs.CONTEXT))
    sealed = _seal(data_key, wrapped)

    def unseal() -> bytes:
        return envelope.open(sealed, finish(aws.unwrap("alias/orders", wrapped, inputs.CONTEXT)))

    assert benchmark(unseal) == KIBIBYTE


@pytest.mark.parametrize("size", [1, 64])
def test_audit(benchmark: BenchmarkFixture, world: World, size: int) -> None:
    benchmark.extra_info["operations"] = size
    entry = AuditEntry(
        action=Action.ISSUE_TOKEN,
        decision="allow",
        reasons=("tokens.granted",),
        caller="orders",
        private={"sub": "orders"},
        policy_input=inputs.question(Action.ISSUE_TOKEN).encoded,
    )

    async def commit() -> int:
        receipts = await asyncio.gather(*(world.base.audit.commit(entry) for _ in range(size)))
        return len({receipt.seq for receipt in receipts})

    assert benchmark(lambda: world.runner.run(commit())) == size


@pytest.mark.parametrize("guard", [False, True], ids=["bare", "guarded"])
def test_wrap(benchmark: BenchmarkFixture, world: World, *, guard: bool) -> None:
    """What the guard of a backend adds to a call that succeeds, by one that costs next to nothing."""
    bare = MemoryKMS("aws", world.base.master_key)
    backend = Guarded(bare, "aws", BackendLimits()) if guard else bare
    benchmark.extra_info["operations"] = 64

    async def wrap() -> int:
        keys = [await backend.wrap("alias/orders", KIBIBYTE[:32], inputs.CONTEXT) for _ in range(64)]
        return len(keys)

    assert benchmark(lambda: world.runner.run(wrap())) == 64


@pytest.mark.parametrize("size", [1, 64])
def test_fdatasync(benchmark: BenchmarkFixture, tmp_path: Path, size: int) -> None:
    """The disk's part of the audit: as many bytes, made durable once."""
    benchmark.extra_info["operations"] = size
    with (tmp_path / "file").open("ab", buffering=0) as file:

        def append() -> None:
            file.write(KIBIBYTE * size)
            os.fdatasync(file.fileno())

        benchmark(append)
        assert file.tell() >= len(KIBIBYTE) * size


def test_ed25519_sign_nacl(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(SigningKey.generate().sign, KIBIBYTE[:500]).signature) == 64


def test_ed25519_sign_cryptography(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(Ed25519PrivateKey.generate().sign, KIBIBYTE[:500])) == 64


def test_ed25519_verify_nacl(benchmark: BenchmarkFixture) -> None:
    key = SigningKey.generate()
    assert benchmark(key.verify_key.verify, key.sign(KIBIBYTE[:500])) == KIBIBYTE[:500]


def test_ed25519_verify_cryptography(benchmark: BenchmarkFixture) -> None:
    key = Ed25519PrivateKey.generate()
    benchmark(key.public_key().verify, key.sign(KIBIBYTE[:500]), KIBIBYTE[:500])


def test_aes_256_gcm_1_kib(benchmark: BenchmarkFixture) -> None:
    def encrypt() -> bytes:
        return AESGCM(os.urandom(32)).encrypt(os.urandom(12), KIBIBYTE, b"header")

    assert len(benchmark(encrypt)) == 1024 + 16


def test_sha256_of_token(benchmark: BenchmarkFixture, token: str) -> None:
    assert len(benchmark(lambda: hashlib.sha256(token.encode()).digest())) == 32
