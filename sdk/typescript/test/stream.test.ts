import assert from "node:assert/strict";
import { test } from "node:test";
import { concatenate, encodeUTF8 } from "#src/encoding.js";
import { headerBytes, importMessageKey, readStreamEnvelope, type StreamEnvelope } from "#src/envelope.js";
import { ConfigurationError, EnvelopeInvalidError } from "#src/errors.js";
import { MAX_LINE_BYTES, opening, parameters, sealing } from "#src/stream.js";
import { bytes, vectors } from "./vectors.js";

interface Vectors {
  seal: {
    name: string;
    message_key: string;
    plaintext_b64url: string;
    header: string;
    envelope: StreamEnvelope;
    chunks: string[];
  }[];
  open: {
    name: string;
    stream: string;
    message_key: string;
    verdict: "opens" | "envelope_invalid";
    plaintext_b64url?: string;
    refused_by?: "reader" | "kkp";
    released_b64url?: string;
  }[];
}

const GOLDEN = vectors<Vectors>("stream_v1");
const [THREE_CHUNKS] = GOLDEN.seal;
const PIECES = [509, 4096, 4112, 1_000_000];

for (const golden of GOLDEN.seal) {
  test(`sealed byte for byte, and opened, whatever the pieces: ${golden.name}`, async () => {
    const plaintext = bytes(golden.plaintext_b64url);
    const envelope = readStreamEnvelope(golden.envelope);
    assert.equal(Buffer.from(headerBytes(envelope)).toString(), golden.header);
    for (const size of PIECES) {
      const sealed = await sealedStream(golden, plaintext, size);
      const end = sealed.indexOf(0x0a);
      assert.deepEqual(JSON.parse(Buffer.from(sealed.subarray(0, end)).toString()), golden.envelope);
      assert.deepEqual(sealed.subarray(end + 1), concatenate(...golden.chunks.map(bytes)));
      assert.deepEqual((await opened(sealed, golden.message_key, size)).released, plaintext);
    }
  });
}

for (const golden of GOLDEN.open.filter(({ refused_by }) => refused_by !== "kkp")) {
  test(`${golden.verdict}, to the byte, whatever the pieces: ${golden.name}`, async () => {
    for (const size of PIECES) {
      const { released, error } = await opened(bytes(golden.stream), golden.message_key, size);
      assert.deepEqual(released, bytes(golden.plaintext_b64url ?? golden.released_b64url ?? ""));
      assert.equal(error instanceof EnvelopeInvalidError, golden.verdict === "envelope_invalid");
    }
  });
}

for (const golden of GOLDEN.open.filter(({ refused_by }) => refused_by === "kkp")) {
  test(`refused, at the latest because KKP does not release the key: ${golden.name}`, async () => {
    const refusal = new EnvelopeInvalidError();
    const { released, error } = await collected(
      pieces(bytes(golden.stream), 1000).pipeThrough(opening(() => Promise.reject(refusal))),
    );
    assert.deepEqual(released, new Uint8Array(0));
    assert.ok(error instanceof EnvelopeInvalidError);
  });
}

test("a stream may come byte by byte", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const plaintext = bytes(golden.plaintext_b64url);
  const sealed = await sealedStream(golden, plaintext, 1);
  assert.deepEqual((await opened(sealed, golden.message_key, 1)).released, plaintext);
});

test("a stream whose end is missing gives out its whole chunks, and then fails", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const plaintext = bytes(golden.plaintext_b64url);
  const sealed = await sealedStream(golden, plaintext, 4096);
  const lastChunk = bytes(golden.chunks.at(-1) ?? "").length;
  for (const cut of [lastChunk, 1]) {
    const { released, error } = await opened(sealed.subarray(0, -cut), golden.message_key, 4096);
    assert.ok(error instanceof EnvelopeInvalidError);
    // Where the last chunk is missing, the one before is now opened as the last, and is none.
    assert.deepEqual(released, plaintext.subarray(0, cut === 1 ? 8192 : 4096));
  }
});

test("a line of 262,144 bytes is read, and one of one more is not, nor one without an end", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const line = JSON.stringify(golden.envelope);
  const behind = concatenate(encodeUTF8("\n"), ...golden.chunks.map(bytes));
  for (const [length, isRead] of [
    [MAX_LINE_BYTES - 1, true],
    [MAX_LINE_BYTES, false],
  ] as const) {
    const stream = concatenate(encodeUTF8(line.padEnd(length)), behind);
    const { error } = await opened(stream, golden.message_key, 65_536);
    assert.equal(error === undefined, isRead);
  }
  let taken = 0;
  const endless = new ReadableStream<Uint8Array>({
    pull: (controller) => {
      taken += 65_536;
      controller.enqueue(new Uint8Array(65_536).fill(0x20));
    },
  });
  const { error } = await collected(endless.pipeThrough(opening(() => assert.fail("no key is asked for"))));
  assert.ok(error instanceof EnvelopeInvalidError);
  assert.ok(taken < 4 * MAX_LINE_BYTES);
});

test("a duplicate member, and a number that is not written with digits alone, make it no line", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const line = JSON.stringify(golden.envelope);
  const behind = concatenate(encodeUTF8("\n"), ...golden.chunks.map(bytes));
  const lines = [
    line.replace('"v":1', '"v":1,"v":1'),
    line.replace('"v":1', '"v":1.0'),
    line.replace('"chunk_size":4096', '"chunk_size":4.096e3'),
    `\ufeff${line}`,
    `${line}x`,
    "",
  ];
  for (const text of lines) {
    const { released, error } = await opened(concatenate(encodeUTF8(text), behind), golden.message_key, 9999);
    assert.ok(error instanceof EnvelopeInvalidError, text);
    assert.equal(released.length, 0);
  }
});

test("the key is asked for once, when the first bytes come, and its refusal is what the reader sees", async () => {
  let asked = 0;
  const refusal = new EnvelopeInvalidError("refused");
  const stream = sealing(() => {
    asked += 1;
    return Promise.reject(refusal);
  });
  assert.equal(asked, 0);
  const { error } = await collected(pieces(new Uint8Array(10_000), 1000).pipeThrough(stream));
  assert.equal(error, refusal);
  assert.equal(asked, 1);
});

test("memory does not grow with a stream that nobody reads: writing waits", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const stream = sealing(() => begin(golden));
  const writer = stream.writable.getWriter();
  let written = 0;
  const writing = (async () => {
    for (; written < 1000; written++) {
      await writer.ready;
      await writer.write(new Uint8Array(65_536));
    }
  })();
  const reader = stream.readable.getReader();
  await reader.read();
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.ok(written > 0 && written < 200, `${written} pieces of 64 KiB were taken`);
  await reader.cancel("enough");
  await assert.rejects(writing);
});

test("pieces may be of any kind that bytes have", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const whole = new Uint8Array(9000).map((_, i) => i % 251);
  const { buffer } = whole;
  for (const given of [whole, buffer, new DataView(buffer), new Float64Array(buffer), Buffer.from(buffer)]) {
    const source = new ReadableStream<Uint8Array>({
      start: (controller) => {
        controller.enqueue(given as Uint8Array);
        controller.close();
      },
    });
    const { released } = await collected(source.pipeThrough(sealing(() => begin(golden))));
    assert.deepEqual((await opened(released, golden.message_key, 4096)).released, whole);
  }
});

for (const piece of ["text", 7, null, undefined, [1, 2], { length: 2 }]) {
  test(`what has no bytes is refused and not passed over: ${JSON.stringify(piece)}`, async () => {
    const golden = THREE_CHUNKS ?? assert.fail("no vector");
    for (const stream of [sealing(() => begin(golden)), opening(() => assert.fail("no key is asked for"))]) {
      const reading = collected(stream.readable);
      await assert.rejects(
        stream.writable.getWriter().write(piece as unknown as Uint8Array),
        ConfigurationError,
      );
      assert.ok((await reading).error instanceof ConfigurationError);
    }
  });
}

test("what reads may stop, and what writes hears of it", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  let cancelled: unknown;
  const source = new ReadableStream<Uint8Array>({
    pull: (controller) => controller.enqueue(new Uint8Array(65_536)),
    cancel: (reason) => {
      cancelled = reason;
    },
  });
  const reader = source.pipeThrough(sealing(() => begin(golden))).getReader();
  await reader.read();
  await reader.cancel("enough");
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(cancelled, "enough");
});

test("a source that gives nothing hears of a reader that stops as well", async () => {
  let cancelled: unknown;
  const source = new ReadableStream<Uint8Array>({
    cancel: (reason) => {
      cancelled = reason;
    },
  });
  const reader = source.pipeThrough(opening(() => assert.fail("no key is asked for"))).getReader();
  await reader.cancel("enough");
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(cancelled, "enough");
});

test("who aborts what is written is heard by who reads", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const stream = sealing(() => begin(golden));
  const reading = collected(stream.readable);
  const writer = stream.writable.getWriter();
  const failure = new Error("the disk is gone");
  await writer.write(new Uint8Array(5000));
  await writer.abort(failure);
  assert.equal((await reading).error, failure);
});

test("a chunk's nonce is its index and whether it is the last, and no index comes twice", () => {
  const nonce = (index: number, isLast: boolean) =>
    Buffer.from(parameters(index, isLast).iv as Uint8Array).toString("hex");
  assert.equal(nonce(0, false), "000000000000000000000000");
  assert.equal(nonce(258, true), "000000000000000000010201");
  assert.equal(nonce(2 ** 32 - 1, true), "00000000000000ffffffff01");
  assert.throws(() => parameters(2 ** 32, false), EnvelopeInvalidError);
});

test("a source that fails is what the reader sees", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const failure = new Error("the disk is gone");
  let pulls = 0;
  const source = new ReadableStream<Uint8Array>({
    pull: (controller) =>
      pulls++ < 3 ? controller.enqueue(new Uint8Array(5000)) : controller.error(failure),
  });
  const { error } = await collected(source.pipeThrough(sealing(() => begin(golden))));
  assert.equal(error, failure);
});

test("a piece may be changed by its owner once it was taken", async () => {
  const golden = THREE_CHUNKS ?? assert.fail("no vector");
  const stream = sealing(() => begin(golden));
  const reading = collected(stream.readable);
  const writer = stream.writable.getWriter();
  const piece = new Uint8Array(4096);
  for (let fill = 0; fill < 20; fill++) {
    piece.fill(fill);
    await writer.write(piece);
  }
  await writer.close();
  const { released } = await opened((await reading).released, golden.message_key, 4096);
  for (let fill = 0; fill < 20; fill++) {
    assert.deepEqual(released.subarray(fill * 4096, (fill + 1) * 4096), new Uint8Array(4096).fill(fill));
  }
});

type Golden = (typeof GOLDEN.seal)[number];

async function begin(golden: Golden) {
  const key = await importMessageKey(bytes(golden.message_key), "encrypt");
  return { envelope: readStreamEnvelope(golden.envelope), key };
}

async function sealedStream(golden: Golden, plaintext: Uint8Array, size: number): Promise<Uint8Array> {
  const stream = pieces(plaintext, size).pipeThrough(sealing(() => begin(golden)));
  const { released, error } = await collected(stream);
  assert.equal(error, undefined);
  return released;
}

function opened(stream: Uint8Array, messageKey: string, size: number): Promise<Collected> {
  return collected(
    pieces(stream, size).pipeThrough(opening(() => importMessageKey(bytes(messageKey), "decrypt"))),
  );
}

function pieces(whole: Uint8Array, size: number): ReadableStream<Uint8Array> {
  let at = 0;
  return new ReadableStream({
    pull: (controller) => {
      if (at >= whole.length) return controller.close();
      controller.enqueue(whole.slice(at, at + size));
      at += size;
    },
  });
}

interface Collected {
  readonly released: Uint8Array;
  readonly error: unknown;
}

async function collected(stream: ReadableStream<Uint8Array>): Promise<Collected> {
  const parts: Uint8Array[] = [];
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { released: concatenate(...parts), error: undefined };
      parts.push(value);
    }
  } catch (error) {
    return { released: concatenate(...parts), error };
  }
}
