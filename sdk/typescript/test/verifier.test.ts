import assert from "node:assert/strict";
import { test } from "node:test";
import { ConfigurationError, DPoPKey, TokenVerifier, type TokenVerifierOptions } from "@kkp/client";
import { encodeBase64url, encodeUTF8, sha256 } from "#src/encoding.js";
import { FakeKKP } from "./fakeKKP.js";
import { failure, refused } from "./refused.js";

const KEYS = "/keys/jwks";
const LIST = "/revocations/list";

async function made(options: Partial<TokenVerifierOptions> = {}) {
  const kkp = await FakeKKP.create();
  const verifier = new TokenVerifier({
    url: kkp.url,
    audience: "orders-db",
    fetch: kkp.fetch,
    clock: kkp.clock,
    ...options,
  });
  return { kkp, verifier };
}

function paths(kkp: FakeKKP): readonly string[] {
  return kkp.requests.splice(0).map(({ path }) => path);
}

function unreachable(): never {
  throw new TypeError("fetch failed: secret-in-a-foreign-text", {
    cause: Object.assign(new Error("refused"), { code: "ECONNREFUSED" }),
  });
}

/** Let what goes on in the background come to its end. */
async function settled(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setTimeout(resolve, 1));
}

async function idOf(...names: readonly string[]): Promise<string> {
  return encodeBase64url(await sha256(encodeUTF8(JSON.stringify(names))));
}

test("a token is verified with keys and a list that are fetched once", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  const claims = await verifier.verify(token);
  assert.equal(claims.sub, "orders");
  assert.equal(verifier.highestRevocationSeq, 41);
  await verifier.verify(token);
  assert.deepEqual(paths(kkp), [KEYS, LIST]);
});

test("a hundred tokens at a cold start make one request for each document", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await Promise.all(Array.from({ length: 100 }, () => verifier.verify(token)));
  assert.deepEqual(paths(kkp), [KEYS, LIST]);
});

test("what came for another token, while a verdict was on its way, is used, though it is too soon to fetch", async (t) => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  const verify = crypto.subtle.verify.bind(crypto.subtle);
  let goOn = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  const slowOnce = async (...args: Parameters<typeof verify>) => {
    await held;
    return await verify(...args);
  };
  t.mock.method(crypto.subtle, "verify").mock.mockImplementationOnce(slowOnce);
  const first = verifier.verify(token); // has keys and no list, when it comes to its signature
  while (kkp.requests.length < 1) await settled();
  await verifier.verify(token);
  goOn();
  assert.equal((await first).sub, "orders");
  assert.deepEqual(paths(kkp), [KEYS, LIST]);
});

test("without revocations no list is fetched", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  await verifier.verify(await kkp.token());
  assert.deepEqual(paths(kkp), [KEYS]);
});

test("prepare fetches both, so that the first token waits for nothing", async () => {
  const { kkp, verifier } = await made();
  await verifier.prepare();
  kkp.onRequest = unreachable;
  await verifier.verify(await kkp.token());
  assert.deepEqual(paths(kkp), [KEYS, LIST]);
});

test("a token that is refused whatever the keys are causes no request", async () => {
  const { kkp, verifier } = await made();
  assert.equal(await refused(verifier.verify("no token")), "token_invalid malformed");
  const foreign = await kkp.token({ aud: "somebody" });
  assert.equal(await refused(verifier.verify(foreign)), "audience_mismatch wrong_audience");
  assert.deepEqual(paths(kkp), []);
});

test("offline means offline: with KKP away a token verifies until its expiry from what is kept", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  const token = await kkp.token({ exp: kkp.now + 590 });
  await verifier.prepare();
  kkp.onRequest = unreachable;
  for (let second = 0; second < 595; second += 35) {
    kkp.now = 1_750_000_000 + second;
    await verifier.verify(token);
    await settled();
  }
  kkp.now = 1_750_000_000 + 595;
  assert.equal(await refused(verifier.verify(token)), "token_expired expired");
});

test("with KKP away a list is relied on until its end, and no longer", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await verifier.prepare();
  kkp.onRequest = unreachable;
  kkp.now += 299.75;
  await verifier.verify(token);
  kkp.now += 0.25;
  const error = await failure(verifier.verify(token));
  assert.equal(`${error.code} ${error.reason}`, "revocations_unavailable list_too_old");
  assert.match(error.message, /https:\/\/kkp\.test\/revocations\/list could not be reached: ECONNREFUSED/);
});

test("keys are refused from 600 s on, to the second, and used again once they came anew", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  const token = await kkp.token();
  await verifier.prepare();
  kkp.onRequest = unreachable;
  kkp.now += 599.75;
  await verifier.verify(token);
  await settled();
  kkp.now += 0.25;
  assert.equal(await refused(verifier.verify(token)), "keys_unavailable keys_too_old");
  kkp.onRequest = () => undefined;
  kkp.now += 30;
  await verifier.verify(token);
});

test("keys are too old by a clock that nobody sets, though the wall's was set back", async (t) => {
  const { kkp, verifier } = await made({ revocations: false });
  const token = await kkp.token({ iat: kkp.now - 3600, nbf: kkp.now - 3600 });
  await verifier.prepare();
  kkp.onRequest = unreachable;
  kkp.now -= 3600;
  await verifier.verify(token);
  await settled();
  const now = performance.now.bind(performance);
  t.mock.method(performance, "now", () => now() + 600_000);
  assert.equal(await refused(verifier.verify(token)), "keys_unavailable keys_too_old");
  kkp.onRequest = () => undefined;
  kkp.now += 30;
  await verifier.verify(token);
});

test("once a request for the list has failed, nobody waits for the next one", async (t) => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await verifier.prepare();
  kkp.onRequest = unreachable;
  kkp.now += 61;
  await verifier.verify(token);
  let answer = (_: Response): void => undefined;
  kkp.onRequest = () =>
    new Promise((resolve) => {
      answer = resolve;
    });
  kkp.now += 2;
  kkp.requests.splice(0);
  t.mock.timers.enable({ apis: ["setTimeout"] }); // so that no deadline ends it
  await Promise.all([verifier.verify(token), verifier.verify(token)]);
  t.mock.timers.reset();
  assert.deepEqual(paths(kkp), [LIST]);
  answer(new Response(await kkp.list()));
  await settled();
  await verifier.verify(token);
  assert.deepEqual(paths(kkp), []);
});

test("a cold start says what is missing, and from where, and nothing of a foreign error's text", async () => {
  const { kkp, verifier } = await made();
  kkp.onRequest = unreachable;
  const error = await failure(verifier.verify(await kkp.token()));
  assert.equal(error.code, "keys_unavailable");
  assert.equal(error.reason, "no_keys");
  assert.equal(
    error.message,
    "there are no keys to verify with: https://kkp.test/keys/jwks could not be reached: ECONNREFUSED",
  );
  assert.match(
    (await failure(verifier.prepare())).message,
    /no keys to verify with: https:\/\/kkp\.test\/keys\/jwks/,
  );
});

test("a cold start without a list says so", async () => {
  const { kkp, verifier } = await made();
  kkp.onRequest = ({ path }) => (path === LIST ? new Response("busy", { status: 503 }) : undefined);
  const error = await failure(verifier.verify(await kkp.token()));
  assert.equal(`${error.code} ${error.reason}`, "revocations_unavailable no_list");
  assert.match(error.message, /https:\/\/kkp\.test\/revocations\/list answered 503/);
  assert.match((await failure(verifier.prepare())).message, /there is no list of revocations/);
});

test("while KKP is away tokens are refused at once, with one attempt in each pause", async () => {
  const { kkp, verifier } = await made();
  kkp.onRequest = unreachable;
  const token = await kkp.token();
  for (let i = 0; i < 10; i++) await failure(verifier.verify(token));
  assert.deepEqual(paths(kkp), [KEYS]);
  kkp.now += 1;
  await failure(verifier.verify(token));
  assert.deepEqual(paths(kkp), [KEYS]);
});

test("keys are fetched anew in the background, with the ETag, once max-age is over", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  const token = await kkp.token();
  await verifier.verify(token);
  kkp.now += 299.75;
  await verifier.verify(token);
  await settled();
  assert.equal(kkp.requests.length, 1);
  kkp.now += 0.25;
  let answer = (): void => undefined;
  kkp.onRequest = () => new Promise<undefined>((resolve) => (answer = () => resolve(undefined)));
  await verifier.verify(token); // does not wait for the answer
  assert.equal(kkp.requests.length, 2);
  assert.match(kkp.requests[1]?.etag ?? "", /^"[\w-]{43}"$/);
  answer();
  await settled();
  kkp.onRequest = unreachable;
  kkp.now += 599;
  await verifier.verify(token); // the 304 made them young
});

test("a background failure is no unhandled rejection, and leaves the keys", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  const token = await kkp.token();
  await verifier.verify(token);
  kkp.now += 400;
  kkp.onRequest = () => new Response("{}", { status: 200 });
  await verifier.verify(token);
  await settled();
  await verifier.verify(token);
  assert.equal(kkp.requests.length, 2);
});

test("an unknown kid fetches the keys at once", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  await verifier.verify(await kkp.token());
  await kkp.rotate();
  kkp.now += 1;
  await verifier.verify(await kkp.token());
  assert.deepEqual(paths(kkp), [KEYS, KEYS]);
});

test("made-up kids fetch the keys every 30 seconds at the most", async () => {
  const { kkp, verifier } = await made({ revocations: false });
  await verifier.prepare();
  const stranger = await FakeKKP.create();
  const forged = await stranger.token();
  for (let quarter = 0; quarter < 4 * 60; quarter++) {
    kkp.now += 0.25;
    assert.equal(await refused(verifier.verify(forged)), "token_invalid unknown_key");
  }
  assert.deepEqual(paths(kkp), [KEYS, KEYS, KEYS]);
});

test("a list by a key of a moment ago fetches the keys as well", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await verifier.prepare();
  await kkp.rotate();
  kkp.now += 61;
  kkp.seq += 1;
  // The token is by the key of before, which the fake publishes no more.
  assert.equal(await refused(verifier.verify(token)), "token_invalid unknown_key");
  assert.equal(verifier.highestRevocationSeq, 42);
  assert.deepEqual(paths(kkp), [KEYS, LIST, LIST, KEYS]);
});

test("what was revoked is honoured within max-age, also by a verifier that was idle", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await verifier.verify(token);
  kkp.revoked = { subjects: { [await idOf("subject", "orders")]: kkp.now } };
  kkp.seq += 1;
  kkp.now += 60;
  assert.equal(await refused(verifier.verify(token)), "token_invalid revoked");
});

test("the list is fetched early, in the background of verifications", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await verifier.verify(token);
  paths(kkp);
  kkp.now += 29.75;
  await verifier.verify(token);
  await settled();
  assert.deepEqual(paths(kkp), []);
  kkp.now += 0.25;
  await verifier.verify(token);
  await settled();
  assert.deepEqual(paths(kkp), [LIST]);
});

test("an old list, put back, is refused, and the last good one stays", async () => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  await verifier.verify(token);
  kkp.seq = 40;
  kkp.now += 60;
  await verifier.verify(token);
  assert.equal(verifier.highestRevocationSeq, 41);
  kkp.now += 240;
  const error = await failure(verifier.verify(token));
  assert.equal(`${error.code} ${error.reason}`, "revocations_unavailable list_too_old");
  assert.match(error.message, /older than one that was seen before/);
});

test("an old list is refused after a restart too, where the highest seq was kept", async () => {
  const { kkp, verifier } = await made({ highestRevocationSeq: 42 });
  assert.match(
    (await failure(verifier.verify(await kkp.token()))).message,
    /there is no list of revocations: the list of revocations is older/,
  );
});

test("a list that is no token, and a token that is no list", async () => {
  const { kkp, verifier } = await made();
  assert.equal(await refused(verifier.verify(await kkp.list())), "token_invalid wrong_type");
  const token = await kkp.token();
  kkp.onRequest = ({ path }) => (path === LIST ? new Response(token) : undefined);
  assert.equal(await refused(verifier.verify(token)), "revocations_unavailable no_list");
});

const BAD_ANSWERS: Readonly<Record<string, () => Response>> = {
  "a redirect": () => new Response(null, { status: 302, headers: { location: "https://elsewhere.test/" } }),
  "a 304 that was not asked for": () => new Response(null, { status: 304 }),
  "an answer of more than 256 KiB": () => new Response(" ".repeat(256 * 1024 + 1)),
  "a set without a key": () => new Response('{"keys":[]}'),
  "no JSON": () => new Response("<html>"),
  "an error": () => new Response("busy", { status: 503 }),
  "another success": () => new Response("{}", { status: 203 }),
};

for (const [name, answer] of Object.entries(BAD_ANSWERS)) {
  test(`${name} is no set of keys`, async () => {
    const { kkp, verifier } = await made();
    kkp.onRequest = answer;
    const error = await failure(verifier.verify(await kkp.token()));
    assert.equal(`${error.code} ${error.reason}`, "keys_unavailable no_keys");
    assert.match(error.message, /https:\/\/kkp\.test\/keys\/jwks/);
  });
}

test("a KKP that does not answer is given up after 5 s", async (t) => {
  const { kkp, verifier } = await made();
  const token = await kkp.token();
  let asked = (): void => undefined;
  const isAsked = new Promise<void>((resolve) => {
    asked = resolve;
  });
  kkp.onRequest = () => {
    asked();
    return new Promise(() => undefined);
  };
  t.mock.timers.enable({ apis: ["setTimeout"] });
  let isOver = false;
  const refusal = failure(verifier.verify(token)).finally(() => {
    isOver = true;
  });
  await isAsked;
  t.mock.timers.tick(4999);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(isOver, false);
  t.mock.timers.tick(1);
  const error = await refusal;
  assert.equal(`${error.code} ${error.reason}`, "keys_unavailable no_keys");
  assert.match(error.message, /https:\/\/kkp\.test\/keys\/jwks .*within 5 s/);
});

test("a DPoP proof is good once at one verifier", async () => {
  const { kkp, verifier } = await made();
  const key = await DPoPKey.generate();
  const token = await kkp.token({ cnf: { jkt: key.thumbprint } });
  const request = { method: "GET", url: "https://orders.test/rows" };
  const proof = { ...request, proof: await key.proof({ ...request, token, now: kkp.now }) };
  assert.equal(await refused(verifier.verify(token)), "token_invalid proof_missing");
  const both = await Promise.allSettled([
    verifier.verify(token, { proof }),
    verifier.verify(token, { proof }),
  ]);
  assert.deepEqual(both.map(({ status }) => status).toSorted(), ["fulfilled", "rejected"]);
});

test("a proof that met a verifier without keys is still good afterwards", async () => {
  const { kkp, verifier } = await made();
  const key = await DPoPKey.generate("EdDSA");
  const token = await kkp.token({ cnf: { jkt: key.thumbprint } });
  const request = { method: "GET", url: "https://orders.test/rows" };
  const proof = { ...request, proof: await key.proof({ ...request, token, now: kkp.now }) };
  kkp.onRequest = unreachable;
  assert.equal(await refused(verifier.verify(token, { proof })), "keys_unavailable no_keys");
  kkp.onRequest = () => undefined;
  kkp.now += 1;
  await verifier.verify(token, { proof });
});

const UNUSABLE: Readonly<Record<string, Partial<TokenVerifierOptions>>> = {
  "a URL in the clear": { url: "http://kkp.test" },
  "a URL with a user": { url: "https://user:secret@kkp.test" },
  "a URL with a query": { url: "https://kkp.test?x" },
  "a URL with a fragment": { url: "https://kkp.test#x" },
  "no URL": { url: "kkp.test" },
  "a URL that a parser would mend": { url: "https:\\\\kkp.test" },
  "another scheme": { url: "ftp://kkp.test" },
  "an empty audience": { audience: "" },
  "an empty issuer": { issuer: "" },
  "an option in another spelling": { leeway_seconds: 0 } as never,
  "a leeway below 0": { leewaySeconds: -1 },
  "a leeway over 60": { leewaySeconds: 60.5 },
  "a leeway that is no number": { leewaySeconds: Number.NaN },
};

for (const [name, options] of Object.entries(UNUSABLE)) {
  test(`a verifier is not made with ${name}`, async () => {
    await assert.rejects(made(options), (error: Error) => {
      assert.ok(error instanceof ConfigurationError);
      assert.ok(!error.message.includes("secret"));
      return true;
    });
  });
}

for (const url of [
  "http://localhost:8080",
  "http://127.0.0.1",
  "http://[::1]:1/",
  "https://kkp.test/a/path/",
]) {
  test(`a verifier is made with ${url}`, async () => {
    const { verifier } = await made({ url });
    assert.equal(verifier.issuer, url.replace(/\/$/, ""));
  });
}

test("in the clear, where one says so", async () => {
  assert.equal((await made({ url: "http://kkp.test", allowHTTP: true })).verifier.issuer, "http://kkp.test");
});

test("where the issuer is another, the one that was expected is named, and never the token's", async () => {
  const { kkp, verifier } = await made({ issuer: "http://localhost:8080" });
  const error = await failure(verifier.verify(await kkp.token({ iss: "http://canary.example" })));
  assert.deepEqual([error.code, error.reason], ["token_invalid", "wrong_issuer"]);
  assert.equal(
    error.message,
    "refused: it is another issuer's: expected http://localhost:8080; see the option issuer",
  );
});

test("a list of another issuer's is missing for that reason", async () => {
  const { verifier } = await made({ issuer: "http://localhost:8080" });
  const error = await failure(verifier.prepare());
  assert.equal(error.code, "revocations_unavailable");
  assert.match(error.message, /another issuer's: expected http:\/\/localhost:8080; see the option issuer$/);
});
