"""Strict JSON: what is read, what is refused, and that a refusal quotes nothing."""

from __future__ import annotations

import pytest

from kkp_client import strict_json

READ = {
    "white space where RFC 8259 has it": (b' \t\r\n{ "a" : [ 1 , true ] } \n', {"a": [1, True]}),
    "one name at two depths": (b'{"a":{"a":1}}', {"a": {"a": 1}}),
    "a pair of surrogates that is escaped": (b'"\\ud83d\\ude00"', "😀"),
    "letters beyond ASCII": ('{"ä":"😀"}'.encode(), {"ä": "😀"}),
    "an escaped backslash before a u": (b'"\\\\ud800"', "\\ud800"),
    "brackets in strings, however many": (b'["' + b"[{" * 100 + b'\\""]', ["[{" * 100 + '"']),
    "many brackets side by side": (b"[" + b"[]," * 99 + b"[]]", [[]] * 100),
    "32 deep": (b"[" * 32 + b"]" * 32, None),
    "32 deep with a value in it": (b'{"a":' * 32 + b"1" + b"}" * 32, None),
}
REFUSED = {
    "nothing": b"",
    "white space alone": b" ",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "bytes that are no UTF-8": b'"\xff"',
    "an overlong form": b'"\xc0\xaf"',
    "a surrogate in UTF-8": b'"\xed\xa0\x80"',
    "a name twice": b'{"a":1,"a":1}',
    "a name twice, once escaped": b'{"a":1,"\\u0061":1}',
    "a name twice, deep inside": b'{"a":[{"b":{"c":1,"c":2}}]}',
    "a lone high surrogate": b'"\\ud800"',
    "a lone low surrogate": b'"\\uDC00"',
    "surrogates in the wrong order": b'"\\udc00\\ud800"',
    "a lone surrogate in a name": b'{"\\ud800":1}',
    "NaN": b"NaN",
    "Infinity": b"[Infinity]",
    "-Infinity": b"-Infinity",
    "a comma too many": b"[1,]",
    "a number with a leading zero": b"01",
    "a number with a plus": b"+1",
    "a number without digits before its fraction": b".5",
    "a number without a fraction after its point": b"1.",
    "digits of another script": "\u0661".encode(),
    "a control character in a string": b'"\x01"',
    "a line break in a string": b'"\n"',
    "an unknown escape": b'"\\x41"',
    "an escape of three digits": b'"\\u041"',
    "an escape with a sign": b'"\\u+041"',
    "an escape with an underline": b'"\\u0_41"',
    "single quotes": b"{'a':1}",
    "a comment": b"{}//",
    "a second value": b"{}{}",
    "a form feed": b"\x0c{}",
    "a no-break space": "\u00a0{}".encode(),
    "an end too many": b"[]]",
    "no end": b"[",
    "33 deep": b"[" * 33 + b"]" * 33,
    "33 deep behind brackets in a string": b'["[[[[\\"]]]]",' + b"[" * 32 + b"]" * 33,
    "a hundred thousand deep": b"[" * 100_000,
    "a hundred thousand deep with an open string in front": b'["' + b"[" * 100_000,
}
NUMBERS: dict[bytes, int | float] = {
    b"0": 0,
    b"9007199254740991": 9007199254740991,
    b"9007199254740992": 9007199254740992.0,
    b"-0": -0.0,
    b"-1": -1.0,
    b"1.0": 1.0,
    b"1e0": 1.0,
    b"1" * 5000: float("inf"),
    b"-" + b"1" * 5000: float("-inf"),
    b"1e400": float("inf"),
}


@pytest.mark.parametrize("name", READ)
def test_strict_json_is_read(name: str) -> None:
    document, value = READ[name]
    read = strict_json.loads(document)
    assert value is None or read == value


@pytest.mark.parametrize("name", REFUSED)
def test_other_json_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^not strict JSON$") as refusal:
        strict_json.loads(REFUSED[name])
    assert refusal.value.__context__ is None, "a decoder's error holds the whole text"


@pytest.mark.parametrize("document", NUMBERS)
def test_numbers_of_digits_alone_are_integers_and_others_are_not(document: bytes) -> None:
    number = strict_json.loads(document)
    assert number == NUMBERS[document]
    assert type(number) is type(NUMBERS[document])


def test_depth_is_told_in_one_pass_even_of_a_string_that_never_ends() -> None:
    text = '{"a":' + "[]," * 33 + '"' + '\\"' * 50_000
    found = list(strict_json._OUTSIDE_STRINGS.finditer(text))
    assert sum(len(match[0]) for match in found) <= len(text)
    assert len(found) == 1 + 1 + 2 * 33 + 1, (
        "the string that never ends is one match, and not one for each quote"
    )
