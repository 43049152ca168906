/**
 * JWS in compact form (RFC 7515), as strictly as KKP reads it, without looking at a signature.
 *
 * One spelling: three segments of base64url without padding, other letters or stray trailing bits, a header and
 * claims of strict JSON, a signature of 64 bytes. What is within is unverified.
 */

import { type Bytes, decodeBase64url, encodeUTF8 } from "./encoding.js";
import { objectOf, text } from "./forms.js";
import { refusal } from "./refusals.js";
import { type JSONObject, parseStrictObject } from "./strictJson.js";

const SIGNATURE_BYTES = 64;

/** The three parts of a JWS, none of which has been verified. */
export interface Segments {
  readonly header: Bytes;
  readonly payload: Bytes;
  readonly signature: Bytes;
  readonly signingInput: Bytes;
}

/** A JWS that KKP could have signed; whether it did is for `checkSignature` to say. */
export interface UnverifiedJWS {
  readonly kid: string;
  readonly claims: JSONObject;
  readonly signature: Bytes;
  readonly signingInput: Bytes;
}

/** Return the parts of a JWS, or undefined for what is none, or could be spelt otherwise. */
export function splitJWS(jws: string, maxCharacters: number): Segments | undefined {
  if (typeof jws !== "string" || jws.length > maxCharacters) return undefined;
  const segments = jws.split(".", 4);
  if (segments.length !== 3 || segments.includes("")) return undefined;
  const [header, payload, signature] = segments.map(decodeBase64url);
  if (header === undefined || payload === undefined || signature?.length !== SIGNATURE_BYTES)
    return undefined;
  return { header, payload, signature, signingInput: encodeUTF8(jws.slice(0, jws.lastIndexOf("."))) };
}

/** Read a JWS of KKP's, of this `typ`: steps 1 to 4 of the verdict. Throws a `TokenError`. */
export function readJWS(jws: string, typ: string, maxCharacters: number): UnverifiedJWS {
  const segments = splitJWS(jws, maxCharacters);
  if (segments === undefined) throw refusal("malformed");
  const { alg, kid, typ: given, claims } = readParts(segments);
  if (alg !== "EdDSA") throw refusal("wrong_algorithm");
  if (given !== typ) throw refusal("wrong_type");
  return { kid, claims, signature: segments.signature, signingInput: segments.signingInput };
}

function readParts({ header, payload }: Segments) {
  try {
    const members = objectOf(parseStrictObject(header), "alg", "kid", "typ");
    return {
      alg: text(members.get("alg")),
      kid: text(members.get("kid")),
      typ: text(members.get("typ")),
      claims: parseStrictObject(payload),
    };
  } catch {
    throw refusal("malformed");
  }
}
