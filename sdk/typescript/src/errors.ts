/**
 * Every error this package throws on purpose.
 *
 * `code` is stable and what a program branches on; `reason`, where there is one, is stable too and says which
 * rule refused a token. Neither a message nor a property ever holds a token, a key, a proof, a plaintext or an
 * answer's body, and no foreign error is kept as `cause`: what it says is not ours to vouch for.
 *
 * ```
 * KKPError
 * ├── ConfigurationError           invalid_configuration
 * ├── TokenError                   token_invalid, token_expired, audience_mismatch
 * ├── KeysUnavailableError         keys_unavailable
 * ├── RevocationsUnavailableError  revocations_unavailable
 * ├── EnvelopeInvalidError         envelope_invalid
 * ├── TransportError               unreachable, timeout, bad_answer
 * └── ProblemError                 the code of KKP's problem document
 * ```
 */

/** What an error may say beside its code and message; left out where there is nothing to say. */
export interface ErrorDetails {
  readonly reason?: string | undefined;
  readonly status?: number | undefined;
  readonly requestId?: string | undefined;
  readonly decisionId?: string | undefined;
  readonly reasons?: readonly string[] | undefined;
  readonly retryAfterSeconds?: number | undefined;
  readonly approvalId?: string | undefined;
  readonly approvalExpiresAt?: number | undefined;
}

/** The root of the tree. */
export abstract class KKPError extends Error {
  readonly code: string;
  readonly reason: string | undefined;
  readonly status: number | undefined;
  readonly requestId: string | undefined;
  readonly decisionId: string | undefined;
  readonly reasons: readonly string[] | undefined;
  readonly retryAfterSeconds: number | undefined;
  /** What to hand to somebody who may approve it, where KKP wants that first. */
  readonly approvalId: string | undefined;
  /** Until when it waits for them, in Unix seconds. */
  readonly approvalExpiresAt: number | undefined;

  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(message);
    this.code = code;
    this.reason = details.reason;
    this.status = details.status;
    this.requestId = details.requestId;
    this.decisionId = details.decisionId;
    this.reasons = details.reasons;
    this.retryAfterSeconds = details.retryAfterSeconds;
    this.approvalId = details.approvalId;
    this.approvalExpiresAt = details.approvalExpiresAt;
  }

  /** Written out in each class, since a bundler may rename those. */
  abstract override get name(): string;
}

/** What a client or verifier was made with can't be used. */
export class ConfigurationError extends KKPError {
  constructor(message: string) {
    super("invalid_configuration", message);
  }

  override get name(): string {
    return "ConfigurationError";
  }
}

export type TokenErrorCode = "token_invalid" | "token_expired" | "audience_mismatch";

/** A verdict: the token, or what was handed in with it, is refused. */
export class TokenError extends KKPError {
  declare readonly code: TokenErrorCode;
  declare readonly reason: string;

  constructor(code: TokenErrorCode, reason: string, message: string) {
    super(code, message, { reason });
  }

  override get name(): string {
    return "TokenError";
  }
}

/** There are no keys to verify with, or none young enough; the message says what could not be fetched, from where. */
export class KeysUnavailableError extends KKPError {
  declare readonly code: "keys_unavailable";

  constructor(reason: string, message: string) {
    super("keys_unavailable", message, { reason });
  }

  override get name(): string {
    return "KeysUnavailableError";
  }
}

/** Revocations are wanted and there is no list, or none that can still be trusted. */
export class RevocationsUnavailableError extends KKPError {
  declare readonly code: "revocations_unavailable";

  constructor(reason: string, message: string) {
    super("revocations_unavailable", message, { reason });
  }

  override get name(): string {
    return "RevocationsUnavailableError";
  }
}

/** An envelope that does not open, whatever the cause: one error, so that it is no oracle. */
export class EnvelopeInvalidError extends KKPError {
  declare readonly code: "envelope_invalid";

  constructor(message = "the envelope does not open", details: ErrorDetails = {}) {
    super("envelope_invalid", message, details);
  }

  override get name(): string {
    return "EnvelopeInvalidError";
  }
}

export type TransportErrorCode = "unreachable" | "timeout" | "bad_answer";

/** KKP could not be reached, did not answer in time, or answered what KKP does not say. */
export class TransportError extends KKPError {
  declare readonly code: TransportErrorCode;

  constructor(code: TransportErrorCode, message: string, details: ErrorDetails = {}) {
    super(code, message, details);
  }

  override get name(): string {
    return "TransportError";
  }
}

/** KKP refused, and said why in a problem document. */
export class ProblemError extends KKPError {
  declare readonly status: number;

  override get name(): string {
    return "ProblemError";
  }
}
