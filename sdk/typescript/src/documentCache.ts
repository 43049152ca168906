/**
 * The life of a document that is fetched again and again: KKP's keys, and its list of revocations. Without I/O.
 *
 * Whoever fetches says when, and what came of it; this says whether to ask, and with which ETag. Rules:
 * - A document's age counts from before the request that fetched it. A 304 makes it young again.
 * - What fails leaves the last good document in place; how old is too old is for its reader to say.
 * - After failures in a row the pause before the next request doubles, from 1 s to 30 s. Two requests are never
 *   less than 1 s apart, whatever `max-age` says.
 * - A clock that was set back lets time pass: otherwise it would hold up the next request, or let a document
 *   stay young, for as long as it was set back.
 */

/** For how long a document is young where the answer does not say, and at the most. */
export interface Life {
  readonly defaultSeconds: number;
  readonly maxSeconds: number;
}

const MIN_PAUSE_SECONDS = 1;
const MAX_PAUSE_SECONDS = 30;
const UNKNOWN_KEY_PAUSE_SECONDS = 30;
const MAX_AGE = /(?:^|,)\s*max-age\s*=\s*"?([0-9]+)"?\s*(?:,|$)/i;

interface Held<T> {
  readonly document: T;
  readonly etag: string | undefined;
  readonly fetchedAt: number;
  readonly maxAgeSeconds: number;
}

export class DocumentCache<T> {
  #held: Held<T> | undefined;
  #failure: string | undefined;
  #failures = 0;
  #beganAt: number | undefined;
  #endedAt: number | undefined;
  #askedForUnknownAt: number | undefined;

  constructor(private readonly life: Life) {}

  get document(): T | undefined {
    return this.#held?.document;
  }

  /** What went wrong last; undefined once a request has succeeded again. */
  get failure(): string | undefined {
    return this.#failure;
  }

  /** Tell whether the document is older than a share of its `max-age`, or missing. */
  isOlderThan(share: number, now: number): boolean {
    return this.#held === undefined || hasPassed(this.#held.fetchedAt, this.#held.maxAgeSeconds * share, now);
  }

  /** Tell whether a request may be made now. */
  mayAsk(now: number): boolean {
    const pause = Math.min(2 ** (this.#failures - 1), MAX_PAUSE_SECONDS);
    return (
      hasPassed(this.#beganAt, MIN_PAUSE_SECONDS, now) &&
      (this.#failures === 0 || hasPassed(this.#endedAt, pause, now))
    );
  }

  /** Tell whether a request may be made for want of a key, and count it as one. */
  mayAskForUnknownKey(now: number): boolean {
    if (!hasPassed(this.#askedForUnknownAt, UNKNOWN_KEY_PAUSE_SECONDS, now) || !this.mayAsk(now))
      return false;
    this.#askedForUnknownAt = now;
    return true;
  }

  hasBegunWithin(seconds: number, now: number): boolean {
    return !hasPassed(this.#beganAt, seconds, now);
  }

  /** Begin a request; returns what `If-None-Match` must say, if anything. */
  begin(now: number): string | undefined {
    this.#beganAt = now;
    return this.#held?.etag;
  }

  /** Take what a request that began at `fetchedAt` brought. */
  replace(document: T, fetchedAt: number, headers: Headers): void {
    this.#hold({
      document,
      fetchedAt,
      etag: headers.get("etag") ?? undefined,
      maxAgeSeconds: this.#maxAgeOf(headers) ?? this.life.defaultSeconds,
    });
  }

  /** Take what a 304 confirmed; what it does not say is as it was said before. */
  confirm(document: T, fetchedAt: number, headers: Headers): void {
    this.#hold({
      document,
      fetchedAt,
      etag: headers.get("etag") ?? this.#held?.etag,
      maxAgeSeconds: this.#maxAgeOf(headers) ?? this.#held?.maxAgeSeconds ?? this.life.defaultSeconds,
    });
  }

  fail(failure: string, now: number): void {
    this.#failure = failure;
    this.#failures += 1;
    this.#endedAt = now;
  }

  #hold(held: Held<T>): void {
    this.#held = held;
    this.#failure = undefined;
    this.#failures = 0;
  }

  #maxAgeOf(headers: Headers): number | undefined {
    const said = MAX_AGE.exec(headers.get("cache-control") ?? "")?.[1];
    return said === undefined ? undefined : Math.min(Number(said), this.life.maxSeconds);
  }
}

function hasPassed(since: number | undefined, seconds: number, now: number): boolean {
  return since === undefined || !(now >= since && now - since < seconds);
}
