"""The in-process policy, exchanged while KKP runs when what stands on disk changes.

Rules that hold here:
- What is on disk is read every quarter of a second, in a thread, and compared byte by byte. It is taken once
  two readings in a row agree, so a file that is still being written is left alone; an old policy is dead
  within a second of a good one being in place. Whoever writes in pauses longer than that renames a complete
  file into place, or swaps a link, as a mounted ConfigMap does. Files that never rest are told of.
- What was read is what is loaded, and it passes every check of a start. A policy that does not, or that can't
  be read, is refused once, loudly; the old one stays in force, and `warning` says so until that has changed.
- Engines are made, asked and dropped on the event loop's thread. The exchange is one assignment between two
  questions: each is answered by one policy, whole, under that policy's own revision and rule.
- No answer is kept, so none outlives its policy or reaches another caller.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias, final

from kkp.authz.embedded import EmbeddedPolicy, PolicySource
from kkp.errors import PolicyLoadError
from kkp.model import JSON, Decision, Explanation, PolicyInput

POLL_SECONDS: Final = 0.25
_MANY_CHANGES: Final = 4
_WARNING: Final = "The policy on disk was refused, and the one before it is in force. The log says why."
_RESTLESS: Final = "What KKP_POLICY_PATH holds does not come to rest; an older policy is in force."
_log = logging.getLogger(__name__)
_Reading: TypeAlias = PolicySource | str  # what stands on disk, or why it can't be read


@final
class ReloadingPolicy:
    """A policy engine whose policy follows a file or a bundle directory. Made by `load`."""

    def __init__(
        self, path: Path, settings: Mapping[str, JSON], source: PolicySource, policy: EmbeddedPolicy
    ) -> None:
        self._path = path
        self._settings = settings
        self._source = source
        self._policy = policy
        self._last_reading: _Reading = source
        self._judged: _Reading = source
        self._refused = False
        self._changes = 0

    @classmethod
    def load(cls, path: Path, settings: Mapping[str, JSON]) -> ReloadingPolicy:
        """Load the first policy; see `EmbeddedPolicy.load`.

        Raises:
            PolicyLoadError: It can't be used.
        """
        source = PolicySource.read(path)
        return cls(path, settings, source, EmbeddedPolicy.build(source, settings))

    @property
    def revision(self) -> str:
        """The revision in force."""
        return self._policy.revision

    @property
    def roles(self) -> frozenset[str]:
        """The roles of the policy in force; see `PolicySource.roles`."""
        return self._source.roles

    @property
    def warning(self) -> str | None:
        """Say that what is on disk is not what is in force; None if it is."""
        if self._changes >= _MANY_CHANGES:
            return _RESTLESS
        return _WARNING if self._refused else None

    def answer(self, policy_input: PolicyInput) -> Decision:
        """Ask the policy in force.

        Raises:
            PolicyUnavailableError: It gave no usable answer, or this is another thread.
        """
        return self._policy.answer(policy_input)

    def explain(self, policy_input: PolicyInput) -> Explanation:
        """Ask the policy in force, and how it came by its answer.

        Raises:
            PolicyUnavailableError: It gave no usable answer, or this is another thread.
        """
        return self._policy.explain(policy_input)

    async def ping(self) -> None:
        """Ask the policy in force about an empty input.

        Raises:
            PolicyUnavailableError: It gives no usable answer any more.
        """
        await self._policy.ping()

    async def close(self) -> None:
        """Drop the engine; every later question is refused."""
        await self._policy.close()

    async def run(self) -> None:
        """Follow what is on disk until cancelled."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read once what is on disk, and act on it if the reading before found the same."""
        reading: _Reading
        try:
            reading = await asyncio.to_thread(_read, self._path)  # the thread must never hold an engine
        except Exception as error:  # noqa: BLE001  nothing may end the task: the old policy would live on
            reading = f"it could not be looked at ({type(error).__name__})"
        is_settled, self._last_reading = reading == self._last_reading, reading
        self._changes = 0 if is_settled else self._changes + 1
        if self._changes == _MANY_CHANGES:
            _log.error("the policy's files don't come to rest, %s stays in force", self.revision)
        if is_settled and reading != self._judged:
            self._judged = reading
            await self._judge(reading)

    async def _judge(self, reading: _Reading) -> None:
        try:
            await self._put_in_force(reading)
        except PolicyLoadError as error:
            self._refused = True
            _log.error("policy refused, %s stays in force: %s", self.revision, error)
        else:
            self._refused = False

    async def _put_in_force(self, source: _Reading) -> None:
        if isinstance(source, str):
            raise PolicyLoadError(source)
        if source == self._source:  # the refused one was taken back
            _log.info("policy %s, which is in force, is what is on disk again", self.revision)
            return
        former, policy = self._policy, EmbeddedPolicy.build(source, self._settings)
        self._source, self._policy = source, policy
        await former.close()
        _log.info("policy %s is in force, %s no longer is", policy.revision, former.revision)


def _read(path: Path) -> _Reading:
    try:
        return PolicySource.read(path)
    except PolicyLoadError as error:
        return str(error)
