/**
 * `LocalEnvelope`: envelopes and streams that are sealed and opened here, under message keys of KKP's.
 *
 * KKP decides and records as it does for what it seals itself, and never sees the payload. A message key serves
 * one message, stands in no text and can't be exported. Envelopes of bytes and text are those that KKP opens
 * too; streams are for what is too large to be in memory.
 */

import type { CallOptions, KKPClient, OpeningOptions } from "./client.js";
import { type Bytes, encodeUTF8, isWellFormed } from "./encoding.js";
import {
  decoded,
  detach,
  type Envelope,
  type EnvelopeJSON,
  isChunkSize,
  Opened,
  open,
  readEnvelope,
  seal,
} from "./envelope.js";
import { ConfigurationError } from "./errors.js";
import { checkedBytes, type Message, type Sealing } from "./operations.js";
import { DEFAULT_CHUNK_BYTES, opening, sealing } from "./stream.js";

export interface StreamOptions extends Sealing, CallOptions {
  /** Bytes of plaintext in a chunk: 4,096 to 8,388,608; 1,048,576 where left out. */
  readonly chunkSize?: number;
}

export class LocalEnvelope {
  readonly #client: KKPClient;

  constructor(client: KKPClient) {
    this.#client = client;
  }

  /** Seal a plaintext. */
  async seal(message: Message, options: CallOptions = {}): Promise<Envelope> {
    const { plaintext } = message;
    const encoding = typeof plaintext === "string" ? "utf-8" : null;
    const payload = payloadOf(plaintext);
    const { envelope, key } = await this.#client.dataKey(message, encoding, options);
    return await seal(payload, envelope, key);
  }

  /** Open an envelope, sealed here or by KKP. */
  async open(envelope: Envelope | EnvelopeJSON, options: OpeningOptions = {}): Promise<Opened> {
    const checked = readEnvelope(decoded(envelope));
    const key = await this.#client.messageKey(detach(checked), options);
    return new Opened(await open(checked, key), checked.encoding, null);
  }

  /** Return what turns bytes into a stream of theirs: `file.pipeThrough(local.sealStream({…}))`. */
  sealStream(options: StreamOptions): TransformStream<Uint8Array, Uint8Array> {
    const chunkSize = options.chunkSize ?? DEFAULT_CHUNK_BYTES;
    if (!isChunkSize(chunkSize)) throw new ConfigurationError("a chunk is of 4,096 to 8,388,608 bytes");
    return sealing(() => this.#client.streamKey(options, chunkSize, options));
  }

  /**
   * Return what turns a stream back into its bytes.
   *
   * What comes out is authentic, but whole only once the stream has ended without an error: whoever writes a
   * file writes one of another name, and renames it then.
   */
  openStream(options: OpeningOptions = {}): TransformStream<Uint8Array, Uint8Array> {
    return opening((envelope) => this.#client.messageKey(envelope, options));
  }
}

function payloadOf(plaintext: string | Uint8Array): Bytes {
  if (typeof plaintext !== "string") return new Uint8Array(checkedBytes(plaintext));
  if (!isWellFormed(plaintext)) throw new ConfigurationError("a text with a lone surrogate has no UTF-8");
  return encodeUTF8(plaintext);
}
