"""A batch taken apart: what is an item and what is not, and that one item's poison stays in it."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp.errors import InvalidRequestError
from kkp.web.batches import MAX_BODY_BYTES, take_apart
from kkp.web.schemas import MAX_ITEMS
from tests.promises import Recorder

MIB = 1024 * 1024


def items(body: bytes) -> list[bytes]:
    """Return the items as they stand."""
    _, places = take_apart(body)
    return [body[place] for place in places]


@pytest.mark.parametrize(
    ("body", "beside", "expected"),
    [
        (b'{"items":[1]}', b'{"items":[]}', [b"1"]),
        (b'{"items":[{"a":1},[2]],"token":"t"}', b'{"items":[],"token":"t"}', [b'{"a":1}', b"[2]"]),
        (b'{"token":"[","items":["]",null]}', b'{"token":"[","items":[]}', [b'"]"', b"null"]),
        (b' {\n"items" :\t[ 1 ,\r\n{ "a" : 2 } ] }\n', b' {\n"items" :\t[] }\n', [b"1", b'{ "a" : 2 }']),
        (b'{"token":"[1]","items":[1]}', None, [b"1"]),
        (b'{"token":"\xc3\xa9","items":["\xc3\xa9"]}', b'{"token":"\xc3\xa9","items":[]}', [b'"\xc3\xa9"']),
        (b'{"items":["\\ud83d\\ude00","\\\\ud800"]}', b'{"items":[]}', [b'"\\ud83d\\ude00"', b'"\\\\ud800"']),
        (b'{"items":[1,1,1]}', b'{"items":[]}', [b"1", b"1", b"1"]),
    ],
    ids=[
        "one", "several", "brackets in strings", "white space", "the same bytes in a string before",
        "bytes beyond ASCII", "a pair of surrogates and what looks like one", "items that are alike",
    ],
)  # fmt: skip
def test_a_batch_is_taken_apart(body: bytes, beside: bytes | None, expected: list[bytes]) -> None:
    assert items(body) == expected
    if beside is not None:
        assert take_apart(body)[0] == beside


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    listed=st.lists(values, min_size=1, max_size=8),
    token=st.text(),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_whatever_the_items_are_they_are_found_as_they_stand(
    *, listed: list[object], token: str, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps({"token": token, "items": listed, "z": 1}, ensure_ascii=ascii_only, indent=indent)
    body = text.encode("utf-8", "surrogatepass")
    assert [json.loads(item.decode("utf-8", "surrogatepass")) for item in items(body)] == listed
    beside, _ = take_apart(body)
    assert json.loads(beside.decode("utf-8", "surrogatepass")) == {"token": token, "items": [], "z": 1}


POISON: Mapping[str, bytes] = {
    "a lone surrogate": b'{"a":"\\ud800"}',
    "a lone low surrogate in capitals": b'{"a":"\\uDC00"}',
    "a surrogate without its second half": b'{"a":"\\ud83d\\n"}',
    "lists in lists": b"[" * 20_000 + b"]" * 20_000,
    "objects in objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "objects in objects with brackets in their names": b'{"}]\\"{":[' * 10_000 + b"1" + b"]}" * 10_000,
    "deep, shallow and deep again": (b"[" + b"[" * 2000 + b"]" * 2000 + b",7,") * 2 + b"1]]",
    "a member given twice": b'{"a":1,"a":2}',
    "bytes that are not UTF-8": b'{"a":"\xff"}',
    "a number beyond any use": b'{"a":1e999999999}',
    "a long string": b'{"a":"' + b"a" * MIB + b'"}',
    "another type": b'"items"',
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
def test_an_items_poison_stays_in_it(poison: bytes) -> None:
    body = b'{"items":[{"first":1},' + poison + b',{"last":"\\u00e9"}],"token":"t"}'
    assert items(body) == [b'{"first":1}', poison, b'{"last":"\\u00e9"}']
    assert take_apart(body)[0] == b'{"items":[],"token":"t"}'


REFUSED: Mapping[str, bytes] = {
    "nothing": b"",
    "no object": b"[1]",
    "no items": b'{"token":"t"}',
    "items in another case": b'{"Items":[1]}',
    "no list": b'{"items":{"a":1}}',
    "a string": b'{"items":"[1]"}',
    "null": b'{"items":null}',
    "an empty list": b'{"items":[ ]}',
    "one too many": b'{"items":[' + b"0," * MAX_ITEMS + b"0]}",
    "a comma at the end": b'{"items":[1,]}',
    "no comma between": b'{"items":[1 2]}',
    "brackets that do not match": b'{"items":[{"a":1],{"b":2}]}',
    "an item that does not end": b'{"items":[{"a":1},{"b":2]}',
    "deep brackets that do not match": b'{"items":[' + b"[" * 5000 + b"]" * 4999 + b"]}",
    "a string that does not end": b'{"items":["a]}',
    "two bodies": b'{"items":[1]}{"items":[2]}',
    "a comment": b'{"items":[1/**/]}',
    "a byte order mark": b'\xef\xbb\xbf{"items":[1]}',
    "UTF-16": '{"items":[1]}'.encode("utf-16"),
    "a control character in a string": b'{"items":["\n"]}',
    "NaN": b'{"items":[NaN]}',
    "too much beside": b'{"items":[1],"token":"' + b"a" * 64 * 1024 + b'"}',
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_what_leaves_open_what_its_items_are_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        take_apart(body)


@pytest.mark.parametrize("count", [1, 2, MAX_ITEMS - 1, MAX_ITEMS])
def test_as_many_items_as_there_may_be_are_found(count: int) -> None:
    assert items(b'{"items":[' + b",".join([b"0"] * count) + b"]}") == [b"0"] * count


def test_as_much_as_may_stand_beside_the_items_is_taken() -> None:
    around = len(b'{"items":,"token":""}')
    token = b"a" * (64 * 1024 - around)
    assert items(b'{"items":[1],"token":"' + token + b'"}') == [b"1"]
    with pytest.raises(InvalidRequestError, match="beside its items"):
        take_apart(b'{"items":[1],"token":"a' + token + b'"}')


def filled(unit: bytes, before: bytes = b'{"items":[', after: bytes = b"0]}") -> bytes:
    return before + unit * ((MAX_BODY_BYTES - len(before) - len(after)) // len(unit)) + after


DEEP = b"[" * 2000 + b"]" * 2000 + b","
HOSTILE: Mapping[str, bytes] = {
    "zeros without end": filled(b"0,"),
    "objects without end": filled(b"{},"),
    "strings without end": filled(b'"",'),
    "members without end": filled(b'"a":1,', b'{"items":[{', b'"b":1}]}'),
    "members beside without end": filled(b'"a":1,', b'{"items":[0],', b'"b":1}'),
    "lists in lists": filled(b"[", after=b""),
    "objects in objects": filled(b'{"a":', after=b""),
    "white space": filled(b" "),
    "lone surrogates": filled(b"\\ud800", b'{"items":["', b'"]}'),
    "strings around what is deep": filled(b'"",', b'{"items":[' + DEEP),
    "escapes around what is deep": filled(b"\\\\", b'{"items":[' + DEEP + b'"', b'"]}'),
    "one long string beside what is deep": filled(b"a", b'{"items":[' + DEEP + b'"', b'"]}'),
    "nothing but backslashes": filled(b"\\", b'{"items":["', b""),
    "the beginning of a list in a string before": b'{"token":"'
    + b"[0,0," * 12_000
    + b'",'
    + filled(b"0,")[1:],
}


@pytest.mark.promise(18)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_batch_is_taken_apart_or_refused_at_little_cost(
    name: str, record_promise: Recorder
) -> None:
    """Such a body is several times as large as any other; so is what it may cost."""
    body = HOSTILE[name][:MAX_BODY_BYTES]
    assert min(_cpu_seconds(body) for _ in range(3)) <= 0.150
    tracemalloc.start()
    try:
        _take_apart_if_possible(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 4 * MAX_BODY_BYTES
    record_promise(18, "shapes", 1)


def _cpu_seconds(body: bytes) -> float:
    started = time.thread_time()
    _take_apart_if_possible(body)
    return time.thread_time() - started


def _take_apart_if_possible(body: bytes) -> None:
    try:
        take_apart(body)
    except InvalidRequestError:
        return
