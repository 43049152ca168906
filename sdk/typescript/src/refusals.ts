/**
 * Why a token, a list or a proof is refused: one table, so that a reason has one code and one text everywhere.
 *
 * Reasons are stable and the same in every language of the SDKs; the texts are for people.
 */

import { KeysUnavailableError, type KKPError, RevocationsUnavailableError, TokenError } from "./errors.js";

const TOKEN_REFUSALS = {
  malformed: ["token_invalid", "it is malformed, or could be spelt otherwise"],
  wrong_algorithm: ["token_invalid", "its algorithm is not EdDSA"],
  wrong_type: ["token_invalid", "it is of another type"],
  wrong_claims: ["token_invalid", "a claim is missing, or has another form than KKP's"],
  wrong_issuer: ["token_invalid", "it is another issuer's"],
  wrong_audience: ["audience_mismatch", "it is meant for somebody else"],
  expired: ["token_expired", "it has expired"],
  not_yet_valid: ["token_invalid", "it is not valid yet"],
  unknown_key: ["token_invalid", "no published key has its kid"],
  wrong_signature: ["token_invalid", "its signature is wrong"],
  revoked: ["token_invalid", "it is revoked"],
  proof_missing: [
    "token_invalid",
    "it is bound to a key, and nothing shows that the request comes from whoever has it",
  ],
  wrong_certificate: ["token_invalid", "it is bound to another client certificate"],
  wrong_proof: [
    "token_invalid",
    "the DPoP proof is malformed, for something else, not in time, or was used before",
  ],
  not_bound: ["token_invalid", "it is bound to no key that a DPoP proof could be by"],
} as const;

const KEY_REFUSALS = {
  no_keys: "there are no keys to verify with",
  keys_too_old: "the keys were fetched too long ago to be trusted",
} as const;

const REVOCATION_REFUSALS = {
  no_list: "there is no list of revocations",
  list_too_old: "the list of revocations has expired",
  older_list: "the list of revocations is older than one that was seen before",
} as const;

export type TokenReason = keyof typeof TOKEN_REFUSALS;
export type KeysReason = keyof typeof KEY_REFUSALS;
export type RevocationsReason = keyof typeof REVOCATION_REFUSALS;
export type Reason = TokenReason | KeysReason | RevocationsReason;

/** Refuse what another issuer signed; mostly it is the one expected that was configured otherwise than KKP was. */
export function wrongIssuer(expected: string): KKPError {
  return refusal("wrong_issuer", `expected ${expected}; see the option issuer`);
}

/** Return the error of a verdict. `about` says more, in words that hold nothing of what was handed in. */
export function refusal(reason: Reason, about = ""): KKPError {
  if (reason in KEY_REFUSALS) {
    const known = reason as KeysReason;
    return new KeysUnavailableError(known, sentence(KEY_REFUSALS[known], about));
  }
  if (reason in REVOCATION_REFUSALS) {
    const known = reason as RevocationsReason;
    return new RevocationsUnavailableError(known, sentence(REVOCATION_REFUSALS[known], about));
  }
  const known = reason as TokenReason;
  const [code, text] = TOKEN_REFUSALS[known];
  return new TokenError(code, known, sentence(`refused: ${text}`, about));
}

function sentence(text: string, about: string): string {
  return about === "" ? text : `${text}: ${about}`;
}
