/**
 * A KKP that keeps no secrets, over real HTTP: mints tokens that nobody signed, "seals" by adding a tag of zeros,
 * and remembers message keys. A test may put answers of its own before it, one for each request to come.
 */

import { createServer, type IncomingHttpHeaders, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, beforeEach } from "node:test";

// biome-ignore lint/suspicious/noExplicitAny: bodies are whatever a client sends
export type Body = any;

export interface Received {
  readonly path: string;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  readonly body: Body;
}

export interface Scripted {
  readonly status?: number;
  readonly headers?: Record<string, string>;
  /** JSON, or text as it is. */
  readonly body?: unknown;
}

export type Answer = Scripted | ((received: Received, response: ServerResponse) => Scripted | undefined);

export function problem(status: number, code: string, more: object = {}, headers = {}): Scripted {
  const body = {
    type: "about:blank",
    title: code,
    status,
    code,
    detail: "a detail",
    request_id: "request-1",
    ...more,
  };
  return { status, headers: { "Content-Type": "application/problem+json", ...headers }, body };
}

/** Return a KKP for the tests of a file, each of which finds nothing of the one before; it ends with them. */
export async function scriptedKKP(): Promise<ScriptedKKP> {
  const kkp = await ScriptedKKP.start();
  after(() => kkp.stop());
  beforeEach(() => {
    kkp.received.length = 0;
    kkp.script.length = 0;
  });
  return kkp;
}

export class ScriptedKKP {
  readonly received: Received[] = [];
  /** What the next requests are answered with, whatever they ask. */
  readonly script: Answer[] = [];
  tokenSeconds = 300;
  readonly #server: Server;
  readonly #messageKeys = new Map<string, string>();
  #minted = 0;

  private constructor() {
    this.#server = createServer((request, response) => {
      const parts: Buffer[] = [];
      request.on("data", (part) => parts.push(part));
      request.on("end", () => {
        const text = Buffer.concat(parts).toString();
        const { url = "", headers } = request;
        this.#answer({ path: url, headers, text, body: JSON.parse(text) }, response);
      });
    });
  }

  static async start(): Promise<ScriptedKKP> {
    const fake = new ScriptedKKP();
    await new Promise<void>((resolve) => fake.#server.listen(0, "127.0.0.1", resolve));
    return fake;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  paths(): string[] {
    return this.received.map(({ path }) => path);
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(received: Received, response: ServerResponse): void {
    this.received.push(received);
    const next = this.script.shift();
    const scripted = typeof next === "function" ? next(received, response) : (next ?? this.#own(received));
    if (scripted === undefined) return;
    response.writeHead(scripted.status ?? 200, { "Content-Type": "application/json", ...scripted.headers });
    response.end(typeof scripted.body === "string" ? scripted.body : JSON.stringify(scripted.body));
  }

  /** Answer as KKP does. */
  #own({ path, headers, body }: Received): Scripted {
    const { items } = body;
    switch (path) {
      case "/token":
        return { body: this.#token(body, headers.dpop !== undefined) };
      case "/token/introspect":
        return {
          body: { active: true, token_type: "Bearer", scope: "decrypt", ...claimsFor(this.#asked(body)) },
        };
      case "/token/revoke":
        return { body: {} };
      case "/envelope/encrypt":
      case "/envelope/decrypt":
      case "/envelope/rewrap":
        return this.#one(path, body);
      case "/envelope/encrypt/batch":
      case "/envelope/decrypt/batch":
      case "/envelope/rewrap/batch": {
        const one = path.replace("/batch", "");
        return { body: { items: items.map((item: Body) => this.#one(one, item).body) } };
      }
      case "/envelope/data-key":
        return { body: this.#dataKey(body) };
      case "/envelope/data-key/unwrap": {
        const key = this.#messageKeys.get(body.envelope.message_id);
        return key ? { body: { message_key_b64: key } } : problem(422, "envelope_invalid");
      }
      default:
        return problem(404, "not_found");
    }
  }

  #token(body: Body, isBound: boolean): unknown {
    this.#minted += 1;
    const iat = 1_750_000_000; // no clock of a client's may matter
    const claims = { iat, exp: iat + this.tokenSeconds, jti: `token ${this.#minted}`, asked: body };
    return {
      token: `e30.${base64url(JSON.stringify(claims))}.c2ln`,
      expires_at: claims.exp,
      kid: "kid",
      token_type: isBound ? "DPoP" : "Bearer",
    };
  }

  /** Return what one of its own tokens was asked for with. */
  #asked({ token }: Body): Body {
    return JSON.parse(Buffer.from(token.split(".")[1], "base64url").toString()).asked;
  }

  #one(path: string, body: Body): Scripted {
    if (path === "/envelope/encrypt") return { body: { envelope: sealed(body) } };
    const { envelope } = body;
    if (envelope.associated_data === "refuse") return problem(422, "envelope_invalid");
    if (path === "/envelope/rewrap") {
      const { backend, key_id } = body;
      return { body: { envelope: { ...envelope, backend, key_id, key_version: "moved" } } };
    }
    const plaintext = Buffer.from(envelope.ciphertext, "base64url").subarray(0, -16);
    const text = envelope.encoding === null ? {} : { plaintext: plaintext.toString() };
    return { body: { plaintext_b64: plaintext.toString("base64"), claims: claimsFor(envelope), ...text } };
  }

  #dataKey(body: Body): unknown {
    const envelope = labels(body);
    const key = Buffer.from(crypto.getRandomValues(new Uint8Array(32))).toString("base64");
    this.#messageKeys.set(envelope.message_id, key);
    return { envelope, message_key_b64: key };
  }
}

/** The members that an envelope has before its payload, as KKP answers what is asked for. */
export function labels(body: Body): Body {
  const stream = { alg: "A256GCM-HKDF-SHA512-COMMIT-STREAM", encoding: null, chunk_size: body.chunk_size };
  return {
    v: 1,
    alg: "A256GCM-HKDF-SHA512-COMMIT",
    context: body.context ?? {},
    associated_data: body.associated_data ?? null,
    encoding: body.plaintext === undefined ? (body.encoding ?? null) : "utf-8",
    message_id: base64url(crypto.getRandomValues(new Uint8Array(32))),
    backend: body.backend,
    key_id: body.key_id,
    key_version: "1",
    encrypted_data_key: base64url("a wrap"),
    wrap_tag: base64url(new Uint8Array(32)),
    commitment: base64url(new Uint8Array(32)),
    ...(body.chunk_size !== undefined && stream),
  };
}

export function sealed(body: Body): Body {
  const bytes = Buffer.from(
    body.plaintext ?? body.plaintext_b64,
    body.plaintext === undefined ? "base64" : "utf8",
  );
  const ciphertext = base64url(Buffer.concat([bytes, Buffer.alloc(16)]));
  return { ...labels(body), nonce: base64url(new Uint8Array(12)), ciphertext };
}

export function claimsFor(envelope: Body): Body {
  const { backend, key_id } = envelope;
  const times = { iat: 1_750_000_000, nbf: 1_750_000_000, exp: 1_750_000_300 };
  const names = { iss: "https://kkp.example", sub: "orders", aud: "orders-db", jti: "token" };
  return { ...names, ...times, backend, key_id, ops: ["decrypt"], policy_claims: {} };
}

function base64url(bytes: Uint8Array | string): string {
  return Buffer.from(bytes as Uint8Array).toString("base64url");
}
