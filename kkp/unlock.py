"""How a process gets the master key, and how it goes on while that is rotated.

It is given in one of three ways: by the environment, by a file, or wrapped by a key of a KMS, in which case
the wrapped key stands in the database. A KMS is asked as a process starts, so an outage of it disturbs nobody
who runs. Nothing here makes a master key, but for `kkp init` and `kkp master rotate`.

While the master key is being rotated, and until the former one is retired, a process that starts with the
former key finds the present one in the database, sealed under the former: so replicas can be given the new
key one after the other. A process that runs finds it there, too. One that looks only when it is gone from
there takes what it is given by then: the file as it is now, or the KMS's answer.

KKP_MASTER_KEY_CHECK names, outside the database, which master key it is. Without it, who knows a former key
and writes the database can put back what the KMS wrapped, and have rows under that key believed. With it, a
key is used only if it is named, or if one that is named, or was held before, leads to it. So a restart in the
middle of a rotation goes well with the former key's check value, until the former key is retired.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple, Protocol, final

from kkp import data_dir
from kkp.config import KMSKey, Settings
from kkp.errors import ConfigError, KeyringUnavailableError, KKPError, StateUntrustedError
from kkp.kms import KMSRegistry
from kkp.kms.base import KMS, WrappedKey
from kkp.kms.stateless import without_state
from kkp.master_key import KEPT, MasterKey, RootKey
from kkp.model import BackendLimits
from kkp.rows import KeyWrap, MasterKeyMarks, MasterKeyState
from kkp.store.base import Work
from kkp.store.master_keys import read_state
from kkp.store.opening import peek
from kkp.store.secured import KMS as BY_KMS
from kkp.store.secured import PREDECESSOR, SUCCESSOR

_BACKEND: Final = "master-key"
_MOST_WRAPS: Final = 8  # that a KMS is asked to open: a database writer can plant any number
_OTHER = (
    "{}: the database was written under another master key, or that was rotated and this is the former one; "
    "give that key, or another database"
)
_BY_KMS = (
    "{}: the database was written under another master key, which {} wraps; set KKP_MASTER_KEY_KMS to it"
)
_NO_WRAP = (
    "KKP_MASTER_KEY_KMS: no KMS key wraps the database's master key; give it in KKP_MASTER_KEY_FILE or "
    "KKP_MASTER_KEY, and move it with: kkp master rotate --to URI#KEY"
)
_NO_DATABASE = (
    "KKP_MASTER_KEY_KMS: there is no database yet to hold the wrapped master key; name it, or run `kkp init`"
)
_SEE_KMS = (
    "see that the key is there and enabled, that KKP may encrypt and decrypt with it, and that the KMS can "
    "be reached from here; `kkp doctor` tries it"
)
_NOT_NAMED = (
    "KKP_MASTER_KEY_CHECK: it does not name the master key that is given, or rows are under another one "
    "besides; if a rotation is under way, name the former key and the new one, as "
    "docs/runbooks/master-key.md says; if none is, treat it as an intrusion, or unset it where the database "
    "is a new one"
)
_NOT_KEPT = (
    "The database lacks secrets that outlive its master key (kept_secrets): somebody deleted them. "
    "Restore a backup; treat it as an intrusion."
)
_FORMER = (
    "the master key was rotated and this process was started with the former one: give it the new one, as "
    "docs/runbooks/master-key.md says"
)
_ROLLED_BACK = "The database names a master key that was replaced before: it was rolled back."
_TAKEN_UP = "the master key was rotated: everything new is under the present one"
_SETTLED = "the master key was rotated: nothing under the former one is believed any more"
_log = logging.getLogger(__name__)


class Unlocked(NamedTuple):
    """The master key that a process starts with.

    Attributes:
        master_key: With everything that the database says of it.
        first_wraps: What is to stand in the database that is laid out under it.
    """

    master_key: MasterKey
    first_wraps: tuple[KeyWrap, ...] = ()


class Looks(Protocol):
    """Reads from a database whose master key is not known yet."""

    async def __call__(self, settings: Settings, work: Work[MasterKeyState], /) -> MasterKeyState | None:
        """Return what is read; None if there is nothing to read from."""
        ...


async def unlock(settings: Settings, *, create: bool, now: float, look: Looks = peek) -> Unlocked:
    """Return the master key of the database.

    Args:
        settings: Say how it is given, and which database.
        create: Whether a missing one is made, for a database that is not there yet.
        now: Unix seconds.
        look: What reads from the database.

    Raises:
        ConfigError: It can't be had, or is not this database's.
    """
    direct = _given(settings, create=create)
    state = await look(settings, read_state)
    if state is not None:
        return Unlocked(_unlocked(settings, state, direct or await open_given(settings, state)))
    if direct is not None:
        _check_named(settings, direct, _Keys(direct, None))
        return Unlocked(MasterKey.of(direct))
    kms_key = settings.master_key_kms
    if kms_key is None or not create:
        raise ConfigError([_NO_DATABASE])
    new = await KMSTarget(kms_key, settings.backend_limits).make(now)
    _check_named(settings, new.key, _Keys(new.key, None))
    return Unlocked(MasterKey.of(new.key), new.wraps)


async def open_given(settings: Settings, state: MasterKeyState) -> RootKey:
    """Return the key that the settings give: the present one, or one that was.

    Raises:
        ConfigError: It can't be had.
    """
    direct = _given(settings, create=False)
    if direct is not None:
        return direct
    assert settings.master_key_kms is not None  # noqa: S101  `kkp.config` sees to it
    return await _unwrapped(settings, settings.master_key_kms, state)


def _given(settings: Settings, *, create: bool) -> RootKey | None:
    """Return the key that the environment or a file holds; None if a KMS wraps it."""
    if settings.master_key is not None:
        return RootKey(settings.master_key)
    if settings.master_key_kms is not None:
        return None
    path = settings.master_key_file
    may_create = create and path.parent == settings.data_dir
    is_file = settings.postgres is None
    if may_create and is_file and settings.database_path.exists() and not path.exists():
        raise ConfigError([f"KKP_MASTER_KEY_FILE: {path} is gone; its database needs it"])
    return RootKey(data_dir.master_key(path, may_create=may_create))


def _unlocked(settings: Settings, state: MasterKeyState, given: RootKey) -> MasterKey:
    keys = _keys(state, [given])
    if keys is None:
        name = "KKP_MASTER_KEY" if settings.master_key is not None else "KKP_MASTER_KEY_FILE"
        by_kms = [wrap.label for wrap in state.wraps if wrap.opener == BY_KMS]
        raise ConfigError([_BY_KMS.format(name, by_kms[-1]) if by_kms else _OTHER.format(name)])
    _check_named(settings, given, keys)
    master_key = MasterKey.of(keys.present)
    _take_up(master_key, keys, state)
    if given.check_value() != state.marks.present:
        _log.warning(_FORMER)
    return master_key


class _Keys(NamedTuple):
    present: RootKey
    former: RootKey | None


def _take_up(master_key: MasterKey, keys: _Keys, state: MasterKeyState) -> None:
    # Without them, others would be derived in their place, from a key that is not the first one.
    if not state.kept.keys() >= set(KEPT):
        raise StateUntrustedError(_NOT_KEPT)
    master_key.take_up(*keys, state.kept)


def _check_named(settings: Settings, given: RootKey, keys: _Keys) -> None:
    named = settings.master_key_checks
    if named and not _may_be_used(keys, given, named):
        raise ConfigError([_NOT_NAMED])


def _may_be_used(keys: _Keys, given: RootKey, named: Collection[bytes]) -> bool:
    """Tell whether all keys that rows are under are named, or the present one is what a named one led to."""
    is_known = given.check_value() in named or keys.present.check_value() in named
    return is_known and (keys.former is None or keys.former.check_value() in named)


def _keys(state: MasterKeyState, held: Sequence[RootKey]) -> _Keys | None:
    """Return the keys that rows are under, if a key that is held is one of them or leads to them."""
    present = next((key for key in held if key.check_value() == state.marks.present), None)
    wraps = {(wrap.check_value, wrap.opener): wrap.wrapped for wrap in state.wraps}
    by_predecessor = wraps.get((state.marks.present, PREDECESSOR))
    if present is None and by_predecessor is not None:
        present = next(_opened(by_predecessor, state.marks.present, held), None)
    if present is None:
        return None
    former = state.marks.former
    return _Keys(present, None if former is None else present.unwrap(wraps[former, SUCCESSOR], former))


def _opened(wrapped: bytes, check_value: bytes, held: Sequence[RootKey]) -> Iterator[RootKey]:
    for key in held:
        with suppress(StateUntrustedError):
            yield key.unwrap(wrapped, check_value)


@final
class HeldMasterKey:
    """The master key of a process that runs; see `kkp.store.secured.HeldKeys`.

    Args:
        master_key: What everybody in the process seals and signs with.
        read: Returns what the database says.
        open_given: Returns the key that the process was started with, as it is given now.
        named: The check values of the only keys to begin with; empty for any.
    """

    def __init__(
        self,
        master_key: MasterKey,
        read: Callable[[], Awaitable[MasterKeyState]],
        open_given: Callable[[MasterKeyState], Awaitable[RootKey]],
        named: Collection[bytes] = (),
    ) -> None:
        self.master_key = master_key
        self._read = read
        self._open_given = open_given
        self._named = named
        self._taking_up = asyncio.Lock()
        self._replaced: frozenset[bytes] = frozenset()  # the check values of keys that were the present one

    @property
    def marks(self) -> MasterKeyMarks:
        """Which keys are held."""
        former = self.master_key.former
        return MasterKeyMarks(self.master_key.check_value(), None if former is None else former.check_value())

    def warning(self) -> str | None:
        """Say that rows are under two keys, where a rotation was cut off or is under way."""
        if self.master_key.former is None:
            return None
        return "the master key is being rotated; if no command does it now, run: kkp master rotate"

    async def take_up(self) -> None:
        """Hold the keys that the database names now.

        Raises:
            KeyringUnavailableError: They can't be had: nothing of what is stored is believed then.
        """
        async with self._taking_up:
            state = await self._read()
            if state.marks == self.marks:
                return
            keys = await self._keys_of(state)
            before = self.marks.present
            _take_up(self.master_key, keys, state)
            if before == state.marks.present:
                _log.info(_SETTLED)
                return
            self._replaced |= {before}
            _log.info(_TAKEN_UP)

    async def _keys_of(self, state: MasterKeyState) -> _Keys:
        """Return the keys that the database names; of those that were replaced, none.

        Who puts an old state of the database back would have rows under a former key believed.
        """
        own, is_same = self.master_key.present, state.marks.present == self.marks.present
        is_believed_again = (
            state.marks.former in self._replaced and self.master_key.former is None and is_same
        )
        if is_believed_again or state.marks.present in self._replaced:
            raise KeyringUnavailableError(_ROLLED_BACK)
        given, keys = own, _keys(state, [own])
        if keys is None:
            given = await self._given(state)
            keys = _keys(state, [given])
        if keys is None:
            raise KeyringUnavailableError(
                "The master key was rotated, and this process was not given the new one."
            )
        if self._named and not _may_be_used(keys, given, {*self._named, *filter(None, self.marks)}):
            raise KeyringUnavailableError(
                "The database names a master key that KKP_MASTER_KEY_CHECK does not."
            )
        return keys

    async def _given(self, state: MasterKeyState) -> RootKey:
        try:
            return await self._open_given(state)
        except ConfigError as error:
            _log.error("%s", error)
            raise KeyringUnavailableError(
                "The master key was rotated, and the new one can't be had here."
            ) from error

    async def opens_alone(self) -> bool:
        """Tell whether what the process is given now is the present key, so that no former one is needed.

        Raises:
            ConfigError: It can't be had.
        """
        state = await self._read()
        return (await self._open_given(state)).check_value() == state.marks.present


class NewKey(NamedTuple):
    """A master key to be, and how a KMS wraps it, if one does."""

    key: RootKey
    wraps: tuple[KeyWrap, ...] = ()


class Target(Protocol):
    """Where a new master key is kept."""

    @property
    def label(self) -> str:
        """What to call it."""
        ...

    async def make(self, now: float) -> NewKey:
        """Make a new key and keep it there.

        Raises:
            ConfigError: That can't be done.
        """
        ...


@final
class FileTarget:
    """A new file; one of ours that is there already holds the key: an earlier attempt made it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.label = str(path)

    async def make(self, now: float) -> NewKey:  # noqa: ARG002  a file has a time of its own
        """Make the file, or read it.

        Raises:
            ConfigError: It can't be written or read, is somebody else's, or others can read it.
        """
        with suppress(FileNotFoundError):
            os.close(data_dir.open_private(self._path, os.O_RDONLY, "--to-file"))
            _log.warning("%s is there and is used; delete it for a fresh key", self._path)
        return NewKey(RootKey(data_dir.master_key(self._path, may_create=True)))


@final
class KMSTarget:
    """A key of a KMS, which wraps a new random key.

    Args:
        key: The KMS key.
        limits: What the KMS may take.
    """

    def __init__(self, key: KMSKey, limits: BackendLimits) -> None:
        self._kms_key = key
        self._limits = limits
        self.label = key.label

    async def make(self, now: float) -> NewKey:
        """Make a key and have it wrapped; it is known to open again before anything relies on it.

        Raises:
            ConfigError: The KMS does not wrap it, or not open it.
        """
        new = RootKey.generate()
        context, kms_key = _context(new.check_value()), self._kms_key
        async with _connected(kms_key, self._limits) as kms:
            wrapped = await new.handed_to(lambda key: kms.wrap(kms_key.key_id, key, context))
            opened = RootKey(await kms.unwrap(kms_key.key_id, wrapped, context))
        if opened.check_value() != new.check_value():
            raise ConfigError(
                [f"KKP_MASTER_KEY_KMS: {self.label} opens another key than it wrapped; {_SEE_KMS}"]
            )
        wrap = KeyWrap(
            check_value=new.check_value(),
            opener=BY_KMS,
            wrapped=wrapped.encrypted_data_key,
            key_version=wrapped.key_version,
            label=self.label,
            created_at=now,
        )
        return NewKey(new, (wrap,))


def _context(check_value: bytes) -> Mapping[str, str]:
    return {"kkp": "master-key", "check_value": check_value.hex()}


async def _unwrapped(settings: Settings, kms_key: KMSKey, state: MasterKeyState) -> RootKey:
    """Return a master key that a KMS key opens: if it can, the one that is to be used.

    Raises:
        ConfigError: None, and why.
    """
    by_kms = [wrap for wrap in state.wraps if wrap.opener == BY_KMS]
    # A label is only a hint: the same key may be named in another way by now.
    candidates = [wrap for wrap in by_kms if wrap.label == kms_key.label] or by_kms
    if not candidates:
        raise ConfigError([_NO_WRAP])
    problems: list[str] = []
    for wrap in _in_turn(candidates, state.marks.present, settings.master_key_checks):
        try:
            return await _unwrap(kms_key, settings.backend_limits, wrap)
        except ConfigError as error:
            problems += error.problems
    raise ConfigError(problems[:1])


def _in_turn(wraps: Sequence[KeyWrap], present: bytes, named: Collection[bytes]) -> Sequence[KeyWrap]:
    """Return the wraps to be tried: first the present key's, unless another is named and it is not.

    When a wrap was made counts last: a clock may have been wrong, and a database writer writes that, too.
    """

    def rank(wrap: KeyWrap) -> tuple[bool, bool, float]:
        is_named = not named or wrap.check_value in named
        return is_named, wrap.check_value == present, wrap.created_at

    return sorted(wraps, key=rank, reverse=True)[:_MOST_WRAPS]


async def _unwrap(kms_key: KMSKey, limits: BackendLimits, wrap: KeyWrap) -> RootKey:
    wrapped = WrappedKey(wrap.wrapped, wrap.key_version)
    async with _connected(kms_key, limits) as kms:
        opened = RootKey(await kms.unwrap(kms_key.key_id, wrapped, _context(wrap.check_value)))
    if opened.check_value() != wrap.check_value:
        raise ConfigError([f"KKP_MASTER_KEY_KMS: {kms_key.label} opened another key; {_SEE_KMS}"])
    return opened


@asynccontextmanager
async def _connected(kms_key: KMSKey, limits: BackendLimits) -> AsyncIterator[KMS]:
    """Connect to the KMS for the duration of the block; whatever it raises says which key, and what to do."""
    try:
        registry = await KMSRegistry.connect({_BACKEND: kms_key.uri}, without_state(limits))
        try:
            yield registry.get(_BACKEND)
        finally:
            await registry.close()
    except ConfigError:
        raise
    except KKPError as error:
        problem = f"KKP_MASTER_KEY_KMS: {kms_key.label} can't be used for the master key: {error} {_SEE_KMS}"
        raise ConfigError([problem]) from error
