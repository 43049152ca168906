import assert from "node:assert/strict";
import { test } from "node:test";
import { KeySet, verifyRevocationList } from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";
import { FakeKKP } from "./fakeKKP.js";

async function checked(jws: string, kkp: FakeKKP) {
  const keys = await KeySet.read(encodeUTF8(await kkp.keys()), kkp.now);
  return await verifyRevocationList(jws, { keys, now: kkp.now, issuer: kkp.url });
}

test("a full list is read: 65,536 tokens, and 4,096 of each other kind", async () => {
  const kkp = await FakeKKP.create();
  const ids = (count: number, letter: string) =>
    Array.from({ length: count }, (_, i) => `${letter}${i}`.padEnd(43, "_"));
  const times = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, kkp.now]));
  kkp.revoked = {
    tokens: times(ids(65_536, "t").map((id) => id.slice(0, 22))),
    subjects: times(ids(4096, "s")),
    identities: ids(4096, "i"),
    keys: ids(4096, "k"),
    backends: ids(4096, "b"),
  };
  const list = await checked(await kkp.list(), kkp);
  assert.equal(list.tokens.size, 65_536);
  assert.ok(list.backends.has("b4095".padEnd(43, "_")));
});

test("a list of 8 MiB is read, and a longer one is not", async () => {
  const kkp = await FakeKKP.create();
  const limit = 8 * 1024 * 1024;
  const padding = Math.floor(((limit - (await kkp.list()).length) * 3) / 4) - 16;
  const [read, refusedOnes]: [number[], number[]] = [[], []];
  for (let more = 0; more < 32; more++) {
    kkp.revoked = { padding: "x".repeat(padding + more) };
    const jws = await kkp.list();
    const isRead = (await checked(jws, kkp).catch(() => undefined)) !== undefined;
    (isRead ? read : refusedOnes).push(jws.length);
  }
  // Base64url has no text of some lengths.
  assert.ok(limit - 1 <= Math.max(...read) && Math.max(...read) <= limit, `${read.at(-1)}`);
  assert.ok(
    limit < Math.min(...refusedOnes) && Math.min(...refusedOnes) <= limit + 2,
    `${refusedOnes.at(0)}`,
  );
});
