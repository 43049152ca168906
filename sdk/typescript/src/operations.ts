/**
 * What KKP can be asked to do with envelopes: what is said, under which token, and how the answer is read.
 *
 * Pure. An answer must be about what was asked: of this key, context, length and encoding, or it is `bad_answer`.
 */

import { canonicalJSON, type Plain } from "./canonicalJson.js";
import { type Claims, type Operation as Op, readClaims } from "./claims.js";
import { type Bytes, bytesOf, decodeBase64, encodeBase64, encodeUTF8 } from "./encoding.js";
import {
  type AnyEnvelope,
  type Context,
  type DetachedEnvelope,
  decoded,
  type Encoding,
  type Envelope,
  type EnvelopeJSON,
  type Moved,
  Opened,
  plaintextBytes,
  readAnyEnvelope,
  readDetachedEnvelope,
  readEnvelope,
  readStreamEnvelope,
  type StreamEnvelope,
} from "./envelope.js";
import { ConfigurationError, EnvelopeInvalidError } from "./errors.js";
import { checkedName, checkedPairs, checkedSpelling } from "./options.js";
import { badAnswer, type Members, type PolicyContext, type Scope, textOf } from "./protocol.js";
import { isObject, type JSONObject, type JSONValue } from "./strictJson.js";

/** What an envelope is to be sealed under, and bound to. */
export interface Sealing {
  readonly backend: string;
  readonly keyId: string;
  readonly context?: Context;
  readonly associatedData?: string;
  readonly policyContext?: PolicyContext;
}

/** A plaintext, and what it is sealed under. */
export interface Message extends Sealing {
  /** Text comes back as text, bytes as bytes. */
  readonly plaintext: string | Uint8Array;
}

/** A key that an envelope is to be moved to. */
export interface Target {
  readonly backend: string;
  readonly keyId: string;
}

/** A message key, and the envelope whose one message it is for. */
export interface MessageKey<E> {
  readonly envelope: E;
  readonly raw: Bytes;
}

/** What KKP knows of a token; of one that is not good, or not the caller's to ask about, only that. */
export type Introspection =
  | { readonly active: false }
  | ({ readonly active: true; readonly token_type: "Bearer" | "DPoP" } & Claims);

/** How an envelope is opened or moved. */
export interface Opening {
  /** What the token is for, beyond the envelope's own key: with a key named, an envelope of another is refused. */
  readonly scope?: Partial<Omit<Scope, "ops">>;
  readonly policyContext?: PolicyContext;
}

export interface Operation<T> {
  readonly path: string;
  /** What a token for it is asked for. */
  readonly scope: Scope;
  /** Whether it takes a token, whatever other credential is shown. */
  readonly takesToken: boolean;
  readonly members: Members;
  /** Read a success's document; throws a `TransportError` where it is none of what was asked. */
  readonly read: (document: JSONObject) => T;
}

const MESSAGE_KEY_BYTES = 32;

export function encrypting(message: Message): Operation<Envelope> {
  const { plaintext } = message;
  const isText = typeof plaintext === "string";
  const bytes = isText ? encodeUTF8(plaintext) : checkedBytes(plaintext);
  const payload = isText ? { plaintext } : { plaintext_b64: encodeBase64(bytes) };
  const members = { ...sealingMembers(message), ...payload };
  return sealing("/envelope/encrypt", message, members, (document) => {
    const envelope = answered(() => readEnvelope(document.get("envelope")));
    const isRight = isSealedUnder(envelope, message) && plaintextBytes(envelope) === bytes.length;
    return isRight && (envelope.encoding === "utf-8") === isText ? envelope : badAnswer();
  });
}

/** Return the bytes of a plaintext: what has none has no length either, and would be sealed as nothing. */
export function checkedBytes(plaintext: unknown): Uint8Array {
  const bytes = bytesOf(plaintext);
  if (bytes === undefined) throw new ConfigurationError("a plaintext is a text or a Uint8Array");
  return bytes;
}

export function decrypting(
  envelope: Envelope | EnvelopeJSON,
  opening: Opening,
): Operation<Opened<Claims | null>> {
  const checked = readEnvelope(decoded(envelope));
  return {
    path: "/envelope/decrypt",
    scope: scopeOf(checked, "decrypt", opening),
    takesToken: true,
    members: openingMembers(checked, opening),
    read: (document) => readOpened(document, checked),
  };
}

/** Move an envelope of any form, which comes back in its own. */
export function rewrapping<E extends AnyEnvelope | EnvelopeJSON>(
  envelope: E,
  target: Target,
  opening: Opening,
): Operation<Moved<E>> {
  const checked = readAnyEnvelope(decoded(envelope));
  return {
    path: "/envelope/rewrap",
    scope: scopeOf(checked, "rewrap", opening),
    takesToken: true,
    members: { ...openingMembers(checked, opening), ...targetMembers(target) },
    // Of the same members, as it was compared with what went in.
    read: (document) => readRewrapped(document, checked, target) as Moved<E>,
  };
}

export function beginning(under: Sealing, encoding: Encoding): Operation<MessageKey<DetachedEnvelope>> {
  const members = { ...sealingMembers(under), encoding };
  return sealing("/envelope/data-key", under, members, (document) => {
    const envelope = answered(() => readDetachedEnvelope(document.get("envelope")));
    if (!isSealedUnder(envelope, under) || envelope.encoding !== encoding) return badAnswer();
    return { envelope, raw: readMessageKey(document) };
  });
}

export function beginningStream(under: Sealing, chunkSize: number): Operation<MessageKey<StreamEnvelope>> {
  const members = { ...sealingMembers(under), chunk_size: chunkSize };
  return sealing("/envelope/data-key", under, members, (document) => {
    const envelope = answered(() => readStreamEnvelope(document.get("envelope")));
    if (!isSealedUnder(envelope, under) || envelope.chunk_size !== chunkSize) return badAnswer();
    return { envelope, raw: readMessageKey(document) };
  });
}

export function releasing(envelope: DetachedEnvelope | StreamEnvelope, opening: Opening): Operation<Bytes> {
  return {
    path: "/envelope/data-key/unwrap",
    scope: scopeOf(envelope, "decrypt", opening),
    takesToken: true,
    members: openingMembers(envelope, opening),
    read: readMessageKey,
  };
}

export function readIntrospection(document: JSONObject): Introspection {
  const active = document.get("active");
  if (active === false) return { active };
  const type = document.get("token_type");
  if (active !== true || (type !== "Bearer" && type !== "DPoP")) return badAnswer();
  return { active, token_type: type, ...claimsIn(document) };
}

function sealing<T>(
  path: string,
  under: Sealing,
  members: Members,
  read: Operation<T>["read"],
): Operation<T> {
  const scope: Scope = { backend: under.backend, keyId: under.keyId, ops: ["encrypt"] };
  return { path, scope, takesToken: false, members, read };
}

function sealingMembers(under: Sealing): Members {
  checkedSpelling(under, "associatedData", "policyContext", "chunkSize");
  return {
    ...targetMembers(under),
    context: checkedPairs(under.context, "context"),
    associated_data: under.associatedData,
    policy_context: under.policyContext,
  };
}

function targetMembers(target: Target): Members {
  checkedSpelling(target, "keyId");
  const { backend, keyId } = target;
  return { backend: checkedName(backend, "backend"), key_id: checkedName(keyId, "keyId") };
}

function openingMembers(envelope: DetachedEnvelope | StreamEnvelope, opening: Opening): Members {
  checkedSpelling(opening, "policyContext");
  const plain: Plain = { ...envelope };
  return { envelope: plain, policy_context: opening.policyContext };
}

function scopeOf(envelope: DetachedEnvelope | StreamEnvelope, op: Op, opening: Opening): Scope {
  return { backend: envelope.backend, keyId: envelope.key_id, ...opening.scope, ops: [op] };
}

function readOpened(document: JSONObject, envelope: Envelope): Opened<Claims | null> {
  const plaintext = decodeBase64(textOf(document.get("plaintext_b64")));
  if (plaintext?.length !== plaintextBytes(envelope)) return badAnswer();
  return answered(() => new Opened(plaintext, envelope.encoding, claimsOf(document.get("claims"))));
}

/** Read a moved envelope: the same as it was but for the wrap, which is the asked for key's. */
function readRewrapped(document: JSONObject, source: AnyEnvelope, target: Target): AnyEnvelope {
  const moved = answered(() => readAnyEnvelope(document.get("envelope")));
  const { backend, key_id, key_version, encrypted_data_key, wrap_tag } = moved;
  const expected = { ...source, backend, key_id, key_version, encrypted_data_key, wrap_tag };
  const isMoved = backend === target.backend && key_id === target.keyId;
  return isMoved && canonicalJSON({ ...expected }) === canonicalJSON({ ...moved }) ? moved : badAnswer();
}

function readMessageKey(document: JSONObject): Bytes {
  const raw = decodeBase64(textOf(document.get("message_key_b64")));
  return raw?.length === MESSAGE_KEY_BYTES ? raw : badAnswer();
}

function isSealedUnder(envelope: DetachedEnvelope | StreamEnvelope, under: Sealing): boolean {
  return (
    envelope.backend === under.backend &&
    envelope.key_id === under.keyId &&
    envelope.associated_data === (under.associatedData ?? null) &&
    canonicalJSON(envelope.context) === canonicalJSON(under.context ?? {})
  );
}

function claimsOf(value: JSONValue | undefined): Claims | null {
  if (value === null) return null;
  return isObject(value) ? claimsIn(value) : badAnswer();
}

function claimsIn(members: JSONObject): Claims {
  try {
    return readClaims(members);
  } catch {
    return badAnswer();
  }
}

/** Read an envelope of an answer: one that is malformed is KKP's fault, and no verdict on anybody's envelope. */
function answered<T>(read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (error instanceof EnvelopeInvalidError) return badAnswer();
    throw error;
  }
}
