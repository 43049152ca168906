/** The examples, run as they stand against a KKP on a real socket, and the page that shows them. */

import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { FakeKKP } from "./fakeKKP.js";

const ROOT = new URL("../../", import.meta.url);

interface Served {
  readonly kkp: FakeKKP;
  readonly url: string;
}

/** Run something while a KKP of this moment is served. */
async function withKKP(run: (served: Served) => Promise<void>): Promise<void> {
  const kkp = await FakeKKP.create();
  kkp.now = Math.floor(Date.now() / 1000);
  const server = createServer(async (request, response) => {
    const headers = { "if-none-match": request.headers["if-none-match"] ?? "" };
    const answer = await kkp.fetch(`${kkp.url}${request.url}`, { headers });
    response.writeHead(answer.status, Object.fromEntries(answer.headers));
    response.end(Buffer.from(await answer.arrayBuffer()));
  });
  try {
    const url = `http://127.0.0.1:${await portOf(server)}`;
    await run({ kkp, url });
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

async function portOf(server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as AddressInfo).port;
}

function example(name: string, env: Readonly<Record<string, string>>): ChildProcess {
  const program = fileURLToPath(new URL(`build/examples/${name}.js`, ROOT));
  return spawn(process.execPath, [program], { env: { ...process.env, ...env } });
}

/** Run an example to its end, and return what it wrote and answered. */
async function ran(name: string, env: Readonly<Record<string, string>>, input: string) {
  const child = example(name, env);
  assert.ok(child.stdin && child.stdout && child.stderr);
  child.stdin.end(input);
  const exit = new Promise<number | null>((resolve) => child.on("close", resolve));
  const [out, err] = await Promise.all([text(child.stdout), text(child.stderr)]);
  return { out, err, code: await exit };
}

test("verify.ts says whom a token speaks for", async () => {
  await withKKP(async ({ kkp, url }) => {
    const token = await kkp.token({ iss: url, act: { sub: "worker" } });
    kkp.revoked = { iss: url };
    const { out, err, code } = await ran("verify", { KKP_URL: url }, `${token}\n`);
    assert.deepEqual({ out, err, code }, { out: "orders, asked for by worker\n", err: "", code: 0 });
  });
});

test("verify.ts says why a token is refused, and what is missing where KKP is away", async () => {
  let closed = "";
  await withKKP(async ({ kkp, url }) => {
    closed = url;
    const { err, code } = await ran("verify", { KKP_URL: url }, await kkp.token());
    const why = `refused: it is another issuer's: expected ${url}; see the option issuer`;
    assert.deepEqual({ err, code }, { err: `token_invalid: ${why}\n`, code: 1 });
  });
  const token = await (await FakeKKP.create()).token({ iss: closed, exp: 4_000_000_000 });
  const { err } = await ran("verify", { KKP_URL: closed }, token);
  const missing = `there are no keys to verify with: ${closed}/keys/jwks could not be reached: ECONNREFUSED`;
  assert.equal(err, `keys_unavailable: ${missing}\n`);
});

test("service.ts greets whom the token speaks for, and nobody else, also once KKP is away", async () => {
  const port = String(await freePort());
  let service: ChildProcess | undefined;
  try {
    let token = "";
    await withKKP(async ({ kkp, url }) => {
      service = example("service", { KKP_URL: url, PORT: port });
      token = await kkp.token({ iss: url });
      kkp.revoked = { iss: url };
      assert.equal(await answered(port, token), "200 Hello orders\n");
    });
    assert.equal(await answered(port, token), "200 Hello orders\n");
    assert.match(await answered(port, `${token}A`), /^401 .*"code":"token_invalid"/);
  } finally {
    service?.kill();
  }
});

async function freePort(): Promise<number> {
  const server = createServer();
  const port = await portOf(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Ask the service, as soon as it listens. */
async function answered(port: string, token: string): Promise<string> {
  for (let tries = 0; ; tries++) {
    try {
      const headers = { authorization: `Bearer ${token}` };
      const response = await fetch(`http://127.0.0.1:${port}/`, { headers });
      return `${response.status} ${await response.text()}`;
    } catch (error) {
      if (tries === 600) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

test("worker.ts answers without a credential what its guard answers", async () => {
  const { default: worker } = await import("../examples/worker.js");
  const response = await worker.fetch(new Request("https://orders.example/"));
  assert.equal(response.status, 401);
  assert.match(response.headers.get("www-authenticate") ?? "", /^Bearer realm="kkp"/);
});

test("the page begins with ten lines, and every program on it is an example", () => {
  const page = readFileSync(new URL("README.md", ROOT), "utf8");
  const programs = Array.from(page.matchAll(/<!-- (examples\/\w+\.ts) -->\n```ts\n(.*?)```/gs));
  assert.equal(programs.length, page.split("```ts\n").length - 1);
  for (const [, name = "", program] of programs)
    assert.equal(readFileSync(new URL(name, ROOT), "utf8"), program);
  assert.equal(programs[0]?.[2]?.trimEnd().split("\n").length, 10);
});
