/**
 * JWS in compact form (RFC 7515), as strictly as KKP reads it, without looking at a signature.
 *
 * One spelling: three segments of base64url without padding, other letters or stray trailing bits, a header and
 * claims of strict JSON, a signature of 64 bytes. What is within is unverified.
 */

import { type Bytes, decodeBase64url, encodeUTF8 } from "./encoding.js";
import { FormError, objectOf, text } from "./forms.js";
import { refusal } from "./refusals.js";
import { type JSONObject, parseStrictObject } from "./strictJson.js";

const SIGNATURE_BYTES = 64;
const NOTHING = new Uint8Array();

/** The three parts of a JWS, none of which has been verified. */
export interface Segments {
  /** Still in base64url, which has not been looked at. */
  readonly header: string;
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
  const [header = "", payloadText = "", signatureText = "", ...others] = jws.split(".", 4);
  if (header === "" || payloadText === "" || others.length > 0) return undefined;
  const [payload, signature] = [decodeBase64url(payloadText), decodeBase64url(signatureText)];
  if (payload === undefined || signature?.length !== SIGNATURE_BYTES) return undefined;
  return { header, payload, signature, signingInput: encodeUTF8(`${header}.${payloadText}`) };
}

/** Read a JWS of KKP's, of this `typ`: steps 1 to 4 of the verdict. Throws a `TokenError`. */
export function readJWS(jws: string, typ: string, maxCharacters: number): UnverifiedJWS {
  const { header, claims, signature, signingInput } = readParts(jws, maxCharacters);
  if (header.alg !== "EdDSA") throw refusal("wrong_algorithm");
  if (header.typ !== typ) throw refusal("wrong_type");
  return { kid: header.kid, claims, signature, signingInput };
}

function readParts(jws: string, maxCharacters: number) {
  try {
    const segments = splitJWS(jws, maxCharacters);
    if (segments === undefined) throw new FormError("no JWS");
    const { payload, signature, signingInput } = segments;
    return {
      header: readHeader(segments.header),
      claims: parseStrictObject(payload),
      signature,
      signingInput,
    };
  } catch {
    throw refusal("malformed");
  }
}

interface Header {
  readonly alg: string;
  readonly kid: string;
  readonly typ: string;
}

// All tokens by one key have one header, to the letter: the last one that was read need not be read again.
let lastHeader: { readonly text: string; readonly header: Header } | undefined;

function readHeader(segment: string): Header {
  if (lastHeader?.text === segment) return lastHeader.header;
  const members = objectOf(parseStrictObject(decodeBase64url(segment) ?? NOTHING), "alg", "kid", "typ");
  const header = {
    alg: text(members.get("alg")),
    kid: text(members.get("kid")),
    typ: text(members.get("typ")),
  };
  lastHeader = { text: segment, header };
  return header;
}
