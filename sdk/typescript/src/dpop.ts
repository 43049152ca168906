/**
 * DPoP proofs (RFC 9449): that whoever sends a request has a certain private key. Made here, and checked.
 *
 *     header    {"alg":"ES256","jwk":{"crv":"P-256","kty":"EC","x":"…","y":"…"},"typ":"dpop+jwt"}
 *               {"alg":"EdDSA","jwk":{"crv":"Ed25519","kty":"OKP","x":"…"},"typ":"dpop+jwt"}
 *     claims    {"jti":"…","htm":"POST","htu":"https://orders.example/rows","iat":1750000000,
 *                "ath":"<SHA-256 of the token shown with it>","nonce":"<where a server demands one>"}
 *
 * Rules of checking:
 * - The proof's own key verifies it, and says who sent it only because the token's `cnf.jkt` is its thumbprint.
 *   A header with a private key, or with anything beyond these members, is refused; nothing in it is fetched.
 * - Claims that are not known are passed over, as RFC 9449 has it. Whatever is wrong has one reason.
 * - A proof is remembered only once all else was right, so that nobody can use up another's.
 */

import { type Bytes, concatenate, decodeBase64url, encodeBase64url, encodeUTF8, sha256 } from "./encoding.js";
import { ConfigurationError } from "./errors.js";
import { FormError, integer, list, objectOf, optional, text } from "./forms.js";
import { normalisedURL } from "./htu.js";
import { splitJWS } from "./jws.js";
import { isAcceptablePoint, thumbprintOf } from "./keys.js";
import { refusal } from "./refusals.js";
import type { ReplayMemory } from "./replayMemory.js";
import { type JSONObject, parseStrictObject } from "./strictJson.js";
import type { WebCryptoKey } from "./webCrypto.js";

export type ProofAlgorithm = "ES256" | "EdDSA";
/** In the order in which a challenge names them. */
export const PROOF_ALGORITHMS: readonly ProofAlgorithm[] = ["ES256", "EdDSA"];

const PROOF_TYPE = "dpop+jwt";
const PROOF_SECONDS = 60;
const MAX_PROOF_CHARACTERS = 4096;
const COORDINATE_BYTES = 32;
const JTI_BYTES = 16;
const JTI = /^[\x21-\x7e]{1,256}$/;
const UNCOMPRESSED = Uint8Array.of(4);

const ES256_KEY = { name: "ECDSA", namedCurve: "P-256" } as const;
const ES256_SIGNATURE = { name: "ECDSA", hash: "SHA-256" } as const;
const ED25519 = { name: "Ed25519" } as const;

/** A proof as it came, and the request that it must be for. */
export interface PresentedProof {
  /** The value of the header `DPoP`. */
  readonly proof: string;
  readonly method: string;
  /** The URL that the request was sent to: never what a `Host` header says, which is the sender's to choose. */
  readonly url: string;
}

/** What a proof is checked against. */
export interface ProofChecks {
  readonly token: string;
  readonly jkt: string;
  readonly now: number;
  readonly leewaySeconds: number;
  readonly memory: ReplayMemory;
}

interface ProofKey {
  readonly jkt: string;
  verifies(signature: Bytes, message: Bytes): Promise<boolean>;
}

interface ProofClaims {
  readonly jti: string;
  readonly htm: string;
  readonly htu: string;
  readonly iat: number;
  readonly ath: string;
}

/** Refuse a proof that is not by the key of `jkt`, for this request and token, now, and for the first time. */
export async function checkProof(presented: PresentedProof, checks: ProofChecks): Promise<void> {
  if (!(await isGood(presented, checks))) throw refusal("wrong_proof");
}

async function isGood(presented: PresentedProof, checks: ProofChecks): Promise<boolean> {
  const segments = splitJWS(presented.proof, MAX_PROOF_CHARACTERS);
  if (segments === undefined) return false;
  const claims = readOrNothing(() => readClaims(parseStrictObject(segments.payload)));
  if (claims === undefined || !isFor(claims, presented) || !isInTime(claims, checks)) return false;
  if (claims.ath !== (await digestOf(checks.token))) return false;
  const key = await readKey(segments.header);
  if (key?.jkt !== checks.jkt || !(await key.verifies(segments.signature, segments.signingInput)))
    return false;
  const endsAt = claims.iat + PROOF_SECONDS + checks.leewaySeconds;
  return checks.memory.takes(`${key.jkt} ${claims.jti}`, endsAt, checks.now);
}

function readClaims(members: JSONObject): ProofClaims {
  const jti = text(members.get("jti"));
  if (!JTI.test(jti)) throw new FormError("no jti");
  return {
    jti,
    htm: text(members.get("htm")),
    htu: text(members.get("htu")),
    iat: integer(members.get("iat")),
    ath: text(members.get("ath")),
  };
}

function isFor({ htm, htu }: ProofClaims, { method, url }: PresentedProof): boolean {
  const normalised = normalisedURL(htu);
  return htm === method && normalised !== undefined && normalised === normalisedURL(url);
}

function isInTime({ iat }: ProofClaims, { now, leewaySeconds }: ProofChecks): boolean {
  return Math.abs(now - iat) <= PROOF_SECONDS + leewaySeconds;
}

async function readKey(segment: string): Promise<ProofKey | undefined> {
  const document = decodeBase64url(segment);
  const members = document && readOrNothing(() => readHeader(document));
  if (members === undefined) return undefined;
  const { alg, jwk } = members;
  const [x, y] = [jwk.get("x"), jwk.get("y")];
  const kind = `${alg} ${jwk.get("kty")} ${jwk.get("crv")}`;
  if (kind === "ES256 EC P-256") return await ellipticKey(x, y);
  if (kind === "EdDSA OKP Ed25519" && y === undefined) return await edwardsKey(x);
  return undefined;
}

/** Return algorithm and key of a header that has what a proof's has, and nothing else. */
function readHeader(document: Bytes): { alg: string; jwk: ReadonlyMap<string, string> } {
  const header = objectOf(parseStrictObject(document), "typ", "alg", "jwk");
  const jwk = objectOf(header.get("jwk"), "kty", "crv", "x", "y", "alg", "use", "kid", "key_ops", "ext");
  const alg = text(header.get("alg"));
  if (text(header.get("typ")) !== PROOF_TYPE) throw new FormError("of another type");
  if ((optional(jwk, "alg", text) ?? alg) !== alg) throw new FormError("a key for another algorithm");
  if ((optional(jwk, "use", text) ?? "sig") !== "sig") throw new FormError("a key for something else");
  optional(jwk, "kid", text);
  optional(jwk, "key_ops", (operations) => list(operations, text));
  if (jwk.has("ext") && typeof jwk.get("ext") !== "boolean") throw new FormError("no truth value");
  return { alg, jwk: coordinates(jwk) };
}

function coordinates(jwk: JSONObject): ReadonlyMap<string, string> {
  const names = ["kty", "crv", "x", "y"].filter((name) => jwk.has(name));
  return new Map(names.map((name) => [name, text(jwk.get(name))]));
}

async function ellipticKey(x: string | undefined, y: string | undefined): Promise<ProofKey | undefined> {
  const [xBytes, yBytes] = [coordinate(x), coordinate(y)];
  if (x === undefined || y === undefined || xBytes === undefined || yBytes === undefined) return undefined;
  return {
    jkt: await thumbprintOf({ crv: "P-256", kty: "EC", x, y }),
    // A point that is not on the curve is refused when it is imported.
    verifies: verifierBy(ES256_KEY, ES256_SIGNATURE, concatenate(UNCOMPRESSED, xBytes, yBytes)),
  };
}

async function edwardsKey(x: string | undefined): Promise<ProofKey | undefined> {
  const raw = coordinate(x);
  if (x === undefined || raw === undefined || !isAcceptablePoint(raw)) return undefined;
  return {
    jkt: await thumbprintOf({ crv: "Ed25519", kty: "OKP", x }),
    verifies: verifierBy(ED25519, ED25519, raw),
  };
}

function verifierBy(
  key: EcKeyImportParams | typeof ED25519,
  signatures: EcdsaParams | typeof ED25519,
  raw: Bytes,
): ProofKey["verifies"] {
  return async (signature, message) => {
    try {
      const imported = await crypto.subtle.importKey("raw", raw, key, false, ["verify"]);
      return await crypto.subtle.verify(signatures, imported, signature, message);
    } catch {
      return false;
    }
  };
}

function coordinate(given: string | undefined): Bytes | undefined {
  const bytes = given === undefined ? undefined : decodeBase64url(given);
  return bytes?.length === COORDINATE_BYTES ? bytes : undefined;
}

function readOrNothing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

async function digestOf(token: string): Promise<string> {
  return encodeBase64url(await sha256(encodeUTF8(token)));
}

/** What a proof is made for. */
export interface ProofRequest {
  readonly method: string;
  readonly url: string;
  /** The token that is shown with it, if one is. */
  readonly token?: string | undefined;
  /** What the server's last answer had in `DPoP-Nonce`, where it demands one. */
  readonly nonce?: string | undefined;
  /** Unix seconds; by the machine's clock where left out. */
  readonly now?: number | undefined;
}

/** A key pair of WebCrypto's, a `CryptoKeyPair`. */
export interface SigningKeyPair {
  readonly publicKey: WebCryptoKey;
  readonly privateKey: WebCryptoKey;
}

/** A private key that signs proofs. It shows itself to nobody: not as text, not as JSON, not to a debugger's print. */
export class DPoPKey {
  /** The RFC 7638 thumbprint of the public key, which a token that is bound to it has as `cnf.jkt`. */
  readonly thumbprint: string;
  readonly #privateKey: WebCryptoKey;
  readonly #header: string;

  private constructor(privateKey: WebCryptoKey, header: string, thumbprint: string) {
    this.#privateKey = privateKey;
    this.#header = header;
    this.thumbprint = thumbprint;
  }

  /** Make a key that can't be exported. */
  static async generate(algorithm: ProofAlgorithm = "ES256"): Promise<DPoPKey> {
    if (!PROOF_ALGORITHMS.includes(algorithm))
      throw new ConfigurationError("a DPoP key is for ES256 or EdDSA");
    const kind = algorithm === "ES256" ? ES256_KEY : ED25519;
    return await DPoPKey.of(
      (await crypto.subtle.generateKey(kind, false, ["sign", "verify"])) as CryptoKeyPair,
    );
  }

  /** Take a key pair of WebCrypto's, of P-256 (ECDSA) or Ed25519; the private key need not be extractable. */
  static async of({ publicKey, privateKey }: SigningKeyPair): Promise<DPoPKey> {
    const { kty, crv, x, y } = await exported(publicKey);
    const alg = proofAlgorithmOf(privateKey, crv);
    if (kty === undefined || crv === undefined || x === undefined) throw unusableKey();
    const jwk = { crv, kty, x, ...(y !== undefined && { y }) };
    const header = encodeBase64url(encodeUTF8(JSON.stringify({ alg, jwk, typ: PROOF_TYPE })));
    return new DPoPKey(privateKey, header, await thumbprintOf(jwk));
  }

  /** Make a proof for one request; another one, or the same once more, needs another proof. */
  async proof({ method, url, token, nonce, now }: ProofRequest): Promise<string> {
    if (normalisedURL(url) === undefined)
      throw new ConfigurationError("a DPoP proof is for an absolute URL of HTTP");
    const claims = {
      jti: encodeBase64url(crypto.getRandomValues(new Uint8Array(JTI_BYTES))),
      htm: method,
      htu: url.replace(/[?#].*$/, ""),
      iat: Math.floor(now ?? Date.now() / 1000),
      ...(token !== undefined && { ath: await digestOf(token) }),
      ...(nonce !== undefined && { nonce }),
    };
    const signingInput = `${this.#header}.${encodeBase64url(encodeUTF8(JSON.stringify(claims)))}`;
    const kind = this.#privateKey.algorithm.name === "ECDSA" ? ES256_SIGNATURE : ED25519;
    const signature = await crypto.subtle.sign(kind, this.#privateKey, encodeUTF8(signingInput));
    return `${signingInput}.${encodeBase64url(new Uint8Array(signature))}`;
  }
}

async function exported(publicKey: WebCryptoKey): Promise<JsonWebKey> {
  try {
    return await crypto.subtle.exportKey("jwk", publicKey);
  } catch {
    throw unusableKey();
  }
}

function proofAlgorithmOf(privateKey: WebCryptoKey, crv: string | undefined): ProofAlgorithm {
  const { name } = privateKey.algorithm;
  if (!privateKey.usages.includes("sign")) throw unusableKey();
  if (name === "ECDSA" && crv === "P-256") return "ES256";
  if (name === "Ed25519" && crv === "Ed25519") return "EdDSA";
  throw unusableKey();
}

function unusableKey(): ConfigurationError {
  return new ConfigurationError("a DPoP key is a pair for signing, of ECDSA with P-256 or of Ed25519");
}
