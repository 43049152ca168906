"""`all-of://`: a data key shared out among several backends, all of which it takes to open it.

It is there for those who want no single cloud, and nobody with one cloud's credentials, to open anything.
The options are in docs/kms/composites.md, the URI in `kkp.kms._members`, the format in `kkp.kms._parts`.
Least permissions are the members' own.

Of n members, the first n - 1 are given 32 random bytes each, and the last one the data key XOR all of these.
Any n - 1 of the shares are uniformly random whatever the data key is: without the last one they are the
random bytes themselves, and without another, that one's bytes mask the last share like a one-time pad. So
the shares of all members but one fit every data key equally well, and tell nothing about it, whatever
computing power one has. The check value beside them is a hash: it only tells whether a guess of every share
is right.

- To wrap, all current members are asked at the same time, and every one must succeed.
- To unwrap, all must answer whose parts there are, current members or former, and each part must be a
  member's. The check value tells whether the shares are those that were made, not which one is wrong. So
  whoever may wrap with any two members, current or former, can seal for the key; it opens nothing to them.
- If a member fails, the error is that of the one that says most; an outage goes before everything else.
  Which member that was `kkp.kms.failing` tells the operator, and nobody tells the caller.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import ClassVar, final

from kkp.envelope import DATA_KEY_BYTES
from kkp.kms._aead import invalid_wrap
from kkp.kms._members import Composite, Key, Member, every_outcome, successes
from kkp.kms._parts import Kind, Part, read, write
from kkp.kms.base import WrappedKey

_FEWEST_SHARES = 2


@final
class AllOfKMS(Composite):
    """Logical keys, each of which takes all of its members to open."""

    kind: ClassVar[Kind] = "all-of"

    async def wrap(self, key_id: str, data_key: bytes, context: Mapping[str, str]) -> WrappedKey:
        """Have every current member wrap its share; see `KMS.wrap`."""
        members = self._keys.get(key_id).current
        shares = split(data_key, len(members))
        asked = zip(members, shares, strict=True)
        outcomes = await every_outcome(member.wrap(share, context) for member, share in asked)
        return write(self.kind, key_id, successes(outcomes, len(members)), b"".join(shares), context)

    async def unwrap(self, key_id: str, wrapped: WrappedKey, context: Mapping[str, str]) -> bytes:
        """Have every part opened, and put the shares together; see `KMS.unwrap`."""
        key = self._keys.get(key_id)
        sealed = read(self.kind, wrapped)
        asked = _holders(key, sealed.parts)
        outcomes = await every_outcome(member.unwrap(part, context) for member, part in asked)
        shares = successes(outcomes, len(asked))
        # Only of shares of one length does the check value say where one ends and the next begins.
        is_whole = all(len(share) == DATA_KEY_BYTES for share in shares)
        if not is_whole or not sealed.belongs_to(b"".join(shares), key_id, context):
            raise invalid_wrap()
        return join(shares)


def split(data_key: bytes, number: int) -> list[bytes]:
    """Return so many shares of a data key, two or more."""
    masks = [os.urandom(DATA_KEY_BYTES) for _ in range(number - 1)]
    return [*masks, join([data_key, *masks])]


def join(shares: Sequence[bytes]) -> bytes:
    """Return what the shares are shares of."""
    return reduce(_xor, shares)


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=True))


def _holders(key: Key, parts: Sequence[Part]) -> list[tuple[Member, Part]]:
    """Return each part with its member.

    Raises:
        InvalidWrapError: A part is no member's, or there is but one.
    """
    holders = [(member, part) for part in parts if (member := key.holder(part)) is not None]
    if len(holders) != len(parts) or len(parts) < _FEWEST_SHARES:
        raise invalid_wrap()
    return holders
