"""The backends: which URI scheme means which adaptor, and which configured name means which backend.

An adaptor's module, and with it its vendor's SDK, is imported only when its scheme is configured. To add
one: a file in this package, a line in `SCHEMES`, a line in the contract suite. What the registry hands out is
never a bare adaptor: each stands behind a guard of its own (`kkp.kms.guarded`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType
from typing import Protocol, cast, final

from kkp.backend_tables import COMPOSITES
from kkp.errors import ConfigError, UnknownBackendError
from kkp.kms._members import Names as Names
from kkp.kms._members import backends, parse
from kkp.kms._names import canonical as canonical
from kkp.kms._parts import Kind
from kkp.kms.base import KMS, Resources
from kkp.kms.caching import Caching, DataKeyCache
from kkp.kms.failing import FailingMembers, HasMembers
from kkp.kms.guarded import Guarded

SCHEMES: Mapping[str, str] = {
    "memory": "kkp.kms.memory:MemoryKMS",
    "local": "kkp.kms.local:LocalKMS",
    "aws-kms": "kkp.kms.aws:AWSKMS",
    "azure-keyvault": "kkp.kms.azure:AzureKeyVaultKMS",
    "gcp-kms": "kkp.kms.gcp:GCPKMS",
    "vault-transit": "kkp.kms.vault:VaultKMS",
    "any-of": "kkp.kms.any_of:AnyOfKMS",
    "all-of": "kkp.kms.all_of:AllOfKMS",
}

_NO_GUARDS: Mapping[str, Guarded] = MappingProxyType({})
_NO_OTHERS: Mapping[str, str] = MappingProxyType({})
_NO_COMPOSITES: Mapping[str, FailingMembers] = MappingProxyType({})


class _Adaptor(Protocol):
    def check(self, uri: str) -> None: ...

    async def connect(self, uri: str, resources: Resources) -> KMS: ...


def check(uris: Mapping[str, str], *, others: Mapping[str, str] = _NO_OTHERS) -> None:
    """Check every URI, from name to URI, without reaching a backend.

    Args:
        uris: The backends.
        others: Backends that are judged elsewhere, and may be members of these.

    Raises:
        ConfigError: URIs that name no backend, or members that are none, all of them.
    """
    problems = [
        f"backend {name}: {problem}"
        for name, uri in uris.items()
        for problem in (*problems_of(uri), *_member_problems(uri, {**others, **uris}))
    ]
    if problems:
        raise ConfigError(problems)


def is_composite(uri: str) -> bool:
    """Tell whether a backend is made of others, which have to be connected before it."""
    return _scheme(uri) in COMPOSITES


def members(uri: str) -> Collection[str]:
    """Return the names of the backends that a backend is made of; none where it is no composite.

    Raises:
        ConfigError: It is one that can't be taken apart.
    """
    return backends(uri, cast("Kind", _scheme(uri))) if is_composite(uri) else ()


def member_keys(uri: str) -> Mapping[str, Names]:
    """Return the members of each key that a backend makes of others' keys; none where it is no composite.

    Raises:
        ConfigError: The URI says something wrong.
    """
    return parse(uri, cast("Kind", _scheme(uri))).keys if is_composite(uri) else {}


def problems_of(uri: str) -> Sequence[str]:
    """Return what is wrong with a URI, without reaching a backend."""
    try:
        _adaptor(uri).check(uri)
    except ConfigError as error:
        return error.problems
    return ()


def _member_problems(uri: str, known: Mapping[str, str]) -> Iterator[str]:
    try:
        named = members(uri)
    except ConfigError:
        return  # told already
    for member in sorted(named):
        if is_composite(known.get(member, "")):
            yield f"its member {member} is itself a composite; name that one's own members instead"
        elif member not in known:
            yield f"no backend is called {member}; configure it, or take its members out"


async def connect(uri: str, resources: Resources) -> KMS:
    """Make the backend that a URI names, without a guard.

    Raises:
        ConfigError: No adaptor has this scheme, or the adaptor refused the rest.
    """
    return await _adaptor(uri).connect(uri, resources)


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]


def _adaptor(uri: str) -> _Adaptor:
    scheme = _scheme(uri)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError([f"A backend's URI has an unknown scheme; known are {known}"])
    module, _, name = SCHEMES[scheme].partition(":")
    try:
        return cast("_Adaptor", getattr(import_module(module), name))
    except ModuleNotFoundError as error:
        cure = "in a checkout of KKP, pip install --require-hashes --no-deps -r requirements.lock brings it"
        raise ConfigError([f"{scheme}:// needs the package {error.name}; {cure}"]) from None


@final
class KMSRegistry:
    """The configured backends by name.

    Args:
        backends: Every backend, now or later; the registry closes them.
        guards: Those that guard them; a composite's members have their own.
        cache: Where callers' data keys are kept; None for nowhere.
        composites: Those of the composites' members that fail.
    """

    def __init__(
        self,
        backends: Mapping[str, KMS],
        guards: Mapping[str, Guarded] = _NO_GUARDS,
        cache: DataKeyCache | None = None,
        composites: Mapping[str, FailingMembers] = _NO_COMPOSITES,
    ) -> None:
        self._backends = backends
        self.guards = guards
        self.composites = composites
        self._cache = cache

    @classmethod
    async def connect(
        cls, uris: Mapping[str, str], resources: Resources, cache: DataKeyCache | None = None
    ) -> KMSRegistry:
        """Make and guard every configured backend, from name to URI; those made are closed if one fails.

        Raises:
            ConfigError: URIs that name no backend, all of them.
        """
        check(uris)
        backends: dict[str, KMS] = {}
        guards: dict[str, Guarded] = {}
        composites: dict[str, FailingMembers] = {}
        registry = cls(backends, guards, cache, composites)
        async with AsyncExitStack() as opened:
            for name in sorted(uris, key=lambda name: is_composite(uris[name])):
                own = replace(resources, name=name, backend=registry.get)
                kms = backends[name] = await connect(uris[name], own)
                if isinstance(kms, HasMembers):
                    composites[name] = kms.failing
                else:
                    backends[name] = guards[name] = Guarded(kms, name, resources.limits)
                opened.push_async_callback(backends[name].close)
            opened.pop_all()
        return registry

    def get(self, name: str) -> KMS:
        """Return the backend itself: nothing that it is asked for is kept, or comes from before.

        Raises:
            UnknownBackendError: None has this name.
        """
        try:
            return self._backends[name]
        except KeyError:
            raise UnknownBackendError("No backend has this name.") from None

    def for_caller(self, name: str, caller_id: str, *, epoch: int, plaintext_bytes: int) -> KMS:
        """Return the backend as a caller uses it for one message: with data keys of before, if any are kept.

        Args:
            name: The backend's.
            caller_id: Whose message it is; nobody else's data key serves it.
            epoch: The one at which its request was decided.
            plaintext_bytes: How long the message is.

        Raises:
            UnknownBackendError: None has this name.
        """
        kms = self.get(name)
        if self._cache is None:
            return kms
        return Caching(
            kms,
            self._cache,
            backend=name,
            caller_id=caller_id,
            epoch=epoch,
            plaintext_bytes=plaintext_bytes,
        )

    def warning(self) -> str | None:
        """Say how many backends are left alone at the moment, for a reader who must not learn their names."""
        away = sum(guard.is_left_alone() for guard in self.guards.values())
        if not away:
            return None
        return f"{away} of {len(self.guards)} backends can't be used at the moment; the log says which"

    def members_warning(self) -> str | None:
        """Say how many members of composites fail, for a reader who must not learn their names."""
        failing = sum(composite.count() for composite in self.composites.values())
        if not failing:
            return None
        total = sum(composite.total for composite in self.composites.values())
        return f"{failing} of {total} members of composites failed when last asked; the log says which"

    async def close(self) -> None:
        """Close every backend, even where another one fails to."""
        async with AsyncExitStack() as stack:
            for backend in self._backends.values():
                stack.push_async_callback(backend.close)
