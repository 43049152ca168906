import assert from "node:assert/strict";
import { test } from "node:test";
import { canonicalJSON } from "#src/canonicalJson.js";
import { decodeBase64, encodeBase64, encodeUTF8, isWellFormed } from "#src/encoding.js";
import { TransportError } from "#src/errors.js";
import type { Answer, NoAnswer } from "#src/http.js";
import { maxAnswerBytes, nonceOf, renewalSeconds, secondsBeforeRepeat, wantsNonce } from "#src/protocol.js";

function answer(status: number, headers: Record<string, string> = {}, body = ""): Answer {
  return { status, headers: new Headers(headers), body: encodeUTF8(body) };
}

function noAnswer(wasUnsent: boolean): NoAnswer {
  return { error: new TransportError("unreachable", "away"), wasUnsent };
}

const WAITS: Readonly<Record<string, [Answer | NoAnswer, number, number, number | undefined]>> = {
  "the first repeat, at the earliest": [answer(503), 0, 0, 0],
  "the first repeat, at the latest": [answer(503), 0, 1, 0.1],
  "the second, at the latest": [answer(503), 1, 1, 0.2],
  "the third, in the middle": [answer(429), 2, 0.5, 0.2],
  "as long as Retry-After says": [answer(503, { "Retry-After": "7" }), 0, 1, 7],
  "Retry-After of nothing": [answer(429, { "Retry-After": "0" }), 1, 1, 0],
  "a date is no number of seconds": [
    answer(503, { "Retry-After": "Mon, 30 Nov 2026 09:00:00 GMT" }),
    0,
    1,
    0.1,
  ],
  "nor is a fraction": [answer(503, { "Retry-After": "1.5" }), 0, 1, 0.1],
  "nor is what is below 0": [answer(503, { "Retry-After": "-1" }), 0, 1, 0.1],
  "a connection that was never made": [noAnswer(true), 0, 1, 0.1],
  "not a connection that broke": [noAnswer(false), 0, 1, undefined],
  "not a success": [answer(200, { "Retry-After": "7" }), 0, 1, undefined],
  "not 500": [answer(500), 0, 1, undefined],
  "not 502, after which nobody knows what KKP did": [answer(502, { "Retry-After": "7" }), 0, 1, undefined],
  "not 504": [answer(504), 0, 1, undefined],
};

for (const [name, [given, repeat, random, seconds]] of Object.entries(WAITS)) {
  test(`before it is sent again: ${name}`, () => {
    assert.equal(secondsBeforeRepeat(given, repeat, random), seconds);
  });
}

const NONCES: Readonly<Record<string, [string, string | undefined]>> = {
  "a nonce": ["abc-_~", "abc-_~"],
  "one of 256 characters": ["x".repeat(256), "x".repeat(256)],
  "none of 257": ["x".repeat(257), undefined],
  "none with a space": ["a b", undefined],
  "none that is empty": ["", undefined],
};

for (const [name, [header, nonce]] of Object.entries(NONCES)) {
  test(`DPoP-Nonce: ${name}`, () => {
    assert.equal(nonceOf(answer(200, { "DPoP-Nonce": header })), nonce);
  });
}

test("a nonce is wanted only where the answer says so, and has one", () => {
  const body = '{"code":"use_dpop_nonce"}';
  assert.ok(wantsNonce(answer(401, { "DPoP-Nonce": "n" }, body)));
  assert.ok(!wantsNonce(answer(401, {}, body)));
  assert.ok(!wantsNonce(answer(400, { "DPoP-Nonce": "n" }, body)));
  assert.ok(!wantsNonce(answer(401, { "DPoP-Nonce": "n" }, '{"code":"token_invalid"}')));
  assert.ok(!wantsNonce(answer(401, { "DPoP-Nonce": "n" }, "<html>")));
  assert.ok(!wantsNonce(noAnswer(true)));
});

test("a token is renewed a fifth of its life before its end, at least 10 s, and not before half of it", () => {
  const cases = [
    [300, 60],
    [60, 12],
    [50, 10],
    [30, 10],
    [20, 10],
    [10, 5],
    [0, 0],
  ] as const;
  for (const [life, before] of cases) assert.equal(renewalSeconds(life), before);
});

test("an answer may be as long as what was sent can make it", () => {
  assert.equal(maxAnswerBytes(0), 256 * 1024);
  assert.equal(maxAnswerBytes(1000, 3), 256 * 1024 + 8000 + 2 * 64 * 1024);
});

test("names are sorted by UTF-16 code units, and text is escaped as RFC 8785 has it", () => {
  // U+1F600 is a pair of surrogates, and so before U+FB33, which is one unit.
  const value = { "\ufb33": 1, "\u{1f600}": 2, "9": 3, "10": [null, true, '\u0007\n"\\é'] };
  assert.equal(
    canonicalJSON(value),
    '{"10":[null,true,"\\u0007\\n\\"\\\\é"],"9":3,"\u{1f600}":2,"\ufb33":1}',
  );
});

test("base64 there and back is as Node has it, for every length", () => {
  for (let length = 0; length < 70; length++) {
    const bytes = Uint8Array.from({ length }, (_, i) => (i * 37 + length) & 0xff);
    assert.equal(encodeBase64(bytes), Buffer.from(bytes).toString("base64"));
    assert.deepEqual(decodeBase64(encodeBase64(bytes)), bytes);
  }
});

for (const text of [
  "YQ",
  "YQ=",
  "YQ===",
  "YQ==YQ==",
  "=",
  "====",
  "A===",
  "YR==",
  "YWJ=",
  "Y W=",
  "_-__",
  "YWI=\n",
  "YWI\u0141",
]) {
  test(`base64 refuses ${JSON.stringify(text)}`, () => {
    assert.equal(decodeBase64(text), undefined);
  });
}

test("a text is well formed unless a surrogate in it stands alone", () => {
  assert.ok(isWellFormed("plain, \u{1f600} and \ufb33"));
  for (const text of ["\ud800", "a\udc00b", "\udc00\ud800"]) assert.ok(!isWellFormed(text));
});
