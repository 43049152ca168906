/**
 * Strict JSON: RFC 8259 in UTF-8, and nothing that two readers could read differently.
 *
 * Refused beside what RFC 8259 refuses: invalid UTF-8, a byte order mark, a name twice in one object, at any
 * depth, a lone surrogate, and arrays or objects nested more than 32 deep, the top being 1.
 *
 * `JSON.parse` is not used: it takes the last of two like names, sets `__proto__`, and rounds numbers. Objects
 * are Maps here, so that no name means anything to the language, and numbers keep the text they were written
 * with, so that a caller can tell `1` from `1.0`, and 2^53 from 2^53 + 1.
 */

import { decodeUTF8, isWellFormed } from "./encoding.js";

/** A number as it was written; never read as a number unless a caller asks for an integer. */
export class JSONNumber {
  constructor(readonly literal: string) {}

  /** The number, if it is written with digits alone and at most 2^53 - 1. */
  asInteger(): number | undefined {
    // Sixteen digits are read exactly enough to be compared with 2^53 - 1: all up to 2^53 + 1 are apart from it.
    if (this.literal.length > 16 || !DIGITS.test(this.literal)) return undefined;
    const value = Number(this.literal);
    return value <= Number.MAX_SAFE_INTEGER ? value : undefined;
  }
}

export type JSONObject = ReadonlyMap<string, JSONValue>;
export type JSONValue = null | boolean | string | JSONNumber | readonly JSONValue[] | JSONObject;

/** What is no strict JSON. Says nothing of the text: callers turn it into an error of their own. */
export class StrictJSONError extends Error {}

export const MAX_DEPTH = 32;

const DIGITS = /^[0-9]+$/;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const HEX4 = /^[0-9A-Fa-f]{4}$/;

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_BRACKET = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_BRACKET = 0x5d;
const LETTER_F = 0x66;
const LETTER_N = 0x6e;
const LETTER_T = 0x74;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

const ESCAPES: ReadonlyMap<string, string> = new Map([
  ['"', '"'],
  ["\\", "\\"],
  ["/", "/"],
  ["b", "\b"],
  ["f", "\f"],
  ["n", "\n"],
  ["r", "\r"],
  ["t", "\t"],
]);

/** Return the value that `bytes` are the strict JSON of, or throw `StrictJSONError`. */
export function parseStrictJSON(bytes: Uint8Array): JSONValue {
  const text = decodeUTF8(bytes);
  if (text === undefined) throw new StrictJSONError("not UTF-8");
  // A byte order mark is kept in the text, and refused like any other stray character.
  return new Parser(text).parse();
}

/** Return the object that `bytes` are the strict JSON of, or throw `StrictJSONError`. */
export function parseStrictObject(bytes: Uint8Array): JSONObject {
  const value = parseStrictJSON(bytes);
  if (!isObject(value)) throw new StrictJSONError("the top is not an object");
  return value;
}

export function isObject(value: JSONValue | undefined): value is JSONObject {
  return value instanceof Map;
}

export function isArray(value: JSONValue | undefined): value is readonly JSONValue[] {
  return Array.isArray(value);
}

class Parser {
  private at = 0;
  private depth = 0;

  constructor(private readonly text: string) {}

  parse(): JSONValue {
    const value = this.value();
    this.skipSpace();
    if (this.at !== this.text.length) throw new StrictJSONError("something behind the value");
    return value;
  }

  private value(): JSONValue {
    this.skipSpace();
    switch (this.text.charCodeAt(this.at)) {
      case QUOTE:
        return this.string();
      case OPEN_BRACE:
        return this.object();
      case OPEN_BRACKET:
        return this.array();
      case LETTER_T:
        return this.word("true", true);
      case LETTER_F:
        return this.word("false", false);
      case LETTER_N:
        return this.word("null", null);
      default:
        return this.number();
    }
  }

  private enter(): void {
    if (this.depth === MAX_DEPTH) throw new StrictJSONError("nested too deep");
    this.depth += 1;
    this.at += 1;
  }

  private leave(unit: number): void {
    if (!this.takes(unit)) throw new StrictJSONError("no end where one must be");
    this.depth -= 1;
  }

  private object(): JSONObject {
    const members = new Map<string, JSONValue>();
    this.enter();
    if (!this.isNext(CLOSE_BRACE)) {
      do this.member(members);
      while (this.takes(COMMA));
    }
    this.leave(CLOSE_BRACE);
    return members;
  }

  private member(members: Map<string, JSONValue>): void {
    this.skipSpace();
    const name = this.string();
    if (members.has(name)) throw new StrictJSONError("a name twice");
    if (!this.takes(COLON)) throw new StrictJSONError("a name without a value");
    members.set(name, this.value());
  }

  private array(): readonly JSONValue[] {
    const items: JSONValue[] = [];
    this.enter();
    if (!this.isNext(CLOSE_BRACKET)) {
      do items.push(this.value());
      while (this.takes(COMMA));
    }
    this.leave(CLOSE_BRACKET);
    return items;
  }

  private string(): string {
    if (this.text.charCodeAt(this.at) !== QUOTE) throw new StrictJSONError("no string where one must be");
    this.at += 1;
    const plain = this.plainText();
    return this.takesHere(QUOTE) ? plain : this.escapedString(plain);
  }

  private escapedString(begin: string): string {
    let value = begin;
    while (!this.takesHere(QUOTE)) value += this.escape() + this.plainText();
    // Only an escape can make one: text that was decoded from UTF-8 has none.
    if (!isWellFormed(value)) throw new StrictJSONError("a lone surrogate");
    return value;
  }

  /** Read on to the next quote or backslash. */
  private plainText(): string {
    const start = this.at;
    for (;;) {
      const unit = this.text.charCodeAt(this.at);
      if (unit === QUOTE || unit === BACKSLASH) return this.text.slice(start, this.at);
      // The end of the text is no number, and so not at least a space either.
      if (!(unit >= 0x20)) throw new StrictJSONError("a control character, or no end, in a string");
      this.at += 1;
    }
  }

  private escape(): string {
    const letter = this.text.charAt(this.at + 1);
    this.at += 2;
    if (letter === "u") return this.unicodeEscape();
    const character = ESCAPES.get(letter);
    if (character === undefined) throw new StrictJSONError("an escape that JSON does not have");
    return character;
  }

  private unicodeEscape(): string {
    const digits = this.text.slice(this.at, this.at + 4);
    if (!HEX4.test(digits)) throw new StrictJSONError("an escape that JSON does not have");
    this.at += 4;
    return String.fromCharCode(Number.parseInt(digits, 16));
  }

  private word<T extends JSONValue>(word: string, value: T): T {
    if (!this.text.startsWith(word, this.at)) throw new StrictJSONError("no value where one must be");
    this.at += word.length;
    return value;
  }

  private number(): JSONNumber {
    NUMBER.lastIndex = this.at;
    const literal = NUMBER.exec(this.text)?.[0];
    if (literal === undefined) throw new StrictJSONError("no value where one must be");
    this.at += literal.length;
    return new JSONNumber(literal);
  }

  private takes(unit: number): boolean {
    this.skipSpace();
    return this.takesHere(unit);
  }

  private takesHere(unit: number): boolean {
    if (this.text.charCodeAt(this.at) !== unit) return false;
    this.at += 1;
    return true;
  }

  private isNext(unit: number): boolean {
    this.skipSpace();
    return this.text.charCodeAt(this.at) === unit;
  }

  private skipSpace(): void {
    for (;;) {
      const unit = this.text.charCodeAt(this.at);
      if (unit !== 0x20 && unit !== 0x0a && unit !== 0x0d && unit !== 0x09) return;
      this.at += 1;
    }
  }
}
