/**
 * A document that is fetched from KKP and kept: the thin shell around `DocumentCache`.
 *
 * One request at a time: whoever needs the document while one is under way waits for that one. Nothing here
 * throws at who asks; what went wrong is in `failure`, and the last good document stays.
 */

import { DocumentCache, type Life } from "./documentCache.js";
import { KKPError, TransportError } from "./errors.js";
import { exchange, type Fetch } from "./http.js";

const DEADLINE_SECONDS = 5;
const LOST_AFTER_SECONDS = 15; // a deadline for the list, and for keys that it needs, and a little

/** Where a document comes from, and how it is read. */
export interface Source<T> {
  readonly url: string;
  readonly maxBytes: number;
  readonly life: Life;
  /** Make a document of an answer to a request that began then; throws a `KKPError` where it is none. */
  read(body: Uint8Array, fetchedAt: number): Promise<T>;
  /** The same document, confirmed by a request that began then. */
  confirmed(document: T, fetchedAt: number): T;
}

export class RemoteDocument<T> {
  readonly #cache: DocumentCache<T>;
  #flight: Promise<boolean> | undefined;
  #begunAt = performance.now();

  constructor(
    private readonly source: Source<T>,
    private readonly fetcher: Fetch,
    private readonly clock: () => number,
  ) {
    this.#cache = new DocumentCache(source.life);
  }

  get document(): T | undefined {
    return this.#cache.document;
  }

  /** What went wrong with the last request; empty where nothing did. */
  get failure(): string {
    return this.#cache.failure ?? "";
  }

  /** How long ago the document was fetched or confirmed, by a clock that nobody sets. */
  get steadyAgeSeconds(): number {
    return (performance.now() - this.#begunAt) / 1000;
  }

  isOlderThan(share: number): boolean {
    return this.#cache.isOlderThan(share, this.clock());
  }

  /** Fetch the document, in the background, if a request may be made now. */
  refreshInBackground(): void {
    void this.refresh();
  }

  /** Fetch the document, or wait for who does; tells whether it came. Answers at once where it is too soon to ask. */
  refresh(): Promise<boolean> {
    const flight = this.#underWay();
    if (flight !== undefined) return flight;
    return this.#cache.mayAsk(this.clock()) ? this.#begin() : Promise.resolve(false);
  }

  /** The same, for want of a key that a token names: at most every 30 seconds. */
  refreshForUnknownKey(): Promise<boolean> {
    const flight = this.#underWay();
    if (flight !== undefined) return flight;
    return this.#cache.mayAskForUnknownKey(this.clock()) ? this.#begin() : Promise.resolve(false);
  }

  /** An edge runtime may drop a request with whatever it was made for: such a one is not waited for. */
  #underWay(): Promise<boolean> | undefined {
    return this.#cache.hasBegunWithin(LOST_AFTER_SECONDS, this.clock()) ? this.#flight : undefined;
  }

  #begin(): Promise<boolean> {
    const flight = this.#fetch().finally(() => {
      if (this.#flight === flight) this.#flight = undefined;
    });
    this.#flight = flight;
    return flight;
  }

  async #fetch(): Promise<boolean> {
    try {
      await this.#ask();
      return true;
    } catch (error) {
      this.#cache.fail(described(error), this.clock());
      return false;
    }
  }

  async #ask(): Promise<void> {
    const { url, maxBytes } = this.source;
    const [fetchedAt, begunAt] = [this.clock(), performance.now()];
    const etag = this.#cache.begin(fetchedAt);
    const init = { headers: etag === undefined ? {} : { "If-None-Match": etag } };
    const answer = await exchange(this.fetcher, url, init, { maxBytes, deadlineSeconds: DEADLINE_SECONDS });
    const held = this.#cache.document;
    if (answer.status === 304 && etag !== undefined && held !== undefined) {
      this.#cache.confirm(this.source.confirmed(held, fetchedAt), fetchedAt, answer.headers);
    } else if (answer.status === 200) {
      this.#cache.replace(await this.source.read(answer.body, fetchedAt), fetchedAt, answer.headers);
    } else {
      throw new TransportError("bad_answer", `${url} answered ${answer.status}`, { status: answer.status });
    }
    this.#begunAt = begunAt;
  }
}

/** What may be said of an error: one of ours in its own words, any other by its type alone. */
function described(error: unknown): string {
  if (error instanceof KKPError) return error.message;
  return error instanceof Error ? error.name : "something that is no error";
}
