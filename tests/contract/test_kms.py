"""What every backend owes its callers, run for each scheme in the table."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import MappingProxyType
from typing import NamedTuple, Protocol

import pytest

from kkp import kms as package
from kkp.clock import SteadyClock
from kkp.config import DataKeyCacheLimits
from kkp.errors import (
    ConfigError,
    InvalidWrapError,
    KeyDisabledError,
    UnknownBackendError,
    UnknownKeyError,
)
from kkp.kms import SCHEMES, KMSRegistry, check, connect
from kkp.kms.base import (
    KMS,
    GeneratesDataKeys,
    KeyDescription,
    Resources,
    RotatesKeys,
    WrappedKey,
    data_key_from,
)
from kkp.kms.caching import Caching, DataKeyCache
from kkp.kms.guarded import Guarded
from kkp.kms.local import LocalKeyStore, ensure_default_key
from kkp.master_key import MasterKey
from kkp.model import BackendLimits
from kkp.rows import LocalKeyRow
from tests.emulators import aws, azure, vault
from tests.emulators.gcp import cloud_kms
from tests.fakes.local_keys import LocalKeysInMemory
from tests.scale import SCALE

Start = Callable[[], Awaitable[KMS]]

DATA_KEY = bytes(range(32))
CONTEXT = {"table": "orders", "environment": "prod"}
MASTER_KEY = MasterKey(b"m" * 32)
FLIP_EVERY = 3 if SCALE == 1 else 1  # of the bits of a wrap, from a random one on


class Emulator(Protocol):
    """A running server that speaks a vendor's wire."""

    @property
    def uri(self) -> str: ...


@dataclass(frozen=True)
class Backend:
    """One implementation under the contract, and what it calls its keys.

    Where an `emulator` is needed, the URI is that one's, and `uri` stands for its scheme alone. The
    `signing_key` is there, and can't wrap. A `wrapper` stands between the backend and its callers. `members`
    are what a composite is made of.
    """

    uri: str
    key: str
    other_key: str
    missing_key: str
    disabled_key: str | None
    emulator: Callable[[Path, pytest.MonkeyPatch], AbstractAsyncContextManager[Emulator]] | None = None
    signing_key: str | None = None
    wrapper: type | None = None
    members: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        name = self.uri.partition("?")[0]
        return name if self.wrapper is None else f"{self.wrapper.__name__}({name})"

    async def connect(self, uri: str, resources: Resources) -> KMS:
        """Make it, for this URI."""
        kms = await connect(uri, resources)
        return kms if self.wrapper is None else WRAPPERS[self.wrapper](kms)


def cached(kms: KMS) -> KMS:
    """Let data keys serve again, for sealing as well."""
    limits = DataKeyCacheLimits(
        age_seconds=300, entries=100, messages=100, plaintext_bytes=100_000, encrypts=True
    )

    async def epoch() -> int:
        return 0

    cache = DataKeyCache(limits, SteadyClock(), epoch)
    return Caching(kms, cache, backend="backend", caller_id="orders", epoch=0, plaintext_bytes=100)


WRAPPERS: Mapping[type, Callable[[KMS], KMS]] = {
    Guarded: lambda kms: Guarded(kms, "guarded", BackendLimits()),
    Caching: cached,
}


def _own(
    emulated: Callable[[], AbstractAsyncContextManager[Emulator]],
) -> Callable[[Path, pytest.MonkeyPatch], AbstractAsyncContextManager[Emulator]]:
    """Take an emulator that sees to its own files and variables."""
    return lambda _directory, _monkeypatch: emulated()


class _At(NamedTuple):
    uri: str
    members: Mapping[str, str] = MappingProxyType({})


@asynccontextmanager
async def _azure(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_At]:
    async with azure.running(directory, monkeypatch):
        yield _At(azure.URI)


@asynccontextmanager
async def _any_of_two(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_At]:
    async with cloud_kms(directory, monkeypatch) as google, vault.emulated() as running_vault:
        keys = "".join(f"&key.{name}=google:{name}&key.{name}=vault:{name}" for name in ("orders", "billing"))
        yield _At(f"any-of://?{keys[1:]}", {"google": google.uri, "vault": running_vault.uri})


EMULATED_CLOUDS = {"aws": "memory://aws", "gcp": "memory://gcp", "azure": "memory://azure"}
KEYS_OF_THREE = "&".join(
    f"key.{name}=aws:alias/{name}&key.{name}=gcp:{name}&key.{name}=azure:{name}"
    for name in ("orders", "billing")
)

BARE = (
    Backend("memory://aws", "alias/orders", "alias/billing", "alias/missing-key", "alias/disabled-key"),
    Backend("memory://gcp", "orders", "billing", "missing-key", "disabled-key"),
    Backend("memory://azure", "orders", "billing", "missing-key", "disabled-key"),
    Backend("local://", "default", "second", "third", None),
    Backend("gcp-kms://", "orders", "billing", "missing-key", "disabled-key", cloud_kms, "signing-key"),
    Backend(
        "aws-kms://",
        "alias/orders",
        "alias/billing",
        "alias/missing",
        "alias/disabled-key",
        _own(aws.emulated),
        "alias/signing-key",
    ),
    Backend(
        "vault-transit://",
        "orders",
        "billing",
        "missing-key",
        "disabled-key",
        _own(vault.emulated),
        "signing-key",
    ),
    Backend("azure-keyvault://", "orders", "billing", "missing-key", "disabled-key", _azure, "signing-key"),
    # A wrap is for the members of its logical key alone: another key that is disabled has none to refuse.
    Backend(f"any-of://?{KEYS_OF_THREE}", "orders", "billing", "missing", None, members=EMULATED_CLOUDS),
    Backend(f"all-of://?{KEYS_OF_THREE}", "orders", "billing", "missing", None, members=EMULATED_CLOUDS),
    Backend("any-of://two", "orders", "billing", "missing", None, _any_of_two),
)
# Each wrapper around an emulator in memory and around a real adaptor.
WRAPPED = tuple(
    replace(backend, wrapper=wrapper)
    for wrapper in WRAPPERS
    for backend in BARE
    if backend.uri in {"memory://aws", "aws-kms://", "vault-transit://"}
)
BACKENDS = BARE + WRAPPED
ROTATING = tuple(
    backend for backend in BACKENDS if backend.uri.startswith("memory") and backend.wrapper is not Caching
)
GENERATING = tuple(
    backend for backend in BACKENDS if backend.uri == "aws-kms://" or backend.wrapper is Caching
)
DISABLING = tuple(backend for backend in BACKENDS if backend.disabled_key is not None)
SIGNING = tuple(backend for backend in BACKENDS if backend.signing_key is not None)

# No backend takes these, whatever its naming rules.
NAMES_THAT_BREAK_EVERY_RULE = {
    "empty": "",
    "a space": "or ders",
    "a leading space": " default",
    "a newline at the end": "default\n",
    "a NUL": "default\0",
    "a path upwards": "../default",
    "a letter outside ASCII": "défault",
    "a Kelvin sign for a k": "\N{KELVIN SIGN}eys",
    "five thousand letters": "a" * 5000,
    "a lone surrogate": "default\ud800",
}
VERSIONS_THAT_NOBODY_WROTE = {
    "empty": "",
    "zero": "0",
    "negative": "-1",
    "padded with a zero": "01",
    "with a space": "1 ",
    "with a newline": "1\n",
    "in other digits": "\N{FULLWIDTH DIGIT ONE}",
    "a superscript": "\N{SUPERSCRIPT TWO}",
    "a word": "latest",
    "the next one": "2",
    "huge": "9" * 5000,
    "hexadecimal": "f" * 32,
    "a lone surrogate": "\ud800",
}


async def second_local_key(store: LocalKeyStore) -> None:
    """Seal a second key the way the first one is sealed."""
    sealed = MASTER_KEY.seal("kkp/local-key/v1", os.urandom(32), b'["local","key","second","1"]')
    await store.add_local_key(LocalKeyRow("second", 1, 0.0, sealed))


@pytest.fixture
async def resources() -> Resources:
    store = LocalKeysInMemory()
    await ensure_default_key(store, MASTER_KEY, SteadyClock())
    await second_local_key(store)
    return Resources(master_key=MASTER_KEY, local_keys=store)


@pytest.fixture(params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> Backend:
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture
async def place(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[_At]:
    if backend.emulator is None:
        yield _At(backend.uri, backend.members)
        return
    async with backend.emulator(tmp_path, monkeypatch) as emulator:
        yield emulator if isinstance(emulator, _At) else _At(emulator.uri)


@pytest.fixture
async def start(backend: Backend, place: _At, resources: Resources) -> AsyncIterator[Start]:
    registry = await KMSRegistry.connect(place.members, resources)
    yield partial(backend.connect, place.uri, replace(resources, backend=registry.get))
    await registry.close()


@pytest.fixture
async def kms(start: Start) -> AsyncIterator[KMS]:
    adaptor = await start()
    yield adaptor
    await adaptor.close()


def test_every_scheme_in_the_table_is_under_the_contract() -> None:
    assert {backend.uri.partition("://")[0] for backend in BACKENDS} == set(SCHEMES)


def test_every_class_that_is_a_backend_is_a_scheme_of_the_table_or_a_wrapper_under_the_contract() -> None:
    members = ("wrap", "unwrap", "describe", "ping", "close")
    modules = [import_module(found.name) for found in iter_modules(package.__path__, f"{package.__name__}.")]
    backends = {
        f"{module.__name__}:{name}"
        for module in modules
        for name, member in vars(module).items()
        if isinstance(member, type) and member.__module__ == module.__name__ and member is not KMS
        if all(hasattr(member, method) for method in members)
    }
    wrappers = {f"{wrapper.__module__}:{wrapper.__name__}" for wrapper in WRAPPERS}

    assert backends == {*SCHEMES.values(), *wrappers}
    assert {backend.wrapper for backend in BACKENDS} == {None, *WRAPPERS}


async def test_a_wrapped_key_unwraps(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    assert await kms.unwrap(backend.key, wrapped, CONTEXT) == DATA_KEY


async def test_a_data_key_opens_by_its_wrap(kms: KMS, backend: Backend) -> None:
    made = await data_key_from(kms, backend.key, CONTEXT)

    assert len(made.plaintext) == 32
    assert made.wrapped.key_version == (await kms.describe(backend.key)).key_version
    assert await kms.unwrap(backend.key, made.wrapped, CONTEXT) == made.plaintext


async def test_no_two_contexts_or_keys_get_one_data_key(kms: KMS, backend: Backend) -> None:
    asked = [(backend.key, CONTEXT), (backend.key, {}), (backend.other_key, CONTEXT)]
    made = [await data_key_from(kms, key_id, context) for key_id, context in asked]

    assert len({data_key.plaintext for data_key in made}) == 3
    for key_id, context in asked[1:]:
        with pytest.raises(InvalidWrapError):
            await kms.unwrap(key_id, made[0].wrapped, context)


async def test_the_backends_that_make_data_keys_are_known(kms: KMS, backend: Backend) -> None:
    assert isinstance(kms, GeneratesDataKeys) == (backend in GENERATING)


async def test_an_empty_context_is_a_context(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, {})

    assert await kms.unwrap(backend.key, wrapped, {}) == DATA_KEY


async def test_a_wrap_survives_a_restart(kms: KMS, backend: Backend, start: Start) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)
    await kms.close()
    restarted = await start()

    assert await restarted.unwrap(backend.key, wrapped, CONTEXT) == DATA_KEY
    await restarted.close()


async def test_the_same_key_is_never_wrapped_alike(kms: KMS, backend: Backend) -> None:
    wraps = [await kms.wrap(backend.key, DATA_KEY, CONTEXT) for _ in range(100)]

    assert len({wrapped.encrypted_data_key for wrapped in wraps}) == 100


async def test_a_wrap_does_not_show_the_data_key(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    assert DATA_KEY not in wrapped.encrypted_data_key
    assert repr(wrapped) == f"WrappedKey(key_version={wrapped.key_version!r})"


@pytest.mark.promise(25)
async def test_the_order_of_a_context_does_not_matter(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    assert await kms.unwrap(backend.key, wrapped, dict(reversed(CONTEXT.items()))) == DATA_KEY


ONE_CHANGE_CONTEXTS: Mapping[str, Mapping[str, str]] = {
    "nothing": {},
    "one pair dropped": {"table": "café"},
    "one pair added": {"table": "café", "environment": "prod", "region": ""},
    "another value": {"table": "café", "environment": "test"},
    "another case in a value": {"table": "café", "environment": "Prod"},
    "another case in a name": {"table": "café", "Environment": "prod"},
    "another normal form": {"table": unicodedata.normalize("NFD", "café"), "environment": "prod"},
    "a space more": {"table": "café", "environment": "prod "},
    "two values swapped": {"table": "prod", "environment": "café"},
    "a boundary moved": {"table": "cafép", "environment": "rod"},
}


@pytest.mark.promise(25)
async def test_another_context_opens_nothing(kms: KMS, backend: Backend, subtests: pytest.Subtests) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, {"table": "café", "environment": "prod"})

    for change, context in ONE_CHANGE_CONTEXTS.items():
        with subtests.test(change), pytest.raises(InvalidWrapError):
            await kms.unwrap(backend.key, wrapped, context)


@pytest.mark.promise(24)
async def test_another_key_opens_nothing(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap(backend.other_key, wrapped, CONTEXT)


@pytest.mark.promise(26)
async def test_a_wrap_with_any_bit_flipped_opens_nothing(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)
    blob = wrapped.encrypted_data_key

    for bit in range(random.randrange(FLIP_EVERY), len(blob) * 8, FLIP_EVERY):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidWrapError):
            await kms.unwrap(backend.key, WrappedKey(bytes(flipped), wrapped.key_version), CONTEXT)


async def test_a_wrap_of_any_other_length_opens_nothing(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)
    blob = wrapped.encrypted_data_key

    for altered in [blob[:length] for length in range(len(blob))] + [blob + b"\0", blob + blob]:
        with pytest.raises(InvalidWrapError):
            await kms.unwrap(backend.key, WrappedKey(altered, wrapped.key_version), CONTEXT)


@pytest.mark.promise(24)
async def test_another_version_opens_nothing(kms: KMS, backend: Backend, subtests: pytest.Subtests) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    for kind, version in VERSIONS_THAT_NOBODY_WROTE.items():
        with subtests.test(kind), pytest.raises(InvalidWrapError):
            await kms.unwrap(backend.key, WrappedKey(wrapped.encrypted_data_key, version), CONTEXT)


async def assert_every_use_raises(kms: KMS, key_id: str, wrapped: WrappedKey, error: type[Exception]) -> None:
    with pytest.raises(error):
        await kms.wrap(key_id, DATA_KEY, CONTEXT)
    with pytest.raises(error):
        await data_key_from(kms, key_id, CONTEXT)
    with pytest.raises(error):
        await kms.unwrap(key_id, wrapped, CONTEXT)
    with pytest.raises(error):
        await kms.describe(key_id)


async def test_a_key_that_does_not_exist_is_unknown(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    await assert_every_use_raises(kms, backend.missing_key, wrapped, UnknownKeyError)


async def test_a_name_that_breaks_the_rules_is_unknown(
    kms: KMS, backend: Backend, subtests: pytest.Subtests
) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    for rule, key_id in NAMES_THAT_BREAK_EVERY_RULE.items():
        with subtests.test(rule):
            await assert_every_use_raises(kms, key_id, wrapped, UnknownKeyError)


@pytest.mark.parametrize("backend", DISABLING, ids=str, indirect=True)
async def test_a_disabled_key_is_refused(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    assert backend.disabled_key is not None
    await assert_every_use_raises(kms, backend.disabled_key, wrapped, KeyDisabledError)


@pytest.mark.parametrize("backend", SIGNING, ids=str, indirect=True)
async def test_a_key_of_a_kind_that_does_not_wrap_is_unknown(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    assert backend.signing_key is not None
    await assert_every_use_raises(kms, backend.signing_key, wrapped, UnknownKeyError)


async def test_the_description_tells_the_version_that_wraps(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)

    assert (await kms.describe(backend.key)).key_version == wrapped.key_version


async def test_the_described_name_reaches_the_same_key(kms: KMS, backend: Backend) -> None:
    wrapped = await kms.wrap(backend.key, DATA_KEY, CONTEXT)
    described = await kms.describe(backend.key)

    assert await kms.unwrap(described.key_id, wrapped, CONTEXT) == DATA_KEY
    assert await kms.describe(described.key_id) == described


async def test_it_answers_a_ping_and_closes_twice(kms: KMS) -> None:
    await kms.ping()
    await kms.close()
    await kms.close()


def rotating(kms: KMS) -> RotatesKeys:
    assert isinstance(kms, RotatesKeys)
    return kms


async def test_the_backends_that_rotate_are_the_ones_under_the_rotation_contract(
    kms: KMS, backend: Backend
) -> None:
    assert isinstance(kms, RotatesKeys) == (backend in ROTATING)


@pytest.mark.parametrize("backend", ROTATING, ids=str, indirect=True)
async def test_old_versions_still_open_after_rotations(kms: KMS, backend: Backend) -> None:
    wraps = [await kms.wrap(backend.key, DATA_KEY, CONTEXT)]
    for _ in range(5):
        rotated = await rotating(kms).rotate(backend.key)
        wraps.append(await kms.wrap(backend.key, DATA_KEY, CONTEXT))
        assert wraps[-1].key_version == rotated.key_version

    assert len({wrapped.key_version for wrapped in wraps}) == 6
    for wrapped in wraps:
        assert await kms.unwrap(backend.key, wrapped, CONTEXT) == DATA_KEY


@pytest.mark.promise(24)
@pytest.mark.parametrize("backend", ROTATING, ids=str, indirect=True)
async def test_a_wrap_relabelled_with_a_real_version_opens_nothing(kms: KMS, backend: Backend) -> None:
    old = await kms.wrap(backend.key, DATA_KEY, CONTEXT)
    new = await rotating(kms).rotate(backend.key)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap(backend.key, WrappedKey(old.encrypted_data_key, new.key_version), CONTEXT)


@pytest.mark.parametrize("backend", ROTATING, ids=str, indirect=True)
async def test_rotating_one_key_leaves_the_others_alone(kms: KMS, backend: Backend) -> None:
    before = await kms.describe(backend.other_key)
    await rotating(kms).rotate(backend.key)

    assert await kms.describe(backend.other_key) == before


@pytest.mark.parametrize("backend", ROTATING, ids=str, indirect=True)
async def test_a_missing_key_does_not_rotate(kms: KMS, backend: Backend) -> None:
    with pytest.raises(UnknownKeyError):
        await rotating(kms).rotate(backend.missing_key)


URIS_THAT_NAME_NO_BACKEND = {
    "no scheme": "orders",
    "an unknown scheme": "redis://localhost",
    "an unknown emulator": "memory://oracle",
    "no emulator": "memory://",
    "a scheme alone": "memory",
    "more than the emulator": "memory://aws/eu-west-1",
    "an emulator with a port": "memory://aws:1",
    "more than local": "local://default",
    "empty": "",
}


@pytest.mark.parametrize("uri", URIS_THAT_NAME_NO_BACKEND.values(), ids=URIS_THAT_NAME_NO_BACKEND.keys())
async def test_a_uri_that_names_no_backend_is_a_configuration_error(uri: str, resources: Resources) -> None:
    with pytest.raises(ConfigError):
        await connect(uri, resources)


def test_an_sdk_that_is_not_there_is_told_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "SCHEMES", {"far": "no_such_sdk.client:FarKMS"})
    with pytest.raises(ConfigError) as error:
        check({"away": "far://x"})
    told = "in a checkout of KKP, pip install --require-hashes --no-deps -r requirements.lock brings it"
    assert error.value.problems == (f"backend away: far:// needs the package no_such_sdk; {told}",)


def test_an_adaptor_is_imported_only_when_its_scheme_is_configured() -> None:
    program = "import sys, kkp.kms; print(*(name for name in sys.modules if name.startswith('kkp.kms')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603  our own program

    assert set(done.stdout.split()) == {
        "kkp.kms", "kkp.kms.base", "kkp.kms.caching", "kkp.kms.guarded", "kkp.kms._breaker",
        "kkp.kms._futures", "kkp.kms.failing", "kkp.kms._members", "kkp.kms._parts",
        "kkp.kms._address", "kkp.kms._aead", "kkp.kms._names",
    }  # fmt: skip


def test_a_development_server_imports_no_sdk_of_a_cloud(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from tests.harness import running

async def serve():
    async with running(Path(sys.argv[1])) as kkp:
        await kkp.seal(kkp.root_key)

asyncio.run(serve())
print(*sys.modules)
"""
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    sdks = {"boto3", "botocore", "grpc", "google.cloud.kms", "google.cloud.kms_v1", "azure"}

    assert "kkp.kms.memory" in loaded
    assert not loaded & sdks
    assert {name for name in loaded if name.startswith("kkp.kms.")} == {
        "kkp.kms.base", "kkp.kms.caching", "kkp.kms.guarded", "kkp.kms._breaker", "kkp.kms._futures",
        "kkp.kms._aead", "kkp.kms.memory", "kkp.kms.local", "kkp.kms.failing", "kkp.kms._members",
        "kkp.kms._parts", "kkp.kms._address", "kkp.kms._names", "kkp.kms.stateless",
    }  # fmt: skip


def test_an_extra_that_is_not_installed_is_a_problem_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "kkp.kms.aws", raising=False)

    with pytest.raises(ConfigError, match=r"boto3.*requirements\.lock"):
        check({"aws": "aws-kms://eu-west-1"})


class ClosingKMS:
    """A backend that only closes, well or badly."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.closed = False

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        raise NotImplementedError

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        raise NotImplementedError

    async def describe(self, key_id: str) -> KeyDescription:
        raise NotImplementedError

    async def ping(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True
        if self.failure is not None:
            raise self.failure


async def test_the_registry_connects_every_configured_backend(resources: Resources) -> None:
    registry = await KMSRegistry.connect({"a": "memory://aws", "own": "local://"}, resources)

    assert (await registry.get("a").describe("alias/orders")).key_version == "1"
    assert (await registry.get("own").describe("default")).key_version == "1"


async def test_the_registry_reports_every_bad_uri_at_once(resources: Resources) -> None:
    with pytest.raises(ConfigError) as caught:
        await KMSRegistry.connect({"a": "redis://x", "own": "local://", "b": "memory://oracle"}, resources)

    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["backend a", "backend b"]


def test_the_registry_finds_a_backend_by_its_configured_name() -> None:
    aws, local = ClosingKMS(), ClosingKMS()
    registry = KMSRegistry({"aws": aws, "local": local})

    assert registry.get("local") is local
    assert registry.get("aws") is aws


@pytest.mark.parametrize("name", ["", "AWS", "gcp", "memory://aws"])
def test_the_registry_knows_no_other_name(name: str) -> None:
    with pytest.raises(UnknownBackendError):
        KMSRegistry({"aws": ClosingKMS()}).get(name)


async def test_the_registry_closes_every_backend_even_if_one_fails() -> None:
    backends = [ClosingKMS(), ClosingKMS(OSError("connection lost")), ClosingKMS()]
    registry = KMSRegistry({str(number): backend for number, backend in enumerate(backends)})

    with pytest.raises(OSError, match="connection lost"):
        await registry.close()

    assert all(backend.closed for backend in backends)
