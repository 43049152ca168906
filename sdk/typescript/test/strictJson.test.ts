import assert from "node:assert/strict";
import { test } from "node:test";
import {
  JSONNumber,
  type JSONValue,
  parseStrictJSON,
  parseStrictObject,
  StrictJSONError,
} from "#src/strictJson.js";

const utf8 = new TextEncoder();

function parsed(text: string): JSONValue {
  return parseStrictJSON(utf8.encode(text));
}

function nested(depth: number, inner = ""): string {
  return "[".repeat(depth) + inner + "]".repeat(depth);
}

const REFUSED: Readonly<Record<string, string>> = {
  nothing: "",
  "white space alone": " \n",
  "two values": "1 2",
  "a name twice": '{"a":1,"a":1}',
  "a name twice, once escaped": '{"a":1,"\\u0061":1}',
  "a name twice, deep inside": '{"a":[{"b":{"c":1,"c":2}}]}',
  "a lone high surrogate": '"\\ud83d"',
  "a lone low surrogate": '"\\ude00"',
  "surrogates in the wrong order": '"\\ude00\\ud83d"',
  "a lone surrogate in a name": '{"\\ud83d":1}',
  NaN: "NaN",
  Infinity: "Infinity",
  "minus Infinity": "-Infinity",
  "a number with a leading zero": "01",
  "a number with a plus": "+1",
  "a number that ends with its point": "1.",
  "a number that begins with its point": ".5",
  "a number without its exponent": "1e",
  "a hexadecimal number": "0x10",
  "a minus alone": "-",
  "single quotes": "'a'",
  "an escape that JSON does not have": '"\\x41"',
  "an escape of three digits": '"\\u004"',
  "an escape with a sign in it": '"\\u+041"',
  "an escape at the end": '"\\',
  "a control character in a string": '"a\u0001"',
  "a tab in a string": '"\t"',
  "a control character behind an escape": '"\\n\n"',
  "a string without an end": '"abc',
  "an escaped string without an end": '"\\n',
  "a comma at an object's end": '{"a":1,}',
  "a comma at a list's end": "[1,]",
  "a comma too many": "[1,,2]",
  "an object without an end": '{"a":1',
  "a list without an end": "[1",
  "a name that is no string": "{1:1}",
  "a member without a value": '{"a"}',
  "a comment": "/* */ 1",
  "a form feed as white space": "\f1",
  "a no-break space as white space": "\u00a01",
  True: "True",
  "a byte order mark": "\ufeff1",
  "33 levels": nested(33),
};

for (const [name, text] of Object.entries(REFUSED)) {
  test(`strict JSON refuses ${name}`, () => {
    assert.throws(() => parsed(text), StrictJSONError);
  });
}

const NOT_UTF8: Readonly<Record<string, readonly number[]>> = {
  "a byte that begins nothing": [0x22, 0xff, 0x22],
  "an overlong slash": [0x22, 0xc0, 0xaf, 0x22],
  "a surrogate in UTF-8": [0x22, 0xed, 0xa0, 0xbd, 0x22],
  "a character cut short": [0x22, 0xe2, 0x82, 0x22],
  "more than Unicode has": [0x22, 0xf4, 0x90, 0x80, 0x80, 0x22],
};

for (const [name, bytes] of Object.entries(NOT_UTF8)) {
  test(`strict JSON refuses ${name}`, () => {
    assert.throws(() => parseStrictJSON(Uint8Array.from(bytes)), StrictJSONError);
  });
}

const TAKEN: Readonly<Record<string, readonly [string, JSONValue]>> = {
  "white space wherever RFC 8259 has it": [
    ' \t\r\n{ "a" : [ 1 , 2 ] } ',
    new Map([["a", [new JSONNumber("1"), new JSONNumber("2")]]]),
  ],
  "every escape": ['"\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9"', '"\\/\b\f\n\r\té'],
  "a pair of surrogates": ['"\\ud83d\\uDE00!"', "😀!"],
  "characters beyond the BMP": ['"😀"', "😀"],
  "a NUL that is escaped": ['"\\u0000"', "\0"],
  "an empty object": ["{}", new Map()],
  "an empty list": ["[]", []],
  "the words": ["[true,false,null]", [true, false, null]],
  "names that mean something to the language": [
    '{"__proto__":1,"constructor":2}',
    new Map([
      ["__proto__", new JSONNumber("1")],
      ["constructor", new JSONNumber("2")],
    ]),
  ],
  "a number that no double holds": ["1e999", new JSONNumber("1e999")],
  "a number of 5,000 digits": ["9".repeat(5000), new JSONNumber("9".repeat(5000))],
};

for (const [name, [text, value]] of Object.entries(TAKEN)) {
  test(`strict JSON takes ${name}`, () => {
    assert.deepEqual(parsed(text), value);
  });
}

test("strict JSON takes 32 levels with a scalar inside", () => {
  assert.doesNotThrow(() => parsed(nested(32, "1")));
});

test("levels beside each other are not counted together", () => {
  assert.doesNotThrow(() => parsed(`[${Array(40).fill("[]").join(",")}]`));
});

test("a top that is not an object is no strict object", () => {
  assert.throws(() => parseStrictObject(utf8.encode("[]")), StrictJSONError);
});

const INTEGERS: readonly (readonly [string, number | undefined])[] = [
  ["0", 0],
  ["9007199254740991", 9007199254740991],
  ["9007199254740992", undefined],
  ["9007199254740993", undefined],
  ["9999999999999999", undefined],
  ["10000000000000000", undefined],
  ["-0", undefined],
  ["-1", undefined],
  ["1.0", undefined],
  ["1e3", undefined],
];

for (const [literal, value] of INTEGERS) {
  test(`${literal} as an integer is ${value}`, () => {
    assert.equal(new JSONNumber(literal).asInteger(), value);
  });
}

test("an error says nothing of the text", () => {
  assert.throws(
    () => parsed('"secret'),
    (error: Error) => !error.message.includes("secret"),
  );
});
