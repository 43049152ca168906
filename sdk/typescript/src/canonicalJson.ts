/**
 * JCS (RFC 8785) for what KKP authenticates and what a scope is: text, whole numbers, lists and objects.
 *
 * Objects are written by hand: `JSON.stringify` puts names that look like numbers first, where JCS sorts all
 * of them by UTF-16 code units. A text, a number and a word are in JCS what `JSON.stringify` makes of them.
 */

export type Plain = null | boolean | number | string | readonly Plain[] | { readonly [name: string]: Plain };

export function canonicalJSON(value: Plain): string {
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (isList(value)) return `[${value.map(canonicalJSON).join(",")}]`;
  const members = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonicalJSON(member)}`).join(",")}}`;
}

function isList(value: Plain): value is readonly Plain[] {
  return Array.isArray(value);
}
