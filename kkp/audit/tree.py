"""The Merkle tree of RFC 6962 over one chain, and what can be proven with it. Pure: no I/O, no key, no clock.

```
leaf  SHA-256(0x00 ‖ hash)             `hash`: the 32 bytes of the record's hash; record `seq` is leaf seq - 1
node  SHA-256(0x01 ‖ left ‖ right)     split at the largest power of two that is smaller than the range
```

The root over the first n records commits to each of them and to their order. With a root, an inclusion proof
(RFC 6962, 2.1.1) shows that a record is among them, and a consistency proof (2.1.2) that a later root is over
the same records and more behind them; each takes about log2(n) hashes.

A `Frontier` holds the roots of the complete subtrees that a range is made of, largest first: 32 bytes for
each set bit of its size. It grows record by record, so that nobody ever has to read a chain twice, and it
stands for records that are gone.

Evolution: the tree never changes in place; another one would need a new version of whatever signs its root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple, Self, final

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256().digest()

_sha256 = hashlib.sha256


class Range(NamedTuple):
    """The leaves from `start` up to, not including, `end`."""

    start: int
    end: int


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return _sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of what joins two subtrees."""
    return _sha256(b"\1" + left + right).digest()


@final
class Frontier:
    """The complete subtrees of the first `size` leaves, or of as many from any multiple of their own size."""

    __slots__ = ("_nodes", "size")

    def __init__(self) -> None:
        self.size = 0
        self._nodes: list[bytes] = []

    @classmethod
    def read(cls, size: int, stored: bytes) -> Self:
        """Read what `stored` wrote.

        Raises:
            ValueError: It has not one hash for each set bit of the size.
        """
        if size < 0 or len(stored) != HASH_BYTES * size.bit_count():
            raise ValueError("a frontier has one hash for each set bit of its size")
        found = cls()
        found.size = size
        found._nodes = [stored[at : at + HASH_BYTES] for at in range(0, len(stored), HASH_BYTES)]
        return found

    def stored(self) -> bytes:
        """Return the hashes, one behind the other."""
        return b"".join(self._nodes)

    def copy(self) -> Self:
        """Return one that grows on its own."""
        return type(self).read(self.size, self.stored())

    def extend(self, data: Iterable[bytes]) -> None:
        """Add leaves. Every record goes through here when a log is verified, so it calls nothing of ours."""
        size, nodes, sha256 = self.size, self._nodes, _sha256
        for item in data:
            node, rest = sha256(b"\0" + item).digest(), size
            while rest & 1:
                node = sha256(b"\1" + nodes.pop() + node).digest()
                rest >>= 1
            nodes.append(node)
            size += 1
        self.size = size

    def add_subtree(self, node: bytes, leaves: int) -> None:
        """Add a complete subtree.

        Args:
            node: Its root.
            leaves: Their number, a power of two of which the size is a multiple.
        """
        if self.size % leaves:
            raise ValueError("a subtree does not stand at a multiple of its size")
        while self.size & leaves:
            node = node_hash(self._nodes.pop(), node)
            self.size -= leaves
            leaves *= 2
        self._nodes.append(node)
        self.size += leaves

    def root(self) -> bytes:
        """Return the root over all leaves."""
        if not self._nodes:
            return EMPTY_ROOT
        root = self._nodes[-1]
        for node in reversed(self._nodes[:-1]):
            root = node_hash(node, root)
        return root

    def subtrees(self) -> Iterator[tuple[Range, bytes]]:
        """Return each subtree with what it covers, if the first leaf is leaf 0."""
        return zip(subtrees(Range(0, self.size)), self._nodes, strict=True)


def subtrees(covered: Range) -> list[Range]:
    """Return the largest complete subtrees that a range is made of, in their order."""
    found, (start, end) = [], covered
    while start < end:
        most = 1 << (end - start).bit_length() - 1
        leaves = min(start & -start or most, most)
        found.append(Range(start, start + leaves))
        start += leaves
    return found


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Return what each hash of an inclusion proof is the root of: RFC 6962's PATH, in its order."""
    if not 0 <= index < size:
        raise ValueError("no such leaf")
    found: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            found.append(Range(middle, end))
            end = middle
        else:
            found.append(Range(start, middle))
            start = middle
    return found[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """Return what each hash of a consistency proof is the root of: RFC 6962's PROOF, in its order."""
    if not 0 < old <= new:
        raise ValueError("no such trees")
    found: list[Range] = []
    start, end, is_whole = 0, new, True  # whether the old tree's root is the present subtree's
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            found.append(Range(middle, end))
            end = middle
        else:
            found.append(Range(start, middle))
            start, is_whole = middle, False
    return ([] if is_whole else [Range(start, end)]) + found[::-1]


def roots(ranges: Sequence[Range], known: Frontier, leaves: Iterable[bytes]) -> dict[Range, bytes]:
    """Return the root of each range.

    Args:
        ranges: Some that do not overlap; each starts at a multiple of its size, rounded up to a power of two.
        known: The first leaves, of which no range may end within a subtree.
        leaves: The data of all others, in order; it is read once, as far as it is needed.

    Raises:
        LookupError: A range can't be computed from this.
    """
    found: dict[Range, bytes] = {}
    stream, position = iter(leaves), known.size
    for wanted in sorted(ranges):
        part = Frontier()
        for covered, node in known.subtrees():
            if wanted.start <= covered.start and covered.end <= wanted.end:
                part.add_subtree(node, covered.end - covered.start)
        begin = wanted.start + part.size
        if begin < wanted.end:
            if begin < position:
                raise LookupError(f"leaf {begin} is not known by itself")
            part.extend(islice(stream, begin - position, wanted.end - position))
            position = wanted.end
        if part.size != wanted.end - wanted.start:
            raise LookupError(f"there are not {wanted.end} leaves")
        found[wanted] = part.root()
    return found


def included(data: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Tell whether an inclusion proof holds (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    node, last, computed = index, size - 1, leaf_hash(data)
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and computed == root


def consistent(old: int, new: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Tell whether a consistency proof holds (RFC 9162, 2.1.4.2)."""
    if not 0 < old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    hashes = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not hashes:
        return False
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and (first, second) == (old_root, new_root)


def _split(size: int) -> int:
    """Return the largest power of two that is smaller than a size above 1."""
    return 1 << (size - 1).bit_length() - 1
