/**
 * KKP's public keys, as its JWKS has them, and signatures by them.
 *
 * Rules that hold here:
 * - A member counts if it is an Ed25519 key for verifying, without its private half, whose `kid` is its
 *   thumbprint. Others are passed over, as RFC 7517 section 5 wants it.
 * - A point in a second spelling, or one of the eight of small order, is no key: under the latter a signature
 *   can be found that fits nearly any message. WebCrypto takes both, so that this is checked here.
 * - A set with two keys of one `kid`, or without any that counts, is none.
 */

import { type Bytes, decodeBase64url, encodeBase64url, encodeUTF8, sha256 } from "./encoding.js";
import type { UnverifiedJWS } from "./jws.js";
import { refusal } from "./refusals.js";
import { isArray, isObject, type JSONObject, type JSONValue, parseStrictObject } from "./strictJson.js";

/** C: for so long after it was fetched a key set may be used, whether or not fetching anew works. */
export const MAX_KEYS_AGE_SECONDS = 600;
export const MAX_KEY_SET_BYTES = 256 * 1024;
const MAX_KEYS = 256;
const KEY_BYTES = 32;

// The y of the eight points of small order, in little-endian hex: of order 4, 1, 2, and twice 8.
const SMALL_ORDER: ReadonlySet<string> = new Set([
  `00${"00".repeat(31)}`,
  `01${"00".repeat(31)}`,
  `ec${"ff".repeat(30)}7f`,
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
]);

/** One Ed25519 public key. */
export class PublicKey {
  #imported: Promise<CryptoKey> | undefined;
  readonly #raw: Bytes;

  constructor(raw: Bytes) {
    this.#raw = raw;
  }

  /** The 32 bytes, in base64url. */
  get x(): string {
    return encodeBase64url(this.#raw);
  }

  /** Tell whether a signature over the message is by this key; never throws. */
  async verifies(signature: Bytes, message: Bytes): Promise<boolean> {
    try {
      this.#imported ??= crypto.subtle.importKey("raw", this.#raw, "Ed25519", false, ["verify"]);
      return await crypto.subtle.verify("Ed25519", await this.#imported, signature, message);
    } catch {
      // Some platforms refuse a point that is not on the curve when it is imported, others at each signature.
      return false;
    }
  }
}

/** Keys that were fetched at one time. */
export class KeySet {
  /**
   * @param keys by `kid`
   * @param fetchedAt Unix seconds, before the request that fetched them
   */
  constructor(
    readonly keys: ReadonlyMap<string, PublicKey>,
    readonly fetchedAt: number,
  ) {}

  /** Read a JWKS; undefined for what makes no set. */
  static async read(document: Uint8Array, fetchedAt: number): Promise<KeySet | undefined> {
    const keys = await readKeys(document);
    return keys && new KeySet(keys, fetchedAt);
  }

  /** The same keys, known to be those of a later time as well. */
  at(fetchedAt: number): KeySet {
    return new KeySet(this.keys, fetchedAt);
  }
}

/** Refuse a JWS that no published key signed: steps 10 to 13 of the verdict. */
export async function checkSignature(
  jws: UnverifiedJWS,
  keys: KeySet | undefined,
  now: number,
): Promise<void> {
  if (keys === undefined) throw refusal("no_keys");
  // Written so that a time that is no number refuses.
  if (!(now - keys.fetchedAt < MAX_KEYS_AGE_SECONDS)) throw refusal("keys_too_old");
  const key = keys.keys.get(jws.kid);
  if (key === undefined) throw refusal("unknown_key");
  if (!(await key.verifies(jws.signature, jws.signingInput))) throw refusal("wrong_signature");
}

/** Tell whether 32 bytes are a point in its one spelling that is not of small order; not whether it is on the curve. */
export function isAcceptablePoint(raw: Uint8Array): boolean {
  const y = Uint8Array.from(raw);
  y[31] = (y[31] ?? 0) & 0x7f; // the sign of x
  return isBelowPrime(y) && !SMALL_ORDER.has(hex(y));
}

/** Return the RFC 7638 thumbprint of a JWK, whose members are given in the order of their names. */
export async function thumbprintOf(members: Readonly<Record<string, string>>): Promise<string> {
  return encodeBase64url(await sha256(encodeUTF8(JSON.stringify(members))));
}

async function readKeys(document: Uint8Array): Promise<ReadonlyMap<string, PublicKey> | undefined> {
  const members = membersOf(document);
  if (members === undefined) return undefined;
  const keys = new Map<string, PublicKey>();
  for (const member of members) {
    const found = await readKey(member);
    if (found === undefined) continue;
    if (keys.has(found.kid)) return undefined;
    keys.set(found.kid, found.key);
  }
  return keys.size === 0 ? undefined : keys;
}

function membersOf(document: Uint8Array): readonly JSONValue[] | undefined {
  if (document.length > MAX_KEY_SET_BYTES) return undefined;
  try {
    const members = parseStrictObject(document).get("keys");
    return isArray(members) && members.length <= MAX_KEYS ? members : undefined;
  } catch {
    return undefined;
  }
}

async function readKey(member: JSONValue): Promise<{ kid: string; key: PublicKey } | undefined> {
  if (!isObject(member) || !isForVerifying(member)) return undefined;
  const [kid, x] = [member.get("kid"), member.get("x")];
  if (typeof kid !== "string" || typeof x !== "string") return undefined;
  const raw = decodeBase64url(x);
  if (raw?.length !== KEY_BYTES || !isAcceptablePoint(raw)) return undefined;
  return kid === (await thumbprintOf({ crv: "Ed25519", kty: "OKP", x }))
    ? { kid, key: new PublicKey(raw) }
    : undefined;
}

function isForVerifying(jwk: JSONObject): boolean {
  if (jwk.get("kty") !== "OKP" || jwk.get("crv") !== "Ed25519" || jwk.has("d")) return false;
  if (jwk.has("alg") && jwk.get("alg") !== "EdDSA") return false;
  if (jwk.has("use") && jwk.get("use") !== "sig") return false;
  const operations = jwk.get("key_ops");
  return !jwk.has("key_ops") || (isArray(operations) && operations.includes("verify"));
}

/** Tell whether a little-endian number below 2^255 is below 2^255 - 19. */
function isBelowPrime(y: Uint8Array): boolean {
  return y[31] !== 0x7f || y.subarray(1, 31).some((byte) => byte !== 0xff) || (y[0] ?? 0) < 0xed;
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
