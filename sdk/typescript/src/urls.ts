/** Where KKP is. */

import { ConfigurationError } from "./errors.js";
import { normalisedURL } from "./htu.js";

const LOOPBACK = /^(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])$/;

/**
 * Return a URL that requests may be sent below, without slashes at its end; throws `ConfigurationError`.
 *
 * It has no user, query or fragment, and is `https:`, or `http:` to this machine alone unless told otherwise.
 */
export function checkedURL(url: string, allowHTTP = false): string {
  const parsed = parsedURL(url);
  if (parsed === undefined || /[?#]/.test(url)) {
    throw new ConfigurationError("a URL of http or https without user, query and fragment is needed");
  }
  if (parsed.protocol !== "https:" && !allowHTTP && !LOOPBACK.test(parsed.hostname)) {
    throw new ConfigurationError("http is for this machine alone: use https");
  }
  return url.replace(/\/+$/, "");
}

function parsedURL(url: string): URL | undefined {
  // The platform's parser mends a good deal; what it would have to mend is refused first.
  if (typeof url !== "string" || normalisedURL(url) === undefined) return undefined;
  try {
    return new URL(url);
  } catch {
    return undefined;
  }
}
