/**
 * What is said to KKP, how its answers are read, and when something is said again. No I/O, no clock, no chance.
 *
 * Answers are distrusted: they are strict JSON, and say what was asked for, or are `bad_answer`. Members that
 * are not known are passed over. No error holds any text of an answer but its codes and ids.
 */

import { canonicalJSON, type Plain } from "./canonicalJson.js";
import type { Operation } from "./claims.js";
import { decodeBase64url } from "./encoding.js";
import type { Context } from "./envelope.js";
import {
  ConfigurationError,
  EnvelopeInvalidError,
  type ErrorDetails,
  type KKPError,
  ProblemError,
  TransportError,
} from "./errors.js";
import type { Answer, NoAnswer } from "./http.js";
import { checkedName, checkedPairs, checkedSpelling } from "./options.js";
import {
  isArray,
  isObject,
  JSONNumber,
  type JSONObject,
  type JSONValue,
  parseStrictObject,
  StrictJSONError,
} from "./strictJson.js";

/** What policy is told beside what KKP knows itself: the caller's word, which may narrow and never grants. */
export type PolicyContext = Readonly<Record<string, string | number | boolean | null>>;

/** What a token is for. */
export interface Scope {
  /** Whom it is meant for; the client's own audience where left out. */
  readonly audience?: string;
  readonly backend: string;
  readonly keyId: string;
  /** `["decrypt"]` where left out; `[]` for a token that opens nothing. */
  readonly ops?: readonly Operation[];
  readonly ttlSeconds?: number;
  readonly policyClaims?: Context;
  /** Pairs that the context of an envelope must contain. */
  readonly context?: Context;
  /** Whom it speaks for, where policy lets the caller speak for another. */
  readonly subject?: string;
  readonly requestContext?: PolicyContext;
}

/** A token of KKP's. Whoever holds `token` may use it; what is printed of this does not show it. */
export class AccessToken {
  readonly #token: string;
  readonly tokenType: "Bearer" | "DPoP";
  /** Unix seconds, by KKP's clock. */
  readonly expiresAt: number;
  readonly kid: string;

  constructor(token: string, tokenType: "Bearer" | "DPoP", expiresAt: number, kid: string) {
    this.#token = token;
    this.tokenType = tokenType;
    this.expiresAt = expiresAt;
    this.kid = kid;
  }

  get token(): string {
    return this.#token;
  }
}

const KIBIBYTE = 1024;
const MAX_TOKEN_CHARACTERS = 8192;
const CODE = /^[a-z_]{1,64}$/;
const WORD = /^[A-Za-z0-9._:-]{1,128}$/;
const MAX_REASONS = 32;
const CREDENTIAL = /^[A-Za-z0-9._~+/-]+=*$/;
const TOKEN = /^[A-Za-z0-9_-]+\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+$/;
const NONCE = /^[\x21-\x7e]{1,256}$/;
const REPEATABLE = new Set([429, 503]);
const FIRST_DELAY_SECONDS = 0.1;
const RENEWAL_SHARE = 1 / 5;
const MIN_RENEWAL_SECONDS = 10;

// What is said.

/** Return the body of `POST /token`, which names the scope as well: equal bodies ask for equal tokens. */
export function tokenBody(scope: Scope, defaultAudience: string | undefined, isBound: boolean): string {
  checkedSpelling(scope, "keyId", "ttlSeconds", "policyClaims", "requestContext");
  const audience = scope.audience ?? defaultAudience;
  if (audience === undefined) {
    throw new ConfigurationError("a token needs an audience: the client's, or the scope's own");
  }
  return jsonOf({
    audience: checkedName(audience, "audience"),
    backend: checkedName(scope.backend, "backend"),
    key_id: checkedName(scope.keyId, "keyId"),
    ops: [...(scope.ops ?? ["decrypt"])].sort(),
    ttl_seconds: scope.ttlSeconds,
    policy_claims: checkedPairs(scope.policyClaims, "policyClaims"),
    context: checkedPairs(scope.context, "context"),
    subject: scope.subject,
    request_context: scope.requestContext,
    binding: isBound ? "dpop" : undefined,
  });
}

/** Members of a body; those that are undefined are left out. */
export type Members = Readonly<Record<string, Plain | undefined>>;

export function jsonOf(members: Members): string {
  const given = Object.entries(members).filter(
    (member): member is [string, Plain] => member[1] !== undefined,
  );
  return canonicalJSON(Object.fromEntries(given));
}

/** Return a bearer credential, or another secret word, that fits into a header, and can't be two. */
export function checkedCredential(credential: unknown, what = "credential"): string {
  if (typeof credential !== "string") throw new ConfigurationError(`the ${what} is not text`);
  if (credential === "") throw new ConfigurationError(`the ${what} is empty`);
  if (/\s/.test(credential)) {
    throw new ConfigurationError(`the ${what} has white space or a line break in it: strip it`);
  }
  if (credential.length > MAX_TOKEN_CHARACTERS || !CREDENTIAL.test(credential)) {
    throw new ConfigurationError(`the ${what} is too long, or has characters that no bearer credential has`);
  }
  return credential;
}

// What is answered.

/** Return how many bytes the answer to a body may have: text comes back escaped, and beside its bytes. */
export function maxAnswerBytes(bodyBytes: number, items = 1): number {
  return 256 * KIBIBYTE + 8 * bodyBytes + 64 * KIBIBYTE * (items - 1);
}

/**
 * Return a success's document, or throw what the answer says instead.
 *
 * KKP spends an approval right before it does what was approved. If that `failed`, the request is refused when it
 * is repeated, and the failure is what the caller is to know.
 */
export function documentOf(answer: Answer | NoAnswer, failed?: Answer): JSONObject {
  if ("error" in answer) throw answer.error;
  const document = strictDocument(answer.body);
  if (answer.status === 200) return document ?? badAnswer(answer.status);
  if (failed !== undefined && document?.get("code") === "approval_invalid") return documentOf(failed);
  const problem = document === undefined ? undefined : problemOf(document, retryAfterSeconds(answer));
  if (problem === undefined || problem.status !== answer.status) return badAnswer(answer.status, answer);
  throw problem;
}

function strictDocument(body: Uint8Array): JSONObject | undefined {
  try {
    return parseStrictObject(body);
  } catch (error) {
    if (error instanceof StrictJSONError) return undefined;
    throw error;
  }
}

/** Return the error of a problem document (RFC 9457), or undefined where it is none of KKP's. */
function problemOf(document: JSONObject, retryAfter?: number): KKPError | undefined {
  const code = document.get("code");
  const status = integerOf(document.get("status"));
  if (typeof code !== "string" || !CODE.test(code) || status === undefined) return undefined;
  const details = {
    status,
    requestId: wordOf(document.get("request_id")),
    decisionId: wordOf(document.get("decision_id")),
    reasons: wordsOf(document.get("reasons")),
    retryAfterSeconds: retryAfter,
    approvalId: wordOf(document.get("approval_id")),
    approvalExpiresAt: integerOf(document.get("approval_expires_at")),
  };
  const message = refusedAs(code, details);
  if (code === "envelope_invalid") return new EnvelopeInvalidError(message, details);
  return new ProblemError(code, message, details);
}

function refusedAs(code: string, { reasons, requestId }: ErrorDetails): string {
  const about = [reasons?.join(", "), requestId && `request ${requestId}`].filter(
    (part) => part !== undefined,
  );
  return `KKP refused: ${code}${about.length === 0 ? "" : ` (${about.join("; ")})`}.`;
}

/** Read `/token`'s answer, and tell how long the token lives by its own claims, which no clock of ours bends. */
export function readToken(
  document: JSONObject,
  isBound: boolean,
): { token: AccessToken; lifeSeconds: number } {
  const tokenType = isBound ? "DPoP" : "Bearer";
  const token = textOf(document.get("token"));
  const expiresAt = integerOf(document.get("expires_at"));
  if (document.get("token_type") !== tokenType || expiresAt === undefined) return badAnswer();
  const lifeSeconds = lifeOf(token);
  return { token: new AccessToken(token, tokenType, expiresAt, textOf(document.get("kid"))), lifeSeconds };
}

function lifeOf(token: string): number {
  const payload = token.length <= MAX_TOKEN_CHARACTERS ? TOKEN.exec(token)?.[1] : undefined;
  const claims = strictDocument(decodeBase64url(payload ?? "") ?? new Uint8Array());
  const [iat, exp] = [integerOf(claims?.get("iat")), integerOf(claims?.get("exp"))];
  return iat === undefined || exp === undefined || exp <= iat ? badAnswer() : exp - iat;
}

/** Return how long before its end a token is renewed. */
export function renewalSeconds(lifeSeconds: number): number {
  return Math.min(Math.max(lifeSeconds * RENEWAL_SHARE, MIN_RENEWAL_SECONDS), lifeSeconds / 2);
}

/** Read a batch's answer: for each item its document, or its error. */
export function readItems(document: JSONObject, count: number): readonly (JSONObject | KKPError)[] {
  const items = document.get("items");
  if (!isArray(items) || items.length !== count || !items.every(isObject)) return badAnswer();
  return items.map((item) => (item.has("code") ? (problemOf(item) ?? badAnswer()) : item));
}

export function badAnswer(status = 200, answer?: Answer): never {
  throw new TransportError("bad_answer", `the answer, of status ${status}, is none of KKP's`, {
    status,
    retryAfterSeconds: answer && retryAfterSeconds(answer),
  });
}

export function textOf(value: JSONValue | undefined): string {
  return typeof value === "string" ? value : badAnswer();
}

function integerOf(value: JSONValue | undefined): number | undefined {
  return value instanceof JSONNumber ? value.asInteger() : undefined;
}

function wordOf(value: JSONValue | undefined): string | undefined {
  return typeof value === "string" && WORD.test(value) ? value : undefined;
}

function wordsOf(value: JSONValue | undefined): readonly string[] | undefined {
  const listed = isArray(value) ? value.slice(0, MAX_REASONS) : [];
  const words = listed.map(wordOf).filter((word) => word !== undefined);
  return words.length > 0 ? words : undefined;
}

// What is said again.

/** Return the nonce that KKP wants in the next proof (RFC 9449 section 8.2), if the answer has one. */
export function nonceOf(answer: Answer | NoAnswer): string | undefined {
  const nonce = "error" in answer ? null : answer.headers.get("DPoP-Nonce");
  return nonce !== null && NONCE.test(nonce) ? nonce : undefined;
}

/** Tell whether a request is refused only because its proof had no nonce, or an old one. */
export function wantsNonce(answer: Answer | NoAnswer): boolean {
  if ("error" in answer || answer.status !== 401 || nonceOf(answer) === undefined) return false;
  return strictDocument(answer.body)?.get("code") === "use_dpop_nonce";
}

/** Tell whether it was the token that KKP refused, so that another one may do. */
export function isAboutToken(error: unknown): boolean {
  const codes = ["token_invalid", "token_expired"];
  return error instanceof ProblemError && error.status === 401 && codes.includes(error.code);
}

/** Return an answer of a KKP that could not do what was asked, but may have begun. */
export function unavailable(answer: Answer | NoAnswer): Answer | undefined {
  return "error" in answer || answer.status !== 503 ? undefined : answer;
}

/**
 * Return how long to wait before a request is repeated, or undefined where it must not be.
 *
 * Repeated is only what KKP said it could not do, and what was never sent.
 */
export function secondsBeforeRepeat(
  answer: Answer | NoAnswer,
  repeat: number,
  random: number,
): number | undefined {
  const isRepeatable = "error" in answer ? answer.wasUnsent : REPEATABLE.has(answer.status);
  if (!isRepeatable) return undefined;
  const told = "error" in answer ? undefined : retryAfterSeconds(answer);
  return told ?? random * FIRST_DELAY_SECONDS * 2 ** repeat;
}

function retryAfterSeconds(answer: Answer): number | undefined {
  const told = answer.headers.get("Retry-After");
  return told !== null && /^[0-9]{1,9}$/.test(told) ? Number(told) : undefined;
}
