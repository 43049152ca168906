/**
 * Bytes and their texts: base64url in its one spelling, UTF-8, digests and comparisons.
 *
 * A base64url text has one spelling (RFC 4648 section 5): padding, other letters and stray trailing bits are
 * refused, so that nothing signed or counted can be spelt twice. Nothing here knows what the bytes mean.
 */

/** Bytes that WebCrypto and fetch take: not a view of memory that another thread may change. */
export type Bytes = Uint8Array<ArrayBuffer>;

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const NO_LETTER = -1;
const SEXTETS = sextets();

// With the flag `u` a pair is one character, so that only a surrogate alone is of this category.
const LONE_SURROGATE = /\p{Cs}/u;

const UTF8_ENCODER = new TextEncoder();
const UTF8_DECODER = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Return the bytes that `text` is the one spelling of, or undefined. */
export function decodeBase64url(text: string): Bytes | undefined {
  const whole = text.length & ~3;
  const bytes = new Uint8Array((text.length * 3) >> 2);
  let length = 0;
  for (let i = 0; i < whole; i += 4) {
    const group =
      (sextet(text, i) << 18) |
      (sextet(text, i + 1) << 12) |
      (sextet(text, i + 2) << 6) |
      sextet(text, i + 3);
    if (group < 0) return undefined;
    bytes[length++] = group >> 16;
    bytes[length++] = group >> 8;
    bytes[length++] = group;
  }
  return decodeRest(text, whole, bytes, length) ? bytes : undefined;
}

/** Decode the one or two bytes behind the last whole group of four letters; tells whether they are spelt right. */
function decodeRest(text: string, from: number, bytes: Uint8Array, length: number): boolean {
  const letters = text.length - from;
  if (letters === 0) return true;
  if (letters === 1) return false;
  const third = letters === 3 ? sextet(text, from + 2) : 0;
  const group = (sextet(text, from) << 18) | (sextet(text, from + 1) << 12) | (third << 6);
  bytes[length] = group >> 16;
  if (letters === 3) bytes[length + 1] = group >> 8;
  // Bits that are left over must be zero, or the same bytes would have several spellings.
  return group >= 0 && (group & (letters === 3 ? 0xff : 0xffff)) === 0;
}

/** Return the six bits of a letter, or a number whose shifts and unions with others are negative. */
function sextet(text: string, at: number): number {
  return SEXTETS[text.charCodeAt(at)] ?? NO_LETTER;
}

export function encodeBase64url(bytes: Uint8Array): string {
  const letters = new Uint8Array(Math.ceil(bytes.length / 3) * 4);
  let at = 0;
  for (let i = 0; i < bytes.length; i += 3) {
    const group = ((bytes[i] ?? 0) << 16) | ((bytes[i + 1] ?? 0) << 8) | (bytes[i + 2] ?? 0);
    letters[at++] = letter(group >> 18);
    letters[at++] = letter(group >> 12);
    letters[at++] = letter(group >> 6);
    letters[at++] = letter(group);
  }
  // What the last group has beyond the bytes is left out: there is no padding.
  return UTF8_DECODER.decode(letters.subarray(0, Math.ceil((bytes.length * 4) / 3)));
}

/** Return the bytes of what has some, of whatever kind it is, or undefined. */
export function bytesOf(value: unknown): Uint8Array | undefined {
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return value instanceof ArrayBuffer ? new Uint8Array(value) : undefined;
}

/** Tell whether a text has no lone surrogate, which UTF-8 has no bytes for. */
export function isWellFormed(text: string): boolean {
  return !LONE_SURROGATE.test(text);
}

/** Return the bytes that `text` is the padded base64 of (RFC 4648 section 4), in its one spelling, or undefined. */
export function decodeBase64(text: string): Bytes | undefined {
  if (text.length % 4 !== 0 || /[-_]/.test(text)) return undefined;
  return decodeBase64url(
    text
      .replace(/={1,2}$/, "")
      .replaceAll("+", "-")
      .replaceAll("/", "_"),
  );
}

export function encodeBase64(bytes: Uint8Array): string {
  const text = encodeBase64url(bytes).replaceAll("-", "+").replaceAll("_", "/");
  return text.padEnd(Math.ceil(text.length / 4) * 4, "=");
}

export function encodeUTF8(text: string): Bytes {
  return UTF8_ENCODER.encode(text);
}

/** Return the text that `bytes` are the UTF-8 of, with a byte order mark kept, or undefined. */
export function decodeUTF8(bytes: Uint8Array): string | undefined {
  try {
    return UTF8_DECODER.decode(bytes);
  } catch {
    return undefined;
  }
}

export function concatenate(...parts: readonly Uint8Array[]): Bytes {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export async function sha256(bytes: Bytes): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
}

/** Compare without telling by the time taken where two values of one length differ. */
export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= (a[i] ?? 0) ^ (b[i] ?? 0);
  return difference === 0;
}

function letter(bits: number): number {
  return LETTERS.charCodeAt(bits & 63);
}

function sextets(): Int8Array {
  const table = new Int8Array(128).fill(NO_LETTER);
  for (let value = 0; value < LETTERS.length; value++) table[LETTERS.charCodeAt(value)] = value;
  return table;
}
