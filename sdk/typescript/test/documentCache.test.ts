import assert from "node:assert/strict";
import { test } from "node:test";
import { DocumentCache } from "#src/documentCache.js";

const LIFE = { defaultSeconds: 300, maxSeconds: 600 };

function held(cacheControl?: string, fetchedAt = 1000): DocumentCache<string> {
  const cache = new DocumentCache<string>(LIFE);
  cache.begin(fetchedAt);
  cache.replace("first", fetchedAt, said(cacheControl, '"1"'));
  return cache;
}

function said(cacheControl?: string, etag?: string): Headers {
  return new Headers({ ...(cacheControl && { "cache-control": cacheControl }), ...(etag && { etag }) });
}

const MAX_AGES: readonly (readonly [string | undefined, number])[] = [
  [undefined, 300],
  ["no-cache", 300],
  ["max-age=20", 20],
  ["private, max-age=20", 20],
  ["Private,MAX-AGE=20, must-revalidate", 20],
  ['max-age="20"', 20],
  ["max-age=20, max-age=40", 20],
  ["max-age=600", 600],
  ["max-age=601", 600],
  [`max-age=${"9".repeat(400)}`, 600],
  ["max-age=0", 0],
  ["max-age=-1", 300],
  ["max-age=1.5", 300],
  ["max-age=soon", 300],
  ["s-maxage=20", 300],
  ["x-max-age=20", 300],
];

for (const [cacheControl, seconds] of MAX_AGES) {
  test(`a document is young for ${seconds} s where Cache-Control says ${cacheControl?.slice(0, 40)}`, () => {
    const cache = held(cacheControl);
    assert.ok(!cache.isOlderThan(1, 1000 + seconds - 0.25) || seconds === 0);
    assert.ok(cache.isOlderThan(1, 1000 + seconds));
  });
}

test("a document that is missing is older than anything", () => {
  assert.ok(new DocumentCache(LIFE).isOlderThan(1, 0));
});

test("a clock that was set back makes a document old, and holds up no request", () => {
  const cache = held();
  assert.ok(cache.isOlderThan(1, 999));
  assert.ok(cache.mayAsk(999));
});

test("a 304 makes a document young again, and keeps what it does not say", () => {
  const cache = held("max-age=20");
  assert.equal(cache.begin(1100), '"1"');
  cache.confirm("first", 1100, said());
  assert.ok(!cache.isOlderThan(1, 1119));
  assert.ok(cache.isOlderThan(1, 1120));
  assert.equal(cache.begin(1200), '"1"');
});

test("what a 304 says counts", () => {
  const cache = held("max-age=20");
  cache.confirm("first", 1100, said("max-age=40", '"2"'));
  assert.ok(!cache.isOlderThan(1, 1139));
  assert.equal(cache.begin(1200), '"2"');
});

test("a new document without an ETag is asked for without one", () => {
  const cache = held();
  cache.replace("second", 1100, said());
  assert.equal(cache.begin(1200), undefined);
});

test("a failure leaves the document in place, and is forgotten with the next success", () => {
  const cache = held();
  cache.fail("away", 1010);
  assert.equal(cache.document, "first");
  assert.equal(cache.failure, "away");
  cache.replace("second", 1020, said());
  assert.equal(cache.document, "second");
  assert.equal(cache.failure, undefined);
});

test("the pause after failures doubles from 1 s to 30 s, and a success ends it", () => {
  const cache = new DocumentCache<string>(LIFE);
  let now = 1000;
  for (const pause of [1, 2, 4, 8, 16, 30, 30]) {
    cache.begin(now);
    cache.fail("away", now);
    assert.ok(!cache.mayAsk(now + pause - 0.25), `${pause} s`);
    assert.ok(cache.mayAsk(now + pause), `${pause} s`);
    now += pause;
  }
  cache.begin(now);
  cache.replace("first", now, said());
  assert.ok(cache.mayAsk(now + 1));
});

test("two requests are a second apart at least", () => {
  const cache = held("max-age=0");
  assert.ok(!cache.mayAsk(1000.75));
  assert.ok(cache.mayAsk(1001));
});

test("an unknown key may be asked for every 30 seconds", () => {
  const cache = held();
  assert.ok(cache.mayAskForUnknownKey(1010));
  assert.ok(!cache.mayAskForUnknownKey(1039.75));
  assert.ok(cache.mayAskForUnknownKey(1040));
});

test("an unknown key that came too soon after a request does not use up its turn", () => {
  const cache = held();
  assert.ok(!cache.mayAskForUnknownKey(1000.5));
  assert.ok(cache.mayAskForUnknownKey(1001));
});
