"""Tokens with strange headers (steps 2 to 4), and kids that nobody has."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.vectors.forging import (
    HEADER,
    ISSUER,
    LIST_CLAIMS,
    LIST_TYPE,
    SIGNER,
    STRANGER,
    Document,
    b64,
    changed,
    compact,
    jwk,
    jws,
    token_of_header,
    without,
)
from tests.vectors.json_texts import NO_STRINGS
from tests.vectors.verdicts import BODY, PROTECTED, SIGNATURE, Cases, refused

X: Final = jwk(STRANGER.public)
EXTRA_MEMBERS: Final[Document] = {
    "jwk": X,
    "jku": "https://evil.test/keys/jwks",
    "x5u": "https://evil.test/chain.pem",
    "x5c": ["MIIB"],
    "x5t": "AAAA",
    "x5t#S256": b64(bytes(32)),
    "crit": ["b64"],
    "b64": False,
    "cty": "JWT",
    "zip": "DEF",
    "enc": "A256GCM",
    "epk": X,
    "nonce": "1",
    "iss": ISSUER,
    "x": None,
    "Alg": "EdDSA",
    "__proto__": {"alg": "none"},
}
EVIL_KIDS: Final = {
    "that is a path": "../../../../../../dev/null",
    "that is a path of Windows": "..\\..\\NUL",
    "that is SQL": "' UNION SELECT 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA' --",
    "that is a URL": "https://evil.test/keys/jwks",
    "that is a file's URL": "file:///dev/null",
    "that is a command": "| /bin/true",
    "that is a template": "${jndi:ldap://evil.test/a}",
    "that is empty": "",
    "that is a prototype's": "__proto__",
    "that is a method": "constructor",
    "that is another method": "toString",
    "in capitals": SIGNER.kid.upper(),
    "with a space behind": f"{SIGNER.kid} ",
    "with a NUL behind": f"{SIGNER.kid}\0",
    "cut short": SIGNER.kid[:-1],
    "with padding": f"{SIGNER.kid}=",
    "that is a number in a string": "0",
    "of a stranger's key": STRANGER.kid,
}
OTHER_ALGORITHMS: Final = (
    "none", "None", "NONE", "NoNe", "", "eddsa", "EDDSA", "EdDSA ", " EdDSA", "EdDSA\0", "Ed25519",
    "Ed25519ph", "Ed448", "HS256", "HS384", "HS512", "RS256", "PS256", "ES256", "ES256K", "ES512", "ECDH-ES",
    "dir", "A256KW",
)  # fmt: skip
OTHER_TYPES: Final = (
    "", "JWT", "jwt", "kkp+JWT", "KKP+JWT", "kkp+jwt ", "application/kkp+jwt", "at+jwt", "kkp", "dpop+jwt",
    LIST_TYPE, "kkp-session+jwt", "kkp-approval+jwt", "kkp+jwt\0",
)  # fmt: skip


def _mac(algorithm: str, key: bytes) -> str:
    header = compact(changed(HEADER, alg=f"HS{algorithm[3:]}"))
    return jws(header, sign=lambda data: hmac.digest(key, data, algorithm))


def header_cases() -> Cases:
    """Return all cases of headers."""
    for name, value in EXTRA_MEMBERS.items():
        yield refused("malformed", f"the header has {name}", token_of_header(**{name: value}))
    inside = jws(compact(changed(HEADER, jwk=X, kid=STRANGER.kid)), sign=STRANGER.sign)
    yield refused("malformed", "a stranger's key in the header, and its signature", inside)
    detached = f"{PROTECTED}..{SIGNATURE}"
    yield refused("malformed", "claims that are handed in elsewhere", detached)
    yield refused("malformed", "an empty header object", jws(b"{}"))
    for name in HEADER:
        yield refused("malformed", f"the header lacks {name}", jws(compact(without(HEADER, name))))
        for value in NO_STRINGS:
            shown = compact(value).decode()
            yield refused("malformed", f"{name} is {shown}", token_of_header(**{name: value}))
    for algorithm in OTHER_ALGORITHMS:
        yield refused("wrong_algorithm", f"alg is {algorithm!r}", token_of_header(alg=algorithm))
        if algorithm.lower() == "none":
            head = b64(compact(changed(HEADER, alg=algorithm)))
            yield refused("malformed", f"alg is {algorithm} and there is no signature", f"{head}.{BODY}.")
    for shape, key in _public_key_shapes().items():
        yield refused("malformed", f"an HMAC of SHA-256 with the public key {shape}", _mac("sha256", key))
        yield refused(
            "wrong_algorithm", f"an HMAC of SHA-512 with the public key {shape}", _mac("sha512", key)
        )
    for kind in OTHER_TYPES:
        yield refused("wrong_type", f"typ is {kind!r}", token_of_header(typ=kind))
    yield refused(
        "wrong_type",
        "a list of revocations",
        jws(compact(changed(HEADER, typ=LIST_TYPE)), compact(LIST_CLAIMS)),
    )
    for name, kid in EVIL_KIDS.items():
        yield refused("unknown_key", f"a kid {name}", token_of_header(kid=kid))


def _public_key_shapes() -> Mapping[str, bytes]:
    key = Ed25519PublicKey.from_public_bytes(SIGNER.public)
    return {
        "as it is": SIGNER.public,
        "in base64url": b64(SIGNER.public).encode(),
        "in PEM": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "in DER": key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "as a JWK": compact(SIGNER.jwk),
    }
