// Seals standard input to standard output, or opens it: `pipe.js seal < plain > sealed`, `pipe.js open < sealed`.
import { Readable, Writable } from "node:stream";
import { KKPClient, LocalEnvelope } from "@kkp/client";

const url = process.env.KKP_URL ?? "https://kkp.example";
const client = new KKPClient({ url, credential: process.env.KKP_SERVICE_KEY ?? "", audience: "orders-db" });
const local = new LocalEnvelope(client);
const under = { backend: "aws", keyId: "alias/orders", context: { table: "orders" } };
const stream = process.argv[2] === "seal" ? local.sealStream(under) : local.openStream();
const input = Readable.toWeb(process.stdin) as ReadableStream<Uint8Array>;
await input.pipeThrough(stream).pipeTo(Writable.toWeb(process.stdout));
