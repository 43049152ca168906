/**
 * The signed list of what KKP revoked, and whether it is about a token.
 *
 * The list shows no names, only digests of them:
 *
 *     id = BASE64URL(SHA-256(JCS of ["subject", sub], ["identity", name], ["key", backend, key_id] or ["backend", backend]))
 *
 * A list is no token, and a token is no list. Claims that are not known are passed over: a kind of revocation
 * that an old verifier must not miss comes with another `typ`. Which `seq` was the highest is for the caller to
 * remember, over restarts where it can: `TokenVerifier` does so while it lives.
 */

import type { Claims } from "./claims.js";
import { encodeBase64url, encodeUTF8, sha256 } from "./encoding.js";
import { integer, list, object, text } from "./forms.js";
import { readJWS } from "./jws.js";
import { checkSignature, type KeySet } from "./keys.js";
import { checkedLeeway, DEFAULT_LEEWAY_SECONDS } from "./leeway.js";
import { refusal, wrongIssuer } from "./refusals.js";
import type { JSONObject, JSONValue } from "./strictJson.js";

export const REVOCATION_LIST_TYPE = "kkp-revocations+jwt";
export const MAX_LIST_CHARACTERS = 8 * 1024 * 1024;
const MAX_REMEMBERED_IDS = 1024;

/** What a list is verified against. */
export interface RevocationListChecks {
  readonly keys: KeySet | undefined;
  /** Unix seconds. */
  readonly now: number;
  readonly issuer: string;
  readonly leewaySeconds?: number;
  /** The highest `seq` of a list that was ever accepted. */
  readonly highestSeq?: number | undefined;
}

/** A list that was verified; until `exp` it may be relied on. Names are those of the list. */
export interface RevocationList {
  readonly iss: string;
  readonly iat: number;
  readonly exp: number;
  readonly seq: number;
  readonly tokens: ReadonlyMap<string, number>;
  readonly subjects: ReadonlyMap<string, number>;
  readonly identities: ReadonlySet<string>;
  readonly keys: ReadonlySet<string>;
  readonly backends: ReadonlySet<string>;
}

/** Return what a list says that KKP signed and that may be relied on now; throws a `KKPError`. */
export async function verifyRevocationList(
  jws: string,
  checks: RevocationListChecks,
): Promise<RevocationList> {
  const leewaySeconds = checkedLeeway(checks.leewaySeconds ?? DEFAULT_LEEWAY_SECONDS);
  const unverified = readJWS(jws, REVOCATION_LIST_TYPE, MAX_LIST_CHARACTERS);
  const claims = readList(unverified.claims);
  if (claims.iss !== checks.issuer) throw wrongIssuer(checks.issuer);
  if (!(checks.now < claims.exp)) throw refusal("list_too_old");
  if (!(claims.iat <= checks.now + leewaySeconds)) throw refusal("not_yet_valid");
  await checkSignature(unverified, checks.keys, checks.now);
  if (!(claims.seq >= (checks.highestSeq ?? 0))) throw refusal("older_list");
  return claims;
}

/** Refuse a token that the list is about: steps 14 to 16 of the verdict. */
export async function checkRevocations(
  claims: Claims,
  revocations: RevocationList | undefined,
  now: number,
): Promise<void> {
  if (revocations === undefined) throw refusal("no_list");
  if (!(now < revocations.exp)) throw refusal("list_too_old");
  if (await isRevoked(claims, revocations)) throw refusal("revoked");
}

async function isRevoked(claims: Claims, revocations: RevocationList): Promise<boolean> {
  if (revocations.tokens.has(claims.jti)) return true;
  for (const { entries, names, isVoid } of questionsAbout(claims, revocations)) {
    // A digest is made only where there is something to compare it with, and nothing is awaited where it is known.
    if (entries === 0) continue;
    const canonical = JSON.stringify(names);
    if (isVoid(rememberedIds.get(canonical) ?? (await idOf(canonical)))) return true;
  }
  return false;
}

/** What may make a token void: how many entries there are, whose id to look for, and what finding it means. */
interface Question {
  readonly entries: number;
  readonly names: readonly string[];
  isVoid(id: string): boolean;
}

function questionsAbout(
  claims: Claims,
  { subjects, identities, keys, backends }: RevocationList,
): readonly Question[] {
  const { sub, act, iat, backend, key_id } = claims;
  const isIdentity = (id: string) => identities.has(id);
  return [
    { entries: subjects.size, names: ["subject", sub], isVoid: (id) => iat <= (subjects.get(id) ?? -1) },
    { entries: identities.size, names: ["identity", sub], isVoid: isIdentity },
    ...(act ? [{ entries: identities.size, names: ["identity", act.sub], isVoid: isIdentity }] : []),
    { entries: keys.size, names: ["key", backend, key_id], isVoid: (id) => keys.has(id) },
    { entries: backends.size, names: ["backend", backend], isVoid: (id) => backends.has(id) },
  ];
}

// An id is a function of its names alone, so that whose token asked for it first tells nothing to anybody.
const rememberedIds = new Map<string, string>();

/** Of a list of texts without lone surrogates, of which strict JSON has none, JSON.stringify makes RFC 8785's form. */
async function idOf(canonical: string): Promise<string> {
  const id = encodeBase64url(await sha256(encodeUTF8(canonical)));
  if (rememberedIds.size >= MAX_REMEMBERED_IDS) rememberedIds.clear();
  rememberedIds.set(canonical, id);
  return id;
}

function readList(members: JSONObject): RevocationList {
  try {
    return {
      iss: text(members.get("iss")),
      iat: integer(members.get("iat")),
      exp: integer(members.get("exp")),
      seq: integer(members.get("seq")),
      tokens: times(members.get("tokens")),
      subjects: times(members.get("subjects")),
      identities: ids(members.get("identities")),
      keys: ids(members.get("keys")),
      backends: ids(members.get("backends")),
    };
  } catch {
    throw refusal("wrong_claims");
  }
}

function times(value: JSONValue | undefined): ReadonlyMap<string, number> {
  return new Map(Array.from(object(value), ([id, time]) => [id, integer(time)]));
}

function ids(value: JSONValue | undefined): ReadonlySet<string> {
  return new Set(list(value, text));
}
