/**
 * How many operations of one kind go in how many requests. Pure.
 */

import { encodeUTF8 } from "./encoding.js";
import { KKPError } from "./errors.js";
import type { Operation } from "./operations.js";
import { jsonOf, readItems } from "./protocol.js";
import type { JSONObject } from "./strictJson.js";

/** What became of one of many. */
export type Result<T> = T | KKPError;

/** One operation of many, its place among them, and its JSON. */
export interface Item<T> {
  readonly operation: Operation<T>;
  readonly place: number;
  readonly json: string;
}

/** What became of the one at a place. */
export interface Placed<T> {
  readonly place: number;
  readonly result: Result<T>;
}

const MAX_ITEMS = 1000;
const MAX_ITEMS_BYTES = 7 * 1024 * 1024; // KKP takes 8 MiB, with what is around the items

/** Cut operations into requests: each under one token, as a token is for one key, and not too long for KKP. */
export function requests<T>(
  operations: readonly Result<Operation<T>>[],
  tokenName: (operation: Operation<T>) => string,
): readonly (readonly Item<T>[])[] {
  const all: Item<T>[][] = [];
  const open = new Map<string, { items: Item<T>[]; bytes: number }>();
  operations.forEach((operation, place) => {
    if (operation instanceof KKPError) return;
    const item = { operation, place, json: jsonOf(operation.members) };
    const bytes = encodeUTF8(item.json).length;
    const name = tokenName(operation);
    let request = open.get(name);
    if (
      request === undefined ||
      request.items.length === MAX_ITEMS ||
      request.bytes + bytes > MAX_ITEMS_BYTES
    ) {
      request = { items: [], bytes: 0 };
      open.set(name, request);
      all.push(request.items);
    }
    request.items.push(item);
    request.bytes += bytes;
  });
  return all;
}

export function bodyOf<T>(items: readonly Item<T>[]): string {
  return `{"items":[${items.map(({ json }) => json).join(",")}]}`;
}

/** Read a batch's answer: for each item what it came to, or its error. */
export function readResults<T>(document: JSONObject, items: readonly Item<T>[]): readonly Placed<T>[] {
  const answers = readItems(document, items.length);
  return items.map(({ operation, place }, index) => {
    const answer = answers[index] as JSONObject | KKPError;
    return { place, result: answer instanceof KKPError ? answer : orError(() => operation.read(answer)) };
  });
}

/** Return what a step returns, or its error, if it is one of ours. */
export function orError<T>(step: () => T): Result<T> {
  try {
    return step();
  } catch (error) {
    if (error instanceof KKPError) return error;
    throw error;
  }
}
