import assert from "node:assert/strict";
import { test } from "node:test";
import { KKPError, ProblemError } from "#src/errors.js";
import { type Dated, TokenCache } from "#src/tokenCache.js";

/** A cache on a clock of its own, whose tokens are numbers: 300 s long, renewed 60 s before their end. */
class Bench {
  now = 1000;
  asked = 0;
  failure: Error | undefined;
  readonly cache: TokenCache<number>;

  constructor(capacity?: number) {
    this.cache = new TokenCache<number>(() => this.now, capacity);
  }

  readonly get = (scope = "scope") => this.cache.get(scope, this.ask);

  readonly ask = async (): Promise<Dated<number>> => {
    const token = ++this.asked;
    await settled();
    if (this.failure !== undefined) throw this.failure;
    return { token, renewAt: this.now + 240, endsAt: this.now + 300 };
  };
}

test("1,000 who ask at once are answered with one token, and those who ask later with the same", async () => {
  const bench = new Bench();
  const tokens = await Promise.all(Array.from({ length: 1000 }, () => bench.get()));
  assert.deepEqual(new Set(tokens), new Set([1]));
  assert.equal(await bench.get(), 1);
  assert.equal(bench.asked, 1);
});

test("each scope has a token of its own", async () => {
  const bench = new Bench();
  const tokens = await Promise.all(["a", "b", "a", "b"].map((scope) => bench.get(scope)));
  assert.equal(tokens[0], tokens[2]);
  assert.notEqual(tokens[0], tokens[1]);
  assert.equal(bench.asked, 2);
});

test("shortly before its end a token is renewed once, while the old one is handed out", async () => {
  const bench = new Bench();
  await bench.get();
  bench.now += 239.9;
  await bench.get();
  assert.equal(bench.asked, 1);
  bench.now += 0.1;
  assert.deepEqual(await Promise.all([bench.get(), bench.get(), bench.get()]), [1, 1, 1]);
  await settled();
  assert.equal(bench.asked, 2);
  assert.equal(await bench.get(), 2);
});

test("what is put there is handed out until its end, and not renewed before", async () => {
  const bench = new Bench(2);
  const underWay = bench.get();
  assert.equal(
    bench.cache.put("scope", { token: 70, renewAt: bench.now + 240, endsAt: bench.now + 300 }),
    70,
  );
  assert.equal(await underWay, 1); // who waits for another has it all the same
  for (const token of [71, 72, 73]) {
    bench.cache.put(`${token}`, { token, renewAt: bench.now + 240, endsAt: bench.now + 300 });
  }
  bench.now += 299.9;
  assert.deepEqual(await Promise.all(["72", "73"].map(bench.get)), [72, 73]);
  assert.equal(bench.asked, 1);
  bench.now += 0.1;
  assert.deepEqual(await Promise.all(["72", "71"].map(bench.get)), [2, 3]); // the latter had no room
});

test("a token is handed out until its end, and then waited for", async () => {
  const bench = new Bench();
  await bench.get();
  bench.failure = new Error("away");
  bench.now += 299.9;
  assert.equal(await bench.get(), 1);
  await settled();
  bench.failure = undefined;
  bench.now += 0.1;
  assert.equal(await bench.get(), 3);
});

test("a renewal that failed is tried again after a second, and not at each use", async () => {
  const bench = new Bench();
  await bench.get();
  bench.failure = new Error("away");
  bench.now += 240;
  for (let use = 0; use < 5; use++) {
    assert.equal(await bench.get(), 1);
    await settled();
  }
  assert.equal(bench.asked, 2);
  bench.now += 1;
  assert.equal(await bench.get(), 1);
  await settled();
  assert.equal(bench.asked, 3);
});

test("a renewal waits as long as it was told to", async () => {
  const bench = new Bench();
  await bench.get();
  bench.failure = new ProblemError("rate_limited", "busy", { status: 429, retryAfterSeconds: 20 });
  bench.now += 240;
  await bench.get();
  await settled();
  bench.now += 19.9;
  await bench.get();
  assert.equal(bench.asked, 2);
  bench.now += 0.1;
  await bench.get();
  assert.equal(bench.asked, 3);
});

test("what fails is the answer of all who wait for it, and is not kept", async () => {
  const bench = new Bench();
  bench.failure = new ProblemError("policy_denied", "no", { status: 403 });
  const outcomes = await Promise.allSettled([bench.get(), bench.get()]);
  assert.ok(outcomes.every((outcome) => outcome.status === "rejected" && outcome.reason instanceof KKPError));
  assert.equal(bench.asked, 1);
  bench.failure = undefined;
  assert.equal(await bench.get(), 2);
});

test("a token that ended while it was waited for is handed to those who waited, and to nobody after", async () => {
  const bench = new Bench();
  const waiting = bench.cache.get("scope", async () => {
    const dated = await bench.ask();
    return { ...dated, renewAt: bench.now, endsAt: bench.now };
  });
  assert.equal(await waiting, 1);
  assert.equal(await bench.get(), 2);
});

test("a forgotten token is asked for anew, and a newer one is not forgotten with it", async () => {
  const bench = new Bench();
  const refused = await bench.get();
  bench.cache.forget("scope", refused);
  assert.equal(await bench.get(), 2);
  bench.cache.forget("scope", refused);
  assert.equal(await bench.get(), 2);
});

test("of 1,025 scopes the one that was asked for least recently is dropped, and of 1,024 none", async () => {
  const bench = new Bench();
  for (let scope = 0; scope < 1024; scope++) await bench.get(`${scope}`);
  await bench.get("0");
  assert.equal(bench.asked, 1024);
  await bench.get("one more");
  await bench.get("0");
  assert.equal(bench.asked, 1025);
  await bench.get("1");
  assert.equal(bench.asked, 1026);
});

/** Let everything go on that waits for nothing outside. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
