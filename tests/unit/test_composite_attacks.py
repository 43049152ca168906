"""What an attacker can do to a composite's wrapped key, and what comes of it: nothing, or what a test says.

The attacker knows the format and everything that is public, has many wrapped keys to take apart, and computes
the key version anew, as anybody can.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import rfc8785

from kkp import envelope
from kkp.envelope import MAX_ENCRYPTED_DATA_KEY_BYTES, Envelope
from kkp.errors import EnvelopeInvalidError, InvalidWrapError
from kkp.kms.all_of import join
from kkp.kms.base import KMS, WrappedKey
from tests.composites import (
    CONTEXT,
    DATA_KEY,
    THREE,
    Clouds,
    Document,
    base64_of,
    checked,
    document,
    forged,
    labelled,
    part,
    without,
    wrapped_in,
)

KINDS = ("any-of", "all-of")
SAME_MEMBERS = THREE.replace("orders=", "billing=")
NOBODY: dict[str, list[str]] = {"aws": [], "gcp": [], "azure": []}


@pytest.fixture
def clouds() -> Clouds:
    return Clouds()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def kms(clouds: Clouds, kind: str) -> KMS:
    """Return a composite with two keys of the same members."""
    return await clouds.composite(f"{kind}://?{THREE}&{SAME_MEMBERS}")


async def assert_refused(kms: KMS, blob: WrappedKey, key_id: str = "orders") -> None:
    with pytest.raises(InvalidWrapError):
        await kms.unwrap(key_id, blob, CONTEXT)


async def secret_of(clouds: Clouds, parts: list[Document]) -> bytes:
    """Return what the members hold, as nobody outside can."""
    held = [await clouds[one["backend"]].kms.unwrap(one["key_id"], wrapped_in(one), CONTEXT) for one in parts]
    return b"".join(held)


async def test_the_attacker_writes_what_would_open_if_only_it_were_genuine(kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)

    assert forged(document(wrapped)) == wrapped
    assert labelled(document(wrapped)) == wrapped.key_version


async def test_the_check_value_is_the_documented_one(clouds: Clouds, kms: KMS, kind: str) -> None:
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))
    secret = DATA_KEY if kind == "any-of" else await secret_of(clouds, read["parts"])

    assert checked(read, secret) == read


# The list of parts.


@pytest.mark.promise(24)
@pytest.mark.parametrize("backend", ["aws", "gcp", "azure"])
async def test_a_part_can_not_be_stripped(kms: KMS, backend: str) -> None:
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))

    await assert_refused(kms, forged(read | {"parts": without(read["parts"], backend)}))


@pytest.mark.promise(24)
async def test_a_part_can_not_be_added(clouds: Clouds, kms: KMS, kind: str) -> None:
    wider = await clouds.composite(f"{kind}://?{THREE}&key.orders=aws:alias/more")
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))
    own = part("aws:alias/more", await clouds.aws.kms.wrap("alias/more", bytes(32), CONTEXT))

    await assert_refused(wider, forged(read | {"parts": [*read["parts"], own]}))
    await assert_refused(wider, forged(read | {"parts": [own, *read["parts"]]}))


@pytest.mark.promise(24)
@pytest.mark.parametrize("number", range(3))
async def test_a_part_can_not_be_taken_from_another_wrap(kms: KMS, number: int) -> None:
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))
    again = document(await kms.wrap("orders", DATA_KEY, CONTEXT))
    other = document(await kms.wrap("orders", bytes(32), CONTEXT))

    for source in (again, other):
        parts = [*read["parts"]]
        parts[number] = source["parts"][number]
        await assert_refused(kms, forged(read | {"parts": parts}))
        await assert_refused(kms, forged(source | {"parts": parts}))


@pytest.mark.promise(24)
async def test_the_order_of_the_parts_can_not_be_changed(kms: KMS) -> None:
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))

    await assert_refused(kms, forged(read | {"parts": read["parts"][::-1]}))


@pytest.mark.promise(24)
async def test_a_part_can_not_be_relabelled_with_another_name_of_its_key(clouds: Clouds, kind: str) -> None:
    kms = await clouds.composite(f"{kind}://?{THREE}&former.orders=twin:alias/orders")
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))
    parts = [read["parts"][0] | {"backend": "twin"}, *read["parts"][1:]]

    await assert_refused(kms, forged(read | {"parts": parts}))


@pytest.mark.promise(24)
async def test_a_members_ordinary_wrap_is_no_composites(clouds: Clouds, kms: KMS) -> None:
    ordinary = await clouds.aws.kms.wrap("alias/orders", DATA_KEY, CONTEXT)
    read = document(await kms.wrap("orders", DATA_KEY, CONTEXT))
    own = part("aws:alias/orders", ordinary)

    await assert_refused(kms, ordinary)
    await assert_refused(kms, forged(read | {"parts": [own]}))
    await assert_refused(kms, forged(read | {"parts": [own, *read["parts"][1:]]}))


@pytest.mark.promise(24)
async def test_two_data_keys_can_not_be_put_into_one_wrap(clouds: Clouds) -> None:
    kms = await clouds.composite("any-of://?key.orders=aws:alias/orders&key.orders=gcp:orders&hedge_ms=60000")
    one, other = bytes(32), b"\xff" * 32
    parts = [
        part("aws:alias/orders", await clouds.aws.kms.wrap("alias/orders", one, CONTEXT)),
        part("gcp:orders", await clouds.gcp.kms.wrap("orders", other, CONTEXT)),
    ]
    blob = forged(checked({"kind": "any-of", "parts": parts, "v": 1}, one))

    assert await kms.unwrap("orders", blob, CONTEXT) == one
    clouds.aws.refuse(InvalidWrapError("gone"))
    await assert_refused(kms, blob)


# The kind, the logical name, the context.


@pytest.mark.promise(24)
async def test_one_kind_is_not_the_other_with_the_same_members(clouds: Clouds, kms: KMS, kind: str) -> None:
    (other_kind,) = {*KINDS} - {kind}
    other = await clouds.composite(f"{other_kind}://?{THREE}")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)

    await assert_refused(other, wrapped)
    await assert_refused(other, forged(document(wrapped) | {"kind": other_kind}))


@pytest.mark.promise(24)
async def test_another_logical_name_with_the_same_members_opens_nothing(kms: KMS) -> None:
    await assert_refused(kms, await kms.wrap("orders", DATA_KEY, CONTEXT), "billing")


@pytest.mark.promise(24)
async def test_a_data_key_that_several_members_wrapped_does_not_make_a_share_of_zeros(clouds: Clouds) -> None:
    """An envelope that moved from member to member leaves wraps of one data key, and those add up to zero."""
    kms = await clouds.composite("all-of://?key.orders=aws:alias/orders&key.orders=gcp:orders")
    parts = [
        part("aws:alias/orders", await clouds.aws.kms.wrap("alias/orders", DATA_KEY, CONTEXT)),
        part("gcp:orders", await clouds.gcp.kms.wrap("orders", DATA_KEY, CONTEXT)),
    ]
    forgery: Document = {"check": base64_of(bytes(32)), "kind": "all-of", "parts": parts, "v": 1}

    for guess in (bytes(32), bytes(64)):  # all that is known of the shares is their sum
        await assert_refused(kms, forged(checked(forgery, guess)))
    assert await kms.unwrap("orders", forged(checked(forgery, DATA_KEY * 2)), CONTEXT) == bytes(32)


@pytest.mark.promise(24)
async def test_a_share_that_everybody_knows_is_no_way_into_a_sum_of_zeros(clouds: Clouds) -> None:
    """Whoever has an RSA public key can wrap what they like by it; the other two members cancel out."""
    kms = await clouds.composite(f"all-of://?{THREE}")
    known = b"k" * 32
    parts = [
        part("aws:alias/orders", await clouds.aws.kms.wrap("alias/orders", DATA_KEY, CONTEXT)),
        part("gcp:orders", await clouds.gcp.kms.wrap("orders", DATA_KEY, CONTEXT)),
        part("azure:orders", await clouds.azure.kms.wrap("orders", known, CONTEXT)),
    ]
    forgery: Document = {"check": base64_of(bytes(32)), "kind": "all-of", "parts": parts, "v": 1}

    for guess in (known, bytes(64) + known, known * 3):
        await assert_refused(kms, forged(checked(forgery, guess)))


@pytest.mark.promise(24)
async def test_one_member_alone_can_not_stand_for_all(clouds: Clouds) -> None:
    kms = await clouds.composite(f"all-of://?{THREE}")
    parts = [part("aws:alias/orders", await clouds.aws.kms.wrap("alias/orders", DATA_KEY, CONTEXT))]
    clouds.forget()

    await assert_refused(kms, forged(checked({"kind": "all-of", "parts": parts, "v": 1}, DATA_KEY)))
    assert clouds.calls == NOBODY


@pytest.mark.parametrize(
    "members",
    [(("gcp", "orders"), ("azure", "orders")), (("aws", "alias/orders"), ("gcp", "old"))],
    ids=["current", "current and former"],
)
async def test_whoever_may_wrap_with_two_members_can_seal_for_an_all_of_of_three(
    clouds: Clouds, members: tuple[tuple[str, str], ...]
) -> None:
    """No protection is lost by it that there was: what all of them sealed still takes all to open."""
    kms = await clouds.composite(f"all-of://?{THREE}&former.orders=gcp:old")
    shares = [b"1" * 32, b"2" * 32]
    parts = [
        part(f"{cloud}:{key_id}", await clouds[cloud].kms.wrap(key_id, share, CONTEXT))
        for (cloud, key_id), share in zip(members, shares, strict=True)
    ]
    forgery: Document = {"check": "", "kind": "all-of", "parts": parts, "v": 1}

    assert await kms.unwrap("orders", forged(checked(forgery, b"".join(shares))), CONTEXT) == join(shares)


@pytest.mark.promise(24)
async def test_one_members_wrap_and_a_genuine_part_of_another_make_no_all_of(clouds: Clouds) -> None:
    kms = await clouds.composite(f"all-of://?{THREE}")
    genuine = document(await kms.wrap("orders", DATA_KEY, CONTEXT))["parts"][0]
    share = b"1" * 32
    parts = [genuine, part("gcp:orders", await clouds.gcp.kms.wrap("orders", share, CONTEXT))]
    forgery: Document = {"check": "", "kind": "all-of", "parts": parts, "v": 1}

    for guess in (share, share * 2, bytes(32) + share, DATA_KEY + share):
        await assert_refused(kms, forged(checked(forgery, guess)))


@pytest.mark.promise(25)
async def test_a_member_that_binds_no_context_does_not_unbind_the_composite(clouds: Clouds, kms: KMS) -> None:
    for cloud in ("aws", "gcp", "azure"):
        _forget_the_context(clouds, cloud)
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    assert await kms.unwrap("orders", wrapped, CONTEXT) == DATA_KEY

    with pytest.raises(InvalidWrapError):
        await kms.unwrap("orders", wrapped, {**CONTEXT, "environment": "prod"})


def _forget_the_context(clouds: Clouds, cloud: str) -> None:
    real = clouds[cloud].kms

    class Forgetful:
        async def wrap(self, key_id: str, data_key: bytes, _context: Mapping[str, str]) -> WrappedKey:
            return await real.wrap(key_id, data_key, {})

        async def unwrap(self, key_id: str, wrapped: WrappedKey, _context: Mapping[str, str]) -> bytes:
            return await real.unwrap(key_id, wrapped, {})

    clouds[cloud].kms = Forgetful()  # type: ignore[assignment]  # it has what is used


# The envelope around it.


async def sealed(kms: KMS, kind: str) -> Envelope:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    return envelope.seal(
        "secret",
        data_key=DATA_KEY,
        context=CONTEXT,
        associated_data=None,
        backend=kind,
        key_id="orders",
        key_version=wrapped.key_version,
        encrypted_data_key=wrapped.encrypted_data_key,
    )


@pytest.mark.promise(24)
@pytest.mark.parametrize("number", range(3))
async def test_a_part_opens_no_envelope_as_its_members_ordinary_wrap(
    clouds: Clouds, kms: KMS, kind: str, number: int
) -> None:
    genuine = await sealed(kms, kind)
    assert envelope.open(genuine, DATA_KEY) == b"secret"
    one = json.loads(genuine.wrap.encrypted_data_key)["parts"][number]
    wire: Document = msgspec.to_builtins(envelope.to_wire(genuine))
    ordinary = wrapped_in(one)
    wire |= {name: one[name] for name in ("backend", "key_id", "key_version")}
    wire["encrypted_data_key"] = envelope._encode(ordinary.encrypted_data_key)
    opened = await clouds[one["backend"]].kms.unwrap(one["key_id"], ordinary, CONTEXT)

    with pytest.raises(EnvelopeInvalidError):
        envelope.open(envelope.parse(json.dumps(wire).encode()), opened)


# The form: everything is refused before anybody is asked.

Fault = Callable[[Document], bytes]


def changed(**members: Any) -> Fault:
    return lambda read: rfc8785.dumps(read | members)


def first_part(**members: Any) -> Fault:
    return lambda read: rfc8785.dumps(read | {"parts": [read["parts"][0] | members, *read["parts"][1:]]})


def dropped(name: str) -> Fault:
    return lambda read: rfc8785.dumps({key: value for key, value in read.items() if key != name})


def text(change: Callable[[bytes], bytes]) -> Fault:
    return lambda read: change(rfc8785.dumps(read))


def of_parts(number: int) -> Fault:
    """Repeat the first part under so many names."""

    def parts(read: Document) -> bytes:
        named = [read["parts"][0] | {"key_id": f"alias/{index}"} for index in range(number)]
        return rfc8785.dumps(read | {"parts": named})

    return parts


MALFORMED: Mapping[str, Fault] = {
    "empty": text(lambda _: b""),
    "not JSON": text(lambda _: b"aws"),
    "a list": text(lambda _: b"[]"),
    "null": text(lambda _: b"null"),
    "no member": text(lambda _: b"{}"),
    "nested beyond any use": text(lambda _: b"[" * 60_000),
    "nested in a member": text(lambda raw: raw.replace(b'"v":1', b'"v":' + b"[" * 20_000)),
    "a byte order mark": text(lambda raw: b"\xef\xbb\xbf" + raw),
    "UTF-16": text(lambda raw: raw.decode().encode("utf-16")),
    "no UTF-8": text(lambda raw: raw.replace(b"alias", b"ali\xffs")),
    "a lone surrogate": text(lambda raw: raw.replace(b"alias", b"\\ud800")),
    "a space": text(lambda raw: raw.replace(b":1}", b": 1}")),
    "a newline at the end": text(lambda raw: raw + b"\n"),
    "an escape that need not be": text(lambda raw: raw.replace(b"alias", b"\\u0061lias")),
    "an escaped slash": text(lambda raw: raw.replace(b"alias/", b"alias\\/")),
    "another order of members": text(lambda raw: b'{"v":1,' + raw[1:].replace(b',"v":1}', b"}")),
    "a member twice": text(lambda raw: raw.replace(b'"v":1}', b'"v":1,"v":1}')),
    "a part's member twice": text(lambda raw: raw.replace(b'{"backend"', b'{"backend":"aws","backend"', 1)),
    "an unknown member": changed(extra=1),
    "an unknown member of a part": first_part(extra=1),
    "another version": changed(v=2),
    "version true": changed(v=True),
    "version 1.0": text(lambda raw: raw.replace(b'"v":1', b'"v":1.0')),
    "a version in quotes": changed(v="1"),
    "another kind": changed(kind="some-of"),
    "a kind in capitals": changed(kind="ANY-OF"),
    "no check value": dropped("check"),
    "no kind": dropped("kind"),
    "no list of parts": dropped("parts"),
    "no version": dropped("v"),
    "a check value of null": changed(check=None),
    "a check value that is no base64": changed(check="?"),
    "a check value in base64url": text(lambda raw: raw.replace(b'"check":"', b'"check":"_-')),
    "a check value without padding": text(lambda raw: raw.replace(b'="', b'"', 1)),
    "no part": changed(parts=[]),
    "one part twice": lambda read: rfc8785.dumps(read | {"parts": [read["parts"][0]] * 2}),
    "parts of null": changed(parts=None),
    "a part of null": changed(parts=[None]),
    "a backend that is no text": first_part(backend=1),
    "a wrapped key of null": first_part(encrypted_data_key=None),
    "nine parts": of_parts(9),
    "as many parts as fit": of_parts(350),
    "a byte too long": text(lambda raw: raw + b" " * (MAX_ENCRYPTED_DATA_KEY_BYTES + 1 - len(raw))),
}


@pytest.mark.promise(25)
@pytest.mark.parametrize("fault", MALFORMED.values(), ids=MALFORMED)
async def test_a_malformed_wrap_is_refused_before_anybody_is_asked(
    clouds: Clouds, kms: KMS, fault: Fault
) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    blob = fault(document(wrapped))
    assert blob != wrapped.encrypted_data_key
    clouds.forget()
    try:
        version = labelled(json.loads(blob))
    except Exception:  # noqa: BLE001  what has no version has any
        version = wrapped.key_version

    await assert_refused(kms, WrappedKey(blob, version))
    assert clouds.calls == NOBODY


@pytest.mark.promise(25)
@pytest.mark.parametrize(("number", "calls"), [(8, 8), (9, 0)])
async def test_more_than_eight_parts_are_refused_before_anybody_is_asked(
    clouds: Clouds, kind: str, number: int, calls: int
) -> None:
    keys = "&".join(f"key.orders=aws:alias/{index}" for index in range(8))
    kms = await clouds.composite(f"{kind}://?{keys}")
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    read = document(wrapped)
    extra = [read["parts"][0] | {"key_id": f"alias/{index}"} for index in range(8, number)]
    clouds.forget()

    await assert_refused(
        kms, forged(read | {"check": base64_of(bytes(32)), "parts": [*read["parts"], *extra]})
    )
    assert len(clouds.aws.calls) == calls


async def test_a_wrong_version_is_refused_before_anybody_is_asked(clouds: Clouds, kms: KMS) -> None:
    wrapped = await kms.wrap("orders", DATA_KEY, CONTEXT)
    clouds.forget()

    for version in ("", "1", wrapped.key_version.upper(), wrapped.key_version[:-1], "0" * 64):
        await assert_refused(kms, WrappedKey(wrapped.encrypted_data_key, version))
    assert clouds.calls == NOBODY
