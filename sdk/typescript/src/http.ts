/**
 * One request and its answer over `fetch`, bounded in time and size.
 *
 * Redirects are not followed, no cookies are sent or kept, and no cache between here and KKP answers: how old an
 * answer is must be known. An answer is read only as far as its limit, whatever length it says it has.
 */

import { concatenate } from "./encoding.js";
import { TransportError } from "./errors.js";

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** What came back, whatever its status. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Uint8Array;
}

export interface Limits {
  readonly maxBytes: number;
  readonly deadlineSeconds: number;
}

const SYSTEM_CODE = /^[A-Z][A-Z0-9_]{2,63}$/;

/** Send one request; throws a `TransportError` where no whole answer comes back. */
export async function exchange(
  fetcher: Fetch,
  url: string,
  init: RequestInit,
  limits: Limits,
): Promise<Answer> {
  const controller = new AbortController();
  const { signal } = controller;
  const timer = setTimeout(() => controller.abort(), limits.deadlineSeconds * 1000);
  try {
    // Raced, since a fetch of somebody's own may pass over the signal.
    return await Promise.race([
      answerTo(fetcher, url, { ...init, ...SETTINGS, signal }, limits),
      aborted(signal),
    ]);
  } catch (error) {
    if (error instanceof TransportError) throw error;
    if (signal.aborted)
      throw new TransportError("timeout", `${url} did not answer within ${limits.deadlineSeconds} s`);
    throw new TransportError("unreachable", `${url} could not be reached${systemCode(error)}`);
  } finally {
    clearTimeout(timer);
    controller.abort(); // closes what was not read to its end
  }
}

async function answerTo(
  fetcher: Fetch,
  url: string,
  init: RequestInit,
  { maxBytes }: Limits,
): Promise<Answer> {
  const response = await fetcher(url, init);
  const body = await bounded(response, maxBytes);
  if (body === undefined)
    throw new TransportError("bad_answer", `${url} answered more than ${maxBytes} bytes`);
  return { status: response.status, headers: response.headers, body };
}

async function bounded(response: Response, maxBytes: number): Promise<Uint8Array | undefined> {
  if (response.body === null) return new Uint8Array();
  const reader = response.body.getReader();
  const parts: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return concatenate(...parts);
    length += value.length;
    if (length > maxBytes) return undefined;
    parts.push(value);
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.addEventListener("abort", () => reject(new Error("aborted")), { once: true });
  });
}

// Some edge runtimes throw at settings that they do not have, and do by themselves what these ask for.
const SETTINGS: RequestInit = {
  redirect: "manual",
  ...("cache" in Request.prototype && { cache: "no-store" }),
  ...("credentials" in Request.prototype && { credentials: "omit" }),
};

/** The system's name for what went wrong, like ECONNREFUSED; the rest of a foreign error's text is not ours to show. */
function systemCode(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined;
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  return typeof code === "string" && SYSTEM_CODE.test(code) ? `: ${code}` : "";
}
