/**
 * Verifies a token, and seals and opens a stream, in a context without anything of Node's, as edge runtimes and browsers have none of it.
 *
 * Run with `--experimental-vm-modules`; prints whom the token speaks for, and what was in the stream.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import vm, { type Context, type Module } from "node:vm";
import { FakeKKP } from "./fakeKKP.js";
import { ScriptedKKP } from "./scriptedKKP.js";

const DIST = new URL("../../dist/", import.meta.url);
// What browsers, Workers, Deno and Bun all have, and the package may use; the language's own names are there anyway.
const OF_THE_WEB = {
  AbortController,
  AbortSignal,
  clearTimeout,
  crypto,
  fetch,
  Headers,
  performance,
  ReadableStream,
  Request,
  Response,
  setTimeout,
  TextDecoder,
  TextEncoder,
  TransformStream,
  URL,
  WritableStream,
};

const context = vm.createContext({ ...OF_THE_WEB });
const modules = new Map<string, Module>();

function moduleAt(url: URL, within: Context): Module {
  const known = modules.get(url.href);
  if (known !== undefined) return known;
  const loaded = new vm.SourceTextModule(readFileSync(url, "utf8"), {
    context: within,
    identifier: url.href,
  });
  modules.set(url.href, loaded);
  return loaded;
}

const index = moduleAt(new URL("index.js", DIST), context);
await index.link((specifier, from) => moduleAt(new URL(specifier, from.identifier), context));
await index.evaluate();

assert.equal(
  vm.runInContext("typeof process + typeof Buffer + typeof require", context),
  "undefined".repeat(3),
);

const kkp = await FakeKKP.create();
const { KKPClient, LocalEnvelope, TokenVerifier } = index.namespace as typeof import("@kkp/client");
const options = { url: kkp.url, audience: "orders-db", fetch: kkp.fetch, clock: kkp.clock };
const { sub } = await new TokenVerifier(options).verify(await kkp.token());
process.stdout.write(`${sub}\n`);

const sealing = await ScriptedKKP.start();
const client = new KKPClient({ url: sealing.url, credential: "kkp_sk_a", audience: "orders-db" });
const local = new LocalEnvelope(client);
const plain: ReadableStream<Uint8Array> = new Blob(["hello"]).stream();
const sealed = plain.pipeThrough(local.sealStream({ backend: "aws", keyId: "alias/orders" }));
const decoding = new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>;
const opened = sealed.pipeThrough(local.openStream()).pipeThrough(decoding);
for await (const text of opened) process.stdout.write(`${text}\n`);
await sealing.stop();
