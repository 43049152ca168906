"""Asking an OPA sidecar: the policy engine of production.

The policy is OPA's: it loads, verifies and replaces it. These rules hold here:

- Everything that a decision takes happens within one deadline. There is no second try: an OPA that is away is
  told at once, and the next request asks anew.
- Which rule is asked, `decision` or `allow`, is found by asking both about an empty input, once for each
  revision of the policy, and never depends on a request. An answer by another revision than the one that was
  looked at is thrown away, the new revision looked at, and the question put to it once more.
- A `decision` that is undefined on an empty input is refused, and never passed over in favour of `allow`:
  beside a decision that has no default, `allow` may well be a helper that allows more.
- A revision that begins with a number, `42` or `42-1f2e3d4c`, is ordered by it. Once such a bundle has
  decided, an older one is refused as long as KKP runs, as is one without a number: a good signature does not
  say that a bundle is today's.
- Only the literal `true` allows (`kkp.authz.base`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias, final

import msgspec

from kkp.authz.base import interpret
from kkp.authz.opa_address import check_opa, read_address
from kkp.errors import ConfigError, PolicyUnavailableError
from kkp.model import Decision, Explanation, PolicyInput

if TYPE_CHECKING:
    from kkp.authz.opa_client import Answer, Bundle, OPAClient

Rule: TypeAlias = Literal["decision", "allow"]

_EMPTY_INPUT = b"{}"
_EXPLAIN_SECONDS = 5.0  # writing the steps down takes OPA many times as long as the decision
# Both stand in clear in the audit, so OPA can't put sentences there.
_NAME = re.compile(r"[A-Za-z0-9._/:+~=-]{1,128}")
_DECISION_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_NUMBERED = re.compile(r"([0-9]{1,18})(?![A-Za-z0-9])")
_MAX_BUNDLES = 8
_UNVERSIONED = "unversioned"


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A policy that was looked at: its bundles, what the audit calls them, and which rule is asked."""

    bundles: Mapping[str, Bundle]
    revision: str
    rule: Rule


@final
class OPAPolicy:
    """The policy that an OPA has loaded. Made by `connect`."""

    def __init__(self, client: OPAClient, timeout_seconds: float, rule: Rule | None) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._configured_rule = rule
        self._loaded: _Loaded | None = None
        self._newest: dict[str, tuple[int, str]] = {}
        self._looking = asyncio.Lock()

    @classmethod
    async def connect(
        cls, url: str, *, timeout_seconds: float, ca_file: Path | None = None, rule: Rule | None = None
    ) -> OPAPolicy:
        """Make ready to ask the OPA at `url`. It may start later: `ping` tells whether it answers.

        Args:
            url: `http://127.0.0.1:8181`, `unix:///run/opa.sock`, or `https://host` with a `ca_file`.
            timeout_seconds: The most that a decision takes.
            ca_file: PEM certificates of the authorities that vouch for an https OPA.
            rule: The rule to ask, where it is not to be found out.

        Raises:
            ConfigError: The address or the file can't be used; every problem has its cure.
        """
        problems = check_opa(url, ca_file)
        if problems:
            raise ConfigError(problems)
        from kkp.authz.opa_client import OPAClient  # noqa: PLC0415  it loads much that `kkp dev` never needs

        client = OPAClient(read_address(url), ca_file)
        return cls(client, timeout_seconds, rule)

    @property
    def revision(self) -> str:
        """The revision that was last looked at, `bundle@revision` for each bundle; empty before that."""
        return self._loaded.revision if self._loaded is not None else ""

    async def decide(self, policy_input: PolicyInput) -> Decision:
        """Ask OPA.

        Raises:
            PolicyUnavailableError: It gave no usable answer in time.
        """
        async with _Deadline(self._timeout_seconds):
            loaded = self._loaded or await self._look(None)
            answer = await self._client.ask(loaded.rule, policy_input.encoded)
            if answer.provenance.bundles != loaded.bundles:
                loaded = await self._look(loaded)
                answer = await self._client.ask(loaded.rule, policy_input.encoded)
            return _read_decision(answer, loaded)

    async def explain(self, policy_input: PolicyInput) -> Explanation:
        """Ask OPA, and have it write down how it comes by the answer; functions are named like rules.

        Raises:
            PolicyUnavailableError: It gave no usable answer in time, or its steps were too many.
        """
        async with _Deadline(_EXPLAIN_SECONDS):
            loaded = self._loaded or await self._look(None)
            answer, rules = await self._client.trace(loaded.rule, policy_input.encoded)
            if answer.provenance.bundles != loaded.bundles:
                loaded = await self._look(loaded)
                answer, rules = await self._client.trace(loaded.rule, policy_input.encoded)
            return Explanation(_read_decision(answer, loaded), tuple(sorted(rules)))

    async def ping(self) -> None:
        """Look at the policy that OPA has now, as if for the first time.

        Raises:
            PolicyUnavailableError: OPA does not answer, has no policy, or one that can't be used.
        """
        async with _Deadline(self._timeout_seconds):
            await self._look(self._loaded)

    async def close(self) -> None:
        """Close every connection; every later question is refused."""
        await self._client.close_connection()

    async def _look(self, known: _Loaded | None) -> _Loaded:
        """Look at OPA's policy, unless another request has done so since `known` was all that was known."""
        async with self._looking:
            if self._loaded is not None and self._loaded is not known:
                return self._loaded
            try:
                self._loaded = await self._look_now()
            except BaseException:
                self._loaded = None  # what can't be looked at is not asked either
                raise
            return self._loaded

    async def _look_now(self) -> _Loaded:
        rule: Rule = self._configured_rule or "decision"
        answer = await self._client.ask(rule, _EMPTY_INPUT)
        if answer.result is msgspec.UNSET and self._configured_rule is None:
            answer, rule = await self._ask_boolean(answer), "allow"
        if answer.result is msgspec.UNSET:
            raise PolicyUnavailableError(f"OPA has no data.kkp.authz.{rule}, or it has no default.")
        bundles = answer.provenance.bundles
        loaded = _Loaded(bundles, _revision(bundles), rule)
        _read_decision(answer, loaded)
        self._refuse_older(bundles)
        return loaded

    async def _ask_boolean(self, undecided: Answer) -> Answer:
        """Ask for `allow`, after making sure that the same policy has no `decision`."""
        if await self._client.has_rule("decision"):
            raise PolicyUnavailableError("data.kkp.authz.decision has no default.")
        answer = await self._client.ask("allow", _EMPTY_INPUT)
        if answer.provenance != undecided.provenance:
            raise PolicyUnavailableError("OPA's policy changed while it was looked at.")
        return answer

    def _refuse_older(self, bundles: Mapping[str, Bundle]) -> None:
        revisions = {name: bundle.revision for name, bundle in bundles.items()}
        for name, (newest_number, newest) in self._newest.items():
            revision = revisions.get(name, "")
            if revision != newest and _number(revision) <= newest_number:
                raise PolicyUnavailableError(f"OPA's policy went back behind {name}@{newest}.")
        for name, revision in revisions.items():
            if _number(revision) >= 0:
                self._newest[name] = _number(revision), revision


@final
class _Deadline:
    """Ends what its block does after so many seconds, with a PolicyUnavailableError.

    Not a generator: this stands on every decision's way.
    """

    def __init__(self, seconds: float) -> None:
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, frames)
        except TimeoutError:
            raise PolicyUnavailableError("OPA did not answer in time.") from None


def _read_decision(answer: Answer, loaded: _Loaded) -> Decision:
    if answer.provenance.bundles != loaded.bundles:
        raise PolicyUnavailableError("OPA's policy changed while it was asked.")
    if answer.decision_id is not None and not _DECISION_ID.fullmatch(answer.decision_id):
        raise PolicyUnavailableError("OPA's decision id is not a short code.")
    decision = interpret(loaded.rule, answer.result, loaded.revision)
    if answer.decision_id is None:
        return decision
    return msgspec.structs.replace(decision, policy_decision_id=answer.decision_id)


def _revision(bundles: Mapping[str, Bundle]) -> str:
    if len(bundles) > _MAX_BUNDLES:
        raise PolicyUnavailableError(f"OPA has more than {_MAX_BUNDLES} bundles.")
    named = {name: bundles[name].revision or _UNVERSIONED for name in sorted(bundles)}
    if not all(_NAME.fullmatch(part) for pair in named.items() for part in pair):
        raise PolicyUnavailableError("A bundle's name or revision is not a short code.")
    return ",".join(f"{name}@{revision}" for name, revision in named.items()) or _UNVERSIONED


def _number(revision: str) -> int:
    """Return the number that orders a revision, -1 if it has none."""
    numbered = _NUMBERED.match(revision)
    return int(numbered[1]) if numbered else -1
