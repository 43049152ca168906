"""Bound tokens, and what is handed in with them: DPoP proofs and client certificates (steps 17 to 20)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from tests.vectors import curve
from tests.vectors.cases import Verdict
from tests.vectors.forging import (
    CLAIMS,
    LEEWAY,
    NOW,
    Document,
    Signer,
    b64,
    changed,
    compact,
    jws,
    thumbprint,
    with_member,
    without,
    written,
)
from tests.vectors.token_cases import (
    NO_NUMBERS,
    NO_STRINGS,
    NOT_OBJECTS,
    NOT_STRICT,
    OFF_CURVE,
    STRICT,
    Cases,
    accepted,
    refused,
    stray_bits,
)

NO_TEXT: Final[tuple[object, ...]] = (None, 0, [], "")
METHOD: Final = "POST"
URL: Final = "https://orders.test/orders"
PROOF_SECONDS: Final = 60
MAX_PROOF: Final = 4096
P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
P256_FIELD: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1


class Holder:
    """Whoever has a key that signs proofs.

    Attributes:
        algorithm: What it signs with.
        jwk: Its public half, with the members that count alone.
        sign: Signs.
    """

    def __init__(self, algorithm: str, jwk: Document, sign: Callable[[bytes], bytes]) -> None:
        self.algorithm = algorithm
        self.jwk = jwk
        self.sign = sign
        self.jkt = thumbprint(jwk)
        self.claims = changed(CLAIMS, cnf={"jkt": self.jkt})
        self.token = jws(payload=compact(self.claims))

    @property
    def header(self) -> Document:
        return {"typ": "dpop+jwt", "alg": self.algorithm, "jwk": self.jwk}

    @property
    def proof_claims(self) -> Document:
        digest = b64(hashlib.sha256(self.token.encode()).digest())
        return {"jti": "proof-1", "htm": METHOD, "htu": URL, "iat": NOW, "ath": digest}

    def proof(self, **claims: object) -> str:
        return self.raw_proof(payload=compact(changed(self.proof_claims, **claims)))

    def proof_of_header(self, **members: object) -> str:
        return self.raw_proof(compact(changed(self.header, **members)))

    def proof_of_key(self, *without_names: str, **members: object) -> str:
        return self.proof_of_header(jwk=changed(without(self.jwk, *without_names), **members))

    def raw_proof(self, header: bytes | None = None, payload: bytes | None = None) -> str:
        return jws(header or compact(self.header), payload or compact(self.proof_claims), self.sign)


def _sign_p256(key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
        return r.to_bytes(32) + s.to_bytes(32)

    return sign


def _p256(private: int) -> Holder:
    key = ec.derive_private_key(private, ec.SECP256R1())
    public = key.public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(public.x.to_bytes(32)), "y": b64(public.y.to_bytes(32))}
    return Holder("ES256", jwk, _sign_p256(key))


def _ed25519(seed: bytes) -> Holder:
    signer = Signer(seed)
    return Holder("EdDSA", {"kty": "OKP", "crv": "Ed25519", "x": b64(signer.public)}, signer.sign)


EC, ED, THIEF = _p256(7), _ed25519(bytes(32)), _p256(8)
HOLDERS: Final = {"ES256": EC, "EdDSA": ED}
FINGERPRINT: Final = b64(hashlib.sha256(b"a certificate").digest())
OTHER_FINGERPRINT: Final = b64(hashlib.sha256(b"another certificate").digest())
CERTIFIED: Final = changed(CLAIMS, cnf={"x5t#S256": FINGERPRINT})


def shown(proof: str, *, method: str = METHOD, url: str = URL, used_before: bool = False) -> Document:
    return {"proof": proof, "method": method, "url": url, "used_before": used_before}


def _shown(made: str | Document) -> Document:
    return shown(made) if isinstance(made, str) else made


def right(name: str, made: str | Document, holder: Holder = EC, **inputs: Any) -> Verdict:
    return accepted(name, holder.claims, holder.token, proof=_shown(made), **inputs)


def wrong(name: str, made: str | Document, holder: Holder = EC, **inputs: Any) -> Verdict:
    return refused("wrong_proof", name, holder.token, proof=_shown(made), **inputs)


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
    yield refused("proof_missing", "a token bound to a certificate, with a proof", certified, proof=proven)
    for name, other in {
        "another certificate": OTHER_FINGERPRINT,
        "a certificate whose digest differs in its last bit": b64(_last_bit(FINGERPRINT)),
    }.items():
        yield refused("wrong_certificate", name, certified, certificate=other)
        yield refused("wrong_certificate", f"{name}, and a proof", certified, certificate=other, proof=proven)
    name = "the right certificate, and a proof that nobody asked for"
    yield refused("not_bound", name, certified, certificate=FINGERPRINT, proof=proven)
    yield refused("not_bound", "a proof that nobody asked for", plain, proof=proven)
    yield refused(
        "not_bound", "what is no proof, with a bearer token", plain, proof=shown("x"), server="refuses"
    )
    name = "a proof that nobody asked for, and a certificate"
    yield refused("not_bound", name, plain, proof=proven, certificate=FINGERPRINT)
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


def _last_bit(fingerprint: str) -> bytes:
    digest = hashlib.sha256(b"a certificate").digest()
    assert b64(digest) == fingerprint
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


# What the proof says.


def _claims() -> Cases:
    for name in EC.proof_claims:
        yield wrong(f"a proof lacks {name}", EC.raw_proof(payload=compact(without(EC.proof_claims, name))))
        for value in NO_STRINGS:
            yield wrong(f"a proof's {name} is {compact(value).decode()}", EC.proof(**{name: value}))
    for name in ("jti", "htm", "htu", "ath"):
        yield wrong(f"a proof's {name} is empty", EC.proof(**{name: ""}))
    for name, jti in {"a letter": "j", "256 letters": "j" * 256, "all that is visible": _VISIBLE}.items():
        yield right(f"a jti of {name}", EC.proof(jti=jti))
    for name, jti in {
        "257 letters": "j" * 257,
        "a space": "a b",
        "a line feed behind": "a\n",
        "a NUL": "a\0",
        "DEL": "a\x7f",
        "a letter beyond ASCII": "\u00e9",
    }.items():
        yield wrong(f"a jti of {name}", EC.proof(jti=jti))
    for nonce in ("n", "", 1, None):
        name = f"a nonce that nobody asked for: {compact(nonce).decode()}"
        # KKP gives nonces, and reads them.
        yield right(name, EC.proof(nonce=nonce), server=None if isinstance(nonce, str) else "refuses")
    yield right("claims that the RFC does not know", EC.proof(sub="x", exp=0, aud=["x"]))
    other = b64(hashlib.sha256(jws().encode()).digest())
    yield wrong("a proof for another token", EC.proof(ath=other))
    yield wrong("a proof for the token in hex", EC.proof(ath=hashlib.sha256(EC.token.encode()).hexdigest()))
    yield wrong("a proof for the token with padding", EC.proof(ath=EC.proof_claims["ath"] + "="))
    for shown_method in ("post", "Post", "GET", "POST ", "POSTS"):
        yield wrong(f"a proof for the method {shown_method!r}", EC.proof(htm=shown_method))
    yield wrong("a request of another method", shown(EC.proof(), method="PUT"))
    yield right("a method of its own", shown(EC.proof(htm="purge"), method="purge"))


_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F)))


def _times() -> Cases:
    # KKP itself leaves no more than the clocks' error for a proof that is made in the future.
    for name, text in NO_NUMBERS.items():
        if len(text) < 1000:
            payload = written(EC.proof_claims, "iat", text.replace("%d", str(NOW)))
            yield wrong(f"a proof's iat: {name}", EC.raw_proof(payload=payload))
    for leeway in (0, LEEWAY, 60):
        reach = PROOF_SECONDS + leeway
        for age, case in ((reach - 0.25, right), (reach, right), (reach + 0.25, wrong), (reach + 1, wrong)):
            told = f"a proof made {age} s ago, with a leeway of {leeway} s"
            yield case(
                told, EC.proof(), now=NOW + age, leeway=leeway, server="accepts" if age < reach else "refuses"
            )
            told = f"a proof made in {age} s, with a leeway of {leeway} s"
            claims = changed(EC.claims, iat=NOW - 300, nbf=NOW - 300)
            yield from _early(told, claims, case, now=NOW - age, leeway=leeway)
    yield wrong("a proof of 1970", EC.proof(iat=0))
    yield wrong("a proof that is used again", shown(EC.proof(), used_before=True), server="accepts")


def _early(name: str, claims: Document, case: Callable[..., Verdict], **inputs: Any) -> Cases:
    holder = Holder(EC.algorithm, EC.jwk, EC.sign)
    holder.claims, holder.token = claims, jws(payload=compact(claims))
    yield case(
        name,
        holder.proof(),
        holder,
        server="refuses" if inputs["now"] < NOW - inputs["leeway"] else None,
        **inputs,
    )


# Where it is for.

SAME_URLS: Final[tuple[tuple[str, str], ...]] = (
    (URL, URL),
    ("HTTPS://Orders.TEST/orders", URL),
    ("https://orders.test:443/orders", URL),
    ("https://orders.test:/orders", URL),
    ("https://orders.test:0443/orders", URL),
    ("https://orders.test/%6Frders", URL),
    ("https://orders.test/%6frders", URL),
    ("https://orders.test/./orders", URL),
    ("https://orders.test/x/../orders", URL),
    ("https://orders.test/../orders", URL),
    ("https://orders.test/%2e/orders", URL),
    ("https://orders.test/x/%2E%2e/orders", URL),
    ("https://orders.test/orders?x=1", URL),
    ("https://orders.test/orders#x", URL),
    ("https://orders.test/orders?x=/../y#z?", URL),
    (URL, f"{URL}?x=1"),
    ("https://orders.test", "https://orders.test/"),
    ("https://orders.test?x", "https://orders.test"),
    ("https://orders.test/a/..", "https://orders.test/"),
    ("https://orders.test/a/.", "https://orders.test/a/"),
    ("https://orders.test/a//..", "https://orders.test/a/"),
    ("https://orders.test/a%2fb", "https://orders.test/a%2Fb"),
    ("https://orders.test/a%zzb", "https://orders.test/a%zzb"),
    ("https://orders.test/a%", "https://orders.test/a%"),
    ("https://orders.test/a\\b", "https://orders.test/a\\b"),
    ('https://orders.test/a|{}<>"`^b', 'https://orders.test/a|{}<>"`^b'),
    ("https://orders.test/a;x=1/b", "https://orders.test/a;x=1/b"),
    ("https://orders.test/a@b:1", "https://orders.test/a@b:1"),
    ("http://orders.test/", "http://orders.test:80/"),
    ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/"),
    ("http://[::1]/", "http://[::1]:80/"),
    ("http://[FE80::A]:8080/", "http://[fe80::a]:8080/"),
    ("https://orders.test.:65535/", "https://orders.test.:65535/"),
    ("https://orders_db.test/", "https://orders_db.test/"),
)
OTHER_URLS: Final[tuple[tuple[str, str], ...]] = (
    ("https://orders.test/Orders", URL),
    ("https://orders.test/orders/", URL),
    ("https://orders.test//orders", URL),
    ("https://orders.test/orders/..", URL),
    ("https://orders.test/orders%2F", URL),
    ("https://orders.test/orders%20", URL),
    ("http://orders.test/orders", URL),
    ("https://orders.test:8443/orders", URL),
    ("https://orders.test:80/orders", URL),
    ("https://evil.test/orders", URL),
    ("https://orders.test.evil.test/orders", URL),
    ("https://orders.test./orders", URL),
    ("https://orders.test", URL),
    ("/orders", URL),
    ("orders.test/orders", URL),
    ("//orders.test/orders", URL),
    ("https:/orders.test/orders", URL),
    ("https:///orders.test/orders", URL),
    ("https:orders.test/orders", URL),
    ("https:\\\\orders.test\\orders", URL),
    ("https://orders.test\\orders", URL),
    ("https://orders.test/a\\..\\orders", URL),
    ("https://user@orders.test/orders", URL),
    ("https://user:pass@orders.test/orders", URL),
    ("https://@orders.test/orders", URL),
    ("https://evil.test\\@orders.test/orders", URL),
    ("https://orders.test:443:443/orders", URL),
    ("https://orders.test:x/orders", URL),
    ("https://orders.test:-443/orders", URL),
    ("https://orders.test:+443/orders", URL),
    ("https://orders.test:65979/orders", URL),
    ("https://orders%2Etest/orders", URL),
    ("https://ord\u0435rs.test/orders", URL),
    ("https://orders.test/\u00f6rders", "https://orders.test/\u00f6rders"),
    (" https://orders.test/orders", URL),
    ("https://orders.test/orders ", URL),
    ("https://orders.test/or ders", "https://orders.test/or ders"),
    ("https://orders.test/or\tders", URL),
    ("https://orders.test/orders\n", URL),
    ("ftp://orders.test/orders", "ftp://orders.test/orders"),
    ("wss://orders.test/orders", "wss://orders.test/orders"),
    ("https://", "https://"),
    ("https://:443/", "https://:443/"),
    ("http://0x7f.1/", "http://127.0.0.1/"),
    ("http://127.1/", "http://127.0.0.1/"),
    ("http://[::1]/", "http://[0:0:0:0:0:0:0:1]/"),
    (URL, "no URL"),
    ("", ""),
)  # fmt: skip


def _urls() -> Cases:
    for htu, url in SAME_URLS:
        yield right(f"htu {htu} for {url}", shown(EC.proof(htu=htu), url=url))
    for htu, url in OTHER_URLS:
        yield wrong(f"htu {_told(htu)} for {_told(url)}", shown(EC.proof(htu=htu), url=url))


def _told(url: str) -> str:
    return url if url and url.isascii() and url.isprintable() else ascii(url)


def proof_cases() -> Cases:
    """Return all cases of bound tokens."""
    for part in (_bindings, _form, _json, _header, _keys, _signatures, _claims, _times, _urls):
        yield from part()
