/**
 * How long a call may take, with everything in it, and what its caller may stop before.
 *
 * Once time is up, or the caller has stopped, `signal` is aborted, and every wait here ends with the reason:
 * `TransportError` `timeout`, or the caller's own.
 */

import { TransportError } from "./errors.js";

export class Deadline {
  readonly #controller = new AbortController();
  readonly #endsAt: number;

  private constructor(seconds: number) {
    this.#endsAt = performance.now() + seconds * 1000;
  }

  /** Run a step of this many seconds at the most; `what` is whose answer it waits for. */
  static async within<T>(
    seconds: number,
    what: string,
    signal: AbortSignal | undefined,
    step: (deadline: Deadline) => Promise<T>,
  ): Promise<T> {
    signal?.throwIfAborted();
    const deadline = new Deadline(seconds);
    const stop = () => deadline.#controller.abort(signal?.reason);
    const timeUp = () =>
      deadline.#controller.abort(new TransportError("timeout", `${what} did not answer within ${seconds} s`));
    const timer = setTimeout(timeUp, seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
    try {
      return await deadline.wait(step(deadline));
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", stop);
    }
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get remainingSeconds(): number {
    return (this.#endsAt - performance.now()) / 1000;
  }

  /** Wait for what goes on by itself, or for the deadline, whichever comes first. */
  wait<T>(promise: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const stop = () => reject(this.signal.reason);
      this.signal.addEventListener("abort", stop, { once: true });
      if (this.signal.aborted) stop();
      promise.then(resolve, reject).finally(() => this.signal.removeEventListener("abort", stop));
    });
  }

  sleep(seconds: number): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const slept = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, seconds * 1000);
    });
    return this.wait(slept).finally(() => clearTimeout(timer));
  }
}
