/**
 * KKP as a verifier sees it: keys, a list of revocations, and tokens, by a key of its own, under a clock that
 * stands still unless it is moved. `fetch` answers as KKP does; what it was asked is in `requests`.
 */

import { encodeBase64url, encodeUTF8, sha256 } from "#src/encoding.js";

export interface Asked {
  readonly path: string;
  readonly etag: string | undefined;
}

type Members = Readonly<Record<string, unknown>>;

export class FakeKKP {
  readonly url = "https://kkp.test";
  readonly requests: Asked[] = [];
  now = 1_750_000_000;
  /** Seconds of `Cache-Control: max-age`; nothing is said where it is undefined. */
  keysMaxAge: number | undefined = 300;
  listMaxAge: number | undefined = 60;
  listSeconds = 300;
  seq = 41;
  revoked: Members = {};
  /** Called before each answer; may throw, as a network does, or answer something else. */
  onRequest: (asked: Asked) => Response | undefined | Promise<Response | undefined> = () => undefined;

  private constructor(private pair: CryptoKeyPair) {}

  static async create(): Promise<FakeKKP> {
    return new FakeKKP(await newPair());
  }

  get publicKey(): CryptoKey {
    return this.pair.publicKey;
  }

  readonly clock = (): number => this.now;

  readonly fetch = async (url: string, init: RequestInit = {}): Promise<Response> => {
    const asked = {
      path: new URL(url).pathname,
      etag: new Headers(init.headers).get("if-none-match") ?? undefined,
    };
    this.requests.push(asked);
    return (await this.onRequest(asked)) ?? (await this.#answer(asked));
  };

  /** From now on tokens and lists are by another key, which the keys published so far do not have. */
  async rotate(): Promise<void> {
    this.pair = await newPair();
  }

  async token(claims: Members = {}): Promise<string> {
    return await this.signed("kkp+jwt", {
      iss: this.url,
      sub: "orders",
      aud: "orders-db",
      iat: this.now,
      nbf: this.now,
      exp: this.now + 900,
      jti: "AAECAwQFBgcICQoLDA0ODw",
      backend: "aws",
      key_id: "alias/orders",
      ops: ["decrypt"],
      policy_claims: { environment: "prod" },
      context: { table: "orders" },
      ...claims,
    });
  }

  async list(): Promise<string> {
    return await this.signed("kkp-revocations+jwt", {
      iss: this.url,
      iat: this.now,
      exp: this.now + this.listSeconds,
      seq: this.seq,
      tokens: {},
      subjects: {},
      identities: [],
      keys: [],
      backends: [],
      ...this.revoked,
    });
  }

  async keys(): Promise<string> {
    return JSON.stringify({ keys: [{ ...(await jwkOf(this.pair)), use: "sig", alg: "EdDSA" }] });
  }

  async signed(typ: string, claims: Members): Promise<string> {
    const { kid } = await jwkOf(this.pair);
    const parts = [{ alg: "EdDSA", kid, typ }, claims].map((part) =>
      encodeBase64url(encodeUTF8(JSON.stringify(part))),
    );
    const input = parts.join(".");
    const signature = await crypto.subtle.sign("Ed25519", this.pair.privateKey, encodeUTF8(input));
    return `${input}.${encodeBase64url(new Uint8Array(signature))}`;
  }

  async #answer({ path, etag: known }: Asked): Promise<Response> {
    const isKeys = path === "/keys/jwks";
    const body = isKeys ? await this.keys() : await this.list();
    const maxAge = isKeys ? this.keysMaxAge : this.listMaxAge;
    const etag = `"${encodeBase64url(await sha256(encodeUTF8(body)))}"`;
    const headers = { etag, ...(maxAge !== undefined && { "cache-control": `private, max-age=${maxAge}` }) };
    return known === etag ? new Response(null, { status: 304, headers }) : new Response(body, { headers });
  }
}

async function newPair(): Promise<CryptoKeyPair> {
  return (await crypto.subtle.generateKey("Ed25519", true, ["sign", "verify"])) as CryptoKeyPair;
}

async function jwkOf({ publicKey }: CryptoKeyPair): Promise<Readonly<Record<string, string>>> {
  const { x = "" } = await crypto.subtle.exportKey("jwk", publicKey);
  const kid = encodeBase64url(await sha256(encodeUTF8(JSON.stringify({ crv: "Ed25519", kty: "OKP", x }))));
  return { kty: "OKP", crv: "Ed25519", x, kid };
}
