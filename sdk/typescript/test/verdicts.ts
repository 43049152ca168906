/**
 * Answers calls of the verifying functions: one JSON object a line on standard input, one verdict a line out.
 *
 *     {"kind": "token", "key_set": text | null, "fetched_at", "revocation_list": text | null, "wants_revocations",
 *      "token", "issuer", "audience", "now", "leeway", "proof": {…} | null, "certificate_sha256": text | null}
 *     {"kind": "key_set", "document_base64url"}
 *     {"kind": "revocation_list", "list", "key_set": text | null, "fetched_at", "issuer", "now", "leeway", "highest_seq"}
 *
 * A list of revocations is read as of its own `iat`, with the same key set, fetched then; one that is refused is
 * none. An exception that is no error of this package's is answered as `crash`.
 */

import { createInterface } from "node:readline";
import { KKPError, type RevocationList } from "@kkp/client";
import { decodeBase64url } from "#src/encoding.js";
import {
  type Answer,
  keySetOf,
  keySetVerdict,
  type ListInput,
  listVerdict,
  readList,
  type TokenInput,
  tokenVerdict,
} from "./verdict.js";

interface Keys {
  readonly key_set: string | null;
  readonly fetched_at: number;
}

type Call =
  | ({ kind: "token"; revocation_list: string | null; wants_revocations: boolean } & TokenInput & Keys)
  | { kind: "key_set"; document_base64url: string }
  | ({ kind: "revocation_list" } & ListInput & Keys);

async function verdict(call: Call): Promise<Answer> {
  if (call.kind === "key_set")
    return await keySetVerdict(decodeBase64url(call.document_base64url) ?? new Uint8Array());
  const keys = await keySetOf(call.key_set, call.fetched_at);
  if (call.kind === "revocation_list") return await listVerdict(call, keys);
  const revocations = call.wants_revocations ? { list: await listOf(call) } : undefined;
  return await tokenVerdict(call, keys, revocations);
}

async function listOf({
  revocation_list,
  key_set,
  issuer,
  leeway,
}: Call & { kind: "token" }): Promise<RevocationList | undefined> {
  if (revocation_list === null) return undefined;
  const now = issuedAt(revocation_list);
  try {
    return await readList(
      { list: revocation_list, issuer, now, leeway, highest_seq: null },
      await keySetOf(key_set, now),
    );
  } catch (error) {
    if (error instanceof KKPError) return undefined;
    throw error;
  }
}

/** Return the `iat` of a list that was not verified, or no number. */
function issuedAt(list: string): number {
  try {
    return Number(JSON.parse(Buffer.from(list.split(".")[1] ?? "", "base64url").toString()).iat);
  } catch {
    return Number.NaN;
  }
}

async function answerTo(line: string): Promise<Answer> {
  try {
    return await verdict(JSON.parse(line));
  } catch (error) {
    return { crash: String(error) };
  }
}

for await (const line of createInterface({ input: process.stdin, crlfDelay: Number.POSITIVE_INFINITY })) {
  process.stdout.write(`${JSON.stringify(await answerTo(line))}\n`);
}
