/** WebCrypto's names, which are not among the types of every platform that has it. */

export type WebCryptoKey = Parameters<typeof crypto.subtle.sign>[1];
