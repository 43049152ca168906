/** What `@kkp/client` offers. Everything that is not named here is its own affair and may change. */

export type { Result } from "./batches.js";
export type { Claims, Confirmation, Operation } from "./claims.js";
export {
  type CallOptions,
  type ClientOptions,
  type Credential,
  KKPClient,
  type OpeningOptions,
  type SealingKey,
} from "./client.js";
export { DPoPKey, type PresentedProof, type ProofAlgorithm, type ProofRequest } from "./dpop.js";
export type {
  AnyEnvelope,
  Context,
  DetachedEnvelope,
  Encoding,
  Envelope,
  EnvelopeJSON,
  Moved,
  Opened,
  StreamEnvelope,
} from "./envelope.js";
export * from "./errors.js";
export type { Pairs } from "./forms.js";
export {
  type Caller,
  certificateThumbprint,
  fetchGuard,
  type GuardOptions,
  type NodeRequest,
  type NodeResponse,
  nodeGuard,
  type Verifies,
} from "./guards.js";
export type { Fetch } from "./http.js";
export { KeySet, type PublicKey } from "./keys.js";
export { LocalEnvelope, type StreamOptions } from "./local.js";
export type { Introspection, Message, Opening, Sealing, Target } from "./operations.js";
export type { AccessToken, PolicyContext, Scope } from "./protocol.js";
export type { KeysReason, Reason, RevocationsReason, TokenReason } from "./refusals.js";
export { ReplayMemory } from "./replayMemory.js";
export { type RevocationList, type RevocationListChecks, verifyRevocationList } from "./revocations.js";
export { type Presented, type TokenChecks, verifyToken } from "./tokens.js";
export { TokenVerifier, type TokenVerifierOptions } from "./verifier.js";
