"""An all-of takes all of its members, and what fewer of them hold says nothing of the data key."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest

from kkp.errors import InvalidWrapError, KKPError, KMSDeniedError, KMSUnavailableError, UnknownKeyError
from kkp.kms.all_of import join, split
from kkp.kms.base import KMS, WrappedKey
from tests.composites import CLOUDS, CONTEXT, DATA_KEY, THREE, Clouds, document, wrapped_in

OUTAGE = KMSUnavailableError("away")
DENIED = KMSDeniedError("not you")
UNKNOWN = UnknownKeyError("no such key")
INVALID = InvalidWrapError("altered")


@pytest.fixture
def clouds() -> Clouds:
    return Clouds()


@pytest.fixture
async def kms(clouds: Clouds) -> KMS:
    return await clouds.composite(f"all-of://?{THREE}")


# Sharing out.


@pytest.mark.parametrize("number", range(2, 9))
def test_all_shares_together_are_the_data_key(number: int) -> None:
    shares = split(DATA_KEY, number)

    assert len(shares) == number
    assert join(shares) == DATA_KEY
    assert all(len(share) == 32 for share in shares)


@pytest.mark.parametrize("number", range(2, 9))
def test_with_any_one_share_missing_every_data_key_is_still_possible(number: int) -> None:
    shares = split(DATA_KEY, number)
    for missing in range(number):
        others = shares[:missing] + shares[missing + 1 :]
        for data_key in (bytes(32), b"\xff" * 32, os.urandom(32)):
            fitting = join([*others, data_key])
            assert join([*others, fitting]) == data_key


@pytest.mark.parametrize(("number", "missing"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_what_all_but_one_see_is_equally_likely_whatever_the_data_key_is(
    monkeypatch: pytest.MonkeyPatch, number: int, missing: int
) -> None:
    """Go through all randomness that there is where the only byte has 16 values, which XOR keeps to."""
    values = [bytes([value]) * 32 for value in range(16)]
    drawn: Iterator[bytes] = iter(())
    monkeypatch.setattr(os, "urandom", lambda _: next(drawn))
    seen_for: list[Counter[tuple[bytes, ...]]] = []
    for data_key in values:
        seen: Counter[tuple[bytes, ...]] = Counter()
        for randomness in product(values, repeat=number - 1):
            drawn = iter(randomness)
            shares = split(data_key, number)
            seen[tuple(shares[:missing] + shares[missing + 1 :])] += 1
        seen_for.append(seen)

    assert all(seen == seen_for[0] for seen in seen_for)
    assert len(seen_for[0]) == 16 ** (number - 1)


async def shares_in(clouds: Clouds, wrapped: WrappedKey) -> list[bytes]:
    """Return what each member holds, as it would tell whoever has its credentials."""
    return [
        await clouds[part["backend"]].kms.unwrap(part["key_id"], wrapped_in(part), CONTEXT)
        for part in document(wrapped)["parts"]
    ]


async def test_each_member_is_handed_a_share_and_none_the_data_key(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    shares = await shares_in(clouds, wrapped)

    assert len({*shares, DATA_KEY}) == 4
    assert join(shares) == DATA_KEY


def test_shares_are_never_given_out_twice() -> None:
    masks = {share for _ in range(100) for share in split(DATA_KEY, 3)}

    assert len(masks) == 300


# Wrapping and unwrapping.


async def test_all_members_are_asked_at_the_same_time(clouds: Clouds, kms: KMS) -> None:
    together = asyncio.Barrier(3)
    for cloud in CLOUDS:
        clouds[cloud].before = together.wait
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)

    assert [part["backend"] for part in document(wrapped)["parts"]] == ["aws", "gcp", "azure"]
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


@pytest.mark.parametrize("away", CLOUDS)
async def test_nothing_works_without_any_one_of_them(clouds: Clouds, kms: KMS, away: str) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds[away].refuse(OUTAGE)

    with pytest.raises(KMSUnavailableError):
        await kms.unwrap("orders", wrapped, CONTEXT)
    with pytest.raises(KMSUnavailableError):
        await kms.wrap("orders", DATA_KEY, CONTEXT)
    with pytest.raises(KMSUnavailableError):
        await kms.describe("orders")
    with pytest.raises(KMSUnavailableError):
        await kms.ping()
    clouds[away].mood = None
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY


@pytest.mark.parametrize("away", CLOUDS)
async def test_a_member_that_hangs_ends_at_its_deadline(clouds: Clouds, away: str) -> None:
    kms, _ = await clouds.guarded_composite(f"all-of://?{THREE}", timeout_seconds=0.05)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds[away].hang()

    with pytest.raises(KMSUnavailableError):
        await kms.unwrap("orders", wrapped, CONTEXT)
    assert clouds[away].cancelled == 1


@pytest.mark.promise(27)
@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ((DENIED, OUTAGE, INVALID), OUTAGE),
        ((INVALID, None, OUTAGE), OUTAGE),
        ((UNKNOWN, DENIED, None), DENIED),
        ((INVALID, UNKNOWN, None), UNKNOWN),
        ((None, INVALID, None), INVALID),
    ],
)
async def test_the_error_is_the_one_that_says_most(
    clouds: Clouds, kms: KMS, errors: tuple[KKPError | None, ...], told: KKPError
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    for cloud, error in zip(CLOUDS, errors, strict=True):
        if error is not None:
            clouds[cloud].refuse(error)

    with pytest.raises(type(told)) as caught:
        await kms.unwrap("orders", wrapped, CONTEXT)
    assert caught.value is told


@pytest.mark.parametrize("liar", CLOUDS)
@pytest.mark.parametrize("lie", [bytes(32), DATA_KEY, b"", bytes(31), bytes(33), bytes(64)], ids=len)
async def test_a_wrong_share_opens_nothing(clouds: Clouds, kms: KMS, liar: str, lie: bytes) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds[liar].say(lie)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, CONTEXT)


async def test_shares_between_which_the_boundary_was_moved_open_nothing(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    first, second, _ = await shares_in(clouds, wrapped)
    clouds.aws.say(first + second[:1])
    clouds.gcp.say(second[1:])

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, CONTEXT)


async def test_two_wrong_shares_that_make_the_right_sum_open_nothing(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.aws.say(bytes(32))
    clouds.gcp.say(bytes(32))
    clouds.azure.say(DATA_KEY)

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, CONTEXT)


async def test_former_members_open_what_they_have_a_share_of(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    later = await clouds.composite(
        "all-of://?key.orders=aws:alias/orders&key.orders=azure:new&former.orders=gcp:orders&former.orders=azure:orders"
    )
    assert await later.unwrap("orders", wrapped, CONTEXT) == DATA_KEY

    newer = await later.wrap("orders", DATA_KEY, CONTEXT)
    labels = [(part["backend"], part["key_id"]) for part in document(newer)["parts"]]
    assert labels == [("aws", "alias/orders"), ("azure", "new")]


@pytest.mark.promise(25)
async def test_a_share_of_nobody_configured_is_refused_before_anybody_is_asked(
    clouds: Clouds, kms: KMS
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    later = await clouds.composite("all-of://?key.orders=aws:alias/orders&key.orders=gcp:orders")
    clouds.forget()

    with pytest.raises(InvalidWrapError):
        await later.unwrap("orders", wrapped, CONTEXT)
    assert clouds.calls == {"aws": [], "gcp": [], "azure": []}


async def test_closing_it_closes_no_member(clouds: Clouds, kms: KMS) -> None:
    await kms.close()

    assert not any(clouds[cloud].closed for cloud in CLOUDS)
