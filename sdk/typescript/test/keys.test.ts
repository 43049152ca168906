import assert from "node:assert/strict";
import { test } from "node:test";
import { KeySet } from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";
import { isAcceptablePoint, PublicKey } from "#src/keys.js";

const PRIME = 2n ** 255n - 19n;
const SIGN = 2n ** 255n;
// The y of a point of order 8; that of the others of order 8 is its negative.
const ORDER_8 = 0x05fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n;

function littleEndian(number: bigint): Uint8Array<ArrayBuffer> {
  return Uint8Array.from({ length: 32 }, (_, i) => Number((number >> BigInt(8 * i)) & 0xffn));
}

const POINTS: readonly (readonly [string, bigint, boolean])[] = [
  ["of order 1", 1n, false],
  ["of order 2", PRIME - 1n, false],
  ["of order 4", 0n, false],
  ["of order 8", ORDER_8, false],
  ["of order 8, and negative", PRIME - ORDER_8, false],
  ["beside that of order 1", 2n, true],
  ["beside that of order 2", PRIME - 2n, true],
  ["beside one of order 8", ORDER_8 + 1n, true],
  ["in a second spelling of 0", PRIME, false],
  ["in a second spelling of 1", PRIME + 1n, false],
  ["in a second spelling of 2", PRIME + 2n, false],
  ["in the last spelling that there is", SIGN - 1n, false],
];

for (const [name, y, isTaken] of POINTS) {
  test(`a point ${name} is ${isTaken ? "taken" : "refused"}, whatever the sign`, () => {
    assert.equal(isAcceptablePoint(littleEndian(y)), isTaken);
    assert.equal(isAcceptablePoint(littleEndian(y | SIGN)), isTaken);
  });
}

test("to look at a point does not change it", () => {
  const raw = littleEndian(2n | SIGN);
  isAcceptablePoint(raw);
  assert.deepEqual(raw, littleEndian(2n | SIGN));
});

test("under a key that is no point of the curve nothing verifies, and nothing is thrown", async () => {
  const key = new PublicKey(littleEndian(2n));
  assert.equal(await key.verifies(new Uint8Array(64), encodeUTF8("message")), false);
});

test("a set of a later time has the same keys, and its own age", () => {
  const keys = new Map([["kid", new PublicKey(littleEndian(3n))]]);
  const set = new KeySet(keys, 1000).at(2000);
  assert.equal(set.keys, keys);
  assert.equal(set.fetchedAt, 2000);
});

test("a document of 256 KiB is read, and one byte more is not", async () => {
  const x = Buffer.from(littleEndian(3n)).toString("base64url");
  const canonical = JSON.stringify({ crv: "Ed25519", kty: "OKP", x });
  const kid = Buffer.from(await crypto.subtle.digest("SHA-256", encodeUTF8(canonical))).toString("base64url");
  const document = JSON.stringify({ keys: [{ kty: "OKP", crv: "Ed25519", x, kid }] });
  const padded = document.padEnd(256 * 1024);
  assert.deepEqual([...((await KeySet.read(encodeUTF8(padded), 0))?.keys.keys() ?? [])], [kid]);
  assert.equal(await KeySet.read(encodeUTF8(`${padded} `), 0), undefined);
});
