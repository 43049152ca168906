/** Where KKP is. Nothing is asked in clear but of this machine, where nobody listens, unless told otherwise. */

import { ConfigurationError } from "./errors.js";

const LOOPBACK = /^(localhost|127(\.[0-9]+){3}|\[::1\])$/;

/**
 * Return a URL without the slash at its end, if requests may go there: `https:`, or `http:` to loopback.
 *
 * It has no user, no password, no query and no fragment: what stands there would end up in logs, or be lost.
 */
export function checkedURL(url: string | URL, allowHTTP = false): string {
  const text = String(url);
  const parsed = URL.canParse(text) ? new URL(text) : undefined;
  if (parsed === undefined || /[?#@]/.test(text)) {
    throw new ConfigurationError("a URL must be absolute, without user, query and fragment");
  }
  const isPrivate = parsed.protocol === "http:" && (allowHTTP || LOOPBACK.test(parsed.hostname));
  if (parsed.protocol !== "https:" && !isPrivate) {
    throw new ConfigurationError(
      "a URL must be https, or http to this machine itself, unless http is allowed",
    );
  }
  return parsed.href.replace(/\/+$/, "");
}
