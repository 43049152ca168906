/**
 * Streams of a large file, beside plain chunked AES-256-GCM over the same files with the same reads and writes.
 *
 *     node build/benchmarks/stream.js [MIB] [ROUNDS] [DIRECTORY]
 *
 * Every step runs in a process of its own, so that its peak of memory is its own, in turns. Plain is both what
 * Node offers: `node:crypto`, which works on the spot, and WebCrypto, one chunk after the other; streams are
 * compared with both. A bare interpreter tells what memory is Node's. KKP is a function that answers at once:
 * its part does not grow with the file.
 *
 * The bars: half the rate of the plain one, the faster of both, in less than 100 MB more than the interpreter has.
 * It exits with 1 below one.
 */

import { spawnSync } from "node:child_process";
import { createCipheriv, createDecipheriv, createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Fetch, KKPClient, LocalEnvelope } from "@kkp/client";
import { openFile, sealFile } from "../examples/files.js";
import { labels } from "../test/scriptedKKP.js";

const MIB = 1024 * 1024;
const CHUNK = MIB;
const TAG = 16;
const RATE_BAR = 0.5;
const MEMORY_BAR_MIB = 100_000_000 / MIB;
const KEY = new Uint8Array(32).fill(7);

interface Step {
  readonly seconds: number;
  /** Of all of its threads. */
  readonly cpuSeconds: number;
  readonly peakMiB: number;
}

/** What is measured: where it writes to, and how. */
interface Work {
  readonly to: string;
  readonly run: (directory: string) => Promise<void>;
}

const STEPS: Readonly<Record<string, Work>> = {
  bare: { to: "none", run: async () => undefined },
  "plain seal, node:crypto": plain("plain", "chunks", CHUNK, nodeSeal),
  "plain seal, WebCrypto": plain("plain", "chunks", CHUNK, webSeal),
  "stream seal": {
    to: "stream",
    run: (directory) => sealFile(local, join(directory, "plain"), join(directory, "stream"), UNDER),
  },
  "plain open, node:crypto": plain("chunks", "opened", CHUNK + TAG, nodeOpen),
  "plain open, WebCrypto": plain("chunks", "opened", CHUNK + TAG, webOpen),
  "stream open": {
    to: "opened",
    run: (directory) => openFile(local, join(directory, "stream"), join(directory, "opened")),
  },
};

const UNDER = { backend: "aws", keyId: "alias/orders", chunkSize: CHUNK };

/** Answer for KKP, always with the same message key. */
const fetchNothing: Fetch = (url, init) => {
  const body = JSON.parse(new TextDecoder().decode(init.body as Uint8Array));
  if (url.endsWith("/token")) {
    const claims = Buffer.from('{"iat":0,"exp":300}').toString("base64url");
    return answer({ token: `e30.${claims}.c2ln`, expires_at: 300, kid: "k", token_type: "Bearer" });
  }
  const envelope = url.endsWith("/unwrap") ? undefined : labels(body);
  return answer({ envelope, message_key_b64: Buffer.from(KEY).toString("base64") });
};

function answer(body: object): Promise<Response> {
  return Promise.resolve(Response.json(body));
}

const local = new LocalEnvelope(
  new KKPClient({ url: "https://kkp.example", credential: "kkp_sk_a", audience: "a", fetch: fetchNothing }),
);

type Bytes = Uint8Array<ArrayBuffer>;
type Cipher = (chunk: Bytes, nonce: Bytes) => Uint8Array[] | Promise<Uint8Array[]>;

/** Read chunks, put each through a cipher, write it. */
function plain(from: string, to: string, size: number, cipher: Cipher): Work {
  return { to, run: (directory) => inTurn(join(directory, from), join(directory, to), size, cipher) };
}

async function inTurn(from: string, to: string, size: number, cipher: Cipher): Promise<void> {
  const [source, target] = [await open(from), await open(to, "wx")];
  const buffer = Buffer.alloc(size);
  const nonce = Buffer.alloc(12);
  for (let index = 0; ; index++) {
    const length = await fill(source, buffer);
    if (length === 0) break;
    nonce.writeUInt32BE(index, 7);
    for (const part of await cipher(buffer.subarray(0, length), nonce)) await target.write(part);
  }
  await target.sync();
  await Promise.all([source.close(), target.close()]);
}

async function fill(source: FileHandle, buffer: Buffer): Promise<number> {
  let length = 0;
  while (length < buffer.length) {
    const { bytesRead } = await source.read(buffer, length, buffer.length - length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return length;
}

function nodeSeal(chunk: Bytes, nonce: Bytes): Uint8Array[] {
  const cipher = createCipheriv("aes-256-gcm", KEY, nonce);
  return [cipher.update(chunk), cipher.final(), cipher.getAuthTag()];
}

function nodeOpen(chunk: Bytes, nonce: Bytes): Uint8Array[] {
  const cipher = createDecipheriv("aes-256-gcm", KEY, nonce);
  cipher.setAuthTag(chunk.subarray(-TAG));
  return [cipher.update(chunk.subarray(0, -TAG)), cipher.final()];
}

const webKey = crypto.subtle.importKey("raw", KEY, "AES-GCM", false, ["encrypt", "decrypt"]);

async function webSeal(chunk: Bytes, iv: Bytes): Promise<Uint8Array[]> {
  return [new Uint8Array(await crypto.subtle.encrypt({ name: "AES-GCM", iv }, await webKey, chunk))];
}

async function webOpen(chunk: Bytes, iv: Bytes): Promise<Uint8Array[]> {
  return [new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv }, await webKey, chunk))];
}

async function run(step: string, directory: string): Promise<void> {
  const startedAt = performance.now();
  await STEPS[step]?.run(directory);
  const seconds = (performance.now() - startedAt) / 1000;
  const { userCPUTime, systemCPUTime, maxRSS } = process.resourceUsage();
  const cpuSeconds = (userCPUTime + systemCPUTime) / 1e6;
  process.stdout.write(JSON.stringify({ seconds, cpuSeconds, peakMiB: maxRSS / 1024 }));
}

function inProcessOfItsOwn(step: string, directory: string): Step {
  const child = spawnSync(process.execPath, [fileURLToPath(import.meta.url), "--step", step, directory]);
  if (child.status !== 0) throw new Error(child.stderr.toString());
  return JSON.parse(child.stdout.toString()) as Step;
}

async function writeFile(path: string, mebibytes: number): Promise<void> {
  const file = await open(path, "w");
  const block = crypto.getRandomValues(new Uint8Array(65_536));
  for (let written = 0; written < mebibytes; written++) {
    for (let part = 0; part < MIB; part += block.length) await file.write(block);
  }
  await file.close();
}

async function digestOf(directory: string, name: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const piece of createReadStream(join(directory, name))) hash.update(piece);
  return hash.digest("hex");
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

async function main(mebibytes: number, rounds: number, parent: string): Promise<void> {
  const directory = await mkdtemp(join(parent, "kkp-stream-"));
  const taken = new Map(Object.keys(STEPS).map((step) => [step, [] as Step[]]));
  try {
    await writeFile(join(directory, "plain"), mebibytes);
    for (let round = 0; round < rounds; round++) {
      for (const [step, steps] of taken) {
        // Each writes a new file, and finds as much of the machine's memory taken by others as the next.
        await rm(join(directory, STEPS[step]?.to ?? ""), { force: true });
        steps.push(inProcessOfItsOwn(step, directory));
      }
    }
    const [plainDigest, openedDigest] = [
      await digestOf(directory, "plain"),
      await digestOf(directory, "opened"),
    ];
    if (plainDigest !== openedDigest) throw new Error("what was opened is not what was sealed");
  } finally {
    await rm(directory, { recursive: true });
  }
  report(mebibytes, taken);
}

function report(mebibytes: number, taken: ReadonlyMap<string, readonly Step[]>): void {
  const all = (step: string, of: keyof Step) => (taken.get(step) ?? []).map((each) => each[of]);
  const rate = (step: string) => mebibytes / median(all(step, "seconds"));
  const peak = (step: string) => Math.max(...all(step, "peakMiB"));
  const cpu = (step: string) => median(all(step, "cpuSeconds")) - median(all("bare", "cpuSeconds"));
  console.log(
    `${mebibytes} MiB, Node ${process.version}, medians of ${all("bare", "seconds").length} rounds`,
  );
  for (const step of [...taken.keys()].filter((each) => each !== "bare")) {
    const best = mebibytes / Math.min(...all(step, "seconds"));
    const figures = [
      `${rate(step).toFixed(0)} MiB/s (best ${best.toFixed(0)})`,
      `${cpu(step).toFixed(2)} s CPU`,
    ];
    const memory = `peak ${(peak(step) - peak("bare")).toFixed(0)} MiB above bare`;
    console.log([step.padEnd(24), ...figures.map((figure) => figure.padStart(24)), memory].join("  "));
  }
  for (const way of ["seal", "open"]) {
    const rates = ["node:crypto", "WebCrypto"].map(
      (by) => rate(`stream ${way}`) / rate(`plain ${way}, ${by}`),
    );
    const times = rates.map((ratio) => ratio.toFixed(2));
    console.log(`stream ${way}: ${times[0]} x plain by node:crypto, ${times[1]} x plain by WebCrypto`);
    const isHeld = Math.min(...rates) >= RATE_BAR && peak(`stream ${way}`) - peak("bare") < MEMORY_BAR_MIB;
    if (!isHeld) process.exitCode = 1;
  }
}

const [first, second, third] = process.argv.slice(2);
if (first === "--step") await run(second ?? "", third ?? "");
else await main(Number(first ?? 256), Number(second ?? 3), third ?? tmpdir());
