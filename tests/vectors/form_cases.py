"""Tokens that are malformed, and such as nearly are (steps 1 and 2)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

from tests.vectors.forging import (
    CLAIMS,
    HEADER,
    SIGNER,
    Document,
    changed,
    compact,
    jws,
    with_member,
)
from tests.vectors.json_texts import NOT_OBJECTS, NOT_STRICT, STRICT
from tests.vectors.verdicts import (
    BODY,
    MAX_TOKEN,
    PROTECTED,
    SIGNATURE,
    TOKEN,
    Cases,
    accepted,
    refused,
    stray_bits,
)


def _long_claims(characters: int) -> tuple[str, Document]:
    """Return a token of exactly so many characters, and its claims."""
    for spaces, length in itertools.product(range(3), range(5200, 5800)):
        claims = changed(CLAIMS, policy_claims={"long": "x" * length})
        made = jws(compact(HEADER) + b" " * spaces, compact(claims))
        if len(made) == characters:
            return made, claims
    raise AssertionError(characters)


def _sizes() -> Cases:
    for characters in (MAX_TOKEN - 1, MAX_TOKEN):
        made, claims = _long_claims(characters)
        yield accepted(f"a token of {characters} characters", claims, made)
    made, _ = _long_claims(MAX_TOKEN + 1)
    yield refused("malformed", f"a token of {MAX_TOKEN + 1} characters", made)
    yield refused("malformed", "10,000 letters", "A" * 10_000)


def _undecodable(segment: str) -> str:
    """Return a segment with letters behind it, of a length that nothing has."""
    return segment + "A" * ((1 - len(segment)) % 4)


def _spellings() -> Mapping[str, str]:
    header, payload = compact(HEADER), compact(CLAIMS)
    while len(header) % 3 == 0:
        header += b" "
    while len(payload) % 3 == 0:
        payload += b" "
    spare = jws(header, payload)
    head, body, signature = spare.split(".")
    unsafe = jws(payload=compact(changed(CLAIMS, policy_claims={"?>": "\u07ff?>?>?>"})))
    assert "-" in unsafe.split(".")[1] or "_" in unsafe.split(".")[1]
    return {
        "nothing": "",
        "a word": "token",
        "two dots": "..",
        "an empty header": f".{BODY}.{SIGNATURE}",
        "empty claims": f"{PROTECTED}..{SIGNATURE}",
        "an empty signature": f"{PROTECTED}.{BODY}.",
        "two segments": f"{PROTECTED}.{BODY}",
        "four segments": f"{TOKEN}.{SIGNATURE}",
        "five segments, as of a JWE": f"{PROTECTED}.AAAA.{BODY}.AAAA.{SIGNATURE}",
        "a dot behind": f"{TOKEN}.",
        "a dot in front": f".{TOKEN}",
        "a space in front": f" {TOKEN}",
        "a space behind": f"{TOKEN} ",
        "a line feed behind": f"{TOKEN}\n",
        "a carriage return behind": f"{TOKEN}\r",
        "a NUL behind": f"{TOKEN}\0",
        "a space within the claims": f"{PROTECTED}.{BODY[:8]} {BODY[8:]}.{SIGNATURE}",
        "a line feed within the claims": f"{PROTECTED}.{BODY[:8]}\n{BODY[8:]}.{SIGNATURE}",
        "a letter beyond ASCII": f"{PROTECTED}.{BODY[:-1]}\u00e9.{SIGNATURE}",
        "a full-width letter": f"{PROTECTED}.{BODY[:-1]}\uff21.{SIGNATURE}",
        "a lone surrogate": f"{PROTECTED}.{BODY[:-1]}\ud800.{SIGNATURE}",
        "the alphabet of plain base64": unsafe.replace("-", "+").replace("_", "/"),
        "padding behind the header": f"{head}{'=' * (-len(head) % 4)}.{body}.{signature}",
        "padding behind the claims": f"{head}.{body}{'=' * (-len(body) % 4)}.{signature}",
        "padding behind the signature": f"{TOKEN}==",
        "one sign of padding where two would be right": f"{TOKEN}=",
        "stray trailing bits in the header": f"{stray_bits(head)}.{body}.{signature}",
        "stray trailing bits in the claims": f"{head}.{stray_bits(body)}.{signature}",
        "stray trailing bits in the signature": f"{head}.{body}.{stray_bits(signature)}",
        "a header of a length that nothing encodes to": f"{_undecodable(PROTECTED)}.{BODY}.{SIGNATURE}",
        "claims of a length that nothing encodes to": f"{PROTECTED}.{_undecodable(BODY)}.{SIGNATURE}",
        "a signature of 63 bytes": jws(sign=lambda data: SIGNER.sign(data)[:-1]),
        "a signature of 65 bytes": jws(sign=lambda data: SIGNER.sign(data) + b"\0"),
        "a signature of one byte": jws(sign=lambda _: b"\0"),
        "Bearer in front": f"Bearer {TOKEN}",
        "two tokens": f"{TOKEN},{TOKEN}",
        "flattened JSON serialisation": compact(
            {"protected": PROTECTED, "payload": BODY, "signature": SIGNATURE}
        ).decode(),
        "general JSON serialisation": compact(
            {"payload": BODY, "signatures": [{"protected": PROTECTED, "signature": SIGNATURE}]}
        ).decode(),
    }


def _form() -> Cases:
    yield from _sizes()
    for name, made in _spellings().items():
        yield refused("malformed", name, made)
    for length in range(3):
        claims = changed(CLAIMS, jti="j" * (20 + length))
        yield accepted(f"a jti of {20 + length} characters, for each length modulo three", claims)


def _around(template: bytes, document: Document) -> bytes:
    return template.replace(b"%b", compact(document))


def _json() -> Cases:
    for name, text in NOT_STRICT.items():
        yield refused("malformed", f"claims with {name}", jws(payload=with_member(CLAIMS, text)))
        yield refused("malformed", f"a header with {name}", jws(with_member(HEADER, text)))
    for name, text in STRICT.items():
        made = jws(payload=with_member(CLAIMS, text))
        yield accepted(f"an unknown claim: {name}", made=made, server="refuses")
    for name, template in NOT_OBJECTS.items():
        yield refused("malformed", f"claims: {name}", jws(payload=_around(template, CLAIMS)))
        yield refused("malformed", f"a header: {name}", jws(_around(template, HEADER)))
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        encoded = compact(CLAIMS).decode().encode(encoding)
        yield refused("malformed", f"claims in {encoding}", jws(payload=encoded))
        encoded = compact(HEADER).decode().encode(encoding)
        yield refused("malformed", f"a header in {encoding}", jws(encoded))
    spaced = json.dumps(CLAIMS, indent="\t").replace("\n", "\r\n")
    yield accepted("claims with white space all over", made=jws(payload=f"\r\n{spaced}\n ".encode()))
    header = json.dumps(HEADER, indent=3)
    yield accepted("a header with white space all over", made=jws(f"\t{header}\r\n".encode()))
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in "exp")
    renamed = compact(CLAIMS).replace(b'"exp"', f'"{escaped}"'.encode())
    yield accepted("the name of a claim in escapes", made=jws(payload=renamed))
    spelled = compact(HEADER).replace(b'"EdDSA"', b'"\\u0045dDSA"')
    yield accepted("a value of the header in escapes", made=jws(spelled))
    yield accepted(
        "members in another order",
        made=jws(compact(dict(reversed(HEADER.items()))), compact(dict(reversed(CLAIMS.items())))),
    )


def form_cases() -> Cases:
    """Return all cases of form."""
    yield from _form()
    yield from _json()
