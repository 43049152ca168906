/**
 * Bytes and their texts: base64url in its one spelling, UTF-8, digests and comparisons.
 *
 * A base64url text has one spelling (RFC 4648 section 5): padding, other letters and stray trailing bits are
 * refused, so that nothing signed or counted can be spelt twice. Nothing here knows what the bytes mean.
 */

/** Bytes that WebCrypto and fetch take: not a view of memory that another thread may change. */
export type Bytes = Uint8Array<ArrayBuffer>;

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const NO_LETTER = 0xff;
const SEXTETS = sextets();

// With the flag `u` a pair is one character, so that only a surrogate alone is of this category.
const LONE_SURROGATE = /\p{Cs}/u;

const UTF8_ENCODER = new TextEncoder();
const UTF8_DECODER = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Return the bytes that `text` is the one spelling of, or undefined. */
export function decodeBase64url(text: string): Bytes | undefined {
  const remainder = text.length % 4;
  if (remainder === 1) return undefined;
  const bytes = new Uint8Array(Math.floor((text.length * 3) / 4));
  let held = 0;
  let heldBits = 0;
  let length = 0;
  for (let i = 0; i < text.length; i++) {
    const sextet = SEXTETS[text.charCodeAt(i)] ?? NO_LETTER;
    if (sextet === NO_LETTER) return undefined;
    held = ((held << 6) | sextet) & 0xffff;
    heldBits += 6;
    if (heldBits >= 8) {
      heldBits -= 8;
      bytes[length++] = held >> heldBits;
    }
  }
  // Bits that are left over must be zero, or the same bytes would have several spellings.
  return (held & ((1 << heldBits) - 1)) === 0 ? bytes : undefined;
}

export function encodeBase64url(bytes: Uint8Array): string {
  let text = "";
  for (let i = 0; i < bytes.length; i += 3) {
    const group = ((bytes[i] ?? 0) << 16) | ((bytes[i + 1] ?? 0) << 8) | (bytes[i + 2] ?? 0);
    const letters = Math.min(bytes.length - i, 3) + 1;
    for (let n = 0; n < letters; n++) text += LETTERS[(group >> (18 - 6 * n)) & 63];
  }
  return text;
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

/** Tell whether a text has no lone surrogate, which UTF-8 has no bytes for. */
export function isWellFormed(text: string): boolean {
  return !LONE_SURROGATE.test(text);
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

function sextets(): Uint8Array {
  const table = new Uint8Array(128).fill(NO_LETTER);
  for (let value = 0; value < LETTERS.length; value++) table[LETTERS.charCodeAt(value)] = value;
  return table;
}
