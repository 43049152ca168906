"""`kkp doctor` tries the backends: each wraps a probe, and unwraps it.

The keys are those that grants name to the letter, at most MAX_KEYS of a backend, behind those of `--probe`; a
prefix names no key. A composite's keys bring those of their members with them, since a composite that works
hides members that don't. Where there is none, the backend is pinged. All are tried at the same time, each
within the same deadline. A probe is a random key that seals nothing, under the context `{"kkp": "doctor"}`.

Nothing of a URI is shown but its scheme: what follows may hold a credential.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

from kkp import kms
from kkp.cli import reach
from kkp.cli.findings import Result, Status, problem
from kkp.config import KMSKey
from kkp.envelope import DATA_KEY_BYTES
from kkp.errors import (
    ClockSkewError,
    ConfigError,
    CredentialsExpiredError,
    InvalidWrapError,
    KeyDisabledError,
    KeyElsewhereError,
    KeyNotReadyError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms.base import KMS, Resources
from kkp.kms.stateless import without_state
from kkp.model import BackendLimits, Grant

MAX_KEYS: Final = 16

_Try: TypeAlias = Callable[[KMS, str, str], Coroutine[Any, Any, Result]]
_PROBE_SECONDS = 10.0
_BACKEND_SECONDS = 30.0
_CONTEXT: Final = {"kkp": "doctor"}
_UNTRIED: Final = (
    "has {}, of a former member, and does not let KKP wrap under it; whether it unwraps was not tried"
)
_CURES: Final[Sequence[tuple[type[Exception], str]]] = (  # the first that fits
    (
        KeyElsewhereError,
        "name a key of this backend's own region, ring or vault, or configure a backend there",
    ),
    (
        UnknownKeyError,
        "make the key in this backend's own region, ring or vault, or mend its name in the grants",
    ),
    (KeyDisabledError, "enable the key, or cancel its deletion"),
    (reach.UnmadeMemberError, "see what is said of that member here, and how to mend it"),
    (CredentialsExpiredError, "renew the credentials that KKP runs with"),
    (ClockSkewError, "set this machine's clock, and keep it with NTP"),
    (KMSDeniedError, "give KKP's credentials the least permissions that docs/kms/ lists for this backend"),
    (KMSThrottledError, "raise the backend's quota, or try again when less is asked of it"),
    (InvalidWrapError, "it did not open what it had wrapped: see that nothing stands between it and KKP"),
    (KeyNotReadyError, "see in which state the backend has the key; it can't be used as it is now"),
    (
        KMSUnavailableError,
        "see whether it is up, and reachable from here by the name and in the region that its URI gives",
    ),
)


class Means(NamedTuple):
    """The backends, and what they are handed.

    Attributes:
        uris: By name.
        resources: None where there is no master key.
        has_database: Whether local keys can be taken from it.
        limits: What each may take where there are no resources.
    """

    uris: Mapping[str, str]
    resources: Resources | None
    has_database: bool
    limits: BackendLimits = BackendLimits()


async def probe_all(
    means: Means, named: Mapping[str, Sequence[str]], grants: Sequence[Grant]
) -> list[Result]:
    """Try every backend, and return what was found in the order in which they are configured.

    Args:
        means: The backends.
        named: By backend, keys that somebody asked for.
        grants: Those of every identity.
    """
    asked = {name: _asked(name, named, grants) for name in means.uris}
    tries = {name: _tries(name, means.uris, asked) for name in means.uris}
    tried = await asyncio.gather(*(_probe(name, means, tries[name], grants) for name in means.uris))
    return [
        *(result for results in tried for result in results),
        *(
            Result(Status.FAIL, f"--probe names {name!r}", f"name one of {', '.join(means.uris)}")
            for name in named
            if name not in means.uris
        ),
    ]


async def probe_key(key: KMSKey, limits: BackendLimits) -> list[Result]:
    """Try a key of a KMS that is no backend: the one that wraps the master key."""
    means = Means({key.scheme: key.uri}, None, has_database=False, limits=limits)
    return await probe_all(means, {key.scheme: [key.key_id]}, [])


def _asked(name: str, named: Mapping[str, Sequence[str]], grants: Sequence[Grant]) -> Sequence[str]:
    """Return the keys of a backend that somebody named, each once."""
    granted = {grant.key_id for grant in grants if grant.backend == name and not _is_prefix(grant)}
    return list(dict.fromkeys([*named.get(name, ()), *sorted(granted)]))


def _is_prefix(grant: Grant) -> bool:
    return grant.key_id.endswith("*")


def _tries(name: str, uris: Mapping[str, str], asked: Mapping[str, Sequence[str]]) -> Mapping[str, _Try]:
    """Return how each key of a backend is tried: those that were asked for, and those of members."""
    of_members = [names for other, uri in uris.items() for names in _members(uri, asked[other][:MAX_KEYS])]
    current = [label.key_id for names in of_members for label in names.current if label.backend == name]
    former = [label.key_id for names in of_members for label in names.former if label.backend == name]
    tries: dict[str, _Try] = dict.fromkeys([*asked[name], *current], _round)
    for key in former:
        tries.setdefault(key, _former_round)
    return tries


def _members(uri: str, keys: Sequence[str]) -> Iterator[kms.Names]:
    with suppress(ConfigError):  # told where the composite itself is tried
        yield from (names for key, names in kms.member_keys(uri).items() if key in keys)


async def _probe(name: str, means: Means, tries: Mapping[str, _Try], grants: Sequence[Grant]) -> list[Result]:
    title = f"{name} ({means.uris[name].partition('://')[0]})"
    try:
        uris = reach.needed(name, means.uris)
    except ConfigError as error:
        return [problem(text) for text in error.problems]
    if (reach.needs_master_key(uris) and means.resources is None) or (
        reach.needs_database(uris) and not means.has_database
    ):
        return [Result(Status.WARN, f"{title} was not asked, because the database could not be opened")]
    prefixes = {grant.key_id for grant in grants if grant.backend == name and _is_prefix(grant)}
    results = await _try(name, title, uris, means, dict(islice(tries.items(), MAX_KEYS)))
    return [*results, *_left_out(title, len(tries) - MAX_KEYS, len(prefixes))]


def _left_out(title: str, keys: int, prefixes: int) -> list[Result]:
    told = []
    if keys > 0:
        told.append(f"{keys} more keys were not tried")
    if prefixes:
        told.append(f"{prefixes} of the grants' keys are prefixes, which name no key")
    return [Result(Status.OK, f"{title}: {'; '.join(told)}; --probe tries a key by name")] if told else []


async def _try(
    name: str, title: str, uris: Mapping[str, str], means: Means, tries: Mapping[str, _Try]
) -> list[Result]:
    """Connect, and try each key; without any, ping."""
    resources = means.resources or without_state(means.limits)
    try:
        async with (
            asyncio.timeout(_BACKEND_SECONDS),
            reach.reached(name, uris, resources) as backend,
        ):
            if not tries:
                return [await _judged(_ping(backend, title), f"{title} does not answer")]
            return await asyncio.gather(
                *(
                    _judged(attempt(backend, title, key), f"{title} does not wrap and unwrap under {key}")
                    for key, attempt in tries.items()
                )
            )
    except ConfigError as error:
        return [problem(f"{title}: {text}") for text in error.problems]
    except KKPError as error:
        return [Result(Status.FAIL, f"{title} does not answer: {error}", _cure(error))]
    except TimeoutError:
        return [_late(f"{title} does not answer")]


async def _judged(attempt: Awaitable[Result], bad: str) -> Result:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            return await attempt
    except KKPError as error:
        return Result(Status.FAIL, f"{bad}: {error}", _cure(error))
    except TimeoutError:
        return _late(bad)


async def _ping(backend: KMS, title: str) -> Result:
    await backend.ping()
    return Result(Status.OK, f"{title} answers")


async def _round(backend: KMS, title: str, key_id: str) -> Result:
    """Wrap a probe and unwrap it.

    Raises:
        InvalidWrapError: Something else came back.
        KKPError: It did not work, and why.
    """
    probe = os.urandom(DATA_KEY_BYTES)
    wrapped = await backend.wrap(key_id, probe, _CONTEXT)
    if await backend.unwrap(key_id, wrapped, _CONTEXT) != probe:
        raise InvalidWrapError("What it unwrapped is not what it had wrapped.")
    return Result(Status.OK, f"{title} wraps and unwraps under {key_id}")


async def _former_round(backend: KMS, title: str, key_id: str) -> Result:
    """Do so for a former member; where KKP may not wrap with it, and it need not, see that the key is there.

    Raises:
        KKPError: It did not work, and why.
    """
    try:
        await backend.wrap(key_id, os.urandom(DATA_KEY_BYTES), _CONTEXT)
    except KMSDeniedError:
        await backend.describe(key_id)
        return Result(
            Status.WARN, f"{title} {_UNTRIED.format(key_id)}", "let KKP wrap under it, to have it tried"
        )
    return await _round(backend, title, key_id)


def _late(what: str) -> Result:
    return Result(Status.FAIL, f"{what} in time", _cure(KMSUnavailableError()))


def _cure(error: KKPError) -> str:
    return next((cure for kind, cure in _CURES if isinstance(error, kind)), "")
