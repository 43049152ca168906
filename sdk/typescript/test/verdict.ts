/**
 * One call of the verifying functions, as data: what sdk/vectors and the comparison of both SDKs are made of.
 *
 * The answer is data too: `claims`, or `code` and `reason`; of a key set `keys`.
 */

import {
  KeySet,
  KKPError,
  type Presented,
  ReplayMemory,
  type RevocationList,
  verifyRevocationList,
  verifyToken,
} from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";

export interface ProofInput {
  readonly proof: string;
  readonly method: string;
  readonly url: string;
  readonly used_before: boolean;
}

export interface TokenInput {
  readonly token: string;
  readonly issuer: string;
  readonly audience: string;
  readonly now: number;
  readonly leeway: number;
  readonly proof: ProofInput | null;
  readonly certificate_sha256: string | null;
}

export interface ListInput {
  readonly list: string;
  readonly issuer: string;
  readonly now: number;
  readonly leeway: number;
  readonly highest_seq: number | null;
}

export type Answer = Readonly<Record<string, unknown>>;

/** Read the text of a key set; null, or a text that makes none, is no set. */
export async function keySetOf(text: string | null, fetchedAt: number): Promise<KeySet | undefined> {
  return text === null ? undefined : await KeySet.read(encodeUTF8(text), fetchedAt);
}

export async function tokenVerdict(
  input: TokenInput,
  keys: KeySet | undefined,
  revocations: { readonly list: RevocationList | undefined } | undefined,
): Promise<Answer> {
  const checks = {
    keys,
    now: input.now,
    issuer: input.issuer,
    audience: input.audience,
    leewaySeconds: input.leeway,
    proofs: new ReplayMemory(),
    ...presentedBy(input),
    ...(revocations && { revocations }),
  };
  const ask = () => answered(async () => ({ claims: await verifyToken(input.token, checks) }));
  if (input.proof?.used_before) await ask();
  return await ask();
}

export async function listVerdict(input: ListInput, keys: KeySet | undefined): Promise<Answer> {
  return await answered(async () => {
    const list = await readList(input, keys);
    const { tokens, subjects, identities, keys: named, backends } = list;
    return {
      claims: {
        ...list,
        tokens: Object.fromEntries(tokens),
        subjects: Object.fromEntries(subjects),
        identities: [...identities],
        keys: [...named],
        backends: [...backends],
      },
    };
  });
}

export async function readList(input: ListInput, keys: KeySet | undefined): Promise<RevocationList> {
  return await verifyRevocationList(input.list, {
    keys,
    now: input.now,
    issuer: input.issuer,
    leewaySeconds: input.leeway,
    highestSeq: input.highest_seq ?? undefined,
  });
}

export async function keySetVerdict(document: Uint8Array): Promise<Answer> {
  const set = await KeySet.read(document, 0);
  return { keys: set ? Object.fromEntries(Array.from(set.keys, ([kid, key]) => [kid, key.x])) : null };
}

function presentedBy({ proof, certificate_sha256 }: TokenInput): Presented {
  return {
    ...(proof && { proof }),
    ...(certificate_sha256 !== null && { certificateSHA256: certificate_sha256 }),
  };
}

/** Return what JSON keeps of an answer, or the code and reason of one of our errors; others are thrown on. */
async function answered(call: () => Promise<Answer>): Promise<Answer> {
  try {
    return JSON.parse(JSON.stringify(await call()));
  } catch (error) {
    if (!(error instanceof KKPError)) throw error;
    return { code: error.code, ...(error.reason !== undefined && { reason: error.reason }) };
  }
}
