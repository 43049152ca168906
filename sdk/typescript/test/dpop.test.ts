import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { inspect } from "node:util";
import { ConfigurationError, DPoPKey, KeySet, ReplayMemory, verifyToken } from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";
import { FakeKKP } from "./fakeKKP.js";
import { refused } from "./refused.js";

const REQUEST = { method: "POST", url: "https://orders.test/rows" };

function decoded(jws: string): readonly [Record<string, unknown>, Record<string, unknown>] {
  const [header, claims] = jws.split(".").map((part) => Buffer.from(part, "base64url").toString());
  return [JSON.parse(header ?? ""), JSON.parse(claims ?? "")];
}

for (const algorithm of ["ES256", "EdDSA"] as const) {
  test(`a proof of ${algorithm} has what RFC 9449 wants, and nothing private`, async () => {
    const key = await DPoPKey.generate(algorithm);
    const [header, claims] = decoded(
      await key.proof({
        ...REQUEST,
        url: `${REQUEST.url}?a=1#b`,
        token: "a.b.c",
        nonce: "n",
        now: 1_750_000_000.9,
      }),
    );
    const { jti, ...others } = claims;
    assert.match(String(jti), /^[\w-]{22}$/);
    assert.deepEqual(others, {
      htm: "POST",
      htu: REQUEST.url,
      iat: 1_750_000_000,
      ath: createHash("sha256").update("a.b.c").digest("base64url"),
      nonce: "n",
    });
    const { jwk, ...named } = header;
    assert.deepEqual(named, { alg: algorithm, typ: "dpop+jwt" });
    assert.deepEqual(
      Object.keys(jwk as object),
      algorithm === "ES256" ? ["crv", "kty", "x", "y"] : ["crv", "kty", "x"],
    );
    const canonical = JSON.stringify(jwk);
    assert.equal(key.thumbprint, createHash("sha256").update(canonical).digest("base64url"));
  });

  test(`a proof of ${algorithm} that is made here is taken here`, async () => {
    const kkp = await FakeKKP.create();
    const key = await DPoPKey.generate(algorithm);
    const token = await kkp.token({ cnf: { jkt: key.thumbprint } });
    const checks = {
      keys: await KeySet.read(encodeUTF8(await kkp.keys()), kkp.now),
      now: kkp.now,
      issuer: kkp.url,
      audience: "orders-db",
      proofs: new ReplayMemory(),
      proof: { ...REQUEST, proof: await key.proof({ ...REQUEST, token, now: kkp.now }) },
    };
    assert.equal((await verifyToken(token, checks)).sub, "orders");
    assert.equal(await refused(verifyToken(token, checks)), "token_invalid wrong_proof");
  });
}

test("no two proofs have one jti, and neither token nor nonce is there where none was given", async () => {
  const key = await DPoPKey.generate();
  const [[, first], [, second]] = [decoded(await key.proof(REQUEST)), decoded(await key.proof(REQUEST))];
  assert.notEqual(first.jti, second.jti);
  assert.deepEqual(Object.keys(first), ["jti", "htm", "htu", "iat"]);
  assert.ok(Math.abs(Number(first.iat) - Date.now() / 1000) < 60);
});

test("a proof without a memory of those that were used is a mistake of the program's", async () => {
  const kkp = await FakeKKP.create();
  const key = await DPoPKey.generate();
  const token = await kkp.token({ cnf: { jkt: key.thumbprint } });
  const keys = await KeySet.read(encodeUTF8(await kkp.keys()), kkp.now);
  const proof = { ...REQUEST, proof: await key.proof({ ...REQUEST, token, now: kkp.now }) };
  const checks = { keys, now: kkp.now, issuer: kkp.url, audience: "orders-db", proof };
  await assert.rejects(verifyToken(token, checks), ConfigurationError);
});

test("where the memory is full proofs are refused", async () => {
  const kkp = await FakeKKP.create();
  const key = await DPoPKey.generate();
  const token = await kkp.token({ cnf: { jkt: key.thumbprint } });
  const keys = await KeySet.read(encodeUTF8(await kkp.keys()), kkp.now);
  const proof = { ...REQUEST, proof: await key.proof({ ...REQUEST, token, now: kkp.now }) };
  const checks = { keys, now: kkp.now, issuer: kkp.url, audience: "orders-db", proof };
  assert.equal(
    await refused(verifyToken(token, { ...checks, proofs: new ReplayMemory(0) })),
    "token_invalid wrong_proof",
  );
  assert.ok(await verifyToken(token, { ...checks, proofs: new ReplayMemory(1) }));
});

test("a key pair of one's own makes proofs, whose private half can't be exported", async () => {
  const pair = (await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, false, [
    "sign",
    "verify",
  ])) as CryptoKeyPair;
  const [header] = decoded(await (await DPoPKey.of(pair)).proof(REQUEST));
  assert.equal(header.alg, "ES256");
});

test("a key of another kind, or for something else, makes none", async () => {
  const subtle = crypto.subtle;
  const p384 = await subtle.generateKey({ name: "ECDSA", namedCurve: "P-384" }, true, ["sign", "verify"]);
  const rsa = await subtle.generateKey(
    {
      name: "RSASSA-PKCS1-v1_5",
      modulusLength: 2048,
      publicExponent: Uint8Array.of(1, 0, 1),
      hash: "SHA-256",
    },
    true,
    ["sign", "verify"],
  );
  const ecdh = await subtle.generateKey({ name: "ECDH", namedCurve: "P-256" }, true, ["deriveBits"]);
  const ed = (await subtle.generateKey("Ed25519", true, ["sign", "verify"])) as CryptoKeyPair;
  const swapped = { publicKey: ed.publicKey, privateKey: ed.publicKey };
  for (const pair of [p384, rsa, ecdh, swapped]) {
    await assert.rejects(DPoPKey.of(pair as CryptoKeyPair), ConfigurationError);
  }
});

test("an algorithm that there is not makes no key", async () => {
  await assert.rejects(DPoPKey.generate("RS256" as "ES256"), ConfigurationError);
});

for (const url of ["/rows", "orders.test/rows", "https://orders.test/ä", "ftp://orders.test/"]) {
  test(`no proof is made for ${url}`, async () => {
    await assert.rejects((await DPoPKey.generate()).proof({ method: "GET", url }), ConfigurationError);
  });
}

test("a key shows nothing of itself but its thumbprint", async () => {
  const key = await DPoPKey.generate();
  assert.deepEqual(JSON.parse(JSON.stringify(key)), { thumbprint: key.thumbprint });
  assert.equal(inspect(key, { depth: 9, showHidden: true }).includes("CryptoKey"), false);
});
