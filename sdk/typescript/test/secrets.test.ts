import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";
import { DPoPKey, type KKPError, TokenVerifier, verifyToken } from "@kkp/client";
import { FakeKKP } from "./fakeKKP.js";
import { failure } from "./refused.js";

/** Everything that a log could show of a value. */
function shown(value: object): string {
  const properties = Object.getOwnPropertyNames(value).map((name) => String(Reflect.get(value, name)));
  return [
    String(value),
    JSON.stringify(value),
    inspect(value, { depth: 9, showHidden: true }),
    ...properties,
  ].join("\n");
}

async function errors(secrets: string[]): Promise<KKPError[]> {
  const kkp = await FakeKKP.create();
  const key = await DPoPKey.generate();
  const verifier = new TokenVerifier({
    url: kkp.url,
    audience: "orders-db",
    fetch: kkp.fetch,
    clock: kkp.clock,
  });
  const request = { method: "GET", url: "https://orders.test/" };
  const tokens = {
    good: await kkp.token({ cnf: { jkt: key.thumbprint } }),
    expired: await kkp.token({ iat: 0, nbf: 0, exp: 1 }),
    foreign: await kkp.token({ aud: "somebody" }),
    forged: await (await FakeKKP.create()).token(),
    malformed: `${await kkp.token()}=`,
  };
  const proof = { ...request, proof: await key.proof({ ...request, token: "another", now: kkp.now }) };
  secrets.push(
    proof.proof,
    ...Object.values(tokens),
    ...Object.values(tokens).flatMap((token) => token.split(".").slice(1)),
  );
  const found = await Promise.all([
    ...Object.values(tokens).map((token) => failure(verifier.verify(token))),
    failure(verifier.verify(tokens.good, { proof })),
  ]);
  kkp.onRequest = () => new Response("the body of an answer", { status: 500 });
  secrets.push("the body of an answer");
  const cold = new TokenVerifier({ url: kkp.url, audience: "orders-db", fetch: kkp.fetch, clock: kkp.clock });
  return [...found, await failure(cold.verify(tokens.good))];
}

test("no error shows a token, a proof or an answer's body, by whatever road", async () => {
  const secrets: string[] = [];
  for (const error of await errors(secrets)) {
    for (const secret of secrets) assert.ok(!shown(error).includes(secret), error.message);
    assert.equal(error.cause, undefined);
  }
});

test("an error's name, code and reason are there for a log", async () => {
  const error = await failure(verifyToken("", { keys: undefined, now: 0, issuer: "a", audience: "b" }));
  assert.equal(error.name, "TokenError");
  assert.equal(`${error}`, "TokenError: refused: it is malformed, or could be spelt otherwise");
  assert.equal(JSON.parse(JSON.stringify(error)).reason, "malformed");
});
