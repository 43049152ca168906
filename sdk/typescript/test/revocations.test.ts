import assert from "node:assert/strict";
import { test } from "node:test";
import { KeySet, verifyRevocationList } from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";
import { FakeKKP } from "./fakeKKP.js";
import { refused } from "./refused.js";

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

test("a list of 8 MiB is read, and a few bytes more are not", async () => {
  const kkp = await FakeKKP.create();
  const padded = async (bytes: number) => {
    kkp.revoked = { padding: "x".repeat(bytes) };
    return await kkp.list();
  };
  const rest = 8 * 1024 * 1024 - (await padded(0)).length;
  const most = Math.floor((rest * 3) / 4);
  const longest = await padded(most);
  assert.ok(longest.length > 8 * 1024 * 1024 - 4);
  assert.equal((await checked(longest, kkp)).seq, 41);
  assert.equal(await refused(checked(await padded(most + 3), kkp)), "token_invalid malformed");
});
