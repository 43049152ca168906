import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { decodeUTF8 } from "#src/encoding.js";
import {
  type DetachedEnvelope,
  type Envelope,
  headerBytes,
  importMessageKey,
  Opened,
  open,
  plaintextBytes,
  readDetachedEnvelope,
  readEnvelope,
  readStreamEnvelope,
  seal,
} from "#src/envelope.js";
import { EnvelopeInvalidError } from "#src/errors.js";
import { parseStrictJSON } from "#src/strictJson.js";
import { bytes, vectors } from "./vectors.js";

interface Vectors {
  seal: { name: string; header: string; envelope: Envelope; plaintext_b64url: string }[];
  open: { name: string; envelope: Record<string, unknown>; verdict: string }[];
  detached: {
    name: string;
    envelope: DetachedEnvelope;
    verdict: string;
    message_key?: string;
    header?: string;
    nonce?: string;
    ciphertext?: string;
    plaintext_b64url?: string;
  }[];
}

const GOLDEN = vectors<Vectors>("envelope_v1");
const RELEASED = GOLDEN.detached.filter((golden) => golden.verdict === "released");
const [FIRST] = RELEASED;

for (const golden of GOLDEN.seal) {
  test(`the header is that of: ${golden.name}`, () => {
    const envelope = readEnvelope(golden.envelope);
    assert.equal(decodeUTF8(headerBytes(envelope)), golden.header);
    assert.equal(plaintextBytes(envelope), bytes(golden.plaintext_b64url).length);
  });
}

for (const golden of GOLDEN.open.filter(({ verdict }) => verdict === "opens")) {
  test(`well formed, and the same once read: ${golden.name}`, () => {
    assert.deepEqual(readEnvelope(golden.envelope), golden.envelope);
    assert.deepEqual(
      readEnvelope(parseStrictJSON(Buffer.from(JSON.stringify(golden.envelope)))),
      golden.envelope,
    );
  });
}

for (const golden of RELEASED) {
  test(`sealed byte for byte, and opened, under a message key: ${golden.name}`, async () => {
    const { message_key = "", nonce = "", ciphertext = "", plaintext_b64url = "" } = golden;
    const plaintext = bytes(plaintext_b64url);
    const detached = readDetachedEnvelope(golden.envelope);
    const sealing = await importMessageKey(bytes(message_key), "encrypt");
    const whole = await seal(plaintext, detached, sealing, bytes(nonce));
    assert.deepEqual(whole, { ...golden.envelope, nonce, ciphertext });
    const opening = await importMessageKey(bytes(message_key), "decrypt");
    assert.deepEqual(await open(readEnvelope(whole), opening), plaintext);
  });
}

test("whatever bit of nonce, ciphertext or header is another, it does not open", async () => {
  const whole = await sealedFirst();
  const key = await importMessageKey(bytes(FIRST?.message_key ?? ""), "decrypt");
  const changed: Envelope[] = [
    { ...whole, nonce: flipped(whole.nonce) },
    { ...whole, ciphertext: flipped(whole.ciphertext) },
    { ...whole, message_id: flipped(whole.message_id) },
    { ...whole, associated_data: "another" },
    { ...whole, context: { ...whole.context, more: "x" } },
    { ...whole, encoding: whole.encoding === null ? "utf-8" : null },
  ];
  for (const envelope of changed) {
    await assert.rejects(open(readEnvelope(envelope), key), EnvelopeInvalidError);
  }
});

test("a nonce is new for each payload", async () => {
  const first = await sealedFirst();
  const second = await sealedFirst();
  assert.notEqual(first.nonce, second.nonce);
});

test("a message key is wiped once it was taken over, and can't be taken out again", async () => {
  const raw = new Uint8Array(32).fill(7);
  const key = await importMessageKey(raw, "encrypt");
  assert.deepEqual(raw, new Uint8Array(32));
  await assert.rejects(crypto.subtle.exportKey("raw", key));
});

const WHOLE: Envelope = GOLDEN.seal[0]?.envelope ?? assert.fail("no vector");
const LONE = "\ud800";

const MALFORMED: Readonly<Record<string, unknown>> = {
  "no object": "an envelope",
  "a list": [WHOLE],
  nothing: null,
  "a member too many": { ...WHOLE, extra: 1 },
  "a member missing": withoutMember(WHOLE, "wrap_tag"),
  "a member that is undefined": { ...WHOLE, encoding: undefined },
  "another version": { ...WHOLE, v: 2 },
  "a version as text": { ...WHOLE, v: "1" },
  "another algorithm": { ...WHOLE, alg: "A256GCM" },
  "another encoding": { ...WHOLE, encoding: "latin-1" },
  "a context that is a list": { ...WHOLE, context: [] },
  "a context of 33 pairs": { ...WHOLE, context: pairs(33) },
  "a context with a value that is no text": { ...WHOLE, context: { table: 1 } },
  "a context with an empty name": { ...WHOLE, context: { "": "x" } },
  "a context with a name of 129 bytes": { ...WHOLE, context: { [`${"é".repeat(64)}x`]: "x" } },
  "a context of 4,097 bytes": { ...WHOLE, context: { a: "x".repeat(4097 - '{"a":""}'.length) } },
  "associated data of 4,097 bytes": { ...WHOLE, associated_data: "x".repeat(4097) },
  "a lone surrogate": { ...WHOLE, associated_data: LONE },
  "a backend without a name": { ...WHOLE, backend: "" },
  "a message id of 31 bytes": { ...WHOLE, message_id: "A".repeat(42) },
  "a message id with padding": { ...WHOLE, message_id: `${WHOLE.message_id}=` },
  "an empty wrap": { ...WHOLE, encrypted_data_key: "" },
  "a nonce of 13 bytes": { ...WHOLE, nonce: Buffer.alloc(13).toString("base64url") },
  "a ciphertext shorter than a tag": { ...WHOLE, ciphertext: Buffer.alloc(15).toString("base64url") },
  "a ciphertext with stray bits": { ...WHOLE, ciphertext: `${Buffer.alloc(18).toString("base64url")}AB` },
};

for (const [name, value] of Object.entries(MALFORMED)) {
  test(`no envelope: ${name}`, () => {
    assert.throws(() => readEnvelope(value), EnvelopeInvalidError);
  });
}

const AT_THE_LIMIT: Readonly<Record<string, Envelope>> = {
  "a context of 32 pairs": { ...WHOLE, context: pairs(32) },
  "a context with a name of 128 bytes": { ...WHOLE, context: { ["é".repeat(64)]: "" } },
  "a context of 4,096 bytes": { ...WHOLE, context: { a: "x".repeat(4096 - '{"a":""}'.length) } },
  "associated data of 4,096 bytes": { ...WHOLE, associated_data: "é".repeat(2048) },
  "an empty key version": { ...WHOLE, key_version: "" },
  "a ciphertext of a tag alone": { ...WHOLE, ciphertext: Buffer.alloc(16).toString("base64url") },
};

for (const [name, value] of Object.entries(AT_THE_LIMIT)) {
  test(`an envelope: ${name}`, () => {
    assert.deepEqual(readEnvelope(value), value);
  });
}

test("whole, detached and stream envelopes are not taken for one another", () => {
  const { nonce, ciphertext, ...detached } = WHOLE;
  assert.throws(() => readDetachedEnvelope(WHOLE), EnvelopeInvalidError);
  assert.throws(() => readEnvelope(detached), EnvelopeInvalidError);
  assert.throws(() => readStreamEnvelope(detached), EnvelopeInvalidError);
  assert.throws(() => readDetachedEnvelope({ ...detached, chunk_size: 4096 }), EnvelopeInvalidError);
});

test("a pair named __proto__, and names that look like numbers, are pairs like others", () => {
  const text = '{"__proto__":"x","10":"b","9":"a"}';
  const envelope = readEnvelope({ ...WHOLE, context: JSON.parse(text) });
  assert.deepEqual(Object.keys(envelope.context).sort(), ["10", "9", "__proto__"]);
  assert.match(decodeUTF8(headerBytes(envelope)) ?? "", /"context":\{"10":"b","9":"a","__proto__":"x"\}/);
});

test("what was opened is not shown by what is printed of it", () => {
  const opened = new Opened(new TextEncoder().encode("secret text"), "utf-8", null);
  assert.equal(opened.text, "secret text");
  for (const printed of [inspect(opened, { showHidden: true }), JSON.stringify(opened), String(opened)]) {
    assert.doesNotMatch(printed, /secret|115, *101/);
  }
});

test("bytes that were sealed as bytes are no text, and text that is not UTF-8 is none", () => {
  assert.equal(new Opened(Uint8Array.of(0x61), null, null).text, null);
  assert.throws(() => new Opened(Uint8Array.of(0xff), "utf-8", null), EnvelopeInvalidError);
  assert.equal(new Opened(Uint8Array.of(0xef, 0xbb, 0xbf), "utf-8", null).text, "\ufeff");
});

async function sealedFirst(): Promise<Envelope> {
  const golden = FIRST ?? assert.fail("no vector");
  const key = await importMessageKey(bytes(golden.message_key ?? ""), "encrypt");
  return await seal(bytes(golden.plaintext_b64url ?? ""), golden.envelope, key);
}

function flipped(text: string): string {
  const raw = bytes(text);
  raw[0] = (raw[0] ?? 0) ^ 1;
  return Buffer.from(raw).toString("base64url");
}

function pairs(count: number): Record<string, string> {
  return Object.fromEntries(Array.from({ length: count }, (_, i) => [`name ${i}`, "value"]));
}

function withoutMember(envelope: Envelope, name: string): object {
  return Object.fromEntries(Object.entries(envelope).filter(([member]) => member !== name));
}
