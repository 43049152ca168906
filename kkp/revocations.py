"""What can be revoked, what that means, and the signed list of it. Pure.

| kind | names | stops | until |
|---|---|---|---|
| `token` | a `jti` | that token | it has expired |
| `subject` | a `sub` | every token that speaks for it and was issued up to then | they have expired |
| `identity` | an identity | its credentials, and all tokens for it or that it asked for | lifted |
| `key` | a backend and a key id | everything that names the key, or a key made of it | lifted |
| `backend` | a backend | everything that names the backend, or a key made of one of its keys | lifted |

Names are compared as they are written, like those of grants, but for a key's: every spelling that its adaptor
folds into one name is that key (`kkp.kms._names`). An alias and an ARN of one key are two names.

A revocation's id is a digest of what it names, and so is an entry of the list; a token's is its `jti`:

```
id = BASE64URL(SHA-256(RFC 8785 canonical JSON of [kind, name] or ["key", backend, key id]))
```

The list is a JWS in compact form with the `typ` of LIST_TYPE, over `ListClaims`. Anybody may read it. It
shows no name, but whoever has a name, or guesses it, can tell whether that is revoked. Evolution: members are
added to the claims, never reused; one that an old verifier must not pass over comes with another `typ`.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec
import rfc8785

LIST_TYPE: Final = "kkp-revocations+jwt"
MAX_REASON_CHARACTERS: Final = 256


class RevocationKind(StrEnum):
    """What is revoked. A name is never reused."""

    TOKEN = "token"  # noqa: S105  the name of a kind
    SUBJECT = "subject"
    IDENTITY = "identity"
    KEY = "key"
    BACKEND = "backend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Something revoked.

    Attributes:
        id: See above.
        kind: What it is.
        name: A token's `jti`, a key's id, or the name of anything else.
        backend: A key's.
        revoked_at: When, in Unix seconds.
        revoked_by: By whom.
        before: Of a subject, the latest `iat` of a token that is void.
        expires_at: When it is forgotten, since nothing that it stops can be good any more; None: when lifted.
        reason: Why, in the words of whoever revoked it; of a token the audit alone knows.
    """

    id: str
    kind: RevocationKind
    name: str
    backend: str | None = None
    revoked_at: float
    revoked_by: str
    before: int | None = None
    expires_at: float | None = None
    reason: str = ""


class ListClaims(msgspec.Struct, frozen=True, kw_only=True):
    """What the list says. Times are whole Unix seconds.

    Attributes:
        iss: Whose tokens it is about.
        iat: When it was true.
        exp: Until when it may be relied on.
        seq: Never falls; of two lists, the one with the higher knows more.
        tokens: From the `jti` of each to its `exp`, or a later time; the entry stays for longer than that.
        subjects: From the digest of each to the latest `iat` that is void.
        identities: Digests, to be compared with those of `sub` and of `act.sub`.
        keys: Digests of backend and key id, keys that are made of revoked ones among them. Of a key that has
            several spellings, the one that was written and the one that stands for all.
        backends: Digests.
    """

    iss: str
    iat: int
    exp: int
    seq: int
    tokens: dict[str, int]
    subjects: dict[str, int]
    identities: list[str]
    keys: list[str]
    backends: list[str]


def entry_id(kind: RevocationKind, *names: str) -> str:
    """Return the id of what these name: a digest, but for a token's `jti`."""
    if kind is RevocationKind.TOKEN:
        return names[0]
    digest = hashlib.sha256(rfc8785.dumps([kind.value, *names])).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
