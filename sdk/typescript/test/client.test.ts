import assert from "node:assert/strict";
import { createServer } from "node:net";
import { test } from "node:test";
import { inspect } from "node:util";
import { runInNewContext } from "node:vm";
import {
  type ClientOptions,
  ConfigurationError,
  DPoPKey,
  type Envelope,
  EnvelopeInvalidError,
  KKPClient,
  KKPError,
  type Message,
  ProblemError,
  TransportError,
} from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";
import { type Answer, type Body, claimsFor, labels, problem, scriptedKKP, sealed } from "./scriptedKKP.js";

const KEY = "kkp_sk_canary-of-a-service-key";
const MESSAGE: Message = { backend: "aws", keyId: "alias/orders", plaintext: "canary of a plaintext" };
const SCOPE = { backend: "aws", keyId: "alias/orders" };
const KEY_LABELS = { backend: "aws", key_id: "alias/orders" };

const kkp = await scriptedKKP();

function client(options: Partial<ClientOptions> = {}): KKPClient {
  return new KKPClient({ url: kkp.url, credential: KEY, audience: "orders-db", ...options });
}

// What is asked, and what is shown.

test("text and bytes there and back, each as what it was", async () => {
  const text = await client().decrypt(await client().encrypt({ ...MESSAGE, context: { table: "orders" } }));
  assert.equal(text.text, MESSAGE.plaintext);
  assert.equal(text.claims?.sub, "orders");
  const plaintext = Uint8Array.of(0, 0xff, 0x80);
  const bytes = await client().decrypt(await client().encrypt({ ...MESSAGE, plaintext }));
  assert.equal(bytes.text, null);
  assert.deepEqual(bytes.plaintext, plaintext);
});

test("sealing shows the credential alone, and asks for no token", async () => {
  await client().encrypt({
    ...MESSAGE,
    associatedData: "row 7",
    policyContext: { reason: "import", depth: 1 },
  });
  assert.deepEqual(kkp.paths(), ["/envelope/encrypt"]);
  const [{ headers, body }] = kkp.received as [Body];
  assert.equal(headers.authorization, `Bearer ${KEY}`);
  assert.deepEqual(body, {
    associated_data: "row 7",
    backend: "aws",
    key_id: "alias/orders",
    plaintext: MESSAGE.plaintext,
    policy_context: { depth: 1, reason: "import" },
  });
});

test("opening shows the credential, and a token for just that beside it", async () => {
  const envelope = await client().encrypt(MESSAGE);
  await client().decrypt(envelope, {
    scope: { context: { table: "orders" } },
    policyContext: { why: "audit" },
  });
  const [, token, decrypt] = kkp.received as [Body, Body, Body];
  assert.deepEqual(token.body, {
    audience: "orders-db",
    backend: "aws",
    context: { table: "orders" },
    key_id: "alias/orders",
    ops: ["decrypt"],
  });
  assert.equal(decrypt.headers.authorization, `Bearer ${KEY}`);
  assert.deepEqual(decrypt.body.envelope, envelope);
  assert.deepEqual(decrypt.body.policy_context, { why: "audit" });
  assert.match(decrypt.body.token, /^e30\./);
});

test("moving shows a token with the op rewrap for the key that the envelope has", async () => {
  const envelope = await client().encrypt(MESSAGE);
  const moved = await client().rewrap(envelope, { backend: "gcp", keyId: "orders" });
  assert.deepEqual({ ...moved, key_version: "1" }, { ...envelope, backend: "gcp", key_id: "orders" });
  assert.deepEqual(kkp.received[1]?.body.ops, ["rewrap"]);
  assert.equal(kkp.received[1]?.body.key_id, "alias/orders");
});

test("a scope may name the key, so that an envelope of another is KKP's to refuse", async () => {
  const envelope = await client().encrypt({ ...MESSAGE, keyId: "alias/another" });
  await client().decrypt(envelope, { scope: { ...SCOPE, audience: "billing" } });
  assert.equal(kkp.received[1]?.body.key_id, "alias/orders");
  assert.equal(kkp.received[1]?.body.audience, "billing");
});

test("a token is asked for with everything that its scope says", async () => {
  const token = await client().token({
    ...SCOPE,
    audience: "billing",
    ops: ["rewrap", "decrypt"],
    ttlSeconds: 60,
    policyClaims: { environment: "prod" },
    context: { table: "orders" },
    subject: "user:1",
    requestContext: { environment: "prod" },
  });
  assert.deepEqual(kkp.received[0]?.body, {
    audience: "billing",
    backend: "aws",
    context: { table: "orders" },
    key_id: "alias/orders",
    ops: ["decrypt", "rewrap"],
    policy_claims: { environment: "prod" },
    request_context: { environment: "prod" },
    subject: "user:1",
    ttl_seconds: 60,
  });
  assert.deepEqual([token.tokenType, token.expiresAt, token.kid], ["Bearer", 1_750_000_300, "kid"]);
});

test("a credential that is asked for is asked for anew each time that it is shown", async () => {
  let asked = 0;
  const asking = client({ credential: () => Promise.resolve(`jwt-${++asked}`) });
  await asking.encrypt(MESSAGE);
  await asking.encrypt(MESSAGE);
  assert.deepEqual(
    kkp.received.map(({ headers }) => headers.authorization),
    ["Bearer jwt-1", "Bearer jwt-2"],
  );
});

// Tokens.

test("1,000 concurrent callers cause one token request per scope", async () => {
  const one = client({ deadlineSeconds: 120 });
  const [envelope, other] = [
    await one.encrypt(MESSAGE),
    await one.encrypt({ ...MESSAGE, keyId: "alias/other" }),
  ];
  kkp.received.length = 0;
  await Promise.all(Array.from({ length: 1000 }, (_, i) => one.decrypt(i % 2 ? envelope : other)));
  const asked = kkp.received.filter(({ path }) => path === "/token").map(({ body }) => body.key_id);
  assert.deepEqual(asked.sort(), ["alias/orders", "alias/other"]);
  assert.equal(kkp.received.length, 1002);
});

const DIFFERENT: Readonly<Record<string, object>> = {
  audience: { audience: "another" },
  backend: { backend: "gcp" },
  key: { keyId: "alias/another" },
  ops: { ops: ["encrypt"] },
  TTL: { ttlSeconds: 60 },
  claims: { policyClaims: { a: "b" } },
  context: { context: { a: "b" } },
  subject: { subject: "user:1" },
  "request context": { requestContext: { a: "b" } },
};

for (const [what, more] of Object.entries(DIFFERENT)) {
  test(`a token is never used for a scope with another ${what}`, async () => {
    const one = client();
    const first = await one.token(SCOPE);
    const second = await one.token({ ...SCOPE, ...more });
    assert.notEqual(first.token, second.token);
    assert.equal((await one.token({ ...SCOPE, ...more })).token, second.token);
  });
}

test("the order of ops makes no other scope", async () => {
  const one = client();
  const first = await one.token({ ...SCOPE, ops: ["encrypt", "decrypt"] });
  assert.equal((await one.token({ ...SCOPE, ops: ["decrypt", "encrypt"] })).token, first.token);
});

for (const code of ["token_invalid", "token_expired"]) {
  test(`a token that is refused as ${code} is forgotten, and the call made once more with another`, async () => {
    const one = client();
    const envelope = await one.encrypt(MESSAGE);
    await one.decrypt(envelope);
    kkp.received.length = 0;
    kkp.script.push(problem(401, code));
    assert.equal((await one.decrypt(envelope)).text, MESSAGE.plaintext);
    assert.deepEqual(kkp.paths(), ["/envelope/decrypt", "/token", "/envelope/decrypt"]);
    assert.notEqual(kkp.received[0]?.body.token, kkp.received[2]?.body.token);
  });
}

test("a second token that is refused is the answer", async () => {
  const one = client();
  const envelope = await one.encrypt(MESSAGE);
  await one.decrypt(envelope);
  kkp.script.push(problem(401, "token_invalid"), { body: tokenAnswer() }, problem(401, "token_invalid"));
  await refused(one.decrypt(envelope), ProblemError, "token_invalid");
});

test("a credential that is refused is not asked for again", async () => {
  kkp.script.push(problem(401, "unauthenticated"));
  await refused(client().encrypt(MESSAGE), ProblemError, "unauthenticated");
  assert.equal(kkp.received.length, 1);
});

// What becomes of a token.

test("KKP tells what it knows of a token, under the names that its claims have", async () => {
  const one = client();
  const { token } = await one.token(SCOPE);
  const known = await one.introspect(token);
  assert.ok(known.active);
  assert.deepEqual(
    [known.token_type, known.sub, known.aud, known.key_id, known.exp],
    ["Bearer", "orders", "orders-db", "alias/orders", 1_750_000_300],
  );
  assert.ok(!("scope" in known));
  const [, introspect] = kkp.received as [Body, Body];
  assert.equal(introspect.path, "/token/introspect");
  assert.equal(introspect.headers.authorization, `Bearer ${KEY}`);
  assert.deepEqual(introspect.body, { token });
});

test("of a token that is not good KKP tells that alone", async () => {
  kkp.script.push({ body: { active: false, sub: "passed over" } });
  assert.deepEqual(await client().introspect("a.b.c"), { active: false });
});

const BAD_INTROSPECTIONS: Readonly<Record<string, Body>> = {
  "nothing in it": {},
  "active that is no truth value": { active: "true" },
  "an active token without claims": { active: true, token_type: "Bearer" },
  "another type of token": { active: true, token_type: "MAC", ...claimsFor(KEY_LABELS) },
  "no type of token": { active: true, ...claimsFor(KEY_LABELS) },
  "claims of another form": { active: true, token_type: "Bearer", ...claimsFor(KEY_LABELS), exp: "soon" },
};

for (const [name, body] of Object.entries(BAD_INTROSPECTIONS)) {
  test(`a bad answer of /token/introspect: ${name}`, async () => {
    kkp.script.push({ body });
    await refused(client().introspect("a.b.c"), TransportError, "bad_answer");
  });
}

test("a revoked token is used no longer, and others are kept", async () => {
  const one = client();
  const other = { ...SCOPE, audience: "billing" };
  const [{ token }, kept] = [await one.token(SCOPE), await one.token(other)];
  assert.equal(await one.revoke(token), undefined);
  assert.deepEqual(kkp.received.at(-1)?.body, { token });
  assert.notEqual((await one.token(SCOPE)).token, token);
  assert.equal(await one.token(other), kept);
  assert.deepEqual(kkp.paths(), ["/token", "/token", "/token/revoke", "/token"]);
});

test("a token is used no longer either where KKP could not be told to revoke it", async () => {
  const one = client();
  const { token } = await one.token(SCOPE);
  kkp.script.push(problem(500, "internal"));
  await refused(one.revoke(token), ProblemError, "internal");
  assert.notEqual((await one.token(SCOPE)).token, token);
});

test("what is asked about a token shows the credential, without a proof, with a DPoP key too", async () => {
  const bound = client({ dpopKey: await DPoPKey.generate() });
  const { token } = await bound.token(SCOPE);
  await bound.introspect(token);
  await bound.revoke(token);
  for (const { headers } of kkp.received.slice(1)) {
    assert.deepEqual([headers.authorization, headers.dpop], [`Bearer ${KEY}`, undefined]);
  }
  assert.equal(kkp.received.length, 3);
});

test("only the text of a token is asked about, within the call's own deadline", async () => {
  const one = client();
  for (const given of ["", undefined, await one.token(SCOPE)] as string[]) {
    await refused(one.introspect(given), ConfigurationError, "invalid_configuration");
    await refused(one.revoke(given), ConfigurationError, "invalid_configuration");
  }
  assert.deepEqual(kkp.paths(), ["/token"]);
  kkp.script.push(
    () => undefined,
    () => undefined,
  );
  await refused(one.introspect("a.b.c", { deadlineSeconds: 0.2 }), TransportError, "timeout");
  await refused(one.revoke("a.b.c", { deadlineSeconds: 0.2 }), TransportError, "timeout");
});

// DPoP.

test("with a DPoP key each request shows a bound token and a proof of its own", async () => {
  const key = await DPoPKey.generate();
  const bound = client({ dpopKey: key, issuer: "https://kkp.example/base/" });
  await bound.decrypt(await bound.encrypt(MESSAGE));
  assert.deepEqual(kkp.paths(), ["/token", "/envelope/encrypt", "/token", "/envelope/decrypt"]);
  const [token, encrypt, , decrypt] = kkp.received as [Body, Body, Body, Body];
  assert.equal(token.body.binding, "dpop");
  assert.equal(token.headers.authorization, `Bearer ${KEY}`);
  assert.deepEqual([token.body.ops, kkp.received[2]?.body.ops], [["encrypt"], ["decrypt"]]);
  assert.match(encrypt.headers.authorization, /^DPoP e30\./);
  assert.equal(decrypt.body.token, undefined);
  const proofs = kkp.received.map(({ headers }) => proofClaims(headers.dpop));
  assert.deepEqual(
    proofs.map(({ htu }) => htu),
    kkp.paths().map((path) => `https://kkp.example/base${path}`),
  );
  assert.equal(new Set(proofs.map(({ jti }) => jti)).size, 4);
  assert.deepEqual(
    proofs.map(({ ath }) => ath !== undefined),
    [false, true, false, true],
  );
});

test("a nonce that KKP wants is put into the next proof, once, and kept", async () => {
  const bound = client({ dpopKey: await DPoPKey.generate() });
  kkp.script.push(problem(401, "use_dpop_nonce", {}, { "DPoP-Nonce": "nonce-1" }));
  await bound.encrypt(MESSAGE);
  const nonces = kkp.received.map(({ headers }) => proofClaims(headers.dpop).nonce);
  assert.deepEqual(nonces, [undefined, "nonce-1", "nonce-1"]);
  assert.deepEqual(kkp.paths(), ["/token", "/token", "/envelope/encrypt"]);
});

test("a KKP that wants a nonce again and again is not asked forever", async () => {
  const bound = client({ dpopKey: await DPoPKey.generate() });
  const wants = problem(401, "use_dpop_nonce", {}, { "DPoP-Nonce": "nonce-1" });
  kkp.script.push(wants, wants);
  await refused(bound.encrypt(MESSAGE), ProblemError, "use_dpop_nonce");
  assert.equal(kkp.received.length, 2);
});

test("a bearer token where a bound one was asked for is a bad answer, and the other way round", async () => {
  kkp.script.push({ body: tokenAnswer() });
  await refused(client({ dpopKey: await DPoPKey.generate() }).token(SCOPE), TransportError, "bad_answer");
  kkp.script.push({ body: { ...tokenAnswer(), token_type: "DPoP" } });
  await refused(client().token(SCOPE), TransportError, "bad_answer");
});

// What is sent again, and what is not.

for (const status of [503, 429]) {
  test(`${status} is repeated twice, and then the answer`, async () => {
    const busy = problem(status, status === 503 ? "kms_unavailable" : "rate_limited");
    kkp.script.push(busy, busy);
    await client().encrypt(MESSAGE);
    assert.equal(kkp.received.length, 3);
    kkp.received.length = 0;
    kkp.script.push(busy, busy, busy);
    const error = await refused(
      client().encrypt(MESSAGE),
      ProblemError,
      busy.status === 503 ? "kms_unavailable" : "rate_limited",
    );
    assert.equal(error.status, status);
    assert.equal(kkp.received.length, 3);
  });
}

test("nothing is repeated where repeats is 0", async () => {
  kkp.script.push(problem(503, "kms_unavailable"));
  await refused(client({ repeats: 0 }).encrypt(MESSAGE), ProblemError, "kms_unavailable");
  assert.equal(kkp.received.length, 1);
});

for (const [status, code] of [
  [500, "internal"],
  [502, "kms_denied"],
  [403, "policy_denied"],
  [400, "invalid_request"],
] as const) {
  test(`${status} is not repeated`, async () => {
    kkp.script.push(problem(status, code));
    await refused(client().encrypt(MESSAGE), ProblemError, code);
    assert.equal(kkp.received.length, 1);
  });
}

test("Retry-After is waited for", async () => {
  kkp.script.push(problem(503, "overloaded", {}, { "Retry-After": "1" }));
  const startedAt = performance.now();
  await client().encrypt(MESSAGE);
  assert.ok(performance.now() - startedAt >= 990);
});

test("where Retry-After is behind the deadline, the answer is given at once", async () => {
  kkp.script.push(problem(429, "rate_limited", {}, { "Retry-After": "30" }));
  const error = await refused(client().encrypt(MESSAGE), ProblemError, "rate_limited");
  assert.equal(error.retryAfterSeconds, 30);
  assert.equal(kkp.received.length, 1);
});

test("503 that is nobody's problem document is repeated, and ends as a bad answer", async () => {
  const away = { status: 503, headers: { "Content-Type": "text/html" }, body: "<h1>away</h1>" };
  kkp.script.push(away, away, away);
  const error = await refused(client().encrypt(MESSAGE), TransportError, "bad_answer");
  assert.equal(error.status, 503);
  assert.equal(kkp.received.length, 3);
});

test("a connection that could not be made is tried again, and one that broke is not", async () => {
  for (const [code, sendings] of [
    ["ECONNREFUSED", 3],
    ["ECONNRESET", 1],
  ] as const) {
    let sent = 0;
    const broken = client({
      fetch: () => {
        sent += 1;
        return Promise.reject(
          new TypeError("fetch failed", { cause: Object.assign(new Error(KEY), { code }) }),
        );
      },
    });
    const error = await refused(broken.encrypt(MESSAGE), TransportError, "unreachable");
    assert.match(error.message, new RegExp(code));
    assert.equal(sent, sendings);
  }
});

test("where nobody listens KKP is unreachable", async () => {
  const error = await refused(
    client({ url: await closedPort() }).encrypt(MESSAGE),
    TransportError,
    "unreachable",
  );
  assert.match(error.message, /ECONNREFUSED/);
});

test("a connection that breaks within the answer is not asked again", async () => {
  kkp.script.push((_, response) => {
    response.writeHead(200, { "Content-Length": "1000" });
    response.write("{");
    setTimeout(() => response.destroy(), 10);
    return undefined;
  });
  await refused(client().encrypt(MESSAGE), TransportError, "unreachable");
  assert.equal(kkp.received.length, 1);
});

// Deadlines and signals.

test("a KKP that does not answer is given up at the deadline", async () => {
  kkp.script.push(() => undefined);
  const startedAt = performance.now();
  await refused(client({ deadlineSeconds: 0.2 }).encrypt(MESSAGE), TransportError, "timeout");
  assert.ok(performance.now() - startedAt < 5000);
});

test("the deadline is for a call with its token in it, and a call may have one of its own", async () => {
  const envelope = await client().encrypt(MESSAGE);
  kkp.script.push(() => undefined);
  await refused(client().decrypt(envelope, { deadlineSeconds: 0.2 }), TransportError, "timeout");
});

test("an answer that never ends is given up at the deadline", async () => {
  kkp.script.push((_, response) => {
    response.writeHead(200);
    const timer = setInterval(() => response.write(" "), 20);
    response.on("close", () => clearInterval(timer));
    return undefined;
  });
  await refused(client({ deadlineSeconds: 0.3 }).encrypt(MESSAGE), TransportError, "timeout");
});

test("a caller may stop, and is told its own reason", async () => {
  const reason = new Error("no longer wanted");
  const stop = new AbortController();
  kkp.script.push(() => {
    stop.abort(reason);
    return undefined;
  });
  await assert.rejects(client().encrypt(MESSAGE, { signal: stop.signal }), reason);
  await assert.rejects(client().encrypt(MESSAGE, { signal: stop.signal }), reason);
  assert.equal(kkp.received.length, 1);
});

test("a caller that stops while it waits for its token sends nothing more", async () => {
  const stop = new AbortController();
  const reason = new Error("no longer wanted");
  const sent: string[] = [];
  const envelope = await client().encrypt(MESSAGE);
  const one = client({
    fetch: (url) => {
      sent.push(url);
      stop.abort(reason);
      return Promise.resolve(Response.json(tokenAnswer()));
    },
  });
  await assert.rejects(one.decrypt(envelope, { signal: stop.signal }), reason);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(sent, [`${kkp.url}/token`]);
});

test("a caller that stops takes no token from others who wait for it", async () => {
  const one = client();
  const stop = new AbortController();
  kkp.script.push((_, response) => {
    setTimeout(() => response.end(JSON.stringify(tokenAnswer())), 50);
    stop.abort(new Error("no longer wanted"));
    return undefined;
  });
  const stopped = one.token(SCOPE, { signal: stop.signal });
  const waiting = one.token(SCOPE);
  await assert.rejects(stopped, /no longer wanted/);
  assert.equal((await waiting).kid, "kid");
  assert.equal(kkp.received.length, 1);
});

// Answers that are none of KKP's.

const BAD_ANSWERS: Readonly<Record<string, Answer>> = {
  "a redirect": { status: 307, headers: { Location: "/elsewhere" } },
  "no content": { status: 204, headers: {} },
  "a page": { status: 200, body: "<html></html>" },
  "an error page": { status: 502, body: "<html></html>" },
  "a list": { body: [] },
  "nothing in it": { body: {} },
  "a member twice": { body: '{"envelope":{},"envelope":{}}' },
  "a problem of another status": { status: 403, body: problem(404, "not_found").body },
  "a problem without a code": { status: 403, body: { status: 403 } },
  "a problem whose code is none": { status: 403, body: { status: 403, code: `<b>${KEY}</b>` } },
  "a byte order mark": ({ body }) => ({ body: `\ufeff${JSON.stringify({ envelope: sealed(body) })}` }),
  "more than may be": ({ body }) => ({ body: { envelope: sealed(body), more: "x".repeat(300_000) } }),
  "a malformed envelope": ({ body }) => ({ body: { envelope: { ...sealed(body), v: 2 } } }),
  "an envelope without its payload": ({ body }) => ({ body: { envelope: labels(body) } }),
  "an envelope of another backend": changed({ backend: "gcp" }),
  "an envelope of another key": changed({ key_id: "alias/another" }),
  "an envelope of another context": changed({ context: { table: "another" } }),
  "an envelope with other associated data": changed({ associated_data: "another" }),
  "an envelope of bytes": changed({ encoding: null }),
  "an envelope of another length": changed({ ciphertext: Buffer.alloc(17).toString("base64url") }),
};

for (const [name, answer] of Object.entries(BAD_ANSWERS)) {
  test(`a bad answer: ${name}`, async () => {
    kkp.script.push(answer);
    await refused(client().encrypt(MESSAGE), TransportError, "bad_answer");
    assert.equal(kkp.received.length, 1);
  });
}

const BAD_TOKENS: Readonly<Record<string, object>> = {
  "no token": { token: undefined },
  "a token that is no text": { token: 7 },
  "a token that is none": { token: "a.b" },
  "a token with a line's end": { token: `${tokenAnswer().token}\r\nX-Other: b` },
  "a token whose times are missing": { token: "e30.e30.c2ln" },
  "a token that ends before it begins": { token: `e30.${base64url('{"iat":2,"exp":1}')}.c2ln` },
  "a token that ends as it begins": { token: `e30.${base64url('{"iat":2,"exp":2}')}.c2ln` },
  "a token with a fraction of a second": { token: `e30.${base64url('{"iat":1.0,"exp":2}')}.c2ln` },
  "a token that is too long": {
    token: `e30.${base64url(`{"iat":1,"exp":2,"x":"${"x".repeat(8192)}"}`)}.c2ln`,
  },
  "an end that is no number": { expires_at: "soon" },
  "no kid": { kid: undefined },
};

for (const [name, more] of Object.entries(BAD_TOKENS)) {
  test(`a bad answer of /token: ${name}`, async () => {
    kkp.script.push({ body: { ...tokenAnswer(), ...more } });
    await refused(client().token(SCOPE), TransportError, "bad_answer");
  });
}

const BAD_OPENED: Readonly<Record<string, object>> = {
  "no plaintext": { plaintext_b64: undefined },
  "a plaintext of another length": { plaintext_b64: "AAAA" },
  "a plaintext in base64url": { plaintext_b64: "_-__" },
  "a plaintext without its padding": { plaintext_b64: "YWI" },
  "text that is not UTF-8": { plaintext_b64: Buffer.alloc(21, 0xff).toString("base64") },
  "no claims": { claims: undefined },
  "claims that are none": { claims: { sub: "orders" } },
};

for (const [name, more] of Object.entries(BAD_OPENED)) {
  test(`a bad answer of decrypt: ${name}`, async () => {
    const envelope = await client().encrypt(MESSAGE);
    const opened = { plaintext_b64: base64(MESSAGE.plaintext), claims: null, ...more };
    kkp.script.push({ body: tokenAnswer() }, { body: opened });
    await refused(client().decrypt(envelope), TransportError, "bad_answer");
  });
}

test("a moved envelope whose payload, or whose target, is another is a bad answer", async () => {
  const envelope = await client().encrypt(MESSAGE);
  const target = { backend: "gcp", keyId: "orders" };
  const moved = { ...envelope, backend: "gcp", key_id: "orders" };
  const others = [
    { ...moved, nonce: base64url(Buffer.alloc(12, 1)) },
    { ...moved, commitment: base64url(Buffer.alloc(32, 1)) },
    { ...moved, context: { table: "another" } },
    envelope,
  ];
  for (const other of others) {
    kkp.script.push({ body: tokenAnswer() }, { body: { envelope: other } });
    await refused(client().rewrap(envelope, target), TransportError, "bad_answer");
  }
});

test("members that are not known are passed over", async () => {
  kkp.script.push(({ body }) => ({ body: { envelope: sealed(body), more: { "": [1e3, null] } } }));
  await client().encrypt(MESSAGE);
});

test("a problem's ids and reasons are told, and its text is not", async () => {
  const ids = { decision_id: "decision-1", reasons: ["grants.none", "kkp.binding_required"] };
  kkp.script.push(problem(403, "policy_denied", { ...ids, detail: "canary of a detail" }));
  const error = await refused(client().encrypt(MESSAGE), ProblemError, "policy_denied");
  assert.deepEqual(
    [error.requestId, error.decisionId, error.reasons],
    ["request-1", "decision-1", ids.reasons],
  );
  assert.equal(
    error.message,
    "KKP refused: policy_denied (grants.none, kkp.binding_required; request request-1).",
  );
  assert.doesNotMatch(inspect(error, { showHidden: true }), /canary/);
});

test("ids and reasons that are no words are left out, and so are those beyond the thirty-second", async () => {
  const reasons = ["fine", 7, "not fine", ...Array<string>(40).fill("more")];
  kkp.script.push(problem(403, "policy_denied", { request_id: "<b>", decision_id: 7, reasons }));
  const error = await refused(client().encrypt(MESSAGE), ProblemError, "policy_denied");
  assert.deepEqual([error.requestId, error.decisionId], [undefined, undefined]);
  assert.deepEqual(error.reasons, ["fine", ...Array<string>(29).fill("more")]);
  kkp.script.push(problem(403, "policy_denied", { request_id: "<b>", reasons: ["not fine"] }));
  const other = await refused(client().encrypt(MESSAGE), ProblemError, "policy_denied");
  assert.deepEqual([other.reasons, other.message], [undefined, "KKP refused: policy_denied."]);
});

for (const [more, message] of [
  [{}, "KKP refused: policy_denied (request request-1)."],
  [{ request_id: null, reasons: ["grants.none"] }, "KKP refused: policy_denied (grants.none)."],
  [{ reasons: [] }, "KKP refused: policy_denied (request request-1)."],
] as const) {
  test(`a problem that says ${JSON.stringify(more)} beside its code reads "${message}"`, async () => {
    kkp.script.push(problem(403, "policy_denied", more));
    const error = await refused(client().encrypt(MESSAGE), ProblemError, "policy_denied");
    assert.equal(error.message, message);
  });
}

test("what KKP finds wrong with an envelope is the error that is found here", async () => {
  const envelope = await client().encrypt({ ...MESSAGE, associatedData: "refuse" });
  const error = await refused(client().decrypt(envelope), EnvelopeInvalidError, "envelope_invalid");
  assert.deepEqual([error.status, error.requestId], [422, "request-1"]);
  assert.equal(error.message, "KKP refused: envelope_invalid (request request-1).");
  kkp.received.length = 0;
  await refused(client().decrypt({ ...envelope, nonce: "AA" }), EnvelopeInvalidError, "envelope_invalid");
  assert.deepEqual(kkp.paths(), []);
});

test("an envelope is taken as it was stored: as JSON text, or as its bytes", async () => {
  const one = client();
  const envelope = await one.encrypt(MESSAGE);
  const target = { backend: "gcp", keyId: "orders" };
  const stored = JSON.stringify(envelope, null, 2);
  for (const json of [stored, encodeUTF8(stored)]) {
    assert.equal((await one.decrypt(json)).text, MESSAGE.plaintext);
    assert.equal((await one.rewrap(json, target)).key_id, "orders");
    assert.equal(succeeded(await one.decryptMany([json]))[0]?.text, MESSAGE.plaintext);
    assert.equal(succeeded(await one.rewrapMany([json], target))[0]?.key_id, "orders");
  }
  for (const { path, body } of kkp.received.filter(({ path }) => path === "/envelope/decrypt")) {
    assert.deepEqual(body.envelope, envelope, path);
  }
});

const BAD_STORED: Readonly<Record<string, (json: string) => string | Uint8Array>> = {
  nothing: () => "",
  "half of it": (json) => json.slice(0, json.length / 2),
  "a member twice": (json) => json.replace("{", '{"v":1,'),
  "a number that is none": (json) => json.replace('"v":1', '"v":NaN'),
  "a version that is no whole number": (json) => json.replace('"v":1', '"v":1.0'),
  "a byte order mark": (json) => `\ufeff${json}`,
  "a lone surrogate": (json) => json.replace('"key_version":"', '"key_version":"\ud800'),
  "bytes that are not UTF-8": (json) =>
    Buffer.concat([Buffer.from(json.slice(0, -1)), Buffer.of(0xff, 0x7d)]),
  "JSON in JSON": (json) => JSON.stringify(json),
  "a list": (json) => `[${json}]`,
  null: () => "null",
};

for (const [name, made] of Object.entries(BAD_STORED)) {
  test(`stored JSON that is no envelope is not sent: ${name}`, async () => {
    const stored = made(JSON.stringify(sealed({ ...MESSAGE, key_id: "alias/orders" })));
    const target = { backend: "gcp", keyId: "orders" };
    const [many] = await client().decryptMany([stored]);
    assert.ok(many instanceof EnvelopeInvalidError);
    for (const call of [client().decrypt(stored), client().rewrap(stored, target)]) {
      await refused(call, EnvelopeInvalidError, "envelope_invalid");
    }
    assert.deepEqual(kkp.paths(), []);
  });
}

test("a member of an envelope that is JSON text is no member, nor is an answer's envelope", async () => {
  const envelope = await client().encrypt(MESSAGE);
  const context = JSON.stringify(envelope.context) as never;
  await refused(client().decrypt({ ...envelope, context }), EnvelopeInvalidError, "envelope_invalid");
  kkp.script.push({ body: { envelope: JSON.stringify(envelope) } });
  await refused(client().encrypt(MESSAGE), TransportError, "bad_answer");
});

// Many at once.

test("many are sealed, moved and opened in one request each, in order", async () => {
  const one = client();
  const messages = Array.from({ length: 5 }, (_, i) => ({ ...MESSAGE, plaintext: `message ${i}` }));
  const envelopes = succeeded(await one.encryptMany(messages));
  const moved = succeeded(await one.rewrapMany(envelopes, { backend: "gcp", keyId: "orders" }));
  const opened = succeeded(await one.decryptMany(moved));
  assert.deepEqual(
    opened.map(({ text }) => text),
    messages.map(({ plaintext }) => plaintext),
  );
  const batches = [
    "/envelope/encrypt/batch",
    "/token",
    "/envelope/rewrap/batch",
    "/token",
    "/envelope/decrypt/batch",
  ];
  assert.deepEqual(kkp.paths(), batches);
  assert.equal(kkp.received[0]?.headers.authorization, `Bearer ${KEY}`);
  assert.match(kkp.received[2]?.headers.authorization ?? "", /^Bearer e30\./);
});

test("each of many is opened or refused by itself, and a malformed one is not sent", async () => {
  const one = client();
  const good = await one.encrypt(MESSAGE);
  const refusedOne = { ...good, associated_data: "refuse" };
  const malformed = { ...good, nonce: "AA" };
  const [first, second, third, fourth] = await one.decryptMany([good, refusedOne, malformed, good]);
  assert.ok(!(first instanceof KKPError) && !(fourth instanceof KKPError));
  assert.ok(second instanceof EnvelopeInvalidError && second.requestId === "request-1");
  assert.ok(third instanceof EnvelopeInvalidError && third.requestId === undefined);
  assert.equal(kkp.received.at(-1)?.body.items.length, 3);
});

test("many of several keys go under a token for each, and come back in their order", async () => {
  const one = client();
  const keys = ["a", "b", "a", "c", "b"];
  const messages = keys.map((keyId, i) => ({ ...MESSAGE, keyId, plaintext: `${keyId} ${i}` }));
  const opened = succeeded(await one.decryptMany(succeeded(await one.encryptMany(messages))));
  assert.deepEqual(
    opened.map(({ text }) => text),
    messages.map(({ plaintext }) => plaintext),
  );
  const batches = kkp.received.filter(({ path }) => path === "/envelope/decrypt/batch");
  assert.deepEqual(
    batches.map(({ body }) => body.items.length),
    [2, 2, 1],
  );
});

test("with a DPoP key sealing many goes under a bound token for each key", async () => {
  const one = client({ dpopKey: await DPoPKey.generate() });
  succeeded(await one.encryptMany([MESSAGE, { ...MESSAGE, keyId: "alias/other" }, MESSAGE]));
  assert.deepEqual(kkp.paths(), ["/token", "/envelope/encrypt/batch", "/token", "/envelope/encrypt/batch"]);
});

test("1,000 go in one request, and 1,001 in two", async () => {
  for (const [count, sizes] of [
    [1000, [1000]],
    [1001, [1000, 1]],
  ] as const) {
    kkp.received.length = 0;
    const envelopes = succeeded(await client().encryptMany(Array.from({ length: count }, () => MESSAGE)));
    assert.equal(envelopes.length, count);
    assert.deepEqual(
      kkp.received.map(({ body }) => body.items.length),
      sizes,
    );
  }
});

test("more than 7 MiB go in several requests", async () => {
  const plaintext = "x".repeat(1024 * 1024);
  succeeded(await client().encryptMany(Array.from({ length: 8 }, () => ({ ...MESSAGE, plaintext }))));
  assert.deepEqual(
    kkp.received.map(({ body }) => body.items.length),
    [6, 2],
  );
});

test("what fails a request as a whole is the error of each in it, and of no other", async () => {
  const one = client();
  const messages = Array.from({ length: 1001 }, () => MESSAGE);
  kkp.script.push(problem(413, "payload_too_large"));
  const results = await one.encryptMany(messages);
  assert.ok(results.slice(0, 1000).every((result) => result instanceof ProblemError));
  assert.ok(!(results[1000] instanceof KKPError));
});

test("with KKP away many are not thrown: each has its error, and a malformed one its own", async () => {
  const envelope = await client().encrypt(MESSAGE);
  const one = client({ url: await closedPort() });
  const [first, malformed, last] = await one.decryptMany([envelope, { ...envelope, nonce: "AA" }, envelope]);
  for (const result of [first, last]) {
    assert.ok(result instanceof TransportError && result.code === "unreachable");
  }
  assert.ok(malformed instanceof EnvelopeInvalidError);
});

test("a batch's answer of another count, or with something else in it, is a bad one for each", async () => {
  for (const items of [[], [{}], [{}, {}, {}], [1, 2], "items", [{ code: 7 }, {}]]) {
    kkp.script.push({ body: { items } });
    for (const result of await client().encryptMany([MESSAGE, MESSAGE])) {
      assert.ok(result instanceof TransportError && result.code === "bad_answer");
    }
  }
});

test("nothing to do is no request", async () => {
  assert.deepEqual(await client().encryptMany([]), []);
  assert.deepEqual(kkp.paths(), []);
});

// How a client is made.

const BAD_OPTIONS: Readonly<Record<string, object>> = {
  "http to another machine": { url: "http://kkp.example" },
  "no scheme": { url: "kkp.example" },
  "another scheme": { url: "file:///etc/passwd" },
  "a user": { url: "https://user:password@kkp.example" },
  "a query": { url: "https://kkp.example/?a=b" },
  "a fragment": { url: "https://kkp.example/#a" },
  "an empty audience": { audience: "" },
  "an audience that is null": { audience: null },
  "no deadline": { deadlineSeconds: 0 },
  "a deadline that is no number": { deadlineSeconds: Number.NaN },
  "a deadline of more than an hour": { deadlineSeconds: 3601 },
  "repeats below 0": { repeats: -1 },
  "repeats of half": { repeats: 0.5 },
  "repeats above 10": { repeats: 11 },
};

for (const [name, options] of Object.entries(BAD_OPTIONS)) {
  test(`no client can be made with ${name}`, () => {
    assert.throws(() => client(options), ConfigurationError);
  });
}

const NOT_TEXT = "the credential is not text";
const EMPTY = "the credential is empty";
const NOT_STRIPPED = "the credential has white space or a line break in it: strip it";
const NO_BEARER = "the credential is too long, or has characters that no bearer credential has";

const BAD_CREDENTIALS: readonly (readonly [unknown, string])[] = [
  [undefined, NOT_TEXT],
  [null, NOT_TEXT],
  [Buffer.from(KEY), NOT_TEXT],
  ["", EMPTY],
  [" ", NOT_STRIPPED],
  [`${KEY}\n`, NOT_STRIPPED],
  [` ${KEY}`, NOT_STRIPPED],
  [`${KEY}\r\nX-Other: b`, NOT_STRIPPED],
  [`${KEY}\u2028`, NOT_STRIPPED],
  [`${KEY} ${KEY}`, NOT_STRIPPED],
  [`"${KEY}"`, NO_BEARER],
  [`${KEY}\u0000`, NO_BEARER],
  [KEY.padEnd(8193, "x"), NO_BEARER],
];

for (const [given, message] of BAD_CREDENTIALS) {
  test(`${inspect(given).slice(0, 60)} is refused, from a function too, for what is wrong with it`, async () => {
    const credential = given as string;
    assert.throws(() => client({ credential }), { name: "ConfigurationError", message });
    const asked = client({ credential: () => credential }).encrypt(MESSAGE);
    assert.equal((await refused(asked, ConfigurationError, "invalid_configuration")).message, message);
    assert.deepEqual(kkp.paths(), []);
  });
}

test("a credential may have 8,192 characters", () => {
  client({ credential: KEY.padEnd(8192, "x") });
});

const NO_KEY = "keyId is needed: a text that is not empty";
const MISSPELT = "key_id is spelt keyId here";
const NO_BACKEND = "backend is needed: a text that is not empty";
const NO_CONTEXT = "context is an object of texts, or left out";

/** What a caller may hand in whom no compiler has told. */
const BAD_LABELS: Readonly<Record<string, [object, string]>> = {
  "the name that KKP's own API has": [{ backend: "aws", key_id: "alias/orders" }, MISSPELT],
  "both names": [{ ...SCOPE, key_id: "alias/orders" }, MISSPELT],
  "no key": [{ backend: "aws" }, NO_KEY],
  "an empty key": [{ backend: "aws", keyId: "" }, NO_KEY],
  "a key that is a number": [{ backend: "aws", keyId: 7 }, NO_KEY],
  "no backend": [{ keyId: "alias/orders" }, NO_BACKEND],
  "a backend that is null": [{ backend: null, keyId: "alias/orders" }, NO_BACKEND],
  "a context that is null": [{ ...SCOPE, context: null }, NO_CONTEXT],
  "a context that is text": [{ ...SCOPE, context: "orders" }, NO_CONTEXT],
  "a context that is a list": [{ ...SCOPE, context: ["orders"] }, NO_CONTEXT],
  "a context that is a Map": [{ ...SCOPE, context: new Map([["table", "orders"]]) }, NO_CONTEXT],
  "a number in a context": [{ ...SCOPE, context: { row: 7 } }, NO_CONTEXT],
};

for (const [name, [labels, message]] of Object.entries(BAD_LABELS)) {
  test(`nothing is sealed, and no token asked for, with ${name}`, async () => {
    const one = client();
    const given = { plaintext: "canary", ...labels } as Message;
    const calls = [
      one.encrypt(given),
      one.dataKey(given, null),
      one.streamKey(given, 4096),
      one.token(given),
    ];
    for (const call of calls) {
      const error = await refused(call, ConfigurationError, "invalid_configuration");
      assert.equal(error.message, message);
    }
    const [failed, sealedOne] = await one.encryptMany([given, MESSAGE]);
    assert.ok(failed instanceof ConfigurationError && !(sealedOne instanceof KKPError));
    assert.deepEqual(kkp.paths(), ["/envelope/encrypt/batch"]);
  });
}

test("a context may be an object without a prototype, or of another realm", async () => {
  for (const context of [Object.assign(Object.create(null), { a: "b" }), runInNewContext("({ a: 'b' })")]) {
    assert.deepEqual((await client().encrypt({ ...MESSAGE, context })).context, { a: "b" });
  }
});

test("nothing is moved without the name of a key to move it to", async () => {
  const envelope = await client().encrypt(MESSAGE);
  const target = { backend: "gcp", key_id: "orders" } as never;
  const error = await refused(client().rewrap(envelope, target), ConfigurationError, "invalid_configuration");
  assert.equal(error.message, MISSPELT);
});

/** Names that would be passed over, and what they ask for with them. */
const MISSPELLINGS: Readonly<Record<string, (one: KKPClient, envelope: Envelope) => Promise<unknown>>> = {
  "dpop_key is spelt dpopKey here": async () => client({ dpop_key: await DPoPKey.generate() } as never),
  "deadline_seconds is spelt deadlineSeconds here": (one) =>
    one.encrypt(MESSAGE, { deadline_seconds: 1 } as never),
  "associated_data is spelt associatedData here": (one) =>
    one.encrypt({ ...MESSAGE, associated_data: "row 7" } as never),
  "chunk_size is spelt chunkSize here": (one) => one.streamKey({ ...SCOPE, chunk_size: 8192 } as never, 4096),
  "policy_context is spelt policyContext here": (one, envelope) =>
    one.decrypt(envelope, { policy_context: {} } as never),
  "ttl_seconds is spelt ttlSeconds here": (one) => one.token({ ...SCOPE, ttl_seconds: 60 } as never),
  "key_id is spelt keyId here": (one, envelope) =>
    one.decrypt(envelope, { scope: { key_id: "alias/orders" } } as never),
  "allow_http is spelt allowHTTP here": async () => client({ allow_http: true } as never),
};

for (const [message, call] of Object.entries(MISSPELLINGS)) {
  test(`nothing is asked of KKP where ${message}`, async () => {
    const envelope = sealed({ ...MESSAGE, ...KEY_LABELS });
    const error = await refused(call(client(), envelope), ConfigurationError, "invalid_configuration");
    assert.equal(error.message, message);
    assert.deepEqual(kkp.paths(), []);
  });
}

test("members of somebody's own beside a message are passed over", async () => {
  await client().encrypt({ ...MESSAGE, row_id: 7 } as Message);
  assert.deepEqual(Object.keys(kkp.received[0]?.body).sort(), ["backend", "key_id", "plaintext"]);
});

test("a scope's audience and claims are checked as well", async () => {
  for (const [more, message] of [
    [{ audience: "" }, "audience is needed: a text that is not empty"],
    [{ policyClaims: null }, "policyClaims is an object of texts, or left out"],
  ] as const) {
    const call = client().token({ ...SCOPE, ...more } as never);
    assert.equal((await refused(call, ConfigurationError, "invalid_configuration")).message, message);
  }
  assert.deepEqual(kkp.paths(), []);
});

test("a client can be made with http to this machine, or to another where that is allowed", () => {
  for (const url of [
    "http://localhost:1",
    "http://127.0.0.1",
    "http://[::1]:8080/",
    "https://kkp.example/base/",
  ]) {
    client({ url });
  }
  client({ url: "http://kkp.internal", allowHTTP: true });
});

test("a path before KKP's own is kept", async () => {
  kkp.script.push(({ body }) => ({ body: { envelope: sealed(body) } }));
  await client({ url: `${kkp.url}/base/` }).encrypt(MESSAGE);
  assert.deepEqual(kkp.paths(), ["/base/envelope/encrypt"]);
});

test("without an audience nothing is opened, and all is sealed", async () => {
  const one = new KKPClient({ url: kkp.url, credential: KEY });
  const envelope = await one.encrypt(MESSAGE);
  await refused(one.decrypt(envelope), ConfigurationError, "invalid_configuration");
  await one.decrypt(envelope, { scope: { audience: "orders-db" } });
});

// Secrets.

test("neither a client, a token nor an error shows a secret, whatever way it is printed", async () => {
  const one = client();
  const token = await one.token(SCOPE);
  const opened = await one.decrypt(await one.encrypt(MESSAGE));
  const shown: unknown[] = [one, token, opened];
  const canary = `${KEY} ${token.token} ${MESSAGE.plaintext}`;
  const failures: Answer[] = [
    problem(403, "policy_denied", { detail: canary, title: canary, request_id: canary, reasons: [canary] }),
    { status: 500, body: canary },
    { body: { envelope: canary } },
    { status: 307, headers: { Location: `https://elsewhere.example/?${base64url(KEY)}` }, body: canary },
  ];
  for (const failure of failures) {
    kkp.script.push(failure);
    shown.push(await one.encrypt(MESSAGE).catch((error) => error));
  }
  const broken = client({ fetch: () => Promise.reject(new TypeError(canary, { cause: new Error(canary) })) });
  shown.push(await broken.encrypt(MESSAGE).catch((error) => error));
  const secrets = [KEY, token.token, String(MESSAGE.plaintext)];
  for (const value of shown) {
    const printed = [
      inspect(value, { depth: 9, showHidden: true }),
      JSON.stringify(value),
      String(value),
    ].join("\n");
    for (const secret of secrets) assert.ok(!printed.includes(secret), printed.slice(0, 200));
  }
  assert.equal(shown.length, 8);
});

async function refused<E extends KKPError>(
  promise: Promise<unknown>,
  type: new (...parameters: never[]) => E,
  code: string,
): Promise<E> {
  const error = await promise.then(
    () => assert.fail("it was not refused"),
    (reason: unknown) => reason,
  );
  assert.ok(error instanceof type, inspect(error));
  assert.equal(error.code, code);
  return error;
}

function succeeded<T>(results: readonly (T | KKPError)[]): T[] {
  return results.map((result) => {
    if (result instanceof KKPError) throw result;
    return result;
  });
}

function tokenAnswer() {
  const token = `e30.${base64url('{"iat":1750000000,"exp":1750000300}')}.c2ln`;
  return { token, expires_at: 1_750_000_300, kid: "kid", token_type: "Bearer" };
}

/** Answer as KKP does, but with something in the envelope that was not asked for. */
function changed(members: Partial<Envelope>): Answer {
  return ({ body }) => ({ body: { envelope: { ...sealed(body), ...members } } });
}

function proofClaims(proof: string | string[] | undefined): Body {
  return JSON.parse(Buffer.from(String(proof).split(".")[1] ?? "", "base64url").toString());
}

function base64url(data: Uint8Array | string): string {
  return Buffer.from(data as Uint8Array).toString("base64url");
}

function base64(data: Uint8Array | string): string {
  return Buffer.from(data as Uint8Array).toString("base64");
}

/** Return a URL of this machine where nobody listens. */
async function closedPort(): Promise<string> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === "object" && address !== null ? `http://127.0.0.1:${address.port}` : assert.fail();
}
