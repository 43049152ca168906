/**
 * Stream v1 (docs/formats.md): what is too large to be in memory, as one line and chunks behind it.
 *
 * ```
 * line      the stream's envelope in JSON, ended by "\n"; at most 262,144 bytes with it
 * chunk i   AES-256-GCM(message key, nonce = i as 11 bytes big-endian ‖ (last ? 0x01 : 0x00), chunk)
 * ```
 *
 * A chunk is the last exactly if no byte follows it, so that each is held back until the next byte or the end
 * has come; no other flag is ever tried. Opening gives out a chunk after its own tag was checked, and gives out
 * all of them that stand before damage: what has come out is authentic, and whole only once the stream has
 * ended without an error. Several chunks are worked on at a time and come out in order; how much memory that
 * takes does not depend on the stream's length, nor on the pieces that it comes in.
 */

import { type Bytes, bytesOf, encodeUTF8 } from "./encoding.js";
import { readStreamEnvelope, type StreamEnvelope, TAG_BYTES } from "./envelope.js";
import { ConfigurationError, EnvelopeInvalidError } from "./errors.js";
import { parseStrictJSON, StrictJSONError } from "./strictJson.js";
import type { WebCryptoKey } from "./webCrypto.js";

/** A stream's envelope, and the key of its one message. */
export interface StreamKey {
  readonly envelope: StreamEnvelope;
  readonly key: WebCryptoKey;
}

export const DEFAULT_CHUNK_BYTES = 1024 * 1024;
export const MAX_LINE_BYTES = 262_144;

const MAX_CHUNKS = 2 ** 32;
const MAX_BYTES_IN_WORK = 4 * 1024 * 1024; // a larger chunk is in work alone
const LINE_FEED = 0x0a;

/** Return what turns a plaintext into a stream; the key is asked for when the first bytes, or the end, come. */
export function sealing(begin: () => Promise<StreamKey>): TransformStream<Uint8Array, Uint8Array> {
  let begun: Chunks | undefined;
  const chunks = async (put: Put) => {
    if (begun !== undefined) return begun;
    const { envelope, key } = await begin();
    const line = encodeUTF8(`${JSON.stringify(envelope)}\n`);
    await put({ result: Promise.resolve(line), bytes: line.length });
    begun = new Chunks(envelope.chunk_size, sealer(key), put);
    return begun;
  };
  return inOrder(
    async (piece, put) => (await chunks(put)).take(piece),
    async (put) => (await chunks(put)).end(),
  );
}

/** Return what turns a stream into its plaintext; `release` is asked for the key once the line is there. */
export function opening(
  release: (envelope: StreamEnvelope) => Promise<WebCryptoKey>,
): TransformStream<Uint8Array, Uint8Array> {
  const line = new Line();
  let chunks: Chunks | undefined;
  return inOrder(
    async (piece, put) => {
      const rest = chunks === undefined ? line.take(piece) : piece;
      if (rest === undefined) return;
      chunks ??= await openingChunks(line.envelope(), release, put);
      await chunks.take(rest);
    },
    async () => {
      if (chunks === undefined) throw new EnvelopeInvalidError();
      await chunks.end();
    },
  );
}

/** What is being worked on, and how many bytes it takes. */
interface Work {
  readonly result: Promise<Uint8Array>;
  readonly bytes: number;
}

/** Takes work, once there is room for it. */
type Put = (work: Work) => Promise<void>;
type Cipher = (chunk: Bytes, index: number, isLast: boolean) => Promise<ArrayBuffer>;

/** Return a stream that gives out the results of work in order, and each of them before a later one's failure. */
function inOrder(
  take: (piece: Uint8Array, put: Put) => Promise<void>,
  end: (put: Put) => Promise<void>,
): TransformStream<Uint8Array, Uint8Array> {
  const room = { highWaterMark: MAX_BYTES_IN_WORK, size: (work: Work) => work.bytes };
  // Without room of its own, so that nothing is in it, and lost, when the next result turns out to be a failure.
  const none = { highWaterMark: 0 };
  const results = new TransformStream<Work, Uint8Array>({ transform: giveOut }, room, none);
  const writer = results.writable.getWriter();
  const put = async (work: Work) => {
    handled(work.result);
    await writer.ready;
    handled(writer.write(work));
  };
  const guarded = async (step: () => Promise<void>) => {
    try {
      await step();
    } catch (error) {
      handled(writer.abort(error));
      throw error;
    }
  };
  const writable = new WritableStream<Uint8Array>({
    // A failure, or a reader that stops, is heard of at once, and not only with the next piece.
    start(controller) {
      writer.closed.catch((error) => controller.error(error));
    },
    write: (piece) => guarded(() => take(checkedPiece(piece), put)),
    close: () => guarded(() => end(put).then(() => writer.close())),
    abort: (reason) => handled(writer.abort(reason)),
  });
  return { readable: results.readable, writable };
}

/** Return a piece's bytes. Some sources give out other kinds than they say: Node's files `ArrayBuffer`s. */
function checkedPiece(piece: unknown): Uint8Array {
  const bytes = bytesOf(piece);
  // What has none has no length either, and would pass for a piece of nothing.
  if (bytes === undefined) throw new ConfigurationError("a stream is made of pieces of bytes");
  return bytes;
}

async function giveOut(work: Work, controller: TransformStreamDefaultController<Uint8Array>): Promise<void> {
  const bytes = await work.result;
  if (bytes.length > 0) controller.enqueue(bytes);
}

/** Say that a promise's failure is seen elsewhere, so that it is no unhandled one until then. */
function handled(promise: Promise<unknown>): void {
  promise.catch(() => undefined);
}

async function openingChunks(
  envelope: StreamEnvelope,
  release: (envelope: StreamEnvelope) => Promise<WebCryptoKey>,
  put: Put,
): Promise<Chunks> {
  return new Chunks(envelope.chunk_size + TAG_BYTES, opener(await release(envelope)), put);
}

function sealer(key: WebCryptoKey): Cipher {
  return async (chunk, index, isLast) => await crypto.subtle.encrypt(parameters(index, isLast), key, chunk);
}

function opener(key: WebCryptoKey): Cipher {
  return async (chunk, index, isLast) => {
    // Only a stream of nothing has an empty chunk, or two streams would have one plaintext.
    if (chunk.length === TAG_BYTES && index > 0) throw new EnvelopeInvalidError();
    try {
      return await crypto.subtle.decrypt(parameters(index, isLast), key, chunk);
    } catch {
      throw new EnvelopeInvalidError();
    }
  };
}

/** Return the parameters of a chunk. No index is used beyond 2^32 - 1: a nonce would come again. */
export function parameters(index: number, isLast: boolean): AesGcmParams {
  if (index >= MAX_CHUNKS) throw new EnvelopeInvalidError("a stream has at most 2^32 chunks");
  const iv = new Uint8Array(12);
  new DataView(iv.buffer).setUint32(7, index);
  iv[11] = isLast ? 1 : 0;
  return { name: "AES-GCM", iv };
}

/** The line that a stream begins with, as it comes in. */
class Line {
  readonly #bytes = new Uint8Array(MAX_LINE_BYTES - 1);
  #length = 0;

  /** Take what comes; return what is behind the line, or undefined while it has not ended. */
  take(piece: Uint8Array): Uint8Array | undefined {
    const end = piece.indexOf(LINE_FEED);
    const part = end === -1 ? piece : piece.subarray(0, end);
    if (this.#length + part.length > this.#bytes.length) throw new EnvelopeInvalidError();
    this.#bytes.set(part, this.#length);
    this.#length += part.length;
    return end === -1 ? undefined : piece.subarray(end + 1);
  }

  envelope(): StreamEnvelope {
    try {
      return readStreamEnvelope(parseStrictJSON(this.#bytes.subarray(0, this.#length)));
    } catch (error) {
      throw error instanceof StrictJSONError ? new EnvelopeInvalidError() : error;
    }
  }
}

/** Bytes cut into chunks, each of which goes through the cipher by itself. */
class Chunks {
  readonly #size: number;
  readonly #cipher: Cipher;
  readonly #put: Put;
  readonly #free: Bytes[] = [];
  #held: Bytes;
  #length = 0;
  #index = 0;

  constructor(size: number, cipher: Cipher, put: Put) {
    this.#size = size;
    this.#cipher = cipher;
    this.#put = put;
    this.#held = new Uint8Array(size);
  }

  /** Take what comes, and put what can't be the last chunk to work. */
  async take(piece: Uint8Array): Promise<void> {
    for (let at = 0; at < piece.length; ) {
      if (this.#length === this.#size) await this.#work(false);
      const part = piece.subarray(at, at + this.#size - this.#length);
      this.#held.set(part, this.#length);
      this.#length += part.length;
      at += part.length;
    }
  }

  async end(): Promise<void> {
    await this.#work(true);
  }

  async #work(isLast: boolean): Promise<void> {
    const result = this.#through(this.#held, isLast);
    this.#index += 1;
    this.#length = 0;
    this.#held = this.#free.pop() ?? new Uint8Array(isLast ? 0 : this.#size);
    await this.#put({ result, bytes: this.#size });
  }

  /** Return what the cipher makes of a buffer, which is free for another chunk only then. */
  async #through(buffer: Bytes, isLast: boolean): Promise<Uint8Array> {
    const result = await this.#cipher(buffer.subarray(0, this.#length), this.#index, isLast);
    this.#free.push(buffer);
    return new Uint8Array(result);
  }
}
