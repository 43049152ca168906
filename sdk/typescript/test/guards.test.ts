import assert from "node:assert/strict";
import { createServer, request as httpRequest } from "node:http";
import { createServer as createTLSServer, request as httpsRequest } from "node:https";
import type { AddressInfo } from "node:net";
import { test } from "node:test";
import {
  type Caller,
  ConfigurationError,
  certificateThumbprint,
  DPoPKey,
  fetchGuard,
  type GuardOptions,
  type KKPError,
  type NodeRequest,
  nodeGuard,
  TokenVerifier,
} from "@kkp/client";
import { encodeUTF8 } from "#src/encoding.js";
import { type Certificate, selfSigned } from "./certificates.js";
import { FakeKKP } from "./fakeKKP.js";

const SERVICE = "https://orders.test";
const DPOP_ALGORITHMS = 'algs="ES256 EdDSA"';
const NO_CREDENTIAL = ['Bearer realm="kkp"', `DPoP realm="kkp", ${DPOP_ALGORITHMS}`];

type Headers = Readonly<Record<string, string | readonly string[]>>;

/** What came of a request: its caller, or what was answered. */
interface Outcome {
  readonly caller?: Caller;
  readonly status?: number;
  readonly challenges?: readonly string[];
  readonly code?: string;
  readonly body?: string;
}

type Sends = (path: string, headers: Headers, method?: string) => Promise<Outcome>;

interface Setting {
  readonly kkp: FakeKKP;
  readonly verifier: TokenVerifier;
  readonly refusals: KKPError[];
}

async function setting(): Promise<Setting> {
  const kkp = await FakeKKP.create();
  const verifier = new TokenVerifier({
    url: kkp.url,
    audience: "orders-db",
    fetch: kkp.fetch,
    clock: kkp.clock,
  });
  return { kkp, verifier, refusals: [] };
}

function options<R>({ refusals }: Setting, more: Partial<GuardOptions<R>> = {}): GuardOptions<R> {
  return { url: SERVICE, onRefused: (error) => refusals.push(error), ...more };
}

/** Send to a guard over the Fetch API. */
function overFetch(at: Setting, more: Partial<GuardOptions<Request>> = {}): Sends {
  const guard = fetchGuard(at.verifier, options(at, more));
  return async (path, headers, method = "GET") => {
    const pairs = Object.entries(headers).flatMap(([name, values]) =>
      [values].flat().map((value) => [name, value]),
    );
    // The host is the sender's to choose, and counts for nothing.
    const request = new Request(`http://chosen-by-the-sender.test${path}`, {
      method,
      headers: pairs as [string, string][],
    });
    const found = await guard(request);
    if (!(found instanceof Response)) return { caller: found };
    const challenges = found.headers.get("www-authenticate")?.split(/, (?=Bearer |DPoP )/) ?? [];
    const body = await found.text();
    assert.equal(found.headers.get("content-type"), "application/problem+json");
    assert.equal(found.headers.get("cache-control"), "no-store");
    return { status: found.status, challenges, code: JSON.parse(body).code, body };
  };
}

/** Send to a guard in a server of Node's, over a socket. */
function overNode(at: Setting, more: Partial<GuardOptions<NodeRequest>> = {}): Sends {
  const guard = nodeGuard(at.verifier, options(at, more));
  return async (path, headers, method = "GET") => {
    let caller: Caller | undefined;
    const server = createServer(async (request, response) => {
      caller = await guard(request, response);
      if (caller !== undefined) response.end();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const answer = await sent((server.address() as AddressInfo).port, path, headers, method);
      return caller === undefined ? answer : { caller };
    } finally {
      server.close();
    }
  };
}

function sent(port: number, path: string, headers: Headers, method: string): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const raw = Object.entries(headers).flatMap(([name, values]) =>
      [values].flat().flatMap((value) => [name, value]),
    );
    const request = httpRequest({
      port,
      path,
      method,
      headers: ["Host", "chosen-by-the-sender.test", ...raw] as never,
    });
    request.on("error", reject);
    request.on("response", async (response) => {
      let body = "";
      for await (const part of response.setEncoding("utf8")) body += part;
      const challenges = response.headersDistinct["www-authenticate"] ?? [];
      resolve({ status: response.statusCode ?? 0, challenges, code: body && JSON.parse(body).code, body });
    });
    request.end();
  });
}

const WAYS: Readonly<Record<string, (at: Setting) => Sends>> = { fetch: overFetch, node: overNode };

for (const [way, sendsTo] of Object.entries(WAYS)) {
  test(`${way}: a token makes a caller`, async () => {
    const at = await setting();
    const token = await at.kkp.token({ act: { sub: "worker" } });
    const { caller } = await sendsTo(at)("/rows", { authorization: `Bearer ${token}` });
    assert.equal(caller?.subject, "orders");
    assert.equal(caller?.askedBy, "worker");
    assert.equal(caller?.claims.key_id, "alias/orders");
  });

  test(`${way}: who asked is the subject where the token names nobody else`, async () => {
    const at = await setting();
    const { caller } = await sendsTo(at)("/", { authorization: `bEARER   ${await at.kkp.token()}` });
    assert.equal(caller?.askedBy, "orders");
  });

  for (const [name, values] of Object.entries({
    nothing: [],
    "an empty header": [""],
    "a scheme alone": ["Bearer"],
    "another scheme": ["Basic b3JkZXJzOg=="],
    "no token of RFC 6750's": ["Bearer a,b"],
    "two credentials": ["Bearer a.b.c", "Bearer a.b.c"],
  })) {
    test(`${way}: ${name} in Authorization is no credential, and the service is told`, async () => {
      const at = await setting();
      const { body, ...answer } = await sendsTo(at)("/", values.length > 0 ? { authorization: values } : {});
      assert.deepEqual(answer, { status: 401, challenges: NO_CREDENTIAL, code: "unauthenticated" });
      assert.deepEqual(
        at.refusals.map(({ code, reason, message }) => [code, reason, message]),
        [["unauthenticated", undefined, "no token was shown"]],
      );
    });
  }

  for (const [claims, code, error] of [
    [{ exp: 1_750_000_000 }, "token_invalid", 'error="invalid_token"'],
    [
      { iat: 1_749_999_000, nbf: 1_749_999_000, exp: 1_749_999_995 },
      "token_expired",
      'error="invalid_token", error_description="expired"',
    ],
    [{ aud: "somebody" }, "audience_mismatch", 'error="invalid_token"'],
  ] as const) {
    test(`${way}: ${code} is refused with a challenge, and its reason told to the service alone`, async () => {
      const at = await setting();
      const token = code === "token_invalid" ? "a.b.c" : await at.kkp.token(claims);
      const { body = "", ...answer } = await sendsTo(at)("/", { authorization: `Bearer ${token}` });
      assert.deepEqual(answer, { status: 401, challenges: [`Bearer realm="kkp", ${error}`], code });
      assert.equal(at.refusals.length, 1);
      assert.equal(at.refusals[0]?.code, code);
      assert.ok(!body.includes("reason"));
    });
  }

  test(`${way}: without keys it is 503, and no challenge`, async () => {
    const at = await setting();
    const token = await at.kkp.token();
    at.kkp.onRequest = () => new Response(null, { status: 500 });
    const { body = "", ...answer } = await sendsTo(at)("/", { authorization: `Bearer ${token}` });
    assert.deepEqual(answer, { status: 503, challenges: [], code: "keys_unavailable" });
    assert.ok(!body.includes("kkp.test"));
  });

  test(`${way}: without a list of revocations it is 503`, async () => {
    const at = await setting();
    at.kkp.onRequest = ({ path }) =>
      path === "/revocations/list" ? new Response(null, { status: 500 }) : undefined;
    const answer = await sendsTo(at)("/", { authorization: `Bearer ${await at.kkp.token()}` });
    assert.equal(answer.status, 503);
    assert.equal(answer.code, "revocations_unavailable");
  });

  test(`${way}: a bound token and its proof make a caller, whatever Host says`, async () => {
    const at = await setting();
    const headers = await bound(at, "POST", `${SERVICE}/rows`);
    const { caller } = await sendsTo(at)("/rows?limit=1", headers, "POST");
    assert.equal(caller?.subject, "orders");
  });

  test(`${way}: a proof that was used is refused`, async () => {
    const at = await setting();
    const headers = await bound(at, "GET", `${SERVICE}/rows`);
    const sends = sendsTo(at);
    assert.ok((await sends("/rows", headers)).caller);
    const { body, ...answer } = await sends("/rows", headers);
    const challenge = `DPoP realm="kkp", error="invalid_dpop_proof", ${DPOP_ALGORITHMS}`;
    assert.deepEqual(answer, { status: 401, challenges: [challenge], code: "token_invalid" });
  });

  for (const [name, url] of [
    ["another path", `${SERVICE}/columns`],
    ["the host that the sender chose", "http://chosen-by-the-sender.test/rows"],
  ] as const) {
    test(`${way}: a proof for ${name} is refused`, async () => {
      const at = await setting();
      assert.equal((await sendsTo(at)("/rows", await bound(at, "GET", url))).status, 401);
      assert.equal(at.refusals[0]?.reason, "wrong_proof");
    });
  }

  test(`${way}: two proofs are none`, async () => {
    const at = await setting();
    const headers = await bound(at, "GET", `${SERVICE}/rows`);
    const other = await bound(at, "GET", `${SERVICE}/rows`);
    await sendsTo(at)("/rows", { ...headers, dpop: [headers.dpop, other.dpop] });
    assert.equal(at.refusals[0]?.reason, "wrong_proof");
  });

  test(`${way}: a stolen bound token is worth nothing without a proof, under either scheme`, async () => {
    const at = await setting();
    const { authorization } = await bound(at, "GET", SERVICE);
    for (const shown of [authorization, authorization.replace("DPoP", "Bearer")]) {
      const { body, ...answer } = await sendsTo(at)("/", { authorization: shown });
      const challenge = `DPoP realm="kkp", error="invalid_token", ${DPOP_ALGORITHMS}`;
      assert.deepEqual(answer, { status: 401, challenges: [challenge], code: "token_invalid" });
    }
    assert.deepEqual(
      at.refusals.map(({ reason }) => reason),
      ["proof_missing", "proof_missing"],
    );
  });

  test(`${way}: a bound token with its proof is not shown as Bearer`, async () => {
    const at = await setting();
    const headers = await bound(at, "GET", `${SERVICE}/rows`);
    const shown = { ...headers, authorization: headers.authorization.replace("DPoP", "Bearer") };
    assert.equal((await sendsTo(at)("/rows", shown)).status, 401);
    assert.equal(at.refusals[0]?.reason, "proof_missing");
  });

  test(`${way}: a token that is bound to nothing is not shown as DPoP, with or without a proof`, async () => {
    const at = await setting();
    const { dpop } = await bound(at, "GET", `${SERVICE}/rows`);
    const authorization = `DPoP ${await at.kkp.token()}`;
    assert.equal((await sendsTo(at)("/rows", { authorization })).status, 401);
    assert.equal((await sendsTo(at)("/rows", { authorization, dpop })).status, 401);
    assert.deepEqual(
      at.refusals.map(({ reason }) => reason),
      ["not_bound", "not_bound"],
    );
  });
}

async function bound({ kkp }: Setting, method: string, url: string) {
  const key = await DPoPKey.generate();
  const token = await kkp.token({ cnf: { jkt: key.thumbprint } });
  return { authorization: `DPoP ${token}`, dpop: await key.proof({ method, url, token, now: kkp.now }) };
}

test("a certificate that the service names makes a caller of a token that is bound to it, as DER or as its digest", async () => {
  const at = await setting();
  const der = encodeUTF8("a certificate");
  const authorization = `Bearer ${await at.kkp.token({ cnf: { "x5t#S256": await certificateThumbprint(der) } })}`;
  const digest = await certificateThumbprint(der);
  assert.ok((await overFetch(at, { certificate: () => der })("/", { authorization })).caller);
  assert.ok((await overFetch(at, { certificate: () => digest })("/", { authorization })).caller);
  assert.ok((await overNode(at, { certificate: () => der })("/", { authorization })).caller);
});

test("another certificate, and none, are refused", async () => {
  const at = await setting();
  const authorization = `Bearer ${await at.kkp.token({ cnf: { "x5t#S256": await certificateThumbprint(encodeUTF8("a")) } })}`;
  await overFetch(at, { certificate: () => encodeUTF8("b") })("/", { authorization });
  await overFetch(at, { certificate: () => undefined })("/", { authorization });
  await overNode(at)("/", { authorization });
  assert.deepEqual(
    at.refusals.map(({ reason }) => reason),
    ["wrong_certificate", "proof_missing", "proof_missing"],
  );
});

test("node: the certificate that a client shows in TLS is taken from its connection", async () => {
  const at = await setting();
  const [server, client, thief] = [selfSigned(), selfSigned(), selfSigned()];
  const bindingOf = async (der: Buffer) => ({
    cnf: { "x5t#S256": await certificateThumbprint(Buffer.from(der)) },
  });
  const authorization = `Bearer ${await at.kkp.token(await bindingOf(client.der))}`;
  const guard = nodeGuard(at.verifier, options(at));
  // Who vouches for a certificate is for the server to say; whose key it is TLS has made sure of.
  const service = createTLSServer(
    { ...server, requestCert: true, rejectUnauthorized: false },
    async (request, response) => {
      if (await guard(request, response)) response.end();
    },
  );
  await new Promise<void>((resolve) => service.listen(0, "127.0.0.1", resolve));
  const { port } = service.address() as AddressInfo;
  const statusWith = (certificate: Partial<Certificate>): Promise<number | undefined> =>
    new Promise((resolve, reject) => {
      const { cert, key } = certificate;
      const connection = { port, agent: false, rejectUnauthorized: false, headers: { authorization } };
      httpsRequest({ ...connection, ...(cert && key && { cert, key }) }, (answer) =>
        resolve(answer.resume().statusCode),
      )
        .on("error", reject)
        .end();
    });
  try {
    assert.equal(await statusWith(client), 200);
    assert.equal(await statusWith(thief), 401);
    assert.equal(await statusWith({}), 401);
  } finally {
    service.closeAllConnections();
    service.close();
  }
  assert.deepEqual(
    at.refusals.map(({ reason }) => reason),
    ["wrong_certificate", "proof_missing"],
  );
});

test("node: behind a router the path is the one that came", async () => {
  const at = await setting();
  const { authorization, dpop } = await bound(at, "GET", `${SERVICE}/api/rows`);
  const guard = nodeGuard(at.verifier, options(at));
  const rawHeaders = ["Authorization", authorization, "DPoP", dpop];
  const routed = { url: "/rows", originalUrl: "/api/rows?x=1" };
  const request = { method: "GET", ...routed, headers: {}, rawHeaders, socket: {} };
  assert.ok(await guard(request, { writeHead: () => undefined, end: () => undefined }));
});

test("node: a target that is a whole URL counts by its path alone", async () => {
  const at = await setting();
  const headers = await bound(at, "GET", `${SERVICE}/rows`);
  assert.ok((await overNode(at)("http://chosen-by-the-sender.test/rows", headers)).caller);
});

test("node: a target that would go on with the service's host is a path like another", async () => {
  const at = await setting();
  const { authorization, dpop } = await bound(at, "GET", `${SERVICE}.elsewhere.test/rows`);
  const guard = nodeGuard(at.verifier, options(at));
  const request = {
    method: "GET",
    url: ".elsewhere.test/rows",
    headers: { authorization, dpop },
    socket: {},
  };
  assert.equal(await guard(request, { writeHead: () => undefined, end: () => undefined }), undefined);
  assert.equal(at.refusals[0]?.reason, "wrong_proof");
});

test("a service below a path is known by it", async () => {
  const at = await setting();
  const headers = await bound(at, "GET", "https://gateway.test/orders/rows");
  assert.ok((await overFetch(at, { url: "https://gateway.test/orders/" })("/rows", headers)).caller);
});

test("what is no verdict is thrown on, and not answered to a stranger", async () => {
  const verifier = { verify: () => Promise.reject(new RangeError("a bug")) };
  const guard = fetchGuard(verifier, { url: SERVICE });
  await assert.rejects(guard(new Request(SERVICE, { headers: { authorization: "Bearer a" } })), RangeError);
});

for (const url of [
  "",
  "/orders",
  "orders.test",
  "https://orders.test?x",
  "https://orders.test/#x",
  "ftp://orders.test",
]) {
  test(`a guard is not made for the URL ${JSON.stringify(url)}`, async () => {
    const { verifier } = await setting();
    assert.throws(() => fetchGuard(verifier, { url }), ConfigurationError);
    assert.throws(() => nodeGuard(verifier, { url }), ConfigurationError);
  });
}
