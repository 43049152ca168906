"""Calls that nobody thought of: the cases, altered at random and mostly signed anew.

What is altered is the text of a token, list, proof or key set; the bytes of a segment; a JSON document; and
everything else that a verdict depends on. A number names a call: the same one comes out each time.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, TypeAlias

from tests.vectors import curve
from tests.vectors.altered_json import STEPS, altered_bytes, altered_document, altered_text
from tests.vectors.calls import calls_of_cases, key_set_call
from tests.vectors.forging import (
    NEXT_SIGNER,
    NOW,
    SIGNER,
    STRANGER,
    Document,
    b64,
    entry,
    jws,
    revocation_list,
    thumbprint,
)
from tests.vectors.holders import EC, ED, FINGERPRINT, OTHER_FINGERPRINT, THIEF, digest_of, shown
from tests.vectors.key_sets import KEY_SETS, MOVED, OFF_CURVE
from tests.vectors.proof_claim_cases import OTHER_URLS, SAME_URLS
from tests.vectors.revocation_cases import REVOCATION_LISTS
from tests.vectors.signature_cases import sign_moved

Sign: TypeAlias = Callable[[bytes], bytes]

_SIGNERS: Final[Mapping[str, Sign]] = {
    **{signer.kid: signer.sign for signer in (SIGNER, NEXT_SIGNER, STRANGER)},
    json.loads(KEY_SETS["a moved key"])["keys"][0]["kid"]: sign_moved,
}
_HOLDERS: Final = {holder.jwk["x"]: holder.sign for holder in (EC, ED, THIEF)}
_POINTS: Final = (
    *map(curve.encode, curve.SMALL_ORDER),
    *((curve.P + y).to_bytes(32, "little") for y in range(19)),
    MOVED,
    OFF_CURVE,
    SIGNER.public,
)
_URLS: Final = [url for pair in (*SAME_URLS, *OTHER_URLS) for url in pair]
_PARTS: Final = (
    "https", "HTTP", "http", ":", "//", "/", "\\", "@", "orders.test", "ORDERS.test", "[::1]", "[::",
    ":443", ":80", ":", ":00443", "a", "%61", "%2F", "%2f", "%", "%zz", "%00", ".", "..", "%2e", "%2E%2E",
    "?", "#", "?x=/../y", ";", "|", "~", "%7E", "!", "$", "&", "'", "(", ")", "*", "+", ",", "=",
    "127.0.0.1", "_", "\u00e9", " ", "\t",
)  # fmt: skip


class Altered:
    """Makes calls."""

    def __init__(self) -> None:
        cases = list(calls_of_cases())
        self._tokens = [call for call, _ in cases if call["kind"] == "token"]
        self._good = [call for call, told in cases if call["kind"] == "token" and "claims" in told]
        self._lists = [call for call, _ in cases if call["kind"] == "revocation_list"]
        self._good_lists = [call for call, told in cases if call in self._lists and "claims" in told]
        self._key_sets = [call for call, _ in cases if call["kind"] == "key_set"]

    def token_call(self, number: int) -> Document:
        """Return a call of what verifies tokens."""
        rng = Random(f"token {number}")
        call = dict(rng.choice(self._good if rng.random() < 0.9 else self._tokens))
        before = call["token"]
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
            call["token"] = _altered_jws(rng, call["token"], _signer)
        if call["proof"] is not None:
            call["proof"] = _altered_proof(rng, call["proof"], before, call["token"])
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            rng.choice(_INPUTS)(rng, call)
        return call

    def list_call(self, number: int) -> Document:
        """Return a call of what verifies revocation lists."""
        rng = Random(f"list {number}")
        call = dict(rng.choice(self._good_lists if rng.random() < 0.9 else self._lists))
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            call["list"] = _altered_jws(rng, call["list"], _signer)
        if rng.random() < 0.2:
            call["highest_seq"] = rng.choice((None, 0, 40, 41, 42, 2**53 - 1))
        for _ in range(rng.choice((0, 0, 0, 1))):
            rng.choice((_other_now, _other_leeway, _other_issuer, _other_age, _other_keys))(rng, call)
        return call

    def key_set_call(self, number: int) -> Document:
        """Return a call of what reads key sets."""
        rng = Random(f"key set {number}")
        return key_set_call(_altered_key_set(rng, _decoded(rng.choice(self._key_sets)["document_base64url"])))


# Tokens, lists and proofs.


def _altered_jws(rng: Random, text: str, signer: Callable[[bytes], Sign]) -> str:
    try:
        header, payload, signature = map(_decoded, text.split("."))
    except (ValueError, UnicodeEncodeError):
        return altered_text(rng, text)
    kind = rng.random()
    if kind < 0.04:
        return altered_text(rng, text)
    if kind < 0.07:
        return f"{b64(header)}.{b64(payload)}.{b64(altered_bytes(rng, signature))}"
    if kind < 0.2:
        header = altered_document(rng, header)
    else:
        payload = altered_document(rng, payload)
    if rng.random() < 0.92:
        return jws(header, payload, signer(header))
    return f"{b64(header)}.{b64(payload)}.{b64(signature)}"


def _signer(header: bytes) -> Sign:
    """Return what signs for the key that a header names."""
    return _SIGNERS.get(str(_member(header, "kid")), SIGNER.sign)


def _holder(header: bytes) -> Sign:
    return _HOLDERS.get(str(_member(header, "jwk", "x")), EC.sign)


def _member(document: bytes, *names: str) -> Any:
    try:
        value = json.loads(document)
        for name in names:
            value = value[name]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return value


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def _altered_proof(rng: Random, presented: Document, before: str, token: str) -> Document:
    """Return a proof that is for the token that was altered, mostly, and altered itself now and then."""
    proof: str = presented["proof"]
    if before != token and rng.random() < 0.95:
        proof = _resigned(proof, digest_of(before), _digest_of_any(token))
    changes: Document = {"used_before": rng.random() < 0.1}
    if rng.random() < 0.25:
        htu, url = _altered_urls(rng)
        proof = _with_claim(proof, "htu", htu)
        changes["url"] = url
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        proof = _altered_jws(rng, proof, _holder)
    if rng.random() < 0.05:
        changes["method"] = altered_text(rng, presented["method"])
    return {**presented, **changes, "proof": proof}


def _digest_of_any(token: str) -> str:
    return digest_of(token) if token.isascii() else ""


def _resigned(proof: str, old: str, new: str) -> str:
    """Return a proof with one text of its claims in the place of another."""
    try:
        header, payload, _ = map(_decoded, proof.split("."))
    except (ValueError, UnicodeEncodeError):
        return proof
    return _proof(header, payload.replace(old.encode(), new.encode()))


def _with_claim(proof: str, name: str, value: str) -> str:
    try:
        header, payload, _ = map(_decoded, proof.split("."))
        claims = {**json.loads(payload), name: value}
    except (ValueError, TypeError, RecursionError):
        return proof
    return _proof(header, json.dumps(claims).encode())


def _proof(header: bytes, payload: bytes) -> str:
    return jws(header, payload, _holder(header))


def _altered_urls(rng: Random) -> tuple[str, str]:
    """Return what a proof is for, and what it should be for: nearly the same, mostly."""
    url = rng.choice(_URLS) if rng.random() < 0.5 else _made_up_url(rng)
    other = url
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(other) + 1)
        other = rng.choice(
            (altered_text(rng, other), other[:at] + rng.choice(_PARTS) + other[at:], other.swapcase())
        )
    return (url, other) if rng.random() < 0.5 else (other, url)


def _made_up_url(rng: Random) -> str:
    begin = rng.choice(
        ("https://orders.test", "http://[::1]:8080", "https://127.0.0.1", "HTTP://a_b.test:", "")
    )
    return begin + "".join(rng.choice(("/", *_PARTS)) for _ in range(rng.randrange(8)))


# Key sets.


def _altered_key_set(rng: Random, document: bytes) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 2))):
        document = altered_document(rng, document)
    if rng.random() < 0.5:
        document = _with_right_names(rng, document)
    return document


def _with_right_names(rng: Random, document: bytes) -> bytes:
    """Name each key by its thumbprint, having put other points in the places of some."""
    try:
        read = json.loads(document)
        members = [member for member in read["keys"] if member["x"].isascii()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return document
    for member in members:
        if rng.random() < 0.2:
            member["x"] = b64(rng.choice(_POINTS))
        member["kid"] = thumbprint({"crv": "Ed25519", "kty": "OKP", "x": member["x"]})
    return json.dumps(read).encode()


# All else.


def _other_now(rng: Random, call: Document) -> None:
    call["now"] = rng.choice((NOW, NOW + 300)) + rng.choice(STEPS) + rng.choice((0, 0.25, -0.25, 0.5))


def _other_leeway(rng: Random, call: Document) -> None:
    call["leeway"] = rng.choice((0, 1, 5, 59, 60))


def _other_issuer(rng: Random, call: Document) -> None:
    call["issuer"] = altered_text(rng, call["issuer"])


def _other_audience(rng: Random, call: Document) -> None:
    call["audience"] = altered_text(rng, call["audience"])


def _other_age(rng: Random, call: Document) -> None:
    call["fetched_at"] = call["now"] + rng.choice((-86_400, -600.25, -600, -599.75, -300, 0, 60))


def _other_keys(rng: Random, call: Document) -> None:
    document = rng.choice([None, *KEY_SETS.values()])
    if document is not None and rng.random() < 0.7:
        document = _altered_key_set(rng, document.encode()).decode(errors="replace")
    call["key_set"] = document


def _other_list(rng: Random, call: Document) -> None:
    call["wants_revocations"] = rng.random() < 0.9
    call["revocation_list"] = rng.choice((None, _list_about(rng, call["token"]), *REVOCATION_LISTS.values()))


def _list_about(rng: Random, token: str) -> str:
    """Return a list that names some of what a token says, and is altered now and then."""
    _, _, payload = token.partition(".")
    try:
        claims = json.loads(_decoded(payload.partition(".")[0]))
        names = {name: str(claims[name]) for name in ("sub", "jti", "backend", "key_id")}
        kinds: Sequence[Mapping[str, Any]] = (
            {"tokens": {names["jti"]: NOW}},
            {"subjects": {entry("subject", names["sub"]): int(claims["iat"]) + rng.choice((-1, 0, 1))}},
            {"identities": [entry("identity", names["sub"])]},
            {"keys": [entry("key", names["backend"], names["key_id"])]},
            {"backends": [entry("backend", names["backend"])]},
        )
        made = revocation_list(**rng.choice(kinds))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        made = revocation_list()
    return _altered_jws(rng, made, _signer) if rng.random() < 0.3 else made


def _other_certificate(rng: Random, call: Document) -> None:
    chosen = rng.choice((None, FINGERPRINT, OTHER_FINGERPRINT, ""))
    call["certificate_sha256"] = altered_text(rng, chosen) if chosen and rng.random() < 0.2 else chosen


def _other_proof(rng: Random, call: Document) -> None:
    proofs = (EC.proof(ath=_digest_of_any(call["token"])), ED.proof(), "x", None)
    proof = rng.choice(proofs)
    call["proof"] = None if proof is None else shown(proof)


def _other_binding(rng: Random, call: Document) -> None:
    """Bind a token to a key or a certificate, and hand in what proves to have it, mostly."""
    bound: Document = rng.choice(({"x5t#S256": FINGERPRINT}, {"jkt": EC.jkt}, {"jkt": ED.jkt}))
    token: str = call["token"]
    try:
        header, payload, _ = map(_decoded, token.split("."))
        claims = {**json.loads(payload), "cnf": bound}
    except (ValueError, TypeError, RecursionError):
        return
    call["token"] = token = jws(header, json.dumps(claims).encode(), _signer(header))
    holder = ED if bound == {"jkt": ED.jkt} else EC
    is_key = "jkt" in bound
    if rng.random() < (0.9 if is_key else 0.2):
        call["proof"] = shown(holder.proof(ath=_digest_of_any(token)))
    if rng.random() < (0.2 if is_key else 0.9):
        call["certificate_sha256"] = rng.choice((FINGERPRINT, FINGERPRINT, OTHER_FINGERPRINT))


_INPUTS: Final[Sequence[Callable[[Random, Document], None]]] = (
    _other_now, _other_now, _other_leeway, _other_issuer, _other_audience, _other_age, _other_keys,
    _other_keys, _other_list, _other_list, _other_list, _other_certificate, _other_proof, _other_binding,
    _other_binding,
)  # fmt: skip
