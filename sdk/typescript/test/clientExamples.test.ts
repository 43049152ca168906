/** The client's examples, run as they stand. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { after, before, test } from "node:test";
import { ScriptedKKP } from "./scriptedKKP.js";

const kkp = await ScriptedKKP.start();
let directory = "";
before(async () => {
  directory = await mkdtemp(join(tmpdir(), "kkp-examples-"));
});
after(async () => {
  await kkp.stop();
  await rm(directory, { recursive: true });
});

interface Ended {
  readonly out: Buffer;
  readonly err: string;
  readonly code: number | null;
}

async function ran(
  name: string,
  options: readonly string[],
  input: Uint8Array = Buffer.alloc(0),
): Promise<Ended> {
  const env = { ...process.env, KKP_URL: kkp.url, KKP_SERVICE_KEY: "kkp_sk_a" };
  const child = spawn(process.execPath, [`build/examples/${name}.js`, ...options], { env });
  child.stdin.on("error", () => undefined); // a program that fails early reads no further
  child.stdin.end(input);
  const code = new Promise<number | null>((resolve) => child.on("close", resolve));
  const [out, err] = await Promise.all([buffer(child.stdout), buffer(child.stderr)]);
  return { out, err: err.toString(), code: await code };
}

test("encrypt.ts prints an envelope, and what was in it", async () => {
  const { out, err, code } = await ran("encrypt", []);
  const [envelope, text] = out.toString().trimEnd().split("\n");
  assert.equal(JSON.parse(envelope ?? "").key_id, "alias/orders");
  assert.deepEqual({ text, err, code }, { text: "4111 1111 1111 1111", err: "", code: 0 });
});

test("pipe.ts seals what comes in, and opens it again", async () => {
  const plain = crypto.getRandomValues(new Uint8Array(60_000));
  const sealed = await ran("pipe", ["seal"], plain);
  assert.deepEqual([sealed.err, sealed.code], ["", 0]);
  const opened = await ran("pipe", ["open"], sealed.out);
  assert.deepEqual([new Uint8Array(opened.out), opened.err, opened.code], [plain, "", 0]);
  const cut = await ran("pipe", ["open"], sealed.out.subarray(0, -1));
  assert.match(cut.err, /EnvelopeInvalidError/);
  assert.equal(cut.code, 1);
});

test("files.ts seals a file and opens it again, for nobody else to read", async () => {
  const [plain, sealed, opened] = ["plain", "sealed", "opened"].map((name) => join(directory, name));
  assert.ok(plain && sealed && opened);
  await writeFile(plain, crypto.getRandomValues(new Uint8Array(65_000)));
  assert.deepEqual(await codes(["seal", plain, sealed], ["open", sealed, opened]), [0, 0]);
  assert.deepEqual(await readFile(opened), await readFile(plain));
  assert.equal((await stat(opened)).mode & 0o777, 0o600);
});

test("files.ts leaves what was there as it was, and nothing beside it, where a stream is cut", async () => {
  const [plain, sealed, opened] = ["plain", "sealed", "opened"].map((name) => join(directory, name));
  assert.ok(plain && sealed && opened);
  await writeFile(plain, "a plaintext");
  assert.deepEqual(await codes(["seal", plain, sealed]), [0]);
  await writeFile(sealed, (await readFile(sealed)).subarray(0, -1));
  await writeFile(opened, "what was there");
  assert.deepEqual(await codes(["open", sealed, opened]), [1]);
  assert.equal(await readFile(opened, "utf8"), "what was there");
  assert.deepEqual((await readdir(directory)).sort(), ["opened", "plain", "sealed"]);
});

async function codes(...calls: readonly string[][]): Promise<(number | null)[]> {
  const ended: (number | null)[] = [];
  for (const call of calls) ended.push((await ran("files", call)).code);
  return ended;
}
