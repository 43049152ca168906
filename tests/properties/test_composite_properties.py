"""Composites under Hypothesis: who has to answer, and that nothing but what was written opens."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from kkp.errors import InvalidWrapError, KMSUnavailableError
from kkp.kms._parts import read
from kkp.kms.base import WrappedKey
from tests.composites import CLOUDS, CONTEXT, DATA_KEY, THREE, Clouds

AWAY = KMSUnavailableError("away")
MOODS = st.sampled_from(("well", "away", "lying"))
KINDS = st.sampled_from(("any-of", "all-of"))


async def verdict(kind: str, sealing: dict[str, str], opening: dict[str, str], needed: int) -> str:
    """Return what comes of sealing and then opening with the clouds in these moods."""
    clouds = Clouds()
    options = f"&min_members={needed}&hedge_ms=60000" if kind == "any-of" else ""
    kms = await clouds.composite(f"{kind}://?{THREE}{options}")
    for cloud, mood in sealing.items():
        if mood == "away":
            clouds[cloud].refuse(AWAY)
    try:
        wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    except KMSUnavailableError:
        return "not sealed"
    for cloud, mood in opening.items():
        clouds[cloud].mood = None
        if mood == "away":
            clouds[cloud].refuse(AWAY)
        if mood == "lying":
            clouds[cloud].say(b"l" * 32)
    try:
        opened = await kms.unwrap("orders", wrapped, CONTEXT)
    except KMSUnavailableError:
        return "away"
    except InvalidWrapError:
        return "invalid"
    assert opened == DATA_KEY
    return "opened"


def expected(kind: str, sealing: dict[str, str], opening: dict[str, str], needed: int) -> str:
    """Say the same by the rules alone."""
    sealers = [cloud for cloud in CLOUDS if sealing[cloud] == "well"]
    if len(sealers) < (needed if kind == "any-of" else 3):
        return "not sealed"
    moods = {opening[cloud] for cloud in sealers}
    if moods == {"well"} or ("well" in moods and kind == "any-of"):
        return "opened"
    return "away" if "away" in moods else "invalid"


@settings(deadline=None)
@given(
    KINDS,
    st.fixed_dictionaries({cloud: st.sampled_from(("well", "away")) for cloud in CLOUDS}),
    st.fixed_dictionaries(dict.fromkeys(CLOUDS, MOODS)),
    st.integers(1, 3),
)
def test_any_opens_if_one_is_well_that_sealed_and_all_if_every_one_is(
    kind: str, sealing: dict[str, str], opening: dict[str, str], needed: int
) -> None:
    assert asyncio.run(verdict(kind, sealing, opening, needed)) == expected(kind, sealing, opening, needed)


@settings(deadline=None)
@given(KINDS, st.binary(max_size=300))
def test_no_bytes_are_read_but_those_that_were_written(kind: str, raw: bytes) -> None:
    for blob in (raw, b'{"check":"' + raw, b'{"check":"","kind":"' + kind.encode() + b'","parts":[' + raw):
        try:
            read("any-of" if kind == "any-of" else "all-of", WrappedKey(blob, "1"))
        except InvalidWrapError:
            continue
        raise AssertionError(blob)


@settings(deadline=None)
@given(st.data())
def test_no_change_of_a_byte_opens(data: st.DataObject) -> None:
    kind = data.draw(KINDS)
    position, value = data.draw(st.integers(0, 10_000)), data.draw(st.integers(1, 255))

    async def change() -> None:
        kms = await Clouds().composite(f"{kind}://?{THREE}")
        wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
        blob = bytearray(wrapped.encrypted_data_key)
        blob[position % len(blob)] ^= value
        try:
            await kms.unwrap("orders", WrappedKey(bytes(blob), wrapped.key_version), CONTEXT)
        except InvalidWrapError:
            return
        raise AssertionError(bytes(blob))

    asyncio.run(change())
