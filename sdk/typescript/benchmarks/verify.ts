/**
 * What verifying a token costs beside what it can't do without: the bare signature check, and parsing its JSON.
 *
 *     node build/benchmarks/verify.js
 *
 * Both are run in turns, in many short rounds of the same process, and the medians of the rounds are compared, by
 * the CPU time of all of its threads, so that what else the machine does falls on both alike, or on neither. The verifier's cache is warm, with keys and a list of
 * revocations that holds something of every kind; the bare check has its key imported and its bytes at hand. It
 * exits with 1 where a verification takes more than 1.2 times as much.
 */

import { TokenVerifier } from "@kkp/client";
import { FakeKKP } from "../test/fakeKKP.js";

const ROUNDS = 1000;
const CALLS = 10;
const BAR = 1.2;

const kkp = await FakeKKP.create();
// Something of each kind is revoked, so that there is something to compare a token with.
const others = ["A".repeat(43), "B".repeat(43)];
kkp.revoked = {
  subjects: { [others[0] ?? ""]: kkp.now },
  identities: others,
  keys: others,
  backends: others,
};
const token = await kkp.token();
const verifier = new TokenVerifier({
  url: kkp.url,
  audience: "orders-db",
  fetch: kkp.fetch,
  clock: kkp.clock,
});
await verifier.verify(token);

const [header = "", payload = "", signature = ""] = token.split(".");
const [headerText, payloadText] = [header, payload].map((part) => Buffer.from(part, "base64url").toString());
const signatureBytes = Buffer.from(signature, "base64url");
const message = Buffer.from(`${header}.${payload}`);

async function bare(): Promise<void> {
  const isGood = await crypto.subtle.verify("Ed25519", kkp.publicKey, signatureBytes, message);
  if (!isGood) throw new Error("the signature is wrong");
  JSON.parse(headerText ?? "");
  JSON.parse(payloadText ?? "");
}

async function whole(): Promise<void> {
  await verifier.verify(token);
}

async function microseconds(call: () => Promise<void>): Promise<number> {
  const before = process.cpuUsage();
  for (let i = 0; i < CALLS; i++) await call();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / CALLS;
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

const [bareRounds, wholeRounds]: [number[], number[]] = [[], []];
for (let round = 0; round < ROUNDS; round++) {
  bareRounds.push(await microseconds(bare));
  wholeRounds.push(await microseconds(whole));
}
const [bareCost, wholeCost] = [median(bareRounds), median(wholeRounds)];
console.log(
  JSON.stringify({
    bare_microseconds: Number(bareCost.toFixed(1)),
    verify_microseconds: Number(wholeCost.toFixed(1)),
    ratio: Number((wholeCost / bareCost).toFixed(3)),
  }),
);
if (!(wholeCost <= BAR * bareCost)) process.exitCode = 1;
