"""Envelope v1 under Hypothesis: everything that seals opens, and nothing opens under another context."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from random import Random

import msgspec
import pytest
import rfc8785
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kkp import envelope
from kkp.envelope import Envelope, Header
from kkp.errors import EnvelopeInvalidError
from tests.promises import Recorder
from tests.scale import SCALE

DATA_KEY = bytes(range(32))
HEADER_MEMBERS = ("v", "alg", "context", "associated_data", "encoding", "message_id")

# Letters whose case, normal form or place in UTF-16 order is not what it seems.
letters = st.one_of(
    st.sampled_from('aAéÉñÅ\u017f\u212a\ufb33\U0001f600\u00df\u1e9e\u0130 "\\\n'),
    st.characters(exclude_categories=["Cs"]),
)
names = st.text(letters, min_size=1, max_size=8)
values = st.text(letters, max_size=8)
contexts = st.dictionaries(names, values, max_size=6)


def seal(plaintext: bytes | str, context: dict[str, str], associated_data: str | None = None) -> Envelope:
    return envelope.seal(
        plaintext,
        data_key=DATA_KEY,
        context=context,
        associated_data=associated_data,
        backend="aws",
        key_id="alias/orders",
        key_version="1",
        encrypted_data_key=b"w" * 60,
    )


@given(contexts, st.binary(max_size=64), st.none() | values)
def test_whatever_is_begun_here_and_sealed_elsewhere_opens_here(
    context: dict[str, str], plaintext: bytes, associated_data: str | None
) -> None:
    begun, key = envelope.detach(
        data_key=DATA_KEY,
        context=context,
        associated_data=associated_data,
        encoding=None,
        backend="aws",
        key_id="alias/orders",
        key_version="1",
        encrypted_data_key=b"w" * 60,
    )
    read = envelope.parse_detached(msgspec.json.encode(envelope.detached_to_wire(begun)))
    assert envelope.message_key(read, DATA_KEY) == key
    written = msgspec.to_builtins(envelope.detached_to_wire(read))
    header = rfc8785.dumps({name: written[name] for name in HEADER_MEMBERS})
    sealed = AESGCM(key).encrypt(b"n" * 12, plaintext, header)
    whole = Envelope(read.header, read.wrap, read.commitment, b"n" * 12, sealed)
    assert envelope.open(envelope.parse(msgspec.json.encode(envelope.to_wire(whole))), DATA_KEY) == plaintext


def one_change(context: dict[str, str]) -> Iterator[dict[str, str]]:
    """Every context that differs by one pair: dropped, added, or in case, normal form or one letter."""
    yield context | {"added": ""}
    for name, value in context.items():
        rest = {other: context[other] for other in context if other != name}
        yield rest
        yield rest | {value or "x": name}
        for change in (str.swapcase, str.upper, str.lower, str.strip, nfc, nfd, appended):
            yield rest | {change(name) or "x": value}
            yield rest | {name: change(value)}


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def appended(text: str) -> str:
    return text + "\0"


@given(st.one_of(st.binary(max_size=2000), st.text(letters, max_size=500)), contexts, st.none() | values)
def test_whatever_seals_opens_from_its_json(
    plaintext: bytes | str, context: dict[str, str], associated_data: str | None
) -> None:
    sealed = seal(plaintext, context, associated_data)
    read = envelope.parse(msgspec.json.encode(envelope.to_wire(sealed)))

    assert read == sealed
    assert envelope.open(read, DATA_KEY) == (plaintext.encode() if isinstance(plaintext, str) else plaintext)


@pytest.mark.promise(25)
@settings(max_examples=200 * SCALE, deadline=None)
@given(context=contexts)
def test_a_context_with_one_change_never_opens(context: dict[str, str], record_promise: Recorder) -> None:
    # Some fifty changes for each of two hundred contexts.
    written = msgspec.to_builtins(envelope.to_wire(seal(b"", context)))

    changes = [changed for changed in one_change(context) if changed != context]
    for changed in changes:
        read = envelope.parse(msgspec.json.encode(written | {"context": changed}))
        with pytest.raises(EnvelopeInvalidError):
            envelope.open(read, DATA_KEY)
    record_promise(25, "contexts", len(changes))


@pytest.mark.promise(25)
@given(contexts, st.randoms())
def test_the_order_of_a_context_never_matters(context: dict[str, str], random: Random) -> None:
    pairs = list(context.items())
    random.shuffle(pairs)

    assert envelope.context_bytes(dict(pairs)) == envelope.context_bytes(context)


@settings(max_examples=300)
@given(contexts, st.none() | values, st.sampled_from([None, "utf-8"]), st.binary(min_size=32, max_size=32))
def test_the_header_is_what_rfc8785_writes(
    context: dict[str, str], associated_data: str | None, encoding: envelope.Encoding, message_id: bytes
) -> None:
    header = Header(context, associated_data, encoding, message_id)
    members = msgspec.json.decode(header.canonical())

    assert members["context"] == context
    assert header.canonical() == rfc8785.dumps(members)


@pytest.mark.promise(25)
@given(contexts, contexts)
def test_two_contexts_have_the_same_bytes_only_if_they_are_the_same(
    one: dict[str, str], other: dict[str, str]
) -> None:
    assert (envelope.context_bytes(one) == envelope.context_bytes(other)) == (one == other)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False)
    | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
WRITTEN = msgspec.to_builtins(envelope.to_wire(seal(b"x", {"a": "b"})))


@pytest.mark.promise(26)
@given(st.dictionaries(st.sampled_from(sorted(WRITTEN)), json_values, min_size=1, max_size=3))
def test_any_replaced_members_give_the_one_error(changes: dict[str, object]) -> None:
    assume(any(WRITTEN[member] != value for member, value in changes.items()))
    with pytest.raises(EnvelopeInvalidError):
        envelope.open(envelope.parse(msgspec.json.encode(WRITTEN | changes)), DATA_KEY)


@pytest.mark.promise(18)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_give_the_one_error(raw: bytes) -> None:
    with pytest.raises(EnvelopeInvalidError):
        envelope.parse(raw)
