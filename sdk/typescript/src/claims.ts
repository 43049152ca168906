/**
 * What a KKP token says. Claims that are not KKP's are passed over; KKP's have their form, or there are none.
 */

import { decodeBase64url } from "./encoding.js";
import {
  FormError,
  integer,
  list,
  nonEmptyText,
  objectOf,
  optional,
  type Pairs,
  pairs,
  text,
} from "./forms.js";
import type { JSONObject, JSONValue } from "./strictJson.js";

export type Operation = "encrypt" | "decrypt" | "rewrap";

const OPERATIONS: ReadonlySet<string> = new Set<Operation>(["encrypt", "decrypt", "rewrap"]);
const THUMBPRINT_BYTES = 32;

/** The key without which the token is worth nothing: one that signs DPoP proofs, or a client certificate. */
export type Confirmation = { readonly jkt: string } | { readonly "x5t#S256": string };

/** The claims of a token that was verified. Names are those of the token; times are Unix seconds. */
export interface Claims {
  readonly iss: string;
  /** Whom the token speaks for. */
  readonly sub: string;
  readonly aud: string;
  readonly iat: number;
  readonly nbf: number;
  readonly exp: number;
  readonly jti: string;
  readonly backend: string;
  readonly key_id: string;
  /** What it may be used for at KKP; empty for a token that says who somebody is, and no more. */
  readonly ops: readonly Operation[];
  readonly policy_claims: Pairs;
  /** Pairs that an envelope's context must contain; empty where the token names none. */
  readonly context: Pairs;
  /** Who asked, where that is not `sub`. */
  readonly act?: { readonly sub: string };
  readonly cnf?: Confirmation;
  /** What is known of whoever asked, where KKP has it from another issuer or a certificate. */
  readonly federated?: { readonly mapping: string; readonly attributes: Pairs };
}

/** Return the claims, or throw `FormError`. */
export function readClaims(members: JSONObject): Claims {
  const act = optional(members, "act", readActor);
  const cnf = optional(members, "cnf", readConfirmation);
  const federated = optional(members, "federated", readFederated);
  const claims: Claims = {
    iss: nonEmptyText(members.get("iss")),
    sub: nonEmptyText(members.get("sub")),
    aud: nonEmptyText(members.get("aud")),
    iat: integer(members.get("iat")),
    nbf: integer(members.get("nbf")),
    exp: integer(members.get("exp")),
    jti: nonEmptyText(members.get("jti")),
    backend: nonEmptyText(members.get("backend")),
    key_id: nonEmptyText(members.get("key_id")),
    ops: readOperations(members.get("ops")),
    policy_claims: pairs(members.get("policy_claims")),
    context: optional(members, "context", pairs) ?? Object.create(null),
    ...(act && { act }),
    ...(cnf && { cnf }),
    ...(federated && { federated }),
  };
  if (claims.iat > claims.exp || claims.nbf > claims.exp)
    throw new FormError("times that contradict each other");
  return claims;
}

function readOperations(value: JSONValue | undefined): readonly Operation[] {
  const operations = list(value, text);
  if (new Set(operations).size !== operations.length) throw new FormError("an operation twice");
  if (!operations.every(isOperation)) throw new FormError("an operation that KKP does not have");
  return operations;
}

function isOperation(name: string): name is Operation {
  return OPERATIONS.has(name);
}

function readActor(value: JSONValue | undefined): { readonly sub: string } {
  return { sub: text(objectOf(value, "sub").get("sub")) };
}

function readConfirmation(value: JSONValue | undefined): Confirmation {
  const members = objectOf(value, "jkt", "x5t#S256");
  if (members.size !== 1) throw new FormError("not one key");
  return members.has("jkt")
    ? { jkt: thumbprint(members.get("jkt")) }
    : { "x5t#S256": thumbprint(members.get("x5t#S256")) };
}

function thumbprint(value: JSONValue | undefined): string {
  const given = text(value);
  if (decodeBase64url(given)?.length !== THUMBPRINT_BYTES) throw new FormError("no thumbprint");
  return given;
}

function readFederated(value: JSONValue | undefined): NonNullable<Claims["federated"]> {
  const members = objectOf(value, "mapping", "attributes");
  return {
    mapping: text(members.get("mapping")),
    attributes: optional(members, "attributes", pairs) ?? Object.create(null),
  };
}
