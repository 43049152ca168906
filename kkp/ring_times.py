"""The times of the signing keyring, and the rules that make them safe together.

A token verifies until its `exp` with any JWKS copy no older than C only if the times fit one another.
These rules are checked at start-up, so that an unsafe configuration never signs. Pure arithmetic, no I/O.

No time is longer than ten years: beyond that it is a slip of the keyboard, and far beyond it the arithmetic
ends. Token lifetimes are a second at least, because `exp` is rounded down to whole seconds.

| symbol | what it bounds |
|---|---|
| T | the longest token lifetime |
| R | from one key's activation to the next one's |
| L | a key's lifetime, counted from its activation; L = R + G |
| G | from a key's last signature to its leaving the JWKS |
| C | how long a verifier uses one copy of the JWKS |
| P | how old the keyring state of a replica may be |
| S | how far a replica's or verifier's clock may be off, either way |
| F | how long a fetch of the JWKS takes |
| δ | the leeway that verifiers grant on `exp` |
| K | the most keys published at a time |

Two clocks that are each off by S are 2S apart: the one that stamped a key's creation may be behind, the one
that signs ahead. So the publication lead counts 2S. V1 needs one S only: it keeps rotation from being
stretched, and a successor that comes S late can shorten tokens for a moment but never break one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Final, NamedTuple

MAX_SECONDS: Final = 315_360_000  # ten years

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "token_ttl": "KKP_TOKEN_TTL_SECS",
        "rotation": "KKP_KEY_ROTATION_SECS",
        "key_ttl": "KKP_KEY_TTL_SECS",
        "verifier_cache": "KKP_VERIFIER_CACHE_SECS",
        "replica_staleness": "KKP_REPLICA_STALENESS_SECS",
        "poll": "KKP_POLL_SECS",
        "clock_error": "KKP_CLOCK_ERROR_SECS",
        "fetch": "KKP_FETCH_SECS",
        "verifier_leeway": "KKP_VERIFIER_LEEWAY_SECS",
        "min_ttl": "KKP_MIN_TOKEN_TTL_SECS",
        "jwks_max_age": "KKP_JWKS_MAX_AGE_SECS",
        "jwks_max_age_floor": "KKP_JWKS_MAX_AGE_FLOOR_SECS",
        "max_keys": "KKP_MAX_ACTIVE_KEYS",
    }
)
_LEAST: Final[Mapping[str, float]] = MappingProxyType({"token_ttl": 1, "min_ttl": 1, "verifier_leeway": 0})


class Rule(NamedTuple):
    """`low` must not be above `high`; `cure` names the settings to change."""

    name: str
    statement: str
    low: float
    high: float
    cure: str

    def problem(self) -> str:
        """Say that it does not hold, with both numbers."""
        low, high = _number(self.low), _number(self.high)
        return f"{self.name}: {self.statement} does not hold, {low} is above {high}: {self.cure}."


def _number(value: float) -> str:
    return f"{value:.12g}"


def _usable(name: str, value: float) -> tuple[bool, str]:
    """Return whether a value can be used at all, and what can."""
    if name == "max_keys":
        return value >= 1, "a positive whole number"
    if name in _LEAST:
        return _LEAST[name] <= value <= MAX_SECONDS, f"seconds, from {_LEAST[name]} to {MAX_SECONDS}"
    return 0 < value <= MAX_SECONDS, f"seconds, above 0 and at most {MAX_SECONDS}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingTimes:
    """Every time of the keyring, in seconds, and the most keys it publishes.

    Attributes:
        token_ttl: T.
        rotation: R.
        key_ttl: L.
        verifier_cache: C.
        replica_staleness: P.
        poll: How often a replica reads the ring.
        clock_error: S.
        fetch: F.
        verifier_leeway: δ; may be 0.
        min_ttl: The shortest lifetime worth minting when a key runs out.
        jwks_max_age: What `Cache-Control: max-age` tells JWKS caches.
        jwks_max_age_floor: The least `jwks_max_age`.
        max_keys: K.
    """

    token_ttl: float = 300
    rotation: float = 900
    key_ttl: float = 1800
    verifier_cache: float = 600
    replica_staleness: float = 60
    poll: float = 5
    clock_error: float = 5
    fetch: float = 10
    verifier_leeway: float = 60
    min_ttl: float = 60
    jwks_max_age: float = 300
    jwks_max_age_floor: float = 30
    max_keys: int = 5

    @property
    def grace(self) -> float:
        """G, from a key's last signature to its leaving the JWKS."""
        return self.key_ttl - self.rotation

    @property
    def publication_lead(self) -> float:
        """How long a key must be public before it signs: C + P + 2S + F."""
        return self._v1_lead + self.clock_error

    @property
    def copy_lifetime(self) -> float:
        """How long after the last note of serving somebody may still use a JWKS copy: C + 2P + 2S + F.

        A replica serves for up to 2P on one note (see `kkp.keyring.rotation`).
        """
        return self.publication_lead + self.replica_staleness

    @property
    def signing_margin(self) -> float:
        """How long before a key leaves the JWKS its last token expires: 2S + δ."""
        return 2 * self.clock_error + self.verifier_leeway

    @property
    def _v1_lead(self) -> float:
        return self.verifier_cache + self.replica_staleness + self.clock_error + self.fetch

    def problems(self, *, unknown: Collection[str] = ()) -> list[str]:
        """Return every reason to refuse these times, each with its cure; empty when they are safe.

        Args:
            unknown: Attributes whose value is a stand-in: nothing is said about them.
        """
        malformed = {name: problem for name, problem in self._malformed() if name not in unknown}
        nothing: dict[str, Any] = dict.fromkeys([*malformed, *unknown], math.nan)
        return [*malformed.values(), *replace(self, **nothing).broken_rules()]

    def broken_rules(self) -> list[str]:
        """Return a problem for each rule that does not hold; NaN compares to nothing and so breaks none."""
        if self.key_ttl <= self.rotation:
            problem = (
                f"KKP_KEY_TTL_SECS is {_number(self.key_ttl)}, not above KKP_KEY_ROTATION_SECS, "
                f"{_number(self.rotation)}: raise KKP_KEY_TTL_SECS or lower KKP_KEY_ROTATION_SECS."
            )
            return [problem, *replace(self, key_ttl=math.nan).broken_rules()]
        return [rule.problem() for rule in self.rules() if rule.low > rule.high]

    def _malformed(self) -> Iterator[tuple[str, str]]:
        for name, value in asdict(self).items():
            is_usable, good = _usable(name, value)
            if not is_usable:
                yield name, f"{SETTINGS[name]}: {_number(value)} can't be used; give {good}"

    def rules(self) -> Iterator[Rule]:
        """Yield every rule with both of its numbers."""
        yield Rule(
            "V1",
            "C + P + S + F <= R",
            self._v1_lead,
            self.rotation,
            "raise KKP_KEY_ROTATION_SECS, or lower KKP_VERIFIER_CACHE_SECS, KKP_REPLICA_STALENESS_SECS, "
            "KKP_CLOCK_ERROR_SECS or KKP_FETCH_SECS",
        )
        yield Rule(
            "V2",
            "T + max(δ, 2S) + 2S + P <= G",
            self._v2_grace(),
            self.grace,
            "raise KKP_KEY_TTL_SECS (G is KKP_KEY_TTL_SECS less KKP_KEY_ROTATION_SECS), or lower "
            "KKP_TOKEN_TTL_SECS, KKP_VERIFIER_LEEWAY_SECS, KKP_CLOCK_ERROR_SECS or "
            "KKP_REPLICA_STALENESS_SECS",
        )
        yield Rule(
            "V5",
            "ceil((C + P + S + F + L + P + 2S) / R) + 1 <= K",
            self._v5_keys(),
            self.max_keys,
            "raise KKP_MAX_ACTIVE_KEYS or KKP_KEY_ROTATION_SECS, or lower KKP_KEY_TTL_SECS",
        )
        yield Rule(
            "V6",
            "max-age floor <= max-age",
            self.jwks_max_age_floor,
            self.jwks_max_age,
            "raise KKP_JWKS_MAX_AGE_SECS or lower KKP_JWKS_MAX_AGE_FLOOR_SECS",
        )
        yield Rule(
            "V6",
            "max-age <= min(C, R - P - S - F)",
            self.jwks_max_age,
            min(self.verifier_cache, self.rotation - self.replica_staleness - self.clock_error - self.fetch),
            "lower KKP_JWKS_MAX_AGE_SECS, or raise KKP_VERIFIER_CACHE_SECS or KKP_KEY_ROTATION_SECS",
        )
        yield Rule(
            "V7",
            "3 * poll <= P",
            3 * self.poll,
            self.replica_staleness,
            "lower KKP_POLL_SECS or raise KKP_REPLICA_STALENESS_SECS",
        )
        yield Rule(
            "V9",
            "min_ttl <= T",
            self.min_ttl,
            self.token_ttl,
            "lower KKP_MIN_TOKEN_TTL_SECS or raise KKP_TOKEN_TTL_SECS",
        )

    def _v2_grace(self) -> float:
        # A replica that is P behind and S ahead signs after a promotion stamped by a clock S behind, and a
        # publisher S ahead drops the key while a verifier S behind still takes the token: 4S. Usually δ
        # covers half of that; where verifiers grant less leeway, two clock errors take its place.
        leeway = max(self.verifier_leeway, 2 * self.clock_error)
        return self.token_ttl + leeway + 2 * self.clock_error + self.replica_staleness

    def _v5_keys(self) -> float:
        published = self._v1_lead + self.key_ttl + self.replica_staleness + 2 * self.clock_error
        rotations = published / self.rotation
        return math.ceil(rotations) + 1 if math.isfinite(rotations) else rotations
