r"""How names and grants are written, in requests and in the configuration alike.

What a name looks like is said by a pattern, and in words to whoever is refused. A pattern ends in (?!\n)
beside $, because Python's $ also matches before a final newline.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from kkp.model import Grant

MAX_INTEGER = 2**53  # beyond it, JSON readers disagree on which number is meant (RFC 8259 section 6)


def spelt(
    pattern: str, description: str, *, min_length: int | None = None, max_length: int | None = None
) -> msgspec.Meta:
    """Describe strings that match a pattern whole; it has no `|` outside of brackets."""
    whole = rf"^{pattern}$(?!\n)"
    return msgspec.Meta(pattern=whole, min_length=min_length, max_length=max_length, description=description)


_VISIBLE = spelt(r"[\x21-\x7e]{1,256}", "1 to 256 visible ASCII characters, without spaces")
Backend = Annotated[
    str,
    spelt(
        r"[a-z0-9][a-z0-9_-]{0,31}",
        "a backend's name: 1 to 32 of a-z, 0-9, _ and -, of which the first is a letter or a digit",
    ),
]
KeyPattern = Annotated[
    str,
    spelt(
        r"([A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,510})?\*?",
        "a key's name, or the beginning of one and an asterisk",
        min_length=1,
    ),
]
Audience = Annotated[str, _VISIBLE]
Subject = Annotated[str, _VISIBLE]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
TokenOp = Literal["encrypt", "decrypt", "rewrap"]
RoleName = Annotated[
    str,
    spelt(
        r"[a-z][a-z0-9_-]{0,62}",
        "a role's name: 1 to 63 of a-z, 0-9, _ and -, of which the first is a letter",
    ),
]
Roles = Annotated[list[RoleName], msgspec.Meta(min_length=1, max_length=16)]


class GrantBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A grant, as it is written."""

    backend: Backend
    key_id: KeyPattern
    ops: Annotated[list[TokenOp], msgspec.Meta(min_length=1, max_length=3)]
    audiences: Annotated[list[Audience], msgspec.Meta(max_length=64)] = []
    policy_claims: Annotated[
        dict[Name, Annotated[list[Text], msgspec.Meta(min_length=1, max_length=64)]],
        msgspec.Meta(max_length=32),
    ] = {}
    max_ttl: Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)] | msgspec.UnsetType = msgspec.UNSET

    def grant(self) -> Grant:
        """Return the grant."""
        claims = {name: tuple(values) for name, values in self.policy_claims.items()}
        return Grant(self.backend, self.key_id, tuple(self.ops), tuple(self.audiences), claims, self.max_ttl)

    def __repr__(self) -> str:
        return "GrantBody(…)"


Grants = Annotated[list[GrantBody], msgspec.Meta(max_length=256)]
