/** How far clocks may be apart. */

import { ConfigurationError } from "./errors.js";

export const DEFAULT_LEEWAY_SECONDS = 5;
const MAX_LEEWAY_SECONDS = 60;

/** Return a leeway that may be granted; throws `ConfigurationError` for another, also for what is no number. */
export function checkedLeeway(seconds: number): number {
  if (!(seconds >= 0 && seconds <= MAX_LEEWAY_SECONDS)) {
    throw new ConfigurationError(`leewaySeconds is from 0 to ${MAX_LEEWAY_SECONDS}`);
  }
  return seconds;
}
