"""Probes on everything that a request may reach only by way of the pipeline.

A probe notes each call of the real method, and whether it came from inside `Pipeline._operate`, the one step
that comes after the durable record. It changes nothing: the real method runs, and its answer is returned.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest

from kkp.authn.accounts import AccountDirectory
from kkp.authn.identities import IdentityDirectory
from kkp.authn.passwords import Passwords
from kkp.authn.revocations import Revocations
from kkp.authz.approvals import Approvals
from kkp.authz.grouping import GroupingPolicy
from kkp.keyring.rotation import Keyring
from kkp.kms.local import LocalKMS
from kkp.kms.memory import MemoryKMS
from kkp.pipeline import Pipeline
from kkp.store.audit import AuditStore

PROBED: tuple[tuple[type, str], ...] = (
    *((kms, method) for kms in (MemoryKMS, LocalKMS) for method in ("wrap", "unwrap", "describe")),
    (Keyring, "sign"),
    (Keyring, "rotate"),
    (Keyring, "revoke"),
    (Revocations, "revoke_token"),
    (Revocations, "revoke"),
    (Revocations, "lift"),
    (Revocations, "page"),
    (Approvals, "deny"),
    (Approvals, "page"),
    (IdentityDirectory, "add"),
    (IdentityDirectory, "disable"),
    (IdentityDirectory, "rotate_key"),
    (IdentityDirectory, "all"),
    (AccountDirectory, "enrol"),
    (AccountDirectory, "change"),
    (Passwords, "matches"),
    (AuditStore, "read"),
    (GroupingPolicy, "explain"),
)

_operating: ContextVar[bool] = ContextVar("operating", default=False)


@dataclass(slots=True)
class Probes:
    """What was reached: in all, and from where it must not be."""

    fired: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)

    def note(self, name: str) -> None:
        """Count a call."""
        self.fired[name] += 1
        if not _operating.get():
            self.outside.append(name)


def install(monkeypatch: pytest.MonkeyPatch) -> Probes:
    """Put the probes in place; start the server before, because starting it is not a request."""
    probes = Probes()
    monkeypatch.setattr(Pipeline, "_operate", _marking(Pipeline._operate))
    for owner, method in PROBED:
        probe = _probing(getattr(owner, method), probes, f"{owner.__name__}.{method}")
        monkeypatch.setattr(owner, method, probe)
    return probes


def _marking(operate: Callable[..., Any]) -> Callable[..., Any]:
    async def marked(*arguments: Any, **named: Any) -> Any:
        token = _operating.set(True)
        try:
            return await operate(*arguments, **named)
        finally:
            _operating.reset(token)

    return marked


def _probing(method: Callable[..., Any], probes: Probes, name: str) -> Callable[..., Any]:
    def probed(*arguments: Any, **named: Any) -> Any:
        probes.note(name)
        return method(*arguments, **named)

    async def probed_async(*arguments: Any, **named: Any) -> Any:
        probes.note(name)
        return await method(*arguments, **named)

    return probed_async if inspect.iscoroutinefunction(method) else probed
