/**
 * A client that does what it is told, one line of JSON at a time, and answers with one each, in order.
 *
 * Its argument says how it is made: `{url, credential, audience, issuer?, isBound?}`. A line is `{do: …}` with
 * what that takes; bytes are padded base64, streams are files. What is refused is answered as `{error: {…}}`.
 */

import { createInterface } from "node:readline";
import { DPoPKey, KKPClient, KKPError, LocalEnvelope, type Opened, TokenVerifier } from "@kkp/client";
import { openFile, sealFile } from "../examples/files.js";

// biome-ignore lint/suspicious/noExplicitAny: a line is whatever a test says
type Line = any;

const { isBound, ...options } = JSON.parse(process.argv[2] ?? "");
const client = new KKPClient({ ...options, dpopKey: isBound ? await DPoPKey.generate() : undefined });
const local = new LocalEnvelope(client);
const verifier = new TokenVerifier({ ...options, leewaySeconds: 0 });

const DOES: Readonly<Record<string, (line: Line) => Promise<unknown>>> = {
  verify: async ({ token }) => ({ claims: await verifier.verify(token) }),
  token: async ({ scope }) => ({ token: (await client.token(scope)).token }),
  introspect: async ({ token }) => await client.introspect(token),
  revoke: async ({ token }) => ({ done: await client.revoke(token) }),
  encrypt: async ({ message }) => ({ envelope: await client.encrypt(messageOf(message)) }),
  decrypt: async ({ envelope, approval }) => shown(await client.decrypt(envelope, { approval })),
  rewrap: async ({ envelope, target }) => ({ envelope: await client.rewrap(envelope, target) }),
  encryptMany: async ({ messages }) => shownAll(await client.encryptMany(messages.map(messageOf))),
  decryptMany: async ({ envelopes }) => shownAll(await client.decryptMany(envelopes)),
  rewrapMany: async ({ envelopes, target }) => shownAll(await client.rewrapMany(envelopes, target)),
  seal: async ({ message }) => ({ envelope: await local.seal(messageOf(message)) }),
  open: async ({ envelope, approval }) => shown(await local.open(envelope, { approval })),
  sealFile: async ({ from, to, ...sealing }) => ({ done: await sealFile(local, from, to, sealing) }),
  openFile: async ({ from, to }) => ({ done: await openFile(local, from, to) }),
};

function messageOf({ plaintextB64, ...message }: Line): Line {
  return plaintextB64 === undefined
    ? message
    : { ...message, plaintext: Buffer.from(plaintextB64, "base64") };
}

function shown(opened: Opened<unknown>): Line {
  const { plaintext, text, claims } = opened;
  return { plaintextB64: Buffer.from(plaintext).toString("base64"), text, claims };
}

function shownAll(results: readonly unknown[]): Line {
  return {
    results: results.map((result) => {
      if (result instanceof KKPError) return shownError(result);
      return typeof result === "object" && result !== null && "plaintext" in result
        ? shown(result as Opened)
        : { envelope: result };
    }),
  };
}

function shownError({ code, status, reasons, approvalId }: KKPError): Line {
  return { error: { code, status, reasons, approvalId } };
}

for await (const text of createInterface({ input: process.stdin })) {
  const line = JSON.parse(text);
  const answer = await (DOES[line.do] as (line: Line) => Promise<unknown>)(line).catch((error) => {
    if (error instanceof KKPError) return shownError(error);
    throw error;
  });
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
