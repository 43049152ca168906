/**
 * Envelope v1 (docs/formats.md): its form, and its payload under a message key.
 *
 * A message key comes from KKP, which has compared commitment and wrap tag by then, and serves one message.
 * What is read here is well formed and, until its payload has been opened, nobody's word. Every fault is the
 * one `EnvelopeInvalidError`. Nothing here speaks to KKP, and nothing here knows a data key.
 */

import { canonicalJSON } from "./canonicalJson.js";
import {
  type Bytes,
  decodeBase64url,
  decodeUTF8,
  encodeBase64url,
  encodeUTF8,
  isWellFormed,
} from "./encoding.js";
import { EnvelopeInvalidError } from "./errors.js";
import { JSONNumber, parseStrictObject, StrictJSONError } from "./strictJson.js";
import type { WebCryptoKey } from "./webCrypto.js";

export type Encoding = "utf-8" | null;
export type Context = Readonly<Record<string, string>>;

export const ALGORITHM = "A256GCM-HKDF-SHA512-COMMIT";
export const STREAM_ALGORITHM = "A256GCM-HKDF-SHA512-COMMIT-STREAM";
export const TAG_BYTES = 16;
export const MIN_CHUNK_BYTES = 4096;
export const MAX_CHUNK_BYTES = 8 * 1024 * 1024;

const NONCE_BYTES = 12;
const MAX_PAIRS = 32;
const MAX_NAME_BYTES = 128;
const MAX_TEXT_BYTES = 4096; // of the context in JCS, and of associated data
const MAX_WRAPPED_BYTES = 65_536;
const UNBOUNDED = Number.MAX_SAFE_INTEGER;

/** What every envelope has: the payload header's members, and the wrap, which says who can open it. */
interface Labels {
  readonly v: 1;
  readonly context: Context;
  readonly associated_data: string | null;
  readonly message_id: string;
  readonly backend: string;
  readonly key_id: string;
  readonly key_version: string;
  readonly encrypted_data_key: string;
  readonly wrap_tag: string;
  readonly commitment: string;
}

/** An envelope without its payload. */
export interface DetachedEnvelope extends Labels {
  readonly alg: typeof ALGORITHM;
  readonly encoding: Encoding;
}

/** An envelope, in the JSON that is stored and sent. */
export interface Envelope extends DetachedEnvelope {
  readonly nonce: string;
  readonly ciphertext: string;
}

/** The envelope that a stream begins with. */
export interface StreamEnvelope extends Labels {
  readonly alg: typeof STREAM_ALGORITHM;
  readonly encoding: null;
  readonly chunk_size: number;
}

export type AnyEnvelope = Envelope | DetachedEnvelope | StreamEnvelope;

/** An envelope as it is stored: its JSON, as text or in UTF-8. */
export type EnvelopeJSON = string | Uint8Array;

/** What comes of an envelope that is moved: of JSON nobody can tell beforehand what stands in it. */
export type Moved<E> = E extends AnyEnvelope ? E : AnyEnvelope;

type Members = ReadonlyMap<string, unknown>;

const LABELS = [
  "v",
  "alg",
  "context",
  "associated_data",
  "encoding",
  "message_id",
  "backend",
  "key_id",
  "key_version",
  "encrypted_data_key",
  "wrap_tag",
  "commitment",
];

/**
 * Return what stands in the JSON of an envelope, read strictly, and anything else as it is.
 *
 * For what callers hand in alone: an envelope within an answer, and a member within an envelope, are no text.
 */
export function decoded(envelope: unknown): unknown {
  const json = typeof envelope === "string" && isWellFormed(envelope) ? encodeUTF8(envelope) : envelope;
  if (!(json instanceof Uint8Array)) return json;
  try {
    return parseStrictObject(json);
  } catch (error) {
    throw error instanceof StrictJSONError ? new EnvelopeInvalidError() : error;
  }
}

/** Return a copy of an envelope that has its form, whether it comes from a program or from strict JSON. */
export function readEnvelope(value: unknown): Envelope {
  const members = exactly(value, [...LABELS, "nonce", "ciphertext"]);
  return {
    ...detached(members),
    nonce: base64url(members.get("nonce"), NONCE_BYTES, NONCE_BYTES),
    ciphertext: base64url(members.get("ciphertext"), TAG_BYTES, UNBOUNDED),
  };
}

export function readDetachedEnvelope(value: unknown): DetachedEnvelope {
  return detached(exactly(value, LABELS));
}

export function readStreamEnvelope(value: unknown): StreamEnvelope {
  const members = exactly(value, [...LABELS, "chunk_size"]);
  const encoding = members.get("encoding");
  const chunkSize = integer(members.get("chunk_size"));
  if (members.get("alg") !== STREAM_ALGORITHM || encoding !== null) throw new EnvelopeInvalidError();
  if (chunkSize === undefined || !isChunkSize(chunkSize)) throw new EnvelopeInvalidError();
  return { ...labels(members), alg: STREAM_ALGORITHM, encoding, chunk_size: chunkSize };
}

/** Return a copy of an envelope of whichever form, by the members that it has. */
export function readAnyEnvelope(value: unknown): AnyEnvelope {
  const members = membersOf(value);
  if (members.has("nonce")) return readEnvelope(members);
  return members.has("chunk_size") ? readStreamEnvelope(members) : readDetachedEnvelope(members);
}

export function isChunkSize(bytes: number): boolean {
  return Number.isInteger(bytes) && bytes >= MIN_CHUNK_BYTES && bytes <= MAX_CHUNK_BYTES;
}

/** Return an envelope less its payload, which is what KKP is shown for its message key. */
export function detach(envelope: Envelope): DetachedEnvelope {
  const { nonce, ciphertext, ...rest } = envelope;
  return rest;
}

/** Return the payload header's canonical bytes, which are what a payload is bound to. */
export function headerBytes(envelope: DetachedEnvelope | StreamEnvelope): Bytes {
  const { alg, associated_data, context, encoding, message_id, v } = envelope;
  const header = { alg, associated_data, context, encoding, message_id, v };
  const isStream = envelope.alg === STREAM_ALGORITHM;
  return encodeUTF8(canonicalJSON(isStream ? { ...header, chunk_size: envelope.chunk_size } : header));
}

/** Return how long an envelope's plaintext is, which its ciphertext shows. */
export function plaintextBytes(envelope: Envelope): number {
  return Math.floor((envelope.ciphertext.length * 3) / 4) - TAG_BYTES;
}

/** Return a message key's raw bytes as a key that can't be taken out again, and wipe them. */
export async function importMessageKey(raw: Bytes, usage: "encrypt" | "decrypt"): Promise<WebCryptoKey> {
  try {
    return await crypto.subtle.importKey("raw", raw, "AES-GCM", false, [usage]);
  } finally {
    raw.fill(0);
  }
}

/** Seal a payload under its message key. Only test vectors hand in a nonce. */
export async function seal(
  plaintext: Bytes,
  detachedEnvelope: DetachedEnvelope,
  key: WebCryptoKey,
  nonce: Bytes = crypto.getRandomValues(new Uint8Array(NONCE_BYTES)),
): Promise<Envelope> {
  const parameters = { name: "AES-GCM", iv: nonce, additionalData: headerBytes(detachedEnvelope) };
  const ciphertext = new Uint8Array(await crypto.subtle.encrypt(parameters, key, plaintext));
  return { ...detachedEnvelope, nonce: encodeBase64url(nonce), ciphertext: encodeBase64url(ciphertext) };
}

/** Open a payload under its message key; nothing of it is given out before its tag was checked. */
export async function open(envelope: Envelope, key: WebCryptoKey): Promise<Bytes> {
  const iv = bytesOf(envelope.nonce);
  const parameters = { name: "AES-GCM", iv, additionalData: headerBytes(envelope) };
  try {
    return new Uint8Array(await crypto.subtle.decrypt(parameters, key, bytesOf(envelope.ciphertext)));
  } catch {
    // Not kept as a cause: what went wrong is not to be read from the error.
    throw new EnvelopeInvalidError();
  }
}

/** A plaintext, once every check has passed. What is printed of it does not show it. */
export class Opened<Claims = null> {
  readonly #plaintext: Bytes;
  readonly #text: string | null;
  readonly claims: Claims;

  constructor(plaintext: Bytes, encoding: Encoding, claims: Claims) {
    this.#plaintext = plaintext;
    this.#text = encoding === null ? null : textOf(plaintext);
    this.claims = claims;
  }

  get plaintext(): Bytes {
    return this.#plaintext;
  }

  /** The plaintext as text where text was sealed, else null. */
  get text(): string | null {
    return this.#text;
  }
}

function textOf(plaintext: Bytes): string {
  const text = decodeUTF8(plaintext);
  if (text === undefined) throw new EnvelopeInvalidError();
  return text;
}

function exactly(value: unknown, names: readonly string[]): Members {
  const members = membersOf(value);
  if (members.size !== names.length || !names.every((name) => members.has(name))) {
    throw new EnvelopeInvalidError();
  }
  return members;
}

/** Return an object's members, strict JSON's or a program's own, so that no name means anything to the language. */
function membersOf(value: unknown): Members {
  if (value instanceof Map) return value;
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new EnvelopeInvalidError();
  return new Map(Object.entries(value));
}

function detached(members: Members): DetachedEnvelope {
  const encoding = members.get("encoding");
  if (members.get("alg") !== ALGORITHM) throw new EnvelopeInvalidError();
  if (encoding !== "utf-8" && encoding !== null) throw new EnvelopeInvalidError();
  return { ...labels(members), alg: ALGORITHM, encoding };
}

function labels(members: Members): Labels {
  const associatedData = members.get("associated_data");
  if (integer(members.get("v")) !== 1) throw new EnvelopeInvalidError();
  return {
    v: 1,
    context: contextOf(members.get("context")),
    associated_data: associatedData === null ? null : text(associatedData, 0, MAX_TEXT_BYTES),
    message_id: base64url(members.get("message_id"), 32, 32),
    backend: text(members.get("backend"), 1, 64),
    key_id: text(members.get("key_id"), 1, 2048),
    key_version: text(members.get("key_version"), 0, 2048),
    encrypted_data_key: base64url(members.get("encrypted_data_key"), 1, MAX_WRAPPED_BYTES),
    wrap_tag: base64url(members.get("wrap_tag"), 32, 32),
    commitment: base64url(members.get("commitment"), 32, 32),
  };
}

function contextOf(value: unknown): Context {
  const members = membersOf(value);
  if (members.size > MAX_PAIRS) throw new EnvelopeInvalidError();
  // Not by assignment, which would take the name `__proto__` for something else.
  const context = Object.fromEntries(
    [...members].map(([name, pair]) => [text(name, 1, MAX_NAME_BYTES), text(pair, 0, MAX_TEXT_BYTES)]),
  );
  if (encodeUTF8(canonicalJSON(context)).length > MAX_TEXT_BYTES) throw new EnvelopeInvalidError();
  return context;
}

function integer(value: unknown): number | undefined {
  if (value instanceof JSONNumber) return value.asInteger();
  return Number.isSafeInteger(value) ? (value as number) : undefined;
}

function text(value: unknown, minimum: number, maximum: number): string {
  // No text has fewer bytes than code units, so that a long one is not even encoded.
  if (typeof value !== "string" || value.length > maximum || !isWellFormed(value))
    throw new EnvelopeInvalidError();
  const length = encodeUTF8(value).length;
  if (length < minimum || length > maximum) throw new EnvelopeInvalidError();
  return value;
}

function base64url(value: unknown, minimum: number, maximum: number): string {
  if (typeof value !== "string") throw new EnvelopeInvalidError();
  const length = bytesOf(value).length;
  if (length < minimum || length > maximum) throw new EnvelopeInvalidError();
  return value;
}

function bytesOf(text: string): Bytes {
  const bytes = decodeBase64url(text);
  if (bytes === undefined) throw new EnvelopeInvalidError();
  return bytes;
}
