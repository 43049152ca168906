/**
 * From a request to its caller: for whatever has the Fetch API's `Request`, and for Node's `http` and Express.
 *
 *     const guard = fetchGuard(verifier, { url: "https://orders.example" });
 *     const caller = await guard(request);
 *     if (caller instanceof Response) return caller;
 *
 * Rules that hold here:
 * - `Authorization` has one credential, `Bearer` or `DPoP` as the token is bound; else there is none.
 * - A DPoP proof must be for the URL that the service is known by, which its configuration says and never a
 *   `Host` header: whoever sends a stolen proof writes that as they like.
 * - Refused is 401 with a challenge (RFC 6750 section 3, RFC 9449 section 7.1), without keys or list 503.
 *   Strangers are told the code; the reason is for `onRefused`, which hears of every refusal.
 */

import type { Claims } from "./claims.js";
import { PROOF_ALGORITHMS, type PresentedProof } from "./dpop.js";
import { type Bytes, encodeBase64url, sha256 } from "./encoding.js";
import {
  ConfigurationError,
  KeysUnavailableError,
  KKPError,
  RevocationsUnavailableError,
  TokenError,
} from "./errors.js";
import { normalisedURL } from "./htu.js";
import { refusal } from "./refusals.js";
import type { Presented } from "./tokens.js";

/** Whoever sends a request, as a verified token has it. */
export interface Caller {
  /** Whom the token speaks for. */
  readonly subject: string;
  /** Who asked for it; mostly `subject` itself. */
  readonly askedBy: string;
  readonly claims: Claims;
}

/** What a guard needs of a `TokenVerifier`. */
export interface Verifies {
  verify(token: string, presented?: Presented): Promise<Claims>;
}

export interface GuardOptions<R> {
  /** The URL that callers know the service by; a request's path stands behind it. */
  readonly url: string;
  /** The DER, or its SHA-256 in base64url, of the client certificate that TLS showed. */
  readonly certificate?: (request: R) => Bytes | string | undefined;
  /** Is told why a request was refused, for the log; of one without a credential, `unauthenticated`. */
  readonly onRefused?: (error: KKPError, request: R) => void;
}

/** What a guard needs of a request of Node's `http`, or of Express. */
export interface NodeRequest {
  readonly method?: string | undefined;
  readonly url?: string | undefined;
  /** Express has the path here as it came, where a router took off a part of it. */
  readonly originalUrl?: string | undefined;
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  /** Names and values in turn, where the request has them: `headers` shows the first of two credentials alone. */
  readonly rawHeaders?: readonly string[] | undefined;
  readonly socket: object;
}

/** What a guard needs of the response to it. */
export interface NodeResponse {
  writeHead(status: number, headers: Record<string, string | string[]>): unknown;
  end(body: string): unknown;
}

/** A request, read: nothing of it is verified. */
interface Shown {
  readonly authorization: readonly string[];
  readonly proofs: readonly string[];
  readonly method: string;
  readonly path: string;
  readonly certificate: Bytes | string | undefined;
}

interface Refusal {
  readonly status: 401 | 503;
  readonly code: string;
  readonly challenges: readonly string[];
}

// RFC 6750 section 2.1, RFC 9449 section 7.1
const CREDENTIAL = /^(Bearer|DPoP) +([A-Za-z0-9._~+/-]+=*)$/i;
const ALGORITHMS = `algs="${PROOF_ALGORITHMS.join(" ")}"`;
const NO_CREDENTIAL = "unauthenticated";
const UNAUTHENTICATED: Refusal = {
  status: 401,
  code: NO_CREDENTIAL,
  challenges: ['Bearer realm="kkp"', `DPoP realm="kkp", ${ALGORITHMS}`],
};
const TITLES = { 401: "Unauthorized", 503: "Service Unavailable" } as const;
const ABOUT_PROOFS: ReadonlySet<string> = new Set(["proof_missing", "wrong_proof", "not_bound"]);

/** Nothing was shown that could be verified; no verdict, and so no `TokenError`. */
class UnauthenticatedError extends KKPError {
  constructor() {
    super(NO_CREDENTIAL, "no token was shown");
  }

  override get name(): string {
    return "KKPError";
  }
}

/** A guard that answers the caller, or the `Response` to send instead. */
export function fetchGuard(
  verifier: Verifies,
  options: GuardOptions<Request>,
): (request: Request) => Promise<Caller | Response> {
  const url = checkedServiceURL(options.url);
  return async (request) => {
    const found = await callerOf(verifier, url, shownBy(request, options), (error) =>
      options.onRefused?.(error, request),
    );
    if (!("status" in found)) return found;
    return new Response(bodyOf(found), { status: found.status, headers: headersOf(found) });
  };
}

/** A guard that answers the caller, or has sent the refusal and answers undefined. */
export function nodeGuard<R extends NodeRequest>(
  verifier: Verifies,
  options: GuardOptions<R>,
): (request: R, response: NodeResponse) => Promise<Caller | undefined> {
  const url = checkedServiceURL(options.url);
  return async (request, response) => {
    const found = await callerOf(verifier, url, shownByNode(request, options), (error) =>
      options.onRefused?.(error, request),
    );
    if (!("status" in found)) return found;
    response.writeHead(found.status, nodeHeadersOf(found));
    response.end(bodyOf(found));
    return undefined;
  };
}

/** Return what `cnf` of a token has of a client certificate: the SHA-256 of its DER, in base64url. */
export async function certificateThumbprint(der: Bytes): Promise<string> {
  return encodeBase64url(await sha256(der));
}

async function callerOf(
  verifier: Verifies,
  url: string,
  shown: Shown,
  onRefused: (error: KKPError) => void,
): Promise<Caller | Refusal> {
  const [, scheme = "", token = ""] =
    (shown.authorization.length === 1 && CREDENTIAL.exec(shown.authorization[0] ?? "")) || [];
  if (token === "") {
    onRefused(new UnauthenticatedError());
    return UNAUTHENTICATED;
  }
  const isDPoP = scheme.toLowerCase() === "dpop";
  try {
    const claims = await verifier.verify(token, await presentedBy(shown, url));
    checkScheme(claims, isDPoP);
    return { subject: claims.sub, askedBy: claims.act?.sub ?? claims.sub, claims };
  } catch (error) {
    const refused = refusalOf(error, isDPoP);
    onRefused(error as KKPError);
    return refused;
  }
}

/** Refuse a token that is bound to a key and shown as if it were not, or the other way round. */
function checkScheme({ cnf }: Claims, isDPoP: boolean): void {
  const isBoundToKey = cnf !== undefined && "jkt" in cnf;
  if (isBoundToKey && !isDPoP) throw refusal("proof_missing");
  if (!isBoundToKey && isDPoP) throw refusal("not_bound");
}

async function presentedBy(shown: Shown, url: string): Promise<Presented> {
  const { certificate } = shown;
  return {
    proof: proofOf(shown, url),
    certificateSHA256:
      certificate instanceof Uint8Array ? await certificateThumbprint(certificate) : certificate,
  };
}

function proofOf({ proofs, method, path }: Shown, url: string): PresentedProof | undefined {
  if (proofs.length === 0) return undefined;
  // Of two proofs neither counts: joined they are none.
  return { proof: proofs.join(", "), method, url: url + path };
}

/** Return what a stranger is told; what is no verdict is not for strangers, and is thrown on. */
function refusalOf(error: unknown, isDPoP: boolean): Refusal {
  if (error instanceof KeysUnavailableError || error instanceof RevocationsUnavailableError) {
    return { status: 503, code: error.code, challenges: [] };
  }
  if (!(error instanceof TokenError)) throw error;
  return { status: 401, code: error.code, challenges: [challengeTo(error, isDPoP)] };
}

function challengeTo({ code, reason }: TokenError, isDPoP: boolean): string {
  const name = reason === "wrong_proof" ? "invalid_dpop_proof" : "invalid_token";
  const description = code === "token_expired" ? ', error_description="expired"' : "";
  const parameters = `realm="kkp", error="${name}"${description}`;
  return isDPoP || ABOUT_PROOFS.has(reason) ? `DPoP ${parameters}, ${ALGORITHMS}` : `Bearer ${parameters}`;
}

function shownBy(request: Request, { certificate }: GuardOptions<Request>): Shown {
  const [authorization, proof] = [request.headers.get("authorization"), request.headers.get("dpop")];
  return {
    authorization: authorization === null ? [] : [authorization],
    proofs: proof === null ? [] : [proof],
    method: request.method,
    path: new URL(request.url).pathname,
    certificate: certificate?.(request),
  };
}

function shownByNode<R extends NodeRequest>(request: R, { certificate }: GuardOptions<R>): Shown {
  return {
    authorization: valuesOf(request, "authorization"),
    proofs: valuesOf(request, "dpop"),
    method: request.method ?? "",
    path: pathOf(request.originalUrl ?? request.url ?? ""),
    certificate: certificate === undefined ? peerCertificateOf(request.socket) : certificate(request),
  };
}

function valuesOf({ headers, rawHeaders }: NodeRequest, name: string): readonly string[] {
  if (rawHeaders === undefined) return [headers[name] ?? []].flat();
  return rawHeaders.filter((_, index) => index % 2 === 1 && rawHeaders[index - 1]?.toLowerCase() === name);
}

/** Return the path of a request's target, which may be a whole URL (RFC 9112 section 3.2.2). */
function pathOf(target: string): string {
  const path = target.replace(/^https?:\/\/[^/?#]*/i, "");
  // What stands behind the service's URL must not go on with its host: `.elsewhere.example/` is no path.
  return path.startsWith("/") ? path : `/${path}`;
}

/** Return the DER of the certificate whose key the TLS handshake showed the caller to have. */
function peerCertificateOf(socket: object): Bytes | undefined {
  if (!("getPeerCertificate" in socket) || typeof socket.getPeerCertificate !== "function") return undefined;
  const { raw } = socket.getPeerCertificate() ?? {};
  return raw instanceof Uint8Array ? Uint8Array.from(raw) : undefined;
}

function headersOf({ challenges }: Refusal): Headers {
  const headers = new Headers({ "Content-Type": "application/problem+json", "Cache-Control": "no-store" });
  for (const challenge of challenges) headers.append("WWW-Authenticate", challenge);
  return headers;
}

function nodeHeadersOf({ challenges }: Refusal): Record<string, string | string[]> {
  return {
    "Content-Type": "application/problem+json",
    "Cache-Control": "no-store",
    ...(challenges.length > 0 && { "WWW-Authenticate": [...challenges] }),
  };
}

function bodyOf({ status, code }: Refusal): string {
  return JSON.stringify({ type: "about:blank", title: TITLES[status], status, code });
}

function checkedServiceURL(url: string): string {
  if (normalisedURL(url) === undefined || /[?#]/.test(url)) {
    throw new ConfigurationError(
      "url is the one that callers know the service by, without query and fragment",
    );
  }
  return url.replace(/\/+$/, "");
}
