/**
 * Files of any size, in Node: sealed and opened in constant memory, and there under their names only once whole.
 *
 *     KKP_URL=… KKP_SERVICE_KEY=… node build/examples/files.js seal|open FROM TO
 *
 * A stream that is cut or changed gives out what stands before the damage and then fails. So what comes out is
 * written under another name beside the target, and takes the target's once the stream has ended without an
 * error and the bytes are on the disk.
 */

import { type FileHandle, open, rename, unlink } from "node:fs/promises";
import { dirname } from "node:path";
import { pathToFileURL } from "node:url";
import { KKPClient, LocalEnvelope, type StreamOptions } from "@kkp/client";

const PIECE_BYTES = 1024 * 1024;

export async function sealFile(
  local: LocalEnvelope,
  from: string,
  to: string,
  options: StreamOptions,
): Promise<void> {
  await through(from, local.sealStream(options), to);
}

export async function openFile(local: LocalEnvelope, from: string, to: string): Promise<void> {
  await through(from, local.openStream(), to);
}

async function through(
  from: string,
  stream: TransformStream<Uint8Array, Uint8Array>,
  to: string,
): Promise<void> {
  const part = `${to}.${process.pid}.part`;
  const source = await open(from);
  try {
    // Not over a file that is there, and for nobody else to read.
    const target = await open(part, "wx", 0o600);
    try {
      for await (const bytes of pieces(source).pipeThrough(stream)) await write(target, bytes);
      await target.sync();
      await rename(part, to);
    } catch (error) {
      await unlink(part);
      throw error;
    } finally {
      await target.close();
    }
    await syncDirectory(dirname(to));
  } finally {
    await source.close();
  }
}

/** Give out a file's bytes. Each piece is read when it is asked for, and by then the one before has been taken. */
function pieces(source: FileHandle): ReadableStream<Uint8Array> {
  const buffer = new Uint8Array(PIECE_BYTES);
  return new ReadableStream(
    {
      async pull(controller) {
        const { bytesRead } = await source.read(buffer, 0, PIECE_BYTES);
        if (bytesRead === 0) controller.close();
        else controller.enqueue(buffer.subarray(0, bytesRead));
      },
    },
    { highWaterMark: 0 },
  );
}

async function write(target: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await target.write(bytes, at)).bytesWritten;
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path);
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

async function main(): Promise<void> {
  const { KKP_URL: url = "", KKP_SERVICE_KEY: credential = "" } = process.env;
  const [, , what, from = "", to = ""] = process.argv;
  const local = new LocalEnvelope(new KKPClient({ url, credential, audience: "orders-db" }));
  if (what === "seal") await sealFile(local, from, to, { backend: "aws", keyId: "alias/orders" });
  else await openFile(local, from, to);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) await main();
