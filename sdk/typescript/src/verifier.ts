/**
 * Verifies KKP's tokens with keys, and a list of revocations, that are fetched from KKP and kept.
 *
 * Nothing is asked of KKP about a token: with KKP away, tokens verify as long as keys and list may be used. What
 * is fetched is fetched in the background of verifications, so that one waits only
 * - where there are no keys, none young enough, or none with the token's `kid` (at most every 30 seconds);
 * - where there is no list, or it is older than its `max-age`: what was revoked is honoured within that time.
 * A token that is refused whatever the keys are causes no request and waits for none. Once a request for the list
 * has failed nobody waits for the next one: the list is used until it ends.
 */

import type { Claims } from "./claims.js";
import { decodeUTF8 } from "./encoding.js";
import { KeysUnavailableError, RevocationsUnavailableError, TokenError, TransportError } from "./errors.js";
import type { Fetch } from "./http.js";
import { KeySet, MAX_KEY_SET_BYTES, MAX_KEYS_AGE_SECONDS } from "./keys.js";
import { checkedLeeway, DEFAULT_LEEWAY_SECONDS } from "./leeway.js";
import { checkedName, checkedSpelling } from "./options.js";
import { type KeysReason, type RevocationsReason, refusal } from "./refusals.js";
import { RemoteDocument } from "./remoteDocument.js";
import { ReplayMemory } from "./replayMemory.js";
import { MAX_LIST_CHARACTERS, type RevocationList, verifyRevocationList } from "./revocations.js";
import { type Presented, verifyToken } from "./tokens.js";
import { checkedURL } from "./urls.js";

const KEYS_LIFE = { defaultSeconds: 300, maxSeconds: MAX_KEYS_AGE_SECONDS };
// A list that says nothing of its own life is one of KKP's default: 300 s, signed anew each fifth of it.
const LIST_LIFE = { defaultSeconds: 60, maxSeconds: MAX_KEYS_AGE_SECONDS };
// The list is fetched early, so that verifications find one that is young enough, and need not wait.
const LIST_REFRESH_SHARE = 0.5;
// The keys, a key that was not among them, the list: what can be missing, one after the other.
const MAX_FETCHES = 3;

export interface TokenVerifierOptions {
  /** Where KKP is. */
  readonly url: string;
  /** What the service that verifies is called: a token is good if it is meant for exactly this. */
  readonly audience: string;
  /** What KKP calls itself (`KKP_ISSUER`), if that is not `url`. */
  readonly issuer?: string;
  /** How far clocks may be apart, 0 to 60; 5 unless told. */
  readonly leewaySeconds?: number;
  /** Whether revocations are honoured before a token expires; true unless told. */
  readonly revocations?: boolean;
  /** The `highestRevocationSeq` that a verifier of before had, so that an old list is refused after a restart too. */
  readonly highestRevocationSeq?: number;
  /** Whether KKP may be asked in the clear, elsewhere than on this machine. */
  readonly allowHTTP?: boolean;
  readonly fetch?: Fetch;
  /** Unix seconds. */
  readonly clock?: () => number;
}

export class TokenVerifier {
  readonly audience: string;
  readonly issuer: string;
  readonly #leewaySeconds: number;
  readonly #clock: () => number;
  readonly #keys: RemoteDocument<KeySet>;
  readonly #list: RemoteDocument<RevocationList> | undefined;
  readonly #proofs = new ReplayMemory();
  #highestSeq: number;

  constructor(options: TokenVerifierOptions) {
    checkedSpelling(options, "leewaySeconds", "highestRevocationSeq", "allowHTTP");
    const url = checkedURL(options.url, options.allowHTTP);
    const fetcher: Fetch = options.fetch ?? ((at, init) => fetch(at, init));
    this.audience = checkedName(options.audience, "audience");
    this.issuer = checkedName(options.issuer ?? url, "issuer");
    this.#leewaySeconds = checkedLeeway(options.leewaySeconds ?? DEFAULT_LEEWAY_SECONDS);
    this.#clock = options.clock ?? (() => Date.now() / 1000);
    this.#highestSeq = options.highestRevocationSeq ?? 0;
    this.#keys = new RemoteDocument(keysAt(`${url}/keys/jwks`), fetcher, this.#clock);
    if (options.revocations ?? true) {
      this.#list = new RemoteDocument(this.#listAt(`${url}/revocations/list`), fetcher, this.#clock);
    }
  }

  /** The highest `seq` of a list of revocations that was ever accepted; 0 before the first. */
  get highestRevocationSeq(): number {
    return this.#highestSeq;
  }

  /** Return the claims of a token that is good now, shown with what was presented; throws a `KKPError`. */
  async verify(token: string, presented: Presented = {}): Promise<Claims> {
    this.#refreshInBackground();
    if (this.#mustWait()) await this.#list?.refresh();
    for (let fetches = 0; ; fetches++) {
      const [keys, list] = [this.#keys.document, this.#list?.document];
      try {
        return await this.#verdict(token, presented, keys, list);
      } catch (error) {
        const isThereMore = fetches < MAX_FETCHES && (await this.#fetchWhatIsMissing(error, keys, list));
        if (!isThereMore) throw this.#explained(error);
      }
    }
  }

  /** Fetch keys and list now, so that the first token need not wait; throws a `KKPError` that says what is missing. */
  async prepare(): Promise<void> {
    if (!(await this.#keys.refresh()) && this.#keys.document === undefined)
      throw this.#explained(refusal("no_keys"));
    if (this.#list === undefined) return;
    if (!(await this.#list.refresh()) && this.#list.document === undefined)
      throw this.#explained(refusal("no_list"));
  }

  #verdict(
    token: string,
    presented: Presented,
    keys: KeySet | undefined,
    list: RevocationList | undefined,
  ): Promise<Claims> {
    return verifyToken(token, {
      ...presented,
      keys: this.#dated(keys),
      now: this.#clock(),
      issuer: this.issuer,
      audience: this.audience,
      leewaySeconds: this.#leewaySeconds,
      proofs: this.#proofs,
      ...(this.#list && { revocations: { list } }),
    });
  }

  /** Return keys as old as whichever clock says: the wall's can be set back, and the other may stop in sleep. */
  #dated(keys: KeySet | undefined): KeySet | undefined {
    return keys?.at(Math.min(keys.fetchedAt, this.#clock() - this.#keys.steadyAgeSeconds));
  }

  /** With KKP out of reach each request would last until its deadline, and every verification with it. */
  #mustWait(): boolean {
    const list = this.#list;
    return list?.document !== undefined && list.isOlderThan(1) && list.failure === "";
  }

  /** A verifier that has fetched nothing yet fetches when the first token needs it. */
  #refreshInBackground(): void {
    if (this.#keys.document !== undefined && this.#keys.isOlderThan(1)) this.#keys.refreshInBackground();
    if (this.#list?.document !== undefined && this.#list.isOlderThan(LIST_REFRESH_SHARE)) {
      this.#list.refreshInBackground();
    }
  }

  /**
   * Fetch what a verdict on a token lacked that was given with these; tells whether there is something else now.
   *
   * It may have come meanwhile, for another token: then there is nothing to fetch, and it is too soon to.
   */
  async #fetchWhatIsMissing(
    error: unknown,
    keys: KeySet | undefined,
    list: RevocationList | undefined,
  ): Promise<boolean> {
    if (!(error instanceof RevocationsUnavailableError)) return await this.#fetchKeysFor(error, keys);
    return this.#list?.document !== list || ((await this.#list?.refresh()) ?? false);
  }

  async #fetchKeysFor(error: unknown, keys: KeySet | undefined): Promise<boolean> {
    const isUnknownKey = error instanceof TokenError && error.reason === "unknown_key";
    if (!isUnknownKey && !(error instanceof KeysUnavailableError)) return false;
    if (this.#keys.document !== keys) return true;
    return await (isUnknownKey ? this.#keys.refreshForUnknownKey() : this.#keys.refresh());
  }

  /** Say what could not be fetched, from where, in the error of a verdict that lacked it. */
  #explained(error: unknown): unknown {
    if (error instanceof KeysUnavailableError) return refusal(error.reason as KeysReason, this.#keys.failure);
    if (error instanceof RevocationsUnavailableError) {
      return refusal(error.reason as RevocationsReason, this.#list?.failure);
    }
    return error;
  }

  #listAt(url: string) {
    return {
      url,
      maxBytes: MAX_LIST_CHARACTERS,
      life: LIST_LIFE,
      read: (body: Uint8Array) => this.#readList(body),
      confirmed: (list: RevocationList) => list,
    };
  }

  async #readList(body: Uint8Array): Promise<RevocationList> {
    const jws = decodeUTF8(body) ?? "";
    for (let fetches = 0; ; fetches++) {
      const keys = this.#keys.document;
      try {
        const list = await this.#listOf(jws, keys);
        this.#highestSeq = list.seq;
        return list;
      } catch (error) {
        // The list of a KKP that rotated its key a moment ago is by a key that is not among those here.
        if (fetches === MAX_FETCHES || !(await this.#fetchKeysFor(error, keys))) throw error;
      }
    }
  }

  #listOf(jws: string, keys: KeySet | undefined): Promise<RevocationList> {
    return verifyRevocationList(jws, {
      keys: this.#dated(keys),
      now: this.#clock(),
      issuer: this.issuer,
      leewaySeconds: this.#leewaySeconds,
      highestSeq: this.#highestSeq,
    });
  }
}

function keysAt(url: string) {
  return {
    url,
    maxBytes: MAX_KEY_SET_BYTES,
    life: KEYS_LIFE,
    read: async (body: Uint8Array, fetchedAt: number) => {
      const keys = await KeySet.read(body, fetchedAt);
      if (keys === undefined) throw new TransportError("bad_answer", `${url} answered no set of keys`);
      return keys;
    },
    confirmed: (keys: KeySet, fetchedAt: number) => keys.at(fetchedAt),
  };
}
