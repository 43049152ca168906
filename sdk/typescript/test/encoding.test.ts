import assert from "node:assert/strict";
import { test } from "node:test";
import { concatenate, decodeBase64url, decodeUTF8, encodeBase64url, equalBytes } from "#src/encoding.js";

test("base64url there and back is as Node has it, for every length and byte", () => {
  for (let length = 0; length < 260; length++) {
    const bytes = Uint8Array.from({ length }, (_, i) => (i * 37 + length) & 0xff);
    const text = encodeBase64url(bytes);
    assert.equal(text, Buffer.from(bytes).toString("base64url"));
    assert.deepEqual(decodeBase64url(text), bytes);
  }
});

const REFUSED: Readonly<Record<string, string>> = {
  padding: "YQ==",
  "a length that no bytes have": "YWJjZ",
  "stray trailing bits of one byte": "YR",
  "stray trailing bits of two bytes": "YWJ",
  "a letter of base64's other alphabet": "+_AA",
  "a slash": "/_AA",
  "white space": "YW Jj",
  "a line's end": "YWI\n",
  "a letter beyond ASCII": "YWJé",
  "a letter beyond Latin": "YWJ\u0141",
};

for (const [name, text] of Object.entries(REFUSED)) {
  test(`base64url refuses ${name}`, () => {
    assert.equal(decodeBase64url(text), undefined);
  });
}

test("bytes that are not UTF-8 are no text, and a byte order mark is kept", () => {
  assert.equal(decodeUTF8(Uint8Array.of(0xff)), undefined);
  assert.equal(decodeUTF8(Uint8Array.of(0xef, 0xbb, 0xbf)), "\ufeff");
});

test("bytes are equal only in length and in every place", () => {
  assert.ok(equalBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 2)));
  assert.ok(!equalBytes(Uint8Array.of(1, 2), Uint8Array.of(1, 3)));
  assert.ok(!equalBytes(Uint8Array.of(1, 2), Uint8Array.of(0, 2)));
  assert.ok(!equalBytes(Uint8Array.of(1, 2), Uint8Array.of(1)));
});

test("parts are joined in their order", () => {
  assert.deepEqual(
    concatenate(Uint8Array.of(1), new Uint8Array(), Uint8Array.of(2, 3)),
    Uint8Array.of(1, 2, 3),
  );
});
