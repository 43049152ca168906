import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { encodeUTF8 } from "#src/encoding.js";
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

const LISTS_READ_AT = 1_750_000_000;
const LISTS_KEY_SET = "two keys";
const ISSUER = "https://kkp.test";

interface NamedKeys {
  readonly set: string;
  readonly fetched_at: number;
}

interface Case {
  readonly name: string;
  readonly expected: Answer;
  readonly keys: NamedKeys | null;
}

interface Vectors<C> {
  readonly format: string;
  readonly key_sets: Readonly<Record<string, string>>;
  readonly revocation_lists: Readonly<Record<string, string>>;
  readonly cases: readonly C[];
}

function vectors<C>(name: string, format: string): Vectors<C> {
  // Tests run from build/test, and from nowhere else.
  const file = new URL(`../../../vectors/${name}_v1.json`, import.meta.url);
  const document: Vectors<C> = JSON.parse(readFileSync(file, "utf8"));
  assert.equal(document.format, format);
  assert.ok(document.cases.length > 100);
  return document;
}

function keysOf(keys: NamedKeys | null, sets: Readonly<Record<string, string>>) {
  return keysNamed(keys?.set, keys?.fetched_at ?? 0, sets);
}

async function keysNamed(
  name: string | undefined,
  fetchedAt: number,
  sets: Readonly<Record<string, string>>,
) {
  const text = name === undefined ? null : sets[name];
  assert.notEqual(text, undefined);
  return await keySetOf(text ?? null, fetchedAt);
}

for (const name of ["tokens", "proofs"]) {
  const { key_sets, revocation_lists, cases } = vectors<
    Case & TokenInput & { readonly revocations: { readonly list: string | null } | null }
  >(name, "kkp/verdicts/v1");

  async function listNamed(list: string | null) {
    if (list === null) return undefined;
    const input = {
      list: revocation_lists[list] ?? "",
      issuer: ISSUER,
      now: LISTS_READ_AT,
      leeway: 5,
      highest_seq: null,
    };
    return await readList(input, await keysNamed(LISTS_KEY_SET, LISTS_READ_AT, key_sets));
  }

  for (const vector of cases) {
    test(`vectors: ${name}: ${vector.name}`, async () => {
      const { revocations } = vector;
      const list = revocations === null ? undefined : { list: await listNamed(revocations.list) };
      const answer = await tokenVerdict(vector, await keysOf(vector.keys, key_sets), list);
      assert.deepEqual(answer, vector.expected);
    });
  }
}

/** An id that a list names twice is one that it names. */
function withSets(expected: Answer): Answer {
  const { claims } = expected as { claims?: Readonly<Record<string, unknown>> };
  if (claims === undefined) return expected;
  const members = Object.entries(claims).map(([name, value]) => [
    name,
    Array.isArray(value) ? [...new Set(value)] : value,
  ]);
  return { claims: Object.fromEntries(members) };
}

const lists = vectors<Case & ListInput>("revocation_lists", "kkp/revocation-lists/v1");
for (const vector of lists.cases) {
  test(`vectors: lists of revocations: ${vector.name}`, async () => {
    const answer = await listVerdict(vector, await keysOf(vector.keys, lists.key_sets));
    assert.deepEqual(answer, withSets(vector.expected));
  });
}

const sets = vectors<{
  name: string;
  document?: string;
  document_base64url?: string;
  spaces: number;
  expected: Answer;
}>("key_sets", "kkp/key-sets/v1");
for (const vector of sets.cases) {
  test(`vectors: key sets: ${vector.name}`, async () => {
    const { document, document_base64url = "" } = vector;
    const bytes =
      document === undefined ? Buffer.from(document_base64url, "base64url") : encodeUTF8(document);
    const padded = Buffer.concat([bytes, Buffer.alloc(vector.spaces, " ")]);
    assert.deepEqual(await keySetVerdict(padded), vector.expected);
  });
}
