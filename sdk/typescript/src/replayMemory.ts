/**
 * What was used once, for as long as it could be used again.
 *
 * The memory is of this process alone: where several serve one audience, a proof is good once at each of them.
 * When there is no room left nothing more is taken, rather than anything forgotten too soon.
 */

const MAX_ENTRIES = 65_536;

export class ReplayMemory {
  readonly #seen = new Set<string>();
  readonly #seenByEnd = new Map<number, string[]>();
  #sweptAt = Number.NEGATIVE_INFINITY;
  #forgottenAt = Number.NEGATIVE_INFINITY;

  constructor(readonly maxEntries: number = MAX_ENTRIES) {}

  /**
   * Take what is used for the first time, and remember it until `now` is past its end; else answer false.
   *
   * Nothing is awaited between looking and remembering: of two at the same time one is refused.
   */
  takes(id: string, endsAt: number, now: number): boolean {
    this.#forget(now);
    // Where the clock was set back, this may have been used and forgotten.
    if (endsAt < this.#forgottenAt) return false;
    if (this.#seen.has(id) || this.#seen.size >= this.maxEntries) return false;
    this.#seen.add(id);
    const others = this.#seenByEnd.get(endsAt);
    if (others === undefined) this.#seenByEnd.set(endsAt, [id]);
    else others.push(id);
    return true;
  }

  /** Ends are some hundred different ones at the most, and are gone through once a second, or for want of room. */
  #forget(now: number): void {
    if (now < this.#sweptAt + 1 && this.#seen.size < this.maxEntries) return;
    this.#sweptAt = now;
    for (const [endsAt, ids] of this.#seenByEnd) {
      if (!(now > endsAt)) continue;
      for (const id of ids) this.#seen.delete(id);
      this.#seenByEnd.delete(endsAt);
      this.#forgottenAt = Math.max(this.#forgottenAt, now);
    }
  }
}
