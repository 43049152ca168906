"""The members of a composite's keys: who they are, from configuration alone, and how they are asked.

```
any-of://?key.NAME=BACKEND:KEY_ID&key.NAME=BACKEND:KEY_ID&former.NAME=BACKEND:KEY_ID&OPTION=VALUE
```

`key.NAME` gives the logical key NAME a member, `former.NAME` one that is asked to unwrap and never to
wrap; at most 8 in all. BACKEND is the configured name of a backend that is not itself a composite, KEY_ID a
key's name there. The options `min_members` and `hedge_ms` are any-of's. As in any URI's query, `%`, `&`,
`#`, `+` and, in a list of backends, `,` are percent-encoded.

A call to a member has the deadline of its backend's guard, and no other: a backend without a guard that hangs
holds up its composites.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeAlias, TypeVar
from urllib.parse import parse_qsl

from kkp.errors import (
    ConfigError,
    InvalidWrapError,
    KeyDisabledError,
    KKPError,
    KMSDeniedError,
    KMSThrottledError,
    KMSUnavailableError,
    UnknownKeyError,
)
from kkp.kms import _address
from kkp.kms._parts import MAX_PARTS, Kind, Label, Part, key_version
from kkp.kms.base import KMS, KeyDescription, Resources
from kkp.kms.failing import FailingMembers, Work

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_MEMBER = re.compile(
    r"(?P<backend> [a-z0-9][a-z0-9_-]{0,31} ) : (?P<key_id> [A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,511} )",
    re.VERBOSE,
)
# What says more about the cause comes first. What can't be reached may be whole, so it is never called
# refused or altered; and a wrapped key is called altered only if everybody says so who was asked.
_GRAVEST_FIRST: Final = (
    KMSUnavailableError,
    KMSDeniedError,
    KeyDisabledError,
    UnknownKeyError,
    InvalidWrapError,
)

_OPTIONS: Mapping[Kind, tuple[str, ...]] = {"any-of": ("min_members", "hedge_ms"), "all-of": ()}
_NO_SUCH_KEY = "The backend has no such key. Its keys have names of their own, not their members'."
_DEFAULT_HEDGE_MS = 300
_MAX_HEDGE_MS = 60_000

_T = TypeVar("_T")
_Listed: TypeAlias = dict[str, tuple[list[str], list[str]]]  # current and former members, by logical name


class Names(NamedTuple):
    """Who the members of a logical key are.

    Attributes:
        current: They wrap and unwrap.
        former: They unwrap what they wrapped.
    """

    current: tuple[Label, ...]
    former: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Composition:
    """What a composite's URI says.

    Attributes:
        keys: By logical name.
        min_members: How many current members must do their part; None for all.
        hedge_seconds: How long one member is waited for before the next is asked.
    """

    keys: Mapping[str, Names]
    min_members: int | None
    hedge_seconds: float


def backends(uri: str, kind: Kind) -> frozenset[str]:
    """Return the names of all backends that a URI gives a member, as far as it can be read.

    Raises:
        ConfigError: It can't be taken apart.
    """
    listed, _ = _taken_apart(uri, kind)
    found = (_MEMBER.fullmatch(text) for lists in listed.values() for texts in lists for text in texts)
    return frozenset(match["backend"] for match in found if match)


def parse(uri: str, kind: Kind) -> Composition:
    """Read a composite's URI.

    Raises:
        ConfigError: Everything that is wrong with it.
    """
    listed, others = _taken_apart(uri, kind)
    given = dict(others)
    problems = [problem for name, texts in listed.items() for problem in _key_problems(kind, name, *texts)]
    if not listed:
        problems.append(f"{kind}:// has no key; {_cure(kind)}")
    problems.extend(_option_problems(kind, [name for name, _ in others]))
    fewest = min((len(current) for current, _ in listed.values() if current), default=MAX_PARTS)
    own = {name: text for name, text in given.items() if name in _OPTIONS[kind]}
    min_members = _whole_number(own, "min_members", range(1, fewest + 1), problems)
    hedge_ms = _whole_number(own, "hedge_ms", range(_MAX_HEDGE_MS + 1), problems)
    if problems:
        raise ConfigError(problems)
    return Composition(
        keys={name: Names(_labels(current), _labels(former)) for name, (current, former) in listed.items()},
        min_members=min_members,
        hedge_seconds=(_DEFAULT_HEDGE_MS if hedge_ms is None else hedge_ms) / 1000,
    )


def _cure(kind: Kind) -> str:
    return f"write {kind}://?key.NAME=BACKEND:KEY_ID&key.NAME=BACKEND:KEY_ID"


def _taken_apart(uri: str, kind: Kind) -> tuple[_Listed, list[tuple[str, str]]]:
    """Return each key's members as they are written, and all other options."""
    try:
        parts = _address.split(uri)
    except ValueError as error:
        raise ConfigError([f"{kind}://: {error}; {_cure(kind)}"]) from None
    if parts.netloc or parts.path:
        raise ConfigError([f"{kind}:// has its members behind a ?; {_cure(kind)}"])
    listed: _Listed = {}
    others: list[tuple[str, str]] = []
    for option, text in parse_qsl(parts.query, keep_blank_values=True):
        role, dot, name = option.partition(".")
        if dot and role in {"key", "former"}:
            listed.setdefault(name, ([], []))[role == "former"].append(text)
        else:
            others.append((option, text))
    return listed, others


def _option_problems(kind: Kind, names: Sequence[str]) -> Iterator[str]:
    """Tell of options that are not this kind's. One that no kind has is not named: it may be a secret."""
    foreign = {option for options in _OPTIONS.values() for option in options} - {*_OPTIONS[kind]}
    for name in sorted(foreign & {*names}):
        yield f"{name}: {kind}:// takes no options, because every member must do its part; take it out"
    if len({*names}) != len(names) or not {*names} <= foreign | {*_OPTIONS[kind]}:
        options = " and ".join(_OPTIONS[kind]) or "no options"
        yield f"besides key.NAME and former.NAME {kind}:// takes {options}, each at most once"


def _whole_number(given: Mapping[str, str], name: str, limits: range, problems: list[str]) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) not in limits:
        problems.append(f"{name} is a whole number from {limits.start} to {limits.stop - 1} here")
        return None
    return int(text)


def _key_problems(kind: Kind, name: str, current: Sequence[str], former: Sequence[str]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield "a key's name is 1 to 128 letters, digits, '.', '_', '/' and '-', the first a letter or digit"
        return
    members = [*current, *former]
    for number, text in enumerate(members, 1):
        if not _MEMBER.fullmatch(text):
            yield f"key {name}: member {number} is not BACKEND:KEY_ID, such as aws:alias/orders"
    if len(set(members)) != len(members):
        yield f"key {name}: a member is named twice; name each once, as current or as former"
    if len(members) > MAX_PARTS:
        yield f"key {name}: it has {len(members)} members; {MAX_PARTS} are the most, former ones included"
    if not current:
        yield f"key {name}: nobody wraps with it; give it a current member"
    if kind == "all-of" and len(current) == 1:
        yield f"key {name}: one member alone shares nothing; name two at least, or use its backend itself"


def _labels(texts: Iterable[str]) -> tuple[Label, ...]:
    return tuple(Label(*text.split(":", 1)) for text in texts)


@dataclass(frozen=True, slots=True)
class Member:
    """A key of another backend. What may be raised is what `KMS` raises.

    How wraps and unwraps go is noted for the operator.
    """

    label: Label
    kms: KMS = field(repr=False)
    failing: FailingMembers = field(repr=False)

    async def wrap(self, secret: bytes, context: Mapping[str, str]) -> Part:
        """Return this member's part."""
        wrapped = await self._noted("wrap", self.kms.wrap(self.label.key_id, secret, context))
        return Part(self.label.backend, wrapped.encrypted_data_key, self.label.key_id, wrapped.key_version)

    async def unwrap(self, part: Part, context: Mapping[str, str]) -> bytes:
        """Return what this member says its part holds."""
        return await self._noted("unwrap", self.kms.unwrap(self.label.key_id, part.wrapped, context))

    async def version(self) -> tuple[str, str, str]:
        """Return the backend, the key id and the version that wraps now."""
        description = await self.kms.describe(self.label.key_id)
        return *self.label, description.key_version

    async def ping(self) -> None:
        """Reach the backend."""
        await self.kms.ping()

    async def _noted(self, work: Work, call: Awaitable[_T]) -> _T:
        try:
            answer = await call
        except KKPError as error:
            self.failing.failed(self.label, work, error)
            raise
        self.failing.worked(self.label, work)
        return answer


@dataclass(frozen=True, slots=True)
class Key:
    """A logical key's members."""

    current: tuple[Member, ...]
    former: tuple[Member, ...]

    def holder(self, part: Part) -> Member | None:
        """Return the member whose part this says it is; None if it is no member's."""
        return next((member for member in self.current + self.former if member.label == part.label), None)


@dataclass(frozen=True, slots=True)
class Keys:
    """All logical keys of a composite, and how many current members of a key must do their part."""

    kind: Kind
    by_name: Mapping[str, Key]
    min_members: int | None
    failing: FailingMembers

    @classmethod
    def bind(cls, kind: Kind, composition: Composition, resources: Resources) -> Keys:
        """Find the members' backends, which are connected already.

        Raises:
            UnknownBackendError: One is not.
        """
        listed = {label for key in composition.keys.values() for label in key.current + key.former}
        failing = FailingMembers(
            f"{kind} {resources.name}".rstrip(), len(listed), resources.limits.breaker_seconds
        )

        def bound(labels: Iterable[Label]) -> tuple[Member, ...]:
            return tuple(Member(label, resources.backend(label.backend), failing) for label in labels)

        keys = {name: Key(bound(key.current), bound(key.former)) for name, key in composition.keys.items()}
        return cls(kind, keys, composition.min_members, failing)

    def needed(self, key: Key) -> int:
        """Return how many of the key's current members must do their part."""
        return self.min_members or len(key.current)

    def get(self, key_id: str) -> Key:
        """Return a key.

        Raises:
            UnknownKeyError: None has this name.
        """
        try:
            return self.by_name[key_id]
        except KeyError:
            self.failing.unknown_key(self.by_name)
            raise UnknownKeyError(_NO_SUCH_KEY) from None

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the version that would wrap now; see `KMS.describe`."""
        key = self.get(key_id)
        versions = await every_outcome(member.version() for member in key.current)
        return KeyDescription(key_id, key_version(self.kind, successes(versions, self.needed(key))))

    async def ping(self) -> None:
        """Reach so many members of each key as are needed; see `KMS.ping`. Each backend is asked once."""
        one_of = {member.label.backend: member for key in self.by_name.values() for member in key.current}
        outcomes = await every_outcome(member.ping() for member in one_of.values())
        by_backend = dict(zip(one_of, outcomes, strict=True))
        for key in self.by_name.values():
            successes([by_backend[member.label.backend] for member in key.current], self.needed(key))


class Composite:
    """What both kinds of composites do alike; they differ in how they wrap and unwrap.

    Args:
        composition: What the URI says.
        resources: Where the members' backends are, connected already.

    Raises:
        UnknownBackendError: A member's backend is not there.
    """

    kind: ClassVar[Kind]

    def __init__(self, composition: Composition, resources: Resources) -> None:
        self._keys = Keys.bind(self.kind, composition, resources)
        self.failing = self._keys.failing

    @classmethod
    def check(cls, uri: str) -> None:
        """Refuse a URI that says something wrong.

        Raises:
            ConfigError: Everything that is wrong with it.
        """
        parse(uri, cls.kind)

    @classmethod
    async def connect(cls, uri: str, resources: Resources) -> Self:
        """Find the members.

        Raises:
            ConfigError: The URI says something wrong.
            UnknownBackendError: A member's backend is not there.
        """
        return cls(parse(uri, cls.kind), resources)

    async def describe(self, key_id: str) -> KeyDescription:
        """Tell the version that would wrap now; see `KMS.describe`."""
        return await self._keys.describe(key_id)

    async def ping(self) -> None:
        """Reach so many members that every key can wrap; see `KMS.ping`."""
        await self._keys.ping()

    async def close(self) -> None:
        """Hold nothing: the members belong to whoever connected them."""


async def outcome(call: Awaitable[_T]) -> _T | KKPError:
    """Wait for a call; an error that the port knows is an outcome like any other."""
    try:
        return await call
    except KKPError as error:
        return error


async def every_outcome(calls: Iterable[Coroutine[Any, Any, _T]]) -> list[_T | KKPError]:
    """Make calls at the same time and wait for all of them."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(outcome(call)) for call in calls]
    return [task.result() for task in tasks]


def successes(outcomes: Sequence[_T | KKPError], needed: int) -> list[_T]:
    """Return those that succeeded.

    Raises:
        KKPError: They are too few; it is the gravest of the others.
    """
    succeeded = [one for one in outcomes if not isinstance(one, KKPError)]
    if len(succeeded) < needed:
        raise gravest(one for one in outcomes if isinstance(one, KKPError))
    return succeeded


def gravest(errors: Iterable[KKPError]) -> KKPError:
    """Return the one of some errors that stands for all: an outage before anything else."""
    return min(errors, key=_rank)


def _rank(error: KKPError) -> tuple[int, bool]:
    kinds = (number for number, kind in enumerate(_GRAVEST_FIRST) if issubclass(type(error), kind))
    return next(kinds, -1), isinstance(error, KMSThrottledError)
