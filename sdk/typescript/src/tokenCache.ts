/**
 * Tokens, each kept under its scope until it ends, and renewed before.
 *
 * - From `renewAt` on a new one is asked for in the background, while the old one is still handed out.
 * - However many ask for a scope at once, one request is under way for it.
 * - A token that has just come is handed to all who waited for it, whatever the clock says by then.
 * - Of more scopes than there is room for, the one that was asked for least recently goes.
 */

import { KKPError } from "./errors.js";

/** A token, and when it is to be renewed and ends, on the cache's clock, in seconds. */
export interface Dated<T> {
  readonly token: T;
  readonly renewAt: number;
  readonly endsAt: number;
}

interface Kept<T> extends Dated<T> {
  /** When a renewal may begin; later than `renewAt` once one has failed. */
  mayRenewAt: number;
}

const RENEWAL_PAUSE_SECONDS = 1;

export class TokenCache<T> {
  readonly #kept = new Map<string, Kept<T>>(); // the least recently used first
  readonly #underWay = new Map<string, Promise<T>>();
  readonly #now: () => number;
  readonly #capacity: number;

  constructor(now: () => number, capacity = 1024) {
    this.#now = now;
    this.#capacity = capacity;
  }

  /** Return the scope's token, asking for one where there is none that is still good. */
  async get(scope: string, ask: () => Promise<Dated<T>>): Promise<T> {
    const kept = this.#kept.get(scope);
    if (kept === undefined || this.#now() >= kept.endsAt) return await this.#asked(scope, ask);
    this.#kept.delete(scope);
    this.#kept.set(scope, kept);
    if (this.#now() >= kept.mayRenewAt) this.#asked(scope, ask).catch((error) => this.#pause(kept, error));
    return kept.token;
  }

  /** Keep a token that was asked for otherwise, to its end, and return it: `ask` would get none like it. */
  put(scope: string, { token, endsAt }: Dated<T>): T {
    return this.#keep(scope, { token, endsAt, renewAt: endsAt });
  }

  /** Drop a token that was refused, unless another has taken its place. */
  forget(scope: string, token: T): void {
    if (this.#kept.get(scope)?.token === token) this.#kept.delete(scope);
  }

  /** Drop a token wherever it is kept, such as one that was revoked. */
  forgetWhere(isIt: (token: T) => boolean): void {
    for (const [scope, { token }] of this.#kept) if (isIt(token)) this.#kept.delete(scope);
  }

  #asked(scope: string, ask: () => Promise<Dated<T>>): Promise<T> {
    const underWay = this.#underWay.get(scope);
    if (underWay !== undefined) return underWay;
    const asked = ask()
      .then((dated) => this.#keep(scope, dated))
      .finally(() => this.#underWay.delete(scope));
    this.#underWay.set(scope, asked);
    return asked;
  }

  #keep(scope: string, dated: Dated<T>): T {
    this.#kept.delete(scope);
    this.#kept.set(scope, { ...dated, mayRenewAt: dated.renewAt });
    const [oldest] = this.#kept.keys();
    if (this.#kept.size > this.#capacity && oldest !== undefined) this.#kept.delete(oldest);
    return dated.token;
  }

  /** Let the old token do for a while: each of its uses would otherwise try again at once. */
  #pause(kept: Kept<T>, error: unknown): void {
    const told = error instanceof KKPError ? error.retryAfterSeconds : undefined;
    kept.mayRenewAt = this.#now() + Math.max(told ?? 0, RENEWAL_PAUSE_SECONDS);
  }
}
