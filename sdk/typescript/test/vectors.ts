/** The golden files in sdk/vectors, which both SDKs and the server are held to. */

import { readFileSync } from "node:fs";
import { type Bytes, decodeBase64url } from "#src/encoding.js";

/** Read a file of vectors; the tests run in the package's own folder. */
export function vectors<T>(name: string): T {
  return JSON.parse(readFileSync(`../vectors/${name}.json`, "utf8")) as T;
}

export function bytes(text: string): Bytes {
  const decoded = decodeBase64url(text);
  if (decoded === undefined) throw new Error("a vector that is no base64url");
  return decoded;
}
