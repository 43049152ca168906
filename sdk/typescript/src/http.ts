/**
 * One request and its answer over `fetch`, bounded in time and size.
 *
 * Redirects are not followed, no cookies are sent or kept, and no cache between here and KKP answers: how old an
 * answer is must be known. An answer is read only as far as its limit, whatever length it says it has.
 */

import { Deadline } from "./deadline.js";
import { concatenate } from "./encoding.js";
import { TransportError } from "./errors.js";

export type Fetch = (url: string, init: RequestInit) => Promise<Response>;

/** What came back, whatever its status. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Uint8Array;
}

/** Why nothing came back. */
export interface NoAnswer {
  readonly error: TransportError;
  /** Whether no connection could be made, so that nothing was sent; else nobody knows what became of it. */
  readonly wasUnsent: boolean;
}

export interface Limits {
  readonly maxBytes: number;
  readonly deadlineSeconds: number;
}

// What systems and Node's fetch call it where no connection could be made.
const NEVER_CONNECTED = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "UND_ERR_CONNECT_TIMEOUT",
]);
const SYSTEM_CODE = /^[A-Z][A-Z0-9_]{2,63}$/;

/** Send one request; throws a `TransportError` where no whole answer comes back. */
export async function exchange(
  fetcher: Fetch,
  url: string,
  init: RequestInit,
  limits: Limits,
): Promise<Answer> {
  return await Deadline.within(limits.deadlineSeconds, url, undefined, async ({ signal }) => {
    const answer = await send(fetcher, url, init, limits.maxBytes, signal);
    if ("error" in answer) throw answer.error;
    return answer;
  });
}

/** Send one request; throws only the signal's reason, where that was aborted. */
export async function send(
  fetcher: Fetch,
  url: string,
  init: RequestInit,
  maxBytes: number,
  signal: AbortSignal,
): Promise<Answer | NoAnswer> {
  try {
    signal.throwIfAborted(); // a fetch of somebody's own may pass over the signal
    const response = await fetcher(url, { ...init, ...SETTINGS, signal });
    const body = await bounded(response, maxBytes);
    if (body === undefined) return noAnswer("bad_answer", `${url} answered more than ${maxBytes} bytes`);
    return { status: response.status, headers: response.headers, body };
  } catch (error) {
    signal.throwIfAborted();
    const code = systemCode(error);
    const why = code === undefined ? "" : `: ${code}`;
    return noAnswer("unreachable", `${url} could not be reached${why}`, NEVER_CONNECTED.has(code ?? ""));
  }
}

function noAnswer(code: "bad_answer" | "unreachable", message: string, wasUnsent = false): NoAnswer {
  return { error: new TransportError(code, message), wasUnsent };
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
    if (length > maxBytes) {
      await reader.cancel(); // closes the connection, on which nobody knows how much more would come
      return undefined;
    }
    parts.push(value);
  }
}

// Some edge runtimes throw at settings that they do not have, and do by themselves what these ask for.
const SETTINGS: RequestInit = {
  redirect: "manual",
  ...("cache" in Request.prototype && { cache: "no-store" }),
  ...("credentials" in Request.prototype && { credentials: "omit" }),
};

/** The system's name for what went wrong, like ECONNREFUSED; the rest of a foreign error's text is not ours to show. */
function systemCode(error: unknown): string | undefined {
  const cause = error instanceof Error ? error.cause : undefined;
  const code = cause instanceof Error && "code" in cause ? cause.code : undefined;
  return typeof code === "string" && SYSTEM_CODE.test(code) ? code : undefined;
}
