/**
 * Whether two URLs are one, as DPoP's `htu` is compared (RFC 9449 section 4.3, RFC 3986 sections 6.2.2 and 6.2.3).
 *
 * Query and fragment do not count, nor do the letters' case in scheme and host, a default port, needless escapes
 * and dot segments. No URL parser of the platform is used: they differ in what they mend, and what one of them
 * mends another refuses.
 */

const HTTP_URL =
  /^(https?):\/\/([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,5}))?((?:\/[^?#]*)?)(?:[?#].*)?$/i;
const VISIBLE_ASCII = /^[\x21-\x7e]+$/;
const ESCAPED = /%([0-9A-Fa-f]{2})/g;
const UNRESERVED = /^[A-Za-z0-9._~-]$/;
const MAX_PORT = 65_535;

/** Return what tells a URL from others, or undefined for what is no URL of HTTP. */
export function normalisedURL(url: string): string | undefined {
  const parts = VISIBLE_ASCII.test(url) ? HTTP_URL.exec(url) : null;
  if (parts === null) return undefined;
  const [, scheme = "", host = "", port = "", path = ""] = parts;
  const isTLS = scheme.toLowerCase() === "https";
  const number = port === "" ? (isTLS ? 443 : 80) : Number(port);
  if (number > MAX_PORT) return undefined;
  return `${scheme.toLowerCase()}://${host.toLowerCase()}:${number}${normalisedPath(path)}`;
}

function normalisedPath(path: string): string {
  const given = path.replace(ESCAPED, unescaped).split("/").slice(1);
  const segments: string[] = [];
  for (const segment of given) {
    if (segment === "..") segments.pop();
    else if (segment !== ".") segments.push(segment);
  }
  const last = given.at(-1);
  if (last === "." || last === "..") segments.push("");
  return `/${segments.join("/")}`;
}

function unescaped(written: string, digits: string): string {
  const character = String.fromCharCode(Number.parseInt(digits, 16));
  return UNRESERVED.test(character) ? character : written.toUpperCase();
}
