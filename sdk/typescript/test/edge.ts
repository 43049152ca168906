/**
 * Verifies a token in a context without anything of Node's, as edge runtimes and browsers have none of it.
 *
 * Run with `--experimental-vm-modules`; prints whom the token speaks for.
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import vm, { type Context, type Module } from "node:vm";
import { FakeKKP } from "./fakeKKP.js";

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
const { TokenVerifier } = index.namespace as typeof import("@kkp/client");
const options = { url: kkp.url, audience: "orders-db", fetch: kkp.fetch, clock: kkp.clock };
const { sub } = await new TokenVerifier(options).verify(await kkp.token());
process.stdout.write(`${sub}\n`);
