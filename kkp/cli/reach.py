"""How a command reaches backends by itself, without a server: only those that it needs, with what they need.

A cloud takes the credentials of its own default chain, and nothing of KKP. `memory://` derives its keys from
the master key; `local://` keeps them in the database, sealed under it. So the master key is read for these
two alone, with what the database says of it, and the database, read-only, for the last.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final, NoReturn, final

from kkp import kms
from kkp.config import Settings
from kkp.errors import ConfigError, KMSDeniedError
from kkp.kms import KMSRegistry
from kkp.kms.base import KMS, Resources
from kkp.kms.stateless import without_state
from kkp.model import BackendLimits
from kkp.store.local_keys import LocalKeyStore
from kkp.store.opening import open_read_only
from kkp.unlock import unlock

_FROM_THE_MASTER_KEY: Final = frozenset({"memory", "local"})
_FROM_THE_DATABASE: Final = frozenset({"local"})


def needed(name: str, uris: Mapping[str, str]) -> Mapping[str, str]:
    """Return a backend with those that it is made of; what else is configured is in nobody's way.

    Raises:
        ConfigError: Its URI can't be used, or names members that there are not.
    """
    kms.check({name: uris[name]}, others=uris)
    return {each: uris[each] for each in (*kms.members(uris[name]), name)}


def needs_master_key(uris: Mapping[str, str]) -> bool:
    """Tell whether any of these backends derives its keys from the master key, or keeps them under it."""
    return not _FROM_THE_MASTER_KEY.isdisjoint(map(_scheme, uris.values()))


def needs_database(uris: Mapping[str, str]) -> bool:
    """Tell whether any of these backends keeps its keys in the database."""
    return not _FROM_THE_DATABASE.isdisjoint(map(_scheme, uris.values()))


def _scheme(uri: str) -> str:
    return uri.partition("://")[0]


@asynccontextmanager
async def reached(name: str, uris: Mapping[str, str], resources: Resources) -> AsyncIterator[KMS]:
    """Connect to a backend for the duration of the block.

    A member of a composite that can't be made, for want of credentials or its SDK, is one that refuses: it
    may not be needed.

    Args:
        name: The backend's name.
        uris: It and those that it is made of; see `needed`.
        resources: What they are handed.

    Raises:
        ConfigError: It lacks credentials, its SDK, or a URI that can be used.
    """
    async with AsyncExitStack() as stack:
        if not kms.is_composite(uris[name]):
            yield await _connected(name, uris, resources, stack)
            return
        members: dict[str, KMS] = {}
        for member in uris.keys() - {name}:
            try:
                members[member] = await _connected(member, uris, resources, stack)
            except ConfigError as error:
                members[member] = _Unmade(member, error)
        composite = await kms.connect(uris[name], replace(resources, backend=members.__getitem__))
        stack.push_async_callback(composite.close)
        yield composite


async def _connected(name: str, uris: Mapping[str, str], resources: Resources, stack: AsyncExitStack) -> KMS:
    registry = await KMSRegistry.connect({name: uris[name]}, resources)
    stack.push_async_callback(registry.close)
    return registry.get(name)


@asynccontextmanager
async def own_resources(
    uris: Mapping[str, str], settings: Callable[[], Settings], limits: BackendLimits
) -> AsyncIterator[Resources]:
    """Yield what these backends are handed; the settings are read where that is more than the limits.

    Raises:
        ConfigError: There is no master key, or no database, that they could do with.
    """
    if not needs_master_key(uris):
        yield without_state(limits)
        return
    chosen = settings()
    master_key = (await unlock(chosen, create=False, now=time.time())).master_key
    if not needs_database(uris):
        yield without_state(limits, master_key)
        return
    database = await open_read_only(chosen, master_key_check=master_key.check_value())
    try:
        yield Resources(master_key, LocalKeyStore(database), limits)
    finally:
        await database.close()


class UnmadeMemberError(KMSDeniedError):
    """A member of a composite can't be made; the text says which, and why."""


@final
class _Unmade:
    """Stands for a member that can't be made, and says why to whoever asks it.

    Args:
        name: The member's.
        error: Why.
    """

    def __init__(self, name: str, error: ConfigError) -> None:
        why = error.problems[0].removeprefix(f"backend {name}: ")
        self._why = f"its member {name} can't be used: {why}"

    async def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise UnmadeMemberError(self._why)

    wrap = unwrap = describe = ping = _refuse

    async def close(self) -> None:
        """Do nothing: nothing is held."""
