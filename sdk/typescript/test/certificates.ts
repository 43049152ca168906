/** Certificates that sign themselves, for TLS in tests: by nobody's authority, and without a name. */

import { generateKeyPairSync, sign } from "node:crypto";

export interface Certificate {
  readonly der: Buffer;
  /** In PEM, as Node's TLS takes them. */
  readonly cert: string;
  readonly key: string;
}

const [INTEGER, BIT_STRING, UTC_TIME, SEQUENCE, VERSION] = [0x02, 0x03, 0x17, 0x30, 0xa0];
const ED25519 = Buffer.from("300506032b6570", "hex"); // AlgorithmIdentifier of RFC 8410
const NO_NAME = encoded(SEQUENCE);
// Two digits of a year: from 1950 to 2049.
const VALIDITY = encoded(SEQUENCE, encoded(UTC_TIME, "500101000000Z"), encoded(UTC_TIME, "491231235959Z"));

export function selfSigned(): Certificate {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const spki = publicKey.export({ type: "spki", format: "der" });
  const version = encoded(VERSION, encoded(INTEGER, [2]));
  const body = encoded(SEQUENCE, version, encoded(INTEGER, [1]), ED25519, NO_NAME, VALIDITY, NO_NAME, spki);
  const der = encoded(SEQUENCE, body, ED25519, encoded(BIT_STRING, [0], sign(null, body, privateKey)));
  const pem = `-----BEGIN CERTIFICATE-----\n${der.toString("base64")}\n-----END CERTIFICATE-----\n`;
  return { der, cert: pem, key: privateKey.export({ type: "pkcs8", format: "pem" }).toString() };
}

/** Return a value in DER, of less than 256 bytes. */
function encoded(tag: number, ...parts: readonly (string | readonly number[] | Uint8Array)[]): Buffer {
  const content = Buffer.concat(parts.map((part) => Buffer.from(part as string)));
  const { length } = content;
  const sized = length < 128 ? [length] : [0x81, length];
  return Buffer.concat([Buffer.from([tag, ...sized]), content]);
}
