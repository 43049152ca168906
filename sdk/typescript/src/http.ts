/**
 * One request over `fetch` and its bounded answer, or why there is none. Decides nothing.
 *
 * Redirects are not followed: they would carry a credential to wherever an answer says. They are read as any
 * other answer (`manual`, because some runtimes do not know `error`). Cookies are neither sent nor kept.
 */

import { type Bytes, concatenate } from "./encoding.js";

export type Fetch = typeof globalThis.fetch;

export interface HTTPRequest {
  readonly method: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Bytes;
}

export interface HTTPAnswer {
  readonly kind: "answer";
  readonly status: number;
  readonly headers: Headers;
  /** Undefined where it was longer than may be read. */
  readonly body: Bytes | undefined;
}

/** No answer: no connection could be made, so that nothing was sent, or one broke, so that nobody knows. */
export interface NoAnswer {
  readonly kind: "unmade" | "broken";
  /** A word for people, which holds nothing of the request. */
  readonly why: string;
}

const NEVER_CONNECTED = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/** Send a request once. Throws the signal's reason where that was aborted, and nothing else. */
export async function exchange(
  fetcher: Fetch,
  url: string,
  request: HTTPRequest,
  maxAnswerBytes: number,
  signal: AbortSignal,
): Promise<HTTPAnswer | NoAnswer> {
  try {
    const response = await fetcher(url, { ...request, redirect: "manual", credentials: "omit", signal });
    const body = await boundedBody(response, maxAnswerBytes);
    return { kind: "answer", status: response.status, headers: response.headers, body };
  } catch (error) {
    signal.throwIfAborted();
    const why = codeOf(error);
    return { kind: NEVER_CONNECTED.has(why) ? "unmade" : "broken", why };
  }
}

async function boundedBody(response: Response, maxBytes: number): Promise<Bytes | undefined> {
  const parts: Uint8Array[] = [];
  let length = 0;
  const reader = response.body?.getReader();
  for (let read = await reader?.read(); read?.value !== undefined; read = await reader?.read()) {
    length += read.value.length;
    if (length > maxBytes) {
      await reader?.cancel();
      return undefined;
    }
    parts.push(read.value);
  }
  return concatenate(...parts);
}

/** Return the code that a runtime gives what broke; its own text might quote what was sent. */
function codeOf(error: unknown): string {
  const code =
    error instanceof Error && error.cause instanceof Error && "code" in error.cause && error.cause.code;
  return typeof code === "string" && /^[A-Z0-9_]{1,64}$/.test(code) ? code : "the connection failed";
}
