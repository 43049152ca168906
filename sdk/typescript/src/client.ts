/**
 * `KKPClient`: tokens, and envelopes that KKP seals, opens and moves. A thin shell around `protocol.ts`.
 *
 * What a call shows. Without a DPoP key: the credential, and beside it, where something is opened or moved, a
 * token for just that in the body; a batch has no place for both and shows the token alone. With a DPoP key: a
 * token that is bound to it, and a proof of the key with each request.
 *
 * Tokens are asked for when they are needed and kept by scope. What KKP refuses because of its token is asked
 * once more, with a new one. `deadlineSeconds` is for a call with all of this in it.
 */

import { bodyOf, type Item, orError, type Placed, type Result, readResults, requests } from "./batches.js";
import type { Claims } from "./claims.js";
import { Deadline } from "./deadline.js";
import type { DPoPKey } from "./dpop.js";
import { encodeUTF8 } from "./encoding.js";
import {
  type AnyEnvelope,
  type DetachedEnvelope,
  type Encoding,
  type Envelope,
  type EnvelopeJSON,
  importMessageKey,
  type Moved,
  type Opened,
  type StreamEnvelope,
} from "./envelope.js";
import { ConfigurationError, KKPError } from "./errors.js";
import { type Answer, type Fetch, send } from "./http.js";
import {
  beginning,
  beginningStream,
  decrypting,
  encrypting,
  type Introspection,
  type Message,
  type MessageKey,
  type Opening,
  type Operation,
  readIntrospection,
  releasing,
  rewrapping,
  type Sealing,
  type Target,
} from "./operations.js";
import { checkedName, checkedSpelling } from "./options.js";
import {
  type AccessToken,
  checkedCredential,
  documentOf,
  isAboutToken,
  jsonOf,
  maxAnswerBytes,
  nonceOf,
  readToken,
  renewalSeconds,
  type Scope,
  secondsBeforeRepeat,
  tokenBody,
  unavailable,
  wantsNonce,
} from "./protocol.js";
import type { JSONObject } from "./strictJson.js";
import { type Dated, TokenCache } from "./tokenCache.js";
import { checkedURL } from "./urls.js";
import type { WebCryptoKey } from "./webCrypto.js";

/** A bearer credential, or what returns one: asked anew for each request that shows it. */
export type Credential = string | (() => string | Promise<string>);

export interface ClientOptions {
  /** Where KKP is: `https:`, or `http:` to this machine itself. */
  readonly url: string;
  /** A service key; or a function that returns a JWT of an issuer that KKP knows, or another bearer credential. */
  readonly credential: Credential;
  /** Whom tokens are for, where a scope does not say. */
  readonly audience?: string;
  /** The key that tokens are bound to; without one they are bearer tokens. */
  readonly dpopKey?: DPoPKey;
  /** What KKP calls itself (`KKP_ISSUER`), where that is not `url`: DPoP proofs name it. */
  readonly issuer?: string;
  /** How long a call may take; 10 s where left out. */
  readonly deadlineSeconds?: number;
  /** How often a request is repeated at the most; twice where left out. */
  readonly repeats?: number;
  readonly allowHTTP?: boolean;
  readonly fetch?: Fetch;
}

export interface CallOptions {
  readonly signal?: AbortSignal;
  readonly deadlineSeconds?: number;
  /**
   * The release of an approval: what whoever approved was given for the `approvalId` of this very call.
   *
   * Many at once take none, and no token on the way is asked for with it.
   */
  readonly approval?: string;
}

export interface OpeningOptions extends Opening, CallOptions {}

/** One request, and how its answer is read. */
interface Call<T> {
  readonly path: string;
  readonly scope: Scope;
  /** Where a token is shown if there is no DPoP key: nowhere, in the body beside the credential, or alone. */
  readonly showing: "credential" | "beside" | "alone";
  /** Return the body, with the token in it where one is handed in. */
  readonly body: (token?: string) => string;
  readonly items: number;
  readonly read: (document: JSONObject) => T;
}

/** What a request is sent with. */
interface Shown {
  readonly authorization: string;
  readonly token?: AccessToken;
  /** By which a proof is made, where one is shown. */
  readonly key: DPoPKey | undefined;
  /** That of the call, and never that of a token which is asked for on the way. */
  readonly approval?: string | undefined;
}

const DEFAULT_DEADLINE_SECONDS = 10;
const MAX_DEADLINE_SECONDS = 3600;
const DEFAULT_REPEATS = 2;
const MAX_REPEATS = 10;

export class KKPClient {
  readonly #url: string;
  readonly #issuer: string;
  readonly #credential: Credential;
  readonly #audience: string | undefined;
  readonly #dpopKey: DPoPKey | undefined;
  readonly #deadlineSeconds: number;
  readonly #repeats: number;
  readonly #fetch: Fetch;
  readonly #tokens = new TokenCache<AccessToken>(now);
  #nonce: string | undefined;

  constructor(options: ClientOptions) {
    const { credential } = options;
    checkedSpelling(options, "dpopKey", "deadlineSeconds", "allowHTTP");
    this.#url = checkedURL(options.url, options.allowHTTP);
    this.#issuer = checkedURL(options.issuer ?? options.url, true);
    this.#credential = typeof credential === "function" ? credential : checkedCredential(credential);
    this.#audience = options.audience === undefined ? undefined : checkedName(options.audience, "audience");
    this.#dpopKey = options.dpopKey;
    this.#deadlineSeconds = checkedSeconds(options.deadlineSeconds ?? DEFAULT_DEADLINE_SECONDS);
    this.#repeats = checkedRepeats(options.repeats ?? DEFAULT_REPEATS);
    this.#fetch = options.fetch ?? ((url, init) => fetch(url, init));
  }

  /** Return a token of this scope: a kept one where that is still good, or a new one for an approval. */
  async token(scope: Scope, options: CallOptions = {}): Promise<AccessToken> {
    const approval = approvalOf(options);
    return await this.#within(options, async (deadline) => {
      if (approval === undefined) return await this.#token(scope);
      const body = this.#tokenBody(scope);
      return this.#tokens.put(body, await this.#issued(body, deadline, approval));
    });
  }

  /** Ask what KKP knows of a token, now: also of one that was revoked a moment ago. */
  async introspect(token: string, options: CallOptions = {}): Promise<Introspection> {
    return readIntrospection(await this.#about("/token/introspect", token, options));
  }

  /** Have KKP take a token from nobody any more; verifiers hear of it from the list of revocations. */
  async revoke(token: string, options: CallOptions = {}): Promise<void> {
    approvalOf(options); // before anything is forgotten
    this.#tokens.forgetWhere((kept) => kept.token === token);
    await this.#about("/token/revoke", token, options);
  }

  /** Have KKP seal a plaintext. */
  async encrypt(message: Message, options: CallOptions = {}): Promise<Envelope> {
    return await this.#run(encrypting(message), options);
  }

  /** Have KKP open an envelope. */
  async decrypt(
    envelope: Envelope | EnvelopeJSON,
    options: OpeningOptions = {},
  ): Promise<Opened<Claims | null>> {
    return await this.#run(decrypting(envelope, options), options);
  }

  /**
   * Have KKP move an envelope to another key, or to the newest version of its own; the payload stays as it is.
   *
   * Of a stream, the envelope in its line is moved, and takes that line's place.
   */
  async rewrap<E extends AnyEnvelope | EnvelopeJSON>(
    envelope: E,
    target: Target,
    options: OpeningOptions = {},
  ): Promise<Moved<E>> {
    return await this.#run(rewrapping(envelope, target, options), options);
  }

  /** Seal many: for each its envelope or its error, in order. The deadline is that of each request. */
  async encryptMany(messages: readonly Message[], options: CallOptions = {}): Promise<Result<Envelope>[]> {
    return await this.#runMany(messages, encrypting, options);
  }

  /** Open many: for each what was opened, or its error, in order. The deadline is that of each request. */
  async decryptMany(
    envelopes: readonly (Envelope | EnvelopeJSON)[],
    options: OpeningOptions = {},
  ): Promise<Result<Opened<Claims | null>>[]> {
    return await this.#runMany(envelopes, (envelope) => decrypting(envelope, options), options);
  }

  /** Move many: for each its envelope or its error, in order. The deadline is that of each request. */
  async rewrapMany<E extends AnyEnvelope | EnvelopeJSON>(
    envelopes: readonly E[],
    target: Target,
    options: OpeningOptions = {},
  ): Promise<Result<Moved<E>>[]> {
    return await this.#runMany(envelopes, (envelope) => rewrapping(envelope, target, options), options);
  }

  /** Begin an envelope, with the key of its one message. `LocalEnvelope` does the rest. */
  async dataKey(
    sealing: Sealing,
    encoding: Encoding,
    options: CallOptions = {},
  ): Promise<SealingKey<DetachedEnvelope>> {
    return await sealingKey(await this.#run(beginning(sealing, encoding), options));
  }

  /** Begin a stream, with the key of its one message. `LocalEnvelope` does the rest. */
  async streamKey(
    sealing: Sealing,
    chunkSize: number,
    options: CallOptions = {},
  ): Promise<SealingKey<StreamEnvelope>> {
    return await sealingKey(await this.#run(beginningStream(sealing, chunkSize), options));
  }

  /** Return the key that opens an envelope's payload, once KKP has found the rest of the envelope right. */
  async messageKey(
    envelope: DetachedEnvelope | StreamEnvelope,
    options: OpeningOptions = {},
  ): Promise<WebCryptoKey> {
    return await importMessageKey(await this.#run(releasing(envelope, options), options), "decrypt");
  }

  /** Call what tells or ends something of a token, and does not use it: the credential is shown, with no proof. */
  async #about(path: string, token: string, options: CallOptions): Promise<JSONObject> {
    const body = jsonOf({ token: checkedName(token, "token") });
    const approval = approvalOf(options);
    return await this.#within(options, async (deadline) => {
      const call = { path, showing: "credential", body: () => body, items: 1 } as const;
      return await this.#sent(call, { ...(await this.#shownCredential(undefined)), approval }, deadline);
    });
  }

  async #run<T>(operation: Operation<T>, options: CallOptions): Promise<T> {
    const { path, scope, members, takesToken, read } = operation;
    const showing = takesToken ? "beside" : "credential";
    const body = (token?: string) => jsonOf({ ...members, token });
    return await this.#call({ path, scope, showing, body, items: 1, read }, options);
  }

  async #runMany<I, T>(
    inputs: readonly I[],
    operationOf: (input: I) => Operation<T>,
    options: CallOptions,
  ): Promise<Result<T>[]> {
    if (options.approval !== undefined) {
      throw new ConfigurationError("a batch takes no approval: send what was approved alone");
    }
    const operations = inputs.map((input) => orError(() => operationOf(input)));
    const tokenName = ({ takesToken, scope }: Operation<T>) =>
      takesToken || this.#dpopKey !== undefined ? this.#tokenBody(scope) : "";
    const results = new Map<number, Result<T>>();
    for (const items of requests(operations, tokenName)) {
      for (const { place, result } of await this.#runBatch(items, options)) results.set(place, result);
    }
    // What was not sent is an error already.
    return operations.map((operation, place) => results.get(place) ?? (operation as KKPError));
  }

  /** Run operations in one request; what fails it as a whole fails each of them. */
  async #runBatch<T>(items: readonly Item<T>[], options: CallOptions): Promise<readonly Placed<T>[]> {
    const [first] = items;
    if (first === undefined) return [];
    const { path, scope, takesToken } = first.operation;
    const call: Call<readonly Placed<T>[]> = {
      path: `${path}/batch`,
      scope,
      showing: takesToken ? "alone" : "credential",
      body: () => bodyOf(items),
      items: items.length,
      read: (document) => readResults(document, items),
    };
    try {
      return await this.#call(call, options);
    } catch (error) {
      if (error instanceof KKPError) return items.map(({ place }) => ({ place, result: error }));
      throw error;
    }
  }

  async #call<T>(call: Call<T>, options: CallOptions): Promise<T> {
    const approval = approvalOf(options);
    const document = await this.#within(options, async (deadline) => {
      const shown = { ...(await this.#shown(call)), approval };
      try {
        return await this.#sent(call, shown, deadline);
      } catch (error) {
        if (shown.token === undefined || !isAboutToken(error)) throw error;
        this.#tokens.forget(this.#tokenBody(call.scope), shown.token);
      }
      return await this.#sent(call, { ...(await this.#shown(call)), approval }, deadline);
    });
    return call.read(document);
  }

  async #shown({ scope, showing }: Call<unknown>): Promise<Shown> {
    if (this.#dpopKey !== undefined || showing === "alone") {
      const token = await this.#token(scope);
      return { authorization: `${token.tokenType} ${token.token}`, token, key: this.#dpopKey };
    }
    const credential = await this.#shownCredential(undefined);
    return showing === "credential" ? credential : { ...credential, token: await this.#token(scope) };
  }

  async #shownCredential(key: DPoPKey | undefined): Promise<Shown> {
    const credential = this.#credential;
    const asked = typeof credential === "function" ? checkedCredential(await credential()) : credential;
    return { authorization: `Bearer ${asked}`, key };
  }

  async #token(scope: Scope): Promise<AccessToken> {
    const body = this.#tokenBody(scope);
    return await this.#tokens.get(body, () => this.#newToken(body));
  }

  #tokenBody(scope: Scope): string {
    return tokenBody(scope, this.#audience, this.#dpopKey !== undefined);
  }

  /** Ask for a token, for all who wait for one: under the client's deadline, not under that of any of them. */
  async #newToken(body: string): Promise<Dated<AccessToken>> {
    return await this.#within({}, (deadline) => this.#issued(body, deadline));
  }

  async #issued(body: string, deadline: Deadline, approval?: string): Promise<Dated<AccessToken>> {
    const askedAt = now();
    const call = { path: "/token", showing: "credential", body: () => body, items: 1 } as const;
    const shown = { ...(await this.#shownCredential(this.#dpopKey)), approval };
    const document = await this.#sent(call, shown, deadline);
    const { token, lifeSeconds } = readToken(document, this.#dpopKey !== undefined);
    const endsAt = askedAt + lifeSeconds;
    return { token, endsAt, renewAt: endsAt - renewalSeconds(lifeSeconds) };
  }

  async #sent(
    call: Omit<Call<unknown>, "scope" | "read">,
    shown: Shown,
    deadline: Deadline,
  ): Promise<JSONObject> {
    const isBeside = call.showing === "beside" && this.#dpopKey === undefined;
    const body = encodeUTF8(call.body(isBeside ? shown.token?.token : undefined));
    const maxBytes = maxAnswerBytes(body.length, call.items);
    let failed: Answer | undefined;
    for (let repeat = 0, hadNonce = false; ; ) {
      const init = { method: "POST", headers: await this.#headers(call.path, shown), body };
      const answer = await send(this.#fetch, this.#url + call.path, init, maxBytes, deadline.signal);
      this.#nonce = nonceOf(answer) ?? this.#nonce;
      const isNonceWanted = shown.key !== undefined && !hadNonce && wantsNonce(answer);
      const seconds = repeat < this.#repeats ? secondsBeforeRepeat(answer, repeat, Math.random()) : undefined;
      if (isNonceWanted) {
        hadNonce = true;
      } else if (seconds === undefined || seconds >= deadline.remainingSeconds) {
        return documentOf(answer, failed);
      } else {
        failed = unavailable(answer) ?? failed;
        await deadline.sleep(seconds);
        repeat += 1;
      }
    }
  }

  /** Return a request's headers: a proof is for one request, and so made anew for each time that it is sent. */
  async #headers(
    path: string,
    { authorization, token, key, approval }: Shown,
  ): Promise<Record<string, string>> {
    const headers: Record<string, string> = {
      "Content-Type": "application/json",
      Authorization: authorization,
    };
    if (approval !== undefined) headers["KKP-Approval"] = approval;
    if (key === undefined) return headers;
    const request = { method: "POST", url: this.#issuer + path, token: token?.token, nonce: this.#nonce };
    return { ...headers, DPoP: await key.proof(request) };
  }

  async #within<T>(options: CallOptions, step: (deadline: Deadline) => Promise<T>): Promise<T> {
    checkedSpelling(options, "deadlineSeconds");
    const seconds = checkedSeconds(options.deadlineSeconds ?? this.#deadlineSeconds);
    return await Deadline.within(seconds, this.#url, options.signal, step);
  }
}

/** An envelope that is being sealed, and the key of its one message, which can't be taken out. */
export interface SealingKey<E> {
  readonly envelope: E;
  readonly key: WebCryptoKey;
}

async function sealingKey<E>({ envelope, raw }: MessageKey<E>): Promise<SealingKey<E>> {
  return { envelope, key: await importMessageKey(raw, "encrypt") };
}

/** Seconds of a clock that nobody sets. */
function now(): number {
  return performance.now() / 1000;
}

function approvalOf({ approval }: CallOptions): string | undefined {
  return approval === undefined ? undefined : checkedCredential(approval, "approval");
}

function checkedSeconds(seconds: number): number {
  if (seconds > 0 && seconds <= MAX_DEADLINE_SECONDS) return seconds;
  throw new ConfigurationError(`a deadline is more than 0 and at most ${MAX_DEADLINE_SECONDS} seconds`);
}

function checkedRepeats(repeats: number): number {
  if (Number.isInteger(repeats) && repeats >= 0 && repeats <= MAX_REPEATS) return repeats;
  throw new ConfigurationError(`repeats is a whole number from 0 to ${MAX_REPEATS}`);
}
