/** What the compiler must say of the types, checked where the tests are compiled. */

import assert from "node:assert/strict";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Http2ServerRequest } from "node:http2";
import { test } from "node:test";
import {
  type AccessToken,
  type AnyEnvelope,
  type Caller,
  type Claims,
  type Envelope,
  fetchGuard,
  type Introspection,
  KKPClient,
  KKPError,
  type LocalEnvelope,
  type NodeRequest,
  nodeGuard,
  type Opened,
  type Operation,
  type StreamEnvelope,
  type TokenError,
  type TokenErrorCode,
  type TokenReason,
  TokenVerifier,
  verifyToken,
} from "@kkp/client";

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Compiles only where the two types are one. */
function same<A, B>(..._: Equal<A, B> extends true ? [] : [never]): void {}

same<Awaited<ReturnType<typeof verifyToken>>, Claims>();
same<Awaited<ReturnType<TokenVerifier["verify"]>>, Claims>();
same<Awaited<ReturnType<ReturnType<typeof fetchGuard>>>, Caller | Response>();
same<Awaited<ReturnType<ReturnType<typeof nodeGuard>>>, Caller | undefined>();
same<Awaited<ReturnType<KKPClient["encrypt"]>>, Envelope>();
same<Awaited<ReturnType<KKPClient["decrypt"]>>, Opened<Claims | null>>();
same<Awaited<ReturnType<KKPClient["decryptMany"]>>, (Opened<Claims | null> | KKPError)[]>();
same<Awaited<ReturnType<KKPClient["token"]>>, AccessToken>();
same<Awaited<ReturnType<LocalEnvelope["open"]>>, Opened>();
same<Awaited<ReturnType<KKPClient["introspect"]>>, Introspection>();
same<ReturnType<LocalEnvelope["sealStream"]>, TransformStream<Uint8Array, Uint8Array>>();
same<Claims["ops"], readonly Operation[]>();
same<TokenError["code"], TokenErrorCode>();
same<KKPError["reason"], string | undefined>();

// What Node hands to a handler is what the guard takes.
export const requestOfNode = (request: IncomingMessage): NodeRequest => request;
export const requestOfHTTP2 = (request: Http2ServerRequest): NodeRequest => request;
export const guarded = (verifier: TokenVerifier, request: IncomingMessage, response: ServerResponse) =>
  nodeGuard(verifier, { url: "https://orders.test" })(request, response);

export function neverCalledEither(client: KKPClient, local: LocalEnvelope, stream: StreamEnvelope): void {
  // What is moved comes back as what it was.
  const moved: Promise<StreamEnvelope> = client.rewrap(stream, { backend: "gcp", keyId: "orders" });
  const movedText: Promise<AnyEnvelope> = client.rewrap("{}", { backend: "gcp", keyId: "orders" });
  // @ts-expect-error  a credential is needed
  new KKPClient({ url: "https://kkp.test" });
  // @ts-expect-error  a key has a backend
  void client.encrypt({ keyId: "alias/orders", plaintext: "" });
  // @ts-expect-error  a plaintext is text or bytes
  void local.seal({ backend: "aws", keyId: "alias/orders", plaintext: 7 });
  // @ts-expect-error  a stream's envelope has no payload to decrypt
  void client.decrypt(stream);
  // @ts-expect-error  the call says which operation a token is for
  void client.decrypt({} as Envelope, { scope: { ops: ["encrypt"] } });
  assert.ok([moved, movedText]);
}

export function neverCalled(verifier: TokenVerifier, claims: Claims): void {
  const reason: TokenReason = "wrong_claims";
  // @ts-expect-error  there is no such reason
  const unknown: TokenReason = "wrong_claim";
  // @ts-expect-error  an audience is needed
  new TokenVerifier({ url: "https://kkp.test" });
  // @ts-expect-error  a guard needs the URL that its service is known by
  fetchGuard(verifier, {});
  // @ts-expect-error  an option is left out, and not undefined, unless that means something
  new TokenVerifier({ url: "https://kkp.test", audience: "orders-db", leewaySeconds: undefined });
  // @ts-expect-error  keys are wanted, or said to be missing
  void verifyToken("", { now: 0, issuer: "", audience: "" });
  // @ts-expect-error  claims are as they were signed
  claims.sub = "somebody else";
  // @ts-expect-error  the root of the tree is no error by itself
  new KKPError("code", "message");
  assert.ok([reason, unknown]);
}

test("the types of what a user writes are those that this file was compiled with", () => {
  assert.equal(typeof neverCalled, "function");
});
