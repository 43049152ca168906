/**
 * The verdict on a token, without I/O: the same inputs give the same answer, in every language of the SDKs.
 *
 * The steps are those of the table in sdk/README.md, in its order, and the first that refuses is the answer. A
 * token is not looked up anywhere, and its header names nothing that is used but a `kid` among the keys handed
 * in. Comparisons are written so that a time that is no number refuses.
 */

import { type Claims, readClaims } from "./claims.js";
import { checkProof, type PresentedProof } from "./dpop.js";
import { ConfigurationError } from "./errors.js";
import { readJWS } from "./jws.js";
import { checkSignature, type KeySet } from "./keys.js";
import { checkedLeeway, DEFAULT_LEEWAY_SECONDS } from "./leeway.js";
import { refusal, wrongIssuer } from "./refusals.js";
import type { ReplayMemory } from "./replayMemory.js";
import { checkRevocations, type RevocationList } from "./revocations.js";
import type { JSONObject } from "./strictJson.js";

export const TOKEN_TYPE = "kkp+jwt";
export const MAX_TOKEN_CHARACTERS = 8192;

/** What the caller presents beside the token. */
export interface Presented {
  /** A DPoP proof, not verified yet, and the request that it must be for. */
  readonly proof?: PresentedProof | undefined;
  /** The SHA-256 of the DER of the client certificate that TLS showed, in base64url; see `certificateThumbprint`. */
  readonly certificateSHA256?: string | undefined;
}

/** What a token is verified against. */
export interface TokenChecks extends Presented {
  /** What was used before: one for all verifications. It must be there where a proof is. */
  readonly proofs?: ReplayMemory | undefined;
  readonly keys: KeySet | undefined;
  /** Unix seconds. */
  readonly now: number;
  readonly issuer: string;
  /** What whoever verifies is called. */
  readonly audience: string;
  readonly leewaySeconds?: number;
  /** Left out, revocations are not looked at. With `list` undefined they are wanted, and every token is refused. */
  readonly revocations?: { readonly list: RevocationList | undefined };
}

/** Return the claims of a token that is good now, for this audience and request; throws a `KKPError`. */
export async function verifyToken(token: string, checks: TokenChecks): Promise<Claims> {
  const leewaySeconds = checkedLeeway(checks.leewaySeconds ?? DEFAULT_LEEWAY_SECONDS);
  const unverified = readJWS(token, TOKEN_TYPE, MAX_TOKEN_CHARACTERS);
  const claims = claimsOf(unverified.claims);
  checkNames(claims, checks);
  checkTimes(claims, checks.now, leewaySeconds);
  await checkSignature(unverified, checks.keys, checks.now);
  if (checks.revocations !== undefined) await checkRevocations(claims, checks.revocations.list, checks.now);
  await checkBinding(token, claims, checks, leewaySeconds);
  return claims;
}

function claimsOf(members: JSONObject): Claims {
  try {
    return readClaims(members);
  } catch {
    throw refusal("wrong_claims");
  }
}

function checkNames(claims: Claims, { issuer, audience }: TokenChecks): void {
  if (claims.iss !== issuer) throw wrongIssuer(issuer);
  if (claims.aud !== audience) throw refusal("wrong_audience");
}

function checkTimes(claims: Claims, now: number, leewaySeconds: number): void {
  if (!(now < claims.exp + leewaySeconds)) throw refusal("expired");
  if (!(Math.max(claims.nbf, claims.iat) <= now + leewaySeconds)) throw refusal("not_yet_valid");
}

/** Refuse a token whose `cnf` was not proven, or a proof that it has no key for: steps 17 to 20. */
async function checkBinding(
  token: string,
  { cnf }: Claims,
  { proof, proofs, certificateSHA256, now }: TokenChecks,
  leewaySeconds: number,
): Promise<void> {
  if (cnf !== undefined && "jkt" in cnf) {
    if (proof === undefined) throw refusal("proof_missing");
    if (proofs === undefined)
      throw new ConfigurationError("a DPoP proof needs a memory of those that were used");
    await checkProof(proof, { token, jkt: cnf.jkt, now, leewaySeconds, memory: proofs });
    return;
  }
  if (cnf !== undefined) {
    if (certificateSHA256 === undefined) throw refusal("proof_missing");
    if (certificateSHA256 !== cnf["x5t#S256"]) throw refusal("wrong_certificate");
  }
  if (proof !== undefined) throw refusal("not_bound");
}
