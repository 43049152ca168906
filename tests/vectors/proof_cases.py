"""Bound tokens, and what is handed in with them: DPoP proofs and client certificates (steps 17 to 20)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from tests.vectors import curve
from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    Document,
    Signer,
    b64,
    changed,
    compact,
    jws,
    with_member,
    without,
)
from tests.vectors.holders import (
    CERTIFICATE_DIGEST,
    CERTIFIED,
    EC,
    ED,
    FINGERPRINT,
    HOLDERS,
    OTHER_FINGERPRINT,
    THIEF,
    Holder,
    digest_of,
    right,
    shown,
    wrong,
)
from tests.vectors.json_texts import NOT_OBJECTS, NOT_STRICT, STRICT
from tests.vectors.key_sets import OFF_CURVE
from tests.vectors.proof_claim_cases import proof_claim_cases
from tests.vectors.verdicts import Cases, accepted, refused, stray_bits

NO_TEXT: Final[tuple[object, ...]] = (None, 0, [], "")
MAX_PROOF: Final = 4096
P256_FIELD: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _bindings() -> Cases:
    plain, certified = jws(), jws(payload=compact(CERTIFIED))
    for algorithm, holder in HOLDERS.items():
        yield right(f"a proof of {algorithm}", holder.proof(), holder)
    yield right("a proof, and a certificate that nobody asked for", EC.proof(), certificate=FINGERPRINT)
    yield accepted("the right certificate", CERTIFIED, certificate=FINGERPRINT)
    yield accepted("a certificate that nobody asked for", certificate=FINGERPRINT)
    yield refused("proof_missing", "a token bound to a key, as a bearer's", EC.token)
    yield refused("proof_missing", "a token bound to a key, with a certificate", EC.token, certificate=EC.jkt)
    yield refused("proof_missing", "a token bound to a certificate, as a bearer's", certified)
    proven = shown(EC.proof())
    with_proof = shown(EC.proof(ath=digest_of(certified)))
    yield refused(
        "proof_missing", "a token bound to a certificate, with a proof", certified, proof=with_proof
    )
    for name, other in {
        "another certificate": OTHER_FINGERPRINT,
        "a certificate whose digest differs in its last bit": b64(_flipped(CERTIFICATE_DIGEST)),
    }.items():
        yield refused("wrong_certificate", name, certified, certificate=other)
        yield refused(
            "wrong_certificate", f"{name}, and a proof", certified, certificate=other, proof=with_proof
        )
    name = "the right certificate, and a proof that nobody asked for"
    yield refused("not_bound", name, certified, certificate=FINGERPRINT, proof=with_proof)
    with_proof = shown(EC.proof(ath=digest_of(plain)))
    yield refused("not_bound", "a proof that nobody asked for", plain, proof=with_proof)
    yield refused(
        "not_bound", "what is no proof, with a bearer token", plain, proof=shown("x"), server="refuses"
    )
    name = "a proof that nobody asked for, and a certificate"
    yield refused("not_bound", name, plain, proof=with_proof, certificate=FINGERPRINT)
    unsigned = jws(payload=compact(EC.claims), sign=lambda _: bytes(64))
    yield refused("wrong_signature", "a bound token that KKP did not sign", unsigned, proof=proven)
    yield refused(
        "revoked",
        "a bound token that is revoked, without a proof",
        EC.token,
        revocations="its jti",
        server="refuses",
    )
    yield refused(
        "no_list",
        "a bound token with a wrong proof, without a list",
        EC.token,
        proof=shown("x"),
        revocations="",
        server="refuses",
    )


def _flipped(digest: bytes) -> bytes:
    return digest[:-1] + bytes([digest[-1] ^ 1])


# The proof itself.


def _forms() -> Mapping[str, str]:
    good = EC.proof()
    head, body, signature = good.split(".")
    spare = EC.raw_proof(payload=_spare(compact(EC.proof_claims))).split(".")
    return {
        "nothing": "",
        "a word": "proof",
        "two segments": f"{head}.{body}",
        "four segments": f"{good}.x",
        "an empty signature": f"{head}.{body}.",
        "a space behind": f"{good} ",
        "a line feed behind": f"{good}\n",
        "a letter beyond ASCII": f"{good[:-1]}\u00e9",
        "padding": f"{good}==",
        "stray trailing bits in the signature": f"{head}.{body}.{stray_bits(signature)}",
        "stray trailing bits in the claims": f"{spare[0]}.{stray_bits(spare[1])}.{spare[2]}",
        "two proofs in one header": f"{good}, {good}",
        "a token in its place": EC.token,
        "JSON serialisation": compact({"protected": head, "payload": body, "signature": signature}).decode(),
    }


def _spare(payload: bytes) -> bytes:
    while len(payload) % 3 == 0:
        payload += b" "
    return payload


def _form() -> Cases:
    for name, proof in _forms().items():
        yield wrong(f"a proof: {name}", proof)
    for characters in (MAX_PROOF, MAX_PROOF + 1):
        case = right if characters == MAX_PROOF else wrong
        yield case(f"a proof of {characters} characters", _long_proof(characters))


def _long_proof(characters: int) -> str:
    for spaces, length in itertools.product(range(3), range(2400, 2900)):
        payload = compact(changed(EC.proof_claims, long="x" * length))
        proof = EC.raw_proof(compact(EC.header) + b" " * spaces, payload)
        if len(proof) == characters:
            return proof
    raise AssertionError(characters)


def _json() -> Cases:
    for name, text in NOT_STRICT.items():
        if len(text) < 1000:
            proof = EC.raw_proof(payload=with_member(EC.proof_claims, text))
            # KKP looks no deeper into a proof's claims than it has to; 4,096 characters bound that.
            server = "accepts" if name.startswith("depth 33") else None
            yield wrong(f"a proof's claims with {name}", proof, server=server)
            yield wrong(f"a proof's header with {name}", EC.raw_proof(with_member(EC.header, text)))
    for name, text in STRICT.items():
        if len(text) < 1000:
            proof = EC.raw_proof(payload=with_member(EC.proof_claims, text))
            yield right(f"an unknown claim of a proof: {name}", proof)
    for name, template in NOT_OBJECTS.items():
        for whole, made in (("header", EC.header), ("claims", EC.proof_claims)):
            raw = template.replace(b"%b", compact(made))
            proof = EC.raw_proof(raw) if whole == "header" else EC.raw_proof(payload=raw)
            yield wrong(f"a proof's {whole}: {name}", proof)


def _header() -> Cases:
    for name in EC.header:
        yield wrong(f"a proof's header lacks {name}", EC.raw_proof(compact(without(EC.header, name))))
        for value in NO_TEXT:
            yield wrong(f"a proof's {name} is {compact(value).decode()}", EC.proof_of_header(**{name: value}))
    twice = compact(EC.header).replace(b'"crv"', b'"kty":"EC","crv"')
    yield wrong("a proof's key with a duplicate", EC.raw_proof(twice))
    for typ in ("JWT", "dpop", "DPoP+JWT", "application/dpop+jwt", "dpop+jwt ", "kkp+jwt"):
        yield wrong(f"a proof's typ is {typ!r}", EC.proof_of_header(typ=typ))
    for algorithm in ("none", "ES384", "ES256K", "HS256", "RS256", "EdDSA", "es256", "Ed25519"):
        yield wrong(f"a proof's alg is {algorithm} and its key P-256", EC.proof_of_header(alg=algorithm))
    for algorithm in ("none", "ES256", "Ed25519", "eddsa"):
        yield wrong(
            f"a proof's alg is {algorithm} and its key Ed25519", ED.proof_of_header(alg=algorithm), ED
        )
    for name in ("kid", "jku", "x5c", "crit", "b64", "cty", "nonce", "x"):
        yield wrong(f"a proof's header has {name}", EC.proof_of_header(**{name: "x"}))


# What each member of a key may be besides.
RIGHT_MEMBERS: Final = {
    "alg": "its own", "use": "sig", "kid": "x", "key_ops": ["verify"], "ext": True,
}  # fmt: skip
WRONG_MEMBERS: Final[tuple[tuple[str, object], ...]] = (
    ("d", b64(bytes(32))), ("d", None), ("alg", "ES384"), ("alg", None), ("alg", 0), ("use", "enc"),
    ("use", None), ("use", 1), ("kid", None), ("kid", 1), ("key_ops", None), ("key_ops", "verify"),
    ("key_ops", [1]), ("ext", None), ("ext", "true"), ("ext", 1), ("x5c", []), ("n", "x"), ("k", "x"),
    ("oth", []), ("x5u", "x"), ("__proto__", {}), ("kty", None), ("kty", "RSA"), ("kty", "oct"),
    ("kty", "ec"), ("crv", "P-384"), ("crv", "p-256"), ("crv", "secp256k1"), ("crv", 0), ("crv", "X25519"),
    ("x", None),
    ("x", 0), ("x", ""), ("x", b64(bytes(31))), ("x", b64(bytes(33))), ("x", b64(bytes(32)) + "="),
    ("x", stray_bits(b64(bytes(32)))),
)  # fmt: skip


def _keys() -> Cases:
    for algorithm, holder in HOLDERS.items():
        told = f"a key of {algorithm}"
        members = changed(RIGHT_MEMBERS, alg=algorithm)
        for name, value in members.items():
            yield right(f"{told} with {name}", holder.proof_of_key(**{name: value}), holder)
        yield right(f"{told} with all that libraries write", holder.proof_of_key(**members), holder)
        yield right(f"{told} with no key_ops", holder.proof_of_key(key_ops=[]), holder)
        yield right(f"{told} that is not to be extracted", holder.proof_of_key(ext=False), holder)
        for name, value in WRONG_MEMBERS:
            proof = holder.proof_of_key(**{name: value})
            yield wrong(f"{told} whose {name} is {compact(value).decode()}", proof, holder)
        for name in holder.jwk:
            yield wrong(f"{told} without {name}", holder.proof_of_key(name), holder)
    yield wrong("a key of EdDSA with a y", ED.proof_of_key(y=b64(bytes(32))), ED)
    yield wrong("a key of EdDSA with y null", ED.proof_of_key(y=None), ED)
    yield wrong("a P-256 key of the kind OKP", EC.proof_of_key(kty="OKP"))
    yield wrong("an Ed25519 key of the kind EC", ED.proof_of_key(kty="EC"), ED)
    yield wrong("another's key, and another's signature", THIEF.proof(ath=EC.proof_claims["ath"]))
    stolen = jws(compact(EC.header), compact(EC.proof_claims), THIEF.sign)
    yield wrong("the right key, and another's signature", stolen)
    yield from _points()


def _points() -> Cases:
    x, y = EC.jwk["x"], EC.jwk["y"]
    for name, members in {
        "whose coordinates are swapped": {"x": y, "y": x},
        "off the curve": {"y": b64(bytes(32))},
        "of nothing": {"x": b64(bytes(32)), "y": b64(bytes(32))},
        "beyond the field": {"x": b64(b"\xff" * 32)},
        "of the field's order": {"x": b64(P256_FIELD.to_bytes(32))},
    }.items():
        yield wrong(f"a P-256 point {name}", EC.proof_of_key(**members))
        yield from _bound_to(
            f"a P-256 point {name}, bound to it", changed(EC.jwk, **members), EC.sign, "ES256"
        )
    for number, point in enumerate(curve.SMALL_ORDER):
        key = {"kty": "OKP", "crv": "Ed25519", "x": b64(curve.encode(point))}
        forged = lambda _: curve.encode(curve.IDENTITY) + bytes(32)  # noqa: E731  a signature is a function here
        yield from _bound_to(f"a key of small order, number {number}", key, forged, "EdDSA")
    high = {"kty": "OKP", "crv": "Ed25519", "x": b64((curve.P + 3).to_bytes(32, "little"))}
    yield from _bound_to("an Ed25519 key that is not canonical", high, ED.sign, "EdDSA")
    off = {"kty": "OKP", "crv": "Ed25519", "x": b64(OFF_CURVE)}
    yield from _bound_to("an Ed25519 key off the curve", off, ED.sign, "EdDSA")


def _bound_to(name: str, jwk: Document, sign: Callable[[bytes], bytes], algorithm: str) -> Iterator[Verdict]:
    """Return a case of a token that is bound to a key that nobody should have."""
    holder = Holder(algorithm, jwk, sign)
    yield wrong(name, holder.proof(), holder)


def _signatures() -> Cases:
    def es256(change: Callable[[int, int], tuple[int, int]]) -> str:
        def sign(data: bytes) -> bytes:
            raw = EC.sign(data)
            r, s = change(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
            return r.to_bytes(32) + s.to_bytes(32)

        return jws(compact(EC.header), compact(EC.proof_claims), sign)

    yield right("the second form of an ES256 signature", es256(lambda r, s: (r, P256_ORDER - s)))
    for name, change in {
        "r of 0": lambda _, s: (0, s),
        "s of 0": lambda r, _: (r, 0),
        "r and s of 0": lambda _, __: (0, 0),
        "r of the group's order": lambda _, s: (P256_ORDER, s),
        "s of the group's order": lambda r, _: (r, P256_ORDER),
        "the largest r and s": lambda _, __: (2**256 - 1, 2**256 - 1),
        "r and s swapped": lambda r, s: (s, r),
        "another s": lambda r, s: (r, s ^ 1),
    }.items():
        yield wrong(f"an ES256 signature of {name}", es256(change))
    der = jws(compact(EC.header), compact(EC.proof_claims), _der)
    yield wrong("an ES256 signature in DER", der)
    for shape, sign in {
        "63 bytes": lambda data: EC.sign(data)[:-1],
        "65 bytes": lambda data: EC.sign(data) + b"\0",
        "128 bytes": lambda data: EC.sign(data) * 2,
    }.items():
        yield wrong(f"an ES256 signature of {shape}", jws(compact(EC.header), compact(EC.proof_claims), sign))
    ed = compact(ED.header), compact(ED.proof_claims)
    moved = jws(*ed, lambda data: _above(ED.sign(data)))
    yield wrong("an EdDSA signature of S + L", moved, ED)
    yield wrong("an EdDSA signature of another", jws(*ed, Signer(b"\1" * 32).sign), ED)


def _above(signature: bytes) -> bytes:
    return signature[:32] + (int.from_bytes(signature[32:], "little") + curve.ORDER).to_bytes(32, "little")


def _der(data: bytes) -> bytes:
    key = ec.derive_private_key(7, ec.SECP256R1())
    return key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True))


def proof_cases() -> Cases:
    """Return all cases of bound tokens."""
    for part in (_bindings, _form, _json, _header, _keys, _signatures, proof_claim_cases):
        yield from part()
