/** What somebody else must approve first: what is told of it, and how it is asked for once more. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import {
  type CallOptions,
  type ClientOptions,
  DPoPKey,
  KKPClient,
  LocalEnvelope,
  type Message,
  ProblemError,
} from "@kkp/client";
import { failure, refused } from "./refused.js";
import { problem, scriptedKKP, sealed } from "./scriptedKKP.js";

const RELEASE = "eyJ0eXAiOiJra3AtYXBwcm92YWwrand0In0.e30.canary-of-a-release";
const APPROVED: CallOptions = { approval: RELEASE };
const MESSAGE: Message = { backend: "aws", keyId: "alias/orders", plaintext: "hello" };
const SCOPE = { backend: "aws", keyId: "alias/orders" };
const SEALING = { backend: "aws", key_id: "alias/orders" };
const ID = "q1u7vS3Xn0o5b0p8m9l2kA";
const NOT_YET = problem(403, "approval_required", { approval_id: ID, approval_expires_at: 1_750_003_600 });

const kkp = await scriptedKKP();

function client(options: Partial<ClientOptions> = {}): KKPClient {
  return new KKPClient({ url: kkp.url, credential: "kkp_sk_key", audience: "orders-db", ...options });
}

/** The approvals that were shown, by path, in order. */
function shown(path: string): (string | string[] | undefined)[] {
  return kkp.received.filter((each) => each.path === path).map(({ headers }) => headers["kkp-approval"]);
}

test("what waits for approval says what to hand on", async () => {
  kkp.script.push(NOT_YET);
  const error = await failure(client().encrypt(MESSAGE));
  assert.equal(error.code, "approval_required");
  assert.deepEqual([error.approvalId, error.approvalExpiresAt], [ID, 1_750_003_600]);
  kkp.script.push({ body: { items: [NOT_YET.body] } });
  const [each] = await client().encryptMany([MESSAGE]);
  assert.ok(each instanceof ProblemError);
  assert.deepEqual([each.code, each.approvalId], ["approval_required", ID]);
});

for (const [members, id, expiresAt] of [
  [{}, undefined, undefined],
  [{ approval_id: 7, approval_expires_at: "soon" }, undefined, undefined],
  [{ approval_id: "a b", approval_expires_at: true }, undefined, undefined],
  [{ approval_id: "x".repeat(129), approval_expires_at: 1.5 }, undefined, undefined],
  [{ approval_id: "x", approval_expires_at: 0 }, "x", 0],
] as const) {
  test(`of ${JSON.stringify(members)} what is no id and no time is left out`, async () => {
    kkp.script.push(problem(403, "approval_required", members));
    const error = await failure(client().encrypt(MESSAGE));
    assert.equal(error.code, "approval_required");
    assert.deepEqual([error.approvalId, error.approvalExpiresAt], [id, expiresAt]);
  });
}

test("an approval is shown by its call, and not by the token on the way", async () => {
  const one = client();
  const envelope = await one.encrypt(MESSAGE);
  assert.equal((await one.decrypt(envelope, APPROVED)).text, "hello");
  assert.equal((await one.decrypt(envelope)).text, "hello");
  assert.deepEqual(shown("/envelope/decrypt"), [RELEASE, undefined]);
  assert.deepEqual(shown("/token"), [undefined]); // and both calls used it
  await one.encrypt(MESSAGE, APPROVED);
  await one.rewrap(envelope, { backend: "gcp", keyId: "orders" }, APPROVED);
  const { token } = await one.token(SCOPE);
  await one.introspect(token, APPROVED);
  await one.revoke(token, APPROVED);
  for (const path of ["/envelope/rewrap", "/token/introspect", "/token/revoke"]) {
    assert.deepEqual(shown(path), [RELEASE]);
  }
  assert.deepEqual(shown("/envelope/encrypt"), [undefined, RELEASE]);
});

test("it is shown again where the call is repeated", async () => {
  const one = client({ dpopKey: await DPoPKey.generate() });
  const envelope = await one.encrypt(MESSAGE);
  await one.decrypt(envelope);
  kkp.script.push(problem(503, "kms_unavailable"), problem(401, "token_expired"));
  assert.equal((await one.decrypt(envelope, APPROVED)).text, "hello");
  assert.deepEqual(shown("/envelope/decrypt"), [undefined, RELEASE, RELEASE, RELEASE]);
  assert.deepEqual(new Set(shown("/token")), new Set([undefined]));
});

test("what failed behind an approval that it spent is the error", async () => {
  const again = { "Retry-After": "0" };
  kkp.script.push(problem(503, "kms_unavailable", {}, again), problem(403, "approval_invalid"));
  const error = await failure(client().encrypt(MESSAGE, APPROVED));
  assert.deepEqual([error.code, error.status], ["kms_unavailable", 503]);
  kkp.script.push(problem(429, "rate_limited", {}, again), problem(403, "approval_invalid"));
  // By what asked too often, nothing was spent.
  assert.equal(await refused(client().encrypt(MESSAGE, APPROVED)), "approval_invalid");
});

test("a refused approval is the call's error", async () => {
  kkp.script.push(problem(403, "approval_invalid"));
  assert.equal(await refused(client().encrypt(MESSAGE, APPROVED)), "approval_invalid");
  assert.equal(kkp.received.length, 1);
});

test("a token takes approval itself where it is what is asked for", async () => {
  const one = client();
  kkp.script.push(NOT_YET);
  assert.equal(await refused(one.token(SCOPE)), "approval_required");
  const { token } = await one.token(SCOPE, APPROVED);
  assert.equal((await one.token(SCOPE)).token, token);
  assert.deepEqual(shown("/token"), [undefined, RELEASE]);
});

test("a token with an approval is asked for although one is kept", async () => {
  const one = client();
  const before = await one.token(SCOPE);
  const { token } = await one.token(SCOPE, APPROVED);
  assert.notEqual(token, before.token);
  assert.equal((await one.token(SCOPE)).token, token);
});

test("message keys take approval as well", async () => {
  const local = new LocalEnvelope(client());
  const envelope = await local.seal(MESSAGE, APPROVED);
  assert.equal((await local.open(envelope, APPROVED)).text, "hello");
  const plaintext = new Blob(["hello"]).stream();
  const stream = plaintext.pipeThrough(local.sealStream({ ...SCOPE, ...APPROVED }));
  assert.equal(await new Response(stream.pipeThrough(local.openStream(APPROVED))).text(), "hello");
  assert.deepEqual(shown("/envelope/data-key"), [RELEASE, RELEASE]);
  assert.deepEqual(shown("/envelope/data-key/unwrap"), [RELEASE, RELEASE]);
});

test("where the token takes approval too, it is asked for first", async () => {
  const one = client();
  const envelope = await one.encrypt(MESSAGE);
  kkp.script.push(NOT_YET);
  assert.equal(await refused(one.decrypt(envelope)), "approval_required");
  await one.token(SCOPE, { approval: "for-the-token" });
  assert.equal((await one.decrypt(envelope, APPROVED)).text, "hello");
  assert.deepEqual(shown("/token"), [undefined, "for-the-token"]);
  assert.deepEqual(shown("/envelope/decrypt"), [RELEASE]);
});

test("a token that would be revoked with what is no approval is kept", async () => {
  const one = client();
  const { token } = await one.token(SCOPE);
  assert.equal(await refused(one.revoke(token, { approval: "two words" })), "invalid_configuration");
  assert.equal((await one.token(SCOPE)).token, token);
});

for (const binding of ["bearer", "DPoP"]) {
  test(`a batch takes none, and nothing is asked for it: ${binding}`, async () => {
    const credential = () => assert.fail("a credential was asked for");
    const dpopKey = binding === "DPoP" ? { dpopKey: await DPoPKey.generate() } : {};
    const envelope = sealed({ ...SEALING, plaintext: "hello" });
    const one = client({ credential, ...dpopKey });
    for (const call of [
      one.encryptMany([MESSAGE], APPROVED),
      one.encryptMany([], APPROVED),
      one.decryptMany([envelope], APPROVED),
      one.decryptMany(["{}"], APPROVED),
      one.rewrapMany([envelope], { backend: "gcp", keyId: "orders" }, APPROVED),
    ]) {
      assert.equal(await refused(call), "invalid_configuration");
    }
    assert.deepEqual(kkp.received, []);
  });
}

for (const approval of [
  "",
  "two words",
  `${RELEASE}\n`,
  "ä",
  "x".repeat(8193),
  `${"x".repeat(8192)}=`,
  null,
  7,
]) {
  test(`${JSON.stringify(approval)?.slice(0, 20)} can be no approval, and is not repeated`, async () => {
    const options = { approval } as CallOptions;
    for (const call of [
      client().encrypt(MESSAGE, options),
      client().token(SCOPE, options),
      client().introspect("token", options),
    ]) {
      const error = await failure(call);
      assert.equal(error.code, "invalid_configuration");
      assert.match(error.message, /^the approval /);
      assert.doesNotMatch(inspect(error), /canary|two words/);
    }
    assert.deepEqual(kkp.received, []);
  });
}
