/** The forms of what a program hands in, whose compiler may not have looked; what is refused is never quoted. */

import type { Context } from "./envelope.js";
import { ConfigurationError } from "./errors.js";

/**
 * Refuse names in the spelling of KKP's own API: `dpop_key` would be passed over, and tokens be bound to nothing.
 *
 * Other names are passed over, since an object of somebody's own may have members of its own.
 */
export function checkedSpelling(options: object, ...names: readonly string[]): void {
  for (const name of names) {
    const other = name.replace(/[A-Z]+/g, (capitals) => `_${capitals.toLowerCase()}`);
    if (other in options) throw new ConfigurationError(`${other} is spelt ${name} here`);
  }
}

/** Return a text that is not empty, such as the name of a key, an audience or an issuer. */
export function checkedName(name: unknown, option: string): string {
  if (typeof name === "string" && name !== "") return name;
  throw new ConfigurationError(`${option} is needed: a text that is not empty`);
}

/** Return names with their texts. Null is none of them, nor is a `Map`, whose pairs would be passed over. */
export function checkedPairs(pairs: unknown, option: string): Context | undefined {
  if (pairs === undefined || (isPlain(pairs) && Object.values(pairs).every(isText))) {
    return pairs as Context | undefined;
  }
  throw new ConfigurationError(`${option} is an object of texts, or left out`);
}

function isPlain(value: unknown): value is object {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  // Another realm has an Object of its own, whose prototype is the end of the chain as well.
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function isText(value: unknown): value is string {
  return typeof value === "string";
}
