/**
 * The forms that members of signed JSON have: what is of another one is refused, never converted.
 *
 * Each function takes a value, which is undefined where a member is missing, and returns it in its form.
 */

import { isArray, isObject, JSONNumber, type JSONObject, type JSONValue } from "./strictJson.js";

export const MAX_PAIRS = 32;

/** A value of another form; says nothing of it: callers turn it into an error of their own. */
export class FormError extends Error {}

/** Names to texts. Made without a prototype: no name of a stranger's means anything to the language. */
export type Pairs = Readonly<Record<string, string>>;

export function text(value: JSONValue | undefined): string {
  if (typeof value !== "string") throw new FormError("no text");
  return value;
}

export function nonEmptyText(value: JSONValue | undefined): string {
  const given = text(value);
  if (given === "") throw new FormError("an empty text");
  return given;
}

/** A number written with digits alone, at most 2^53 - 1. */
export function integer(value: JSONValue | undefined): number {
  const given = value instanceof JSONNumber ? value.asInteger() : undefined;
  if (given === undefined) throw new FormError("no whole number");
  return given;
}

export function object(value: JSONValue | undefined): JSONObject {
  if (!isObject(value)) throw new FormError("no object");
  return value;
}

export function list<T>(value: JSONValue | undefined, form: (item: JSONValue) => T): readonly T[] {
  if (!isArray(value)) throw new FormError("no list");
  return value.map(form);
}

export function pairs(value: JSONValue | undefined): Pairs {
  const given = object(value);
  if (given.size > MAX_PAIRS) throw new FormError("too many pairs");
  const result: Record<string, string> = Object.create(null);
  for (const [name, item] of given) result[name] = text(item);
  return result;
}

/** An object without other members than these. Which of them must be there is for whoever reads them. */
export function objectOf(value: JSONValue | undefined, ...names: readonly string[]): JSONObject {
  const given = object(value);
  for (const name of given.keys()) if (!names.includes(name)) throw new FormError("another member");
  return given;
}

/** Read a member that may be left out; where it is there, `null` included, it has its form. */
export function optional<T>(
  members: JSONObject,
  name: string,
  form: (value: JSONValue | undefined) => T,
): T | undefined {
  return members.has(name) ? form(members.get(name)) : undefined;
}
