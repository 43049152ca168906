"""Signed lines: what a checkpoint and a pruning have in common. No I/O, no clock.

```
line  {"<kind>":BODY,"signature":"<base64url, 86 characters>"}
BODY  RFC 8785 canonical JSON, on one line
```

`signature = Ed25519(prefix ‖ BODY)`, where the prefix names kind and version. A line has one spelling only.
"""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import Annotated, Final, TypeVar

import msgspec
import rfc8785
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

MAX_LINE_BYTES: Final = 1024 * 1024

_BEFORE_SIGNATURE: Final = b',"signature":"'
_END: Final = b'"}'
_SIGNATURE_CHARACTERS: Final = 86
_AFTER_BODY: Final = len(_BEFORE_SIGNATURE) + _SIGNATURE_CHARACTERS + len(_END)
_KEY_BYTES: Final = 32
_MOST: Final = 2**53 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Number = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_Body = TypeVar("_Body", bound=msgspec.Struct)


def write_line(kind: str, body: bytes, signature: str) -> bytes:
    """Return the line, without a newline."""
    return b'{"%b":%b,"signature":"%b"}' % (kind.encode(), body, signature.encode())


def split_line(kind: str, line: bytes) -> tuple[bytes, str]:
    """Return a line's body and signature, neither of them believed.

    Raises:
        ValueError: It is no such line.
    """
    before = b'{"%b":' % kind.encode()
    rest = line[-_AFTER_BODY:]
    if (
        len(line) > MAX_LINE_BYTES
        or not line.startswith(before)
        or not rest.startswith(_BEFORE_SIGNATURE)
        or not rest.endswith(_END)
    ):
        raise ValueError(f"not a {kind}")
    return line[len(before) : -_AFTER_BODY], rest[len(_BEFORE_SIGNATURE) : -len(_END)].decode("ascii")


def decode_body(decoder: msgspec.json.Decoder[_Body], body: bytes) -> _Body:
    """Read a body, which is spelled in one way only.

    Raises:
        ValueError: It is something else, or is spelled otherwise.
    """
    try:
        parsed = decoder.decode(body)
        canonical = rfc8785.dumps(msgspec.to_builtins(parsed))
    except RecursionError as error:  # every other error of msgspec and of rfc8785 is a ValueError
        raise ValueError("nested too deeply") from error
    if canonical != body:
        raise ValueError("it is not in canonical JSON")
    return parsed


def key_id(public_key: str) -> str:
    """Return the RFC 7638 thumbprint of an Ed25519 key in base64url."""
    jwk = f'{{"crv":"Ed25519","kty":"OKP","x":"{public_key}"}}'
    return encode(hashlib.sha256(jwk.encode()).digest())


def read_public_key(text: str) -> bytes:
    """Return the 32 bytes of a public key.

    Raises:
        ValueError: It is not base64url of that many bytes, in its one spelling.
    """
    return _decode(text, _KEY_BYTES)


def verify_signature(public_key: str, signed: bytes, signature: str) -> None:
    """Compare a signature with what was signed.

    Raises:
        ValueError: It does not fit, or one of them is not spelled as it should be.
    """
    raw = _decode(signature, 64)
    try:
        VerifyKey(read_public_key(public_key)).verify(signed, raw)
    except BadSignatureError:
        raise ValueError("its signature does not fit") from None


def encode(raw: bytes) -> str:
    """Return bytes in base64url, without padding."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str, length: int) -> bytes:
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        raw = b""
    if len(raw) != length or encode(raw) != text:  # one spelling only
        raise ValueError(f"not {length} bytes in base64url")
    return raw
