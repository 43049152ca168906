import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  ConfigurationError,
  DPoPKey,
  EnvelopeInvalidError,
  KKPClient,
  LocalEnvelope,
  type Message,
  ProblemError,
  TransportError,
} from "@kkp/client";
import { type Answer, type Body, labels, problem, scriptedKKP } from "./scriptedKKP.js";

const UNDER = {
  backend: "aws",
  keyId: "alias/orders",
  context: { table: "orders" },
  associatedData: "row 7",
};
const RAW_KEY = Buffer.alloc(32, 7).toString("base64");

const kkp = await scriptedKKP();

const client = new KKPClient({ url: kkp.url, credential: "kkp_sk_a", audience: "orders-db" });
const local = new LocalEnvelope(client);

test("text and bytes are sealed and opened here, and KKP never sees them", async () => {
  const text = await local.open(await local.seal({ ...UNDER, plaintext: "canary of a plaintext" }));
  assert.equal(text.text, "canary of a plaintext");
  const bytes = await local.open(await local.seal({ ...UNDER, plaintext: Uint8Array.of(0, 255) }));
  assert.deepEqual([bytes.plaintext, bytes.text], [Uint8Array.of(0, 255), null]);
  assert.doesNotMatch(JSON.stringify(kkp.received.map(({ text }) => text)), /canary|ciphertext|nonce/);
  const [dataKey] = kkp.received as [Body];
  assert.deepEqual(dataKey.body, {
    backend: "aws",
    key_id: "alias/orders",
    context: UNDER.context,
    associated_data: "row 7",
    encoding: "utf-8",
  });
});

test("an envelope is opened as it was stored, and JSON that is none is not", async () => {
  const stored = JSON.stringify(await local.seal({ ...UNDER, plaintext: "stored as text" }));
  assert.equal((await local.open(stored)).text, "stored as text");
  await assert.rejects(local.open(stored.slice(1)), EnvelopeInvalidError);
});

test("each message is sealed under a key of its own", async () => {
  const first = await local.seal({ ...UNDER, plaintext: "a" });
  const second = await local.seal({ ...UNDER, plaintext: "a" });
  assert.notEqual(first.message_id, second.message_id);
  assert.deepEqual(kkp.paths(), ["/envelope/data-key", "/envelope/data-key"]);
});

test("an envelope that was changed does not open, wherever", async () => {
  const envelope = await local.seal({ ...UNDER, plaintext: "a plaintext" });
  const changes = [
    { associated_data: "row 8" },
    { context: { table: "customers" } },
    { nonce: Buffer.alloc(12).toString("base64url") },
    { ciphertext: Buffer.alloc(27).toString("base64url") },
    { encoding: null },
    { message_id: Buffer.alloc(32).toString("base64url") },
  ];
  for (const change of changes) {
    await assert.rejects(local.open({ ...envelope, ...change }), EnvelopeInvalidError);
  }
});

test("a stream there and back, under a bound token", async () => {
  const bound = new LocalEnvelope(
    new KKPClient({
      url: kkp.url,
      credential: "kkp_sk_a",
      audience: "orders-db",
      dpopKey: await DPoPKey.generate(),
    }),
  );
  const plaintext = new Uint8Array(300_000).map((_, i) => i % 251);
  const sealed = await collected(
    streamOf(plaintext).pipeThrough(bound.sealStream({ ...UNDER, chunkSize: 4096 })),
  );
  assert.deepEqual(await collected(streamOf(sealed).pipeThrough(bound.openStream())), plaintext);
  assert.deepEqual(kkp.paths(), ["/token", "/envelope/data-key", "/token", "/envelope/data-key/unwrap"]);
  const [, dataKey, , unwrap] = kkp.received as [Body, Body, Body, Body];
  assert.equal(dataKey.body.chunk_size, 4096);
  assert.equal("encoding" in dataKey.body, false);
  assert.equal(unwrap.body.envelope.chunk_size, 4096);
});

test("a stream of 1 MiB chunks is what is made where nothing is said", async () => {
  const sealed = await collected(streamOf(new Uint8Array(10)).pipeThrough(local.sealStream(UNDER)));
  assert.equal(kkp.received[0]?.body.chunk_size, 1024 * 1024);
  assert.deepEqual(await collected(streamOf(sealed).pipeThrough(local.openStream())), new Uint8Array(10));
});

test("a stream of nothing is a stream", async () => {
  const sealed = await collected(streamOf(new Uint8Array(0)).pipeThrough(local.sealStream(UNDER)));
  assert.deepEqual(await collected(streamOf(sealed).pipeThrough(local.openStream())), new Uint8Array(0));
});

test("what KKP says of a stream's envelope is what the reader is told, and no byte comes out", async () => {
  const sealed = await collected(streamOf(new Uint8Array(10)).pipeThrough(local.sealStream(UNDER)));
  kkp.script.push(problem(403, "policy_denied"), problem(403, "policy_denied"));
  await assert.rejects(collected(streamOf(sealed).pipeThrough(local.openStream())), ProblemError);
  await assert.rejects(
    collected(streamOf(new Uint8Array(10)).pipeThrough(local.sealStream(UNDER))),
    ProblemError,
  );
});

for (const chunkSize of [4095, 8_388_609, 4096.5, Number.NaN]) {
  test(`a chunk can't be of ${chunkSize} bytes`, () => {
    assert.throws(() => local.sealStream({ ...UNDER, chunkSize }), ConfigurationError);
  });
}

test("a text with a lone surrogate can't be sealed as what it is", async () => {
  await assert.rejects(local.seal({ ...UNDER, plaintext: "\ud800" }), ConfigurationError);
  assert.deepEqual(kkp.paths(), []);
});

test("bytes of any kind are sealed as what they are", async () => {
  const whole = Uint8Array.of(9, 1, 2, 3, 4, 9);
  for (const given of [whole.subarray(1, 5), new DataView(whole.buffer, 1, 4), whole.slice(1, 5).buffer]) {
    const message = { ...UNDER, plaintext: given } as Message;
    for (const envelope of [await local.seal(message), await client.encrypt(message)]) {
      const opener = envelope.ciphertext.startsWith("AQIDBA")
        ? client.decrypt(envelope)
        : local.open(envelope);
      assert.deepEqual((await opener).plaintext, Uint8Array.of(1, 2, 3, 4));
    }
  }
});

for (const plaintext of [[1, 2], 7, null, undefined, { length: 0 }]) {
  test(`nothing is sealed in the place of a plaintext that is ${inspect(plaintext)}`, async () => {
    const message = { ...UNDER, plaintext } as unknown as Message;
    await assert.rejects(local.seal(message), ConfigurationError);
    await assert.rejects(client.encrypt(message), ConfigurationError);
    assert.ok((await client.encryptMany([message]))[0] instanceof ConfigurationError);
    assert.deepEqual(kkp.paths(), []);
  });
}

const BAD_KEYS: Readonly<Record<string, Answer>> = {
  "no key": dataKey({}, null),
  "a key of 31 bytes": dataKey({}, Buffer.alloc(31).toString("base64")),
  "a key in base64url": dataKey({}, Buffer.alloc(32, 0xff).toString("base64url")),
  "another encoding": dataKey({ encoding: null }),
  "another context": dataKey({ context: {} }),
  "other associated data": dataKey({ associated_data: null }),
  "another key": dataKey({ key_id: "alias/another" }),
  "a malformed envelope": dataKey({ message_id: "AA" }),
  "a stream's envelope": dataKey({ chunk_size: 4096 }),
};

for (const [name, answer] of Object.entries(BAD_KEYS)) {
  test(`nothing is sealed under a bad answer: ${name}`, async () => {
    kkp.script.push(answer);
    const error = await local.seal({ ...UNDER, plaintext: "a" }).catch((reason) => reason);
    assert.ok(error instanceof TransportError && error.code === "bad_answer", inspect(error));
    assert.ok(!inspect(error, { showHidden: true }).includes(RAW_KEY));
  });
}

test("a stream of other chunks than asked for is not begun", async () => {
  kkp.script.push(({ body }) => ({
    body: { envelope: labels({ ...body, chunk_size: 8192 }), message_key_b64: RAW_KEY },
  }));
  const error = await collected(
    streamOf(new Uint8Array(10)).pipeThrough(local.sealStream({ ...UNDER, chunkSize: 4096 })),
  ).catch((reason) => reason);
  assert.ok(error instanceof TransportError && error.code === "bad_answer");
});

test("neither message keys nor what stands on them are shown by printing", async () => {
  kkp.script.push(dataKey({}));
  const begun = await client.dataKey(UNDER, "utf-8");
  await assert.rejects(crypto.subtle.exportKey("raw", begun.key));
  for (const value of [begun, local, local.sealStream(UNDER), local.openStream()]) {
    const printed = `${inspect(value, { depth: 9, showHidden: true })} ${JSON.stringify(value)}`;
    assert.ok(!printed.includes(RAW_KEY) && !printed.includes("kkp_sk_a"));
  }
});

/** Answer as KKP does, but with this in the envelope, and this key. */
function dataKey(members: object, key: string | null = RAW_KEY): Answer {
  return ({ body }) => ({ body: { envelope: { ...labels(body), ...members }, message_key_b64: key } });
}

function streamOf(bytes: Uint8Array): ReadableStream<Uint8Array> {
  return new ReadableStream({
    start: (controller) => {
      if (bytes.length > 0) controller.enqueue(bytes);
      controller.close();
    },
  });
}

async function collected(stream: ReadableStream<Uint8Array>): Promise<Uint8Array> {
  return new Uint8Array(await new Response(stream as ReadableStream<Uint8Array<ArrayBuffer>>).arrayBuffer());
}
