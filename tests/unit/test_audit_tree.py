"""The tree is RFC 6962's: the vectors of Certificate Transparency, and a naive reading of the RFC."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp.audit.tree import (
    EMPTY_ROOT,
    Frontier,
    Range,
    consistency_ranges,
    consistent,
    included,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    roots,
    subtrees,
)

pytestmark = pytest.mark.promise(30)

# The eight leaves, their roots and proofs of google/certificate-transparency's merkletree tests.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
    )
]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
INCLUSION = [
    (1, 1, ()),
    (1, 8, ("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4")),
    (6, 8, ("bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7")),
    (3, 3, ("fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",)),
    (2, 5, ("6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b")),
]  # fmt: skip
CONSISTENCY = [
    (1, 1, ()),
    (1, 8, ("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4")),
    (6, 8, ("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7")),
    (2, 5, ("5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b")),
]  # fmt: skip


def frontier(leaves: Sequence[bytes]) -> Frontier:
    made = Frontier()
    made.extend(leaves)
    return made


def proof(ranges: Sequence[Range], leaves: Sequence[bytes], gone: int = 0) -> list[bytes]:
    """Return the hashes of a proof, where the first leaves are known by their frontier alone."""
    found = roots(ranges, frontier(leaves[:gone]), leaves[gone:])
    return [found[part] for part in ranges]


def naive_root(leaves: Sequence[bytes]) -> bytes:
    """Read RFC 6962, 2.1, aloud."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    """Read 2.1.1 aloud."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: Sequence[bytes], *, whole: bool = True) -> list[bytes]:
    """Read 2.1.2 aloud."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole=whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], whole=False), naive_root(leaves[:k])]


@pytest.mark.parametrize("size", range(1, 9))
def test_the_roots_are_those_of_certificate_transparency(size: int) -> None:
    assert frontier(LEAVES[:size]).root().hex() == ROOTS[size - 1]


def test_the_root_over_nothing_is_the_hash_of_nothing() -> None:
    assert Frontier().root() == EMPTY_ROOT == hashlib.sha256(b"").digest()


@pytest.mark.parametrize(("number", "size", "expected"), INCLUSION)
def test_the_inclusion_proofs_are_those_of_certificate_transparency(
    number: int, size: int, expected: tuple[str, ...]
) -> None:
    path = proof(inclusion_ranges(number - 1, size), LEAVES[:size])
    assert tuple(map(bytes.hex, path)) == expected
    assert included(LEAVES[number - 1], number - 1, size, path, bytes.fromhex(ROOTS[size - 1]))


@pytest.mark.parametrize(("old", "new", "expected"), CONSISTENCY)
def test_the_consistency_proofs_are_those_of_certificate_transparency(
    old: int, new: int, expected: tuple[str, ...]
) -> None:
    path = proof(consistency_ranges(old, new), LEAVES[:new])
    assert tuple(map(bytes.hex, path)) == expected
    assert consistent(old, new, path, *(bytes.fromhex(ROOTS[size - 1]) for size in (old, new)))


def some(count: int) -> list[bytes]:
    return [hashlib.sha256(bytes([number])).digest() for number in range(count)]


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65])
def test_every_proof_of_every_small_tree_is_the_rfcs_and_holds(size: int) -> None:
    leaves = some(size)
    root = naive_root(leaves)
    assert frontier(leaves).root() == root
    for number in range(size):
        path = proof(inclusion_ranges(number, size), leaves)
        assert path == naive_path(number, leaves)
        assert included(leaves[number], number, size, path, root)
        old = number + 1
        path = proof(consistency_ranges(old, size), leaves)
        assert path == naive_subproof(old, leaves)
        assert consistent(old, size, path, naive_root(leaves[:old]), root)


@given(st.integers(1, 200), st.data())
def test_proofs_hold_where_the_first_records_are_known_by_their_frontier_alone(
    size: int, data: st.DataObject
) -> None:
    leaves = some(size)
    gone = data.draw(st.integers(0, size - 1))
    number, old = data.draw(st.integers(gone, size - 1)), data.draw(st.integers(max(gone, 1), size))
    assert proof(inclusion_ranges(number, size), leaves, gone) == naive_path(number, leaves)
    assert proof(consistency_ranges(old, size), leaves, gone) == naive_subproof(old, leaves)


@given(st.integers(2, 200), st.data())
def test_a_proof_about_a_record_that_is_gone_can_not_be_made(size: int, data: st.DataObject) -> None:
    leaves = some(size)
    gone = data.draw(st.integers(2, size))
    number = data.draw(st.integers(0, gone - 1))
    is_own_subtree = Range(number, number + 1) in subtrees(Range(0, gone))
    if not is_own_subtree:
        with pytest.raises(LookupError):
            proof(inclusion_ranges(number, size), leaves, gone)


def test_a_proof_takes_as_many_records_as_it_is_about() -> None:
    with pytest.raises(LookupError, match="there are not 8 leaves"):
        proof(inclusion_ranges(0, 8), some(7))


@given(st.integers(0, 300), st.data())
def test_a_range_is_proven_by_the_subtrees_on_either_side_of_it(size: int, data: st.DataObject) -> None:
    leaves = some(size % 256)
    start = data.draw(st.integers(0, len(leaves)))
    end = data.draw(st.integers(start, len(leaves)))
    grown = frontier(leaves[:start])
    grown = Frontier.read(grown.size, grown.stored())
    grown.extend(leaves[start:end])
    for part in subtrees(Range(end, len(leaves))):
        grown.add_subtree(naive_root(leaves[slice(*part)]), part.end - part.start)
    assert grown.size == len(leaves)
    assert grown.root() == naive_root(leaves)
    assert dict(grown.subtrees()) == {
        part: naive_root(leaves[slice(*part)]) for part in subtrees(Range(0, len(leaves)))
    }


def test_a_copy_grows_on_its_own() -> None:
    one = frontier(LEAVES[:3])
    other = one.copy()
    other.extend(LEAVES[3:])
    assert (one.root().hex(), other.root().hex()) == (ROOTS[2], ROOTS[7])


def test_a_subtree_stands_at_a_multiple_of_its_size_only() -> None:
    with pytest.raises(ValueError, match="multiple"):
        frontier(LEAVES[:3]).add_subtree(bytes(32), 2)


@pytest.mark.parametrize(("size", "length"), [(0, 32), (1, 0), (1, 33), (3, 32), (4, 64), (-1, 32)])
def test_a_frontier_has_one_hash_for_each_set_bit_of_its_size(size: int, length: int) -> None:
    with pytest.raises(ValueError, match="set bit"):
        Frontier.read(size, bytes(length))


@pytest.mark.parametrize(("index", "size"), [(-1, 1), (0, 0), (1, 1), (8, 8)])
def test_there_is_no_proof_about_what_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        inclusion_ranges(index, size)
    assert not included(b"", index, size, [], leaf_hash(b""))


@pytest.mark.parametrize(("old", "new"), [(0, 1), (-1, 1), (2, 1), (0, 0)])
def test_there_is_no_proof_between_trees_that_are_none(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="no such trees"):
        consistency_ranges(old, new)
    assert not consistent(old, new, [], EMPTY_ROOT, EMPTY_ROOT)


def test_no_altered_inclusion_proof_holds() -> None:
    for size in range(1, 20):
        leaves = some(size)
        root = naive_root(leaves)
        for number in range(size):
            path = naive_path(number, leaves)
            spoiled = [*([*path[:at], bytes(32), *path[at + 1 :]] for at in range(len(path))),
                       path[:-1] if path else [bytes(32)], [*path, bytes(32)], path[::-1]]  # fmt: skip
            for other in spoiled:
                assert other == path or not included(leaves[number], number, size, other, root)
            assert not included(bytes(32), number, size, path, root)
            assert not included(leaves[number], number, size, path, bytes(32))
            for index in range(size):
                assert (index == number) == included(leaves[number], index, size, path, root)


def test_no_altered_consistency_proof_holds() -> None:
    for new in range(2, 20):
        leaves = some(new)
        root = naive_root(leaves)
        for old in range(1, new):
            path, old_root = naive_subproof(old, leaves), naive_root(leaves[:old])
            spoiled = [*([*path[:at], bytes(32), *path[at + 1 :]] for at in range(len(path))),
                       path[:-1], [*path, bytes(32)], []]  # fmt: skip
            for other in spoiled:
                assert not consistent(old, new, other, old_root, root)
            assert not consistent(old, new, path, bytes(32), root)
            assert not consistent(old, new, path, old_root, bytes(32))
            assert not consistent(old, new, path, root, old_root)


def test_one_tree_is_consistent_with_itself_and_needs_no_hash_for_that() -> None:
    assert consistent(3, 3, [], EMPTY_ROOT, EMPTY_ROOT)
    assert not consistent(3, 3, [bytes(32)], EMPTY_ROOT, EMPTY_ROOT)


def test_a_node_is_no_leaf() -> None:
    assert leaf_hash(leaf_hash(b"a") + leaf_hash(b"b")) != node_hash(leaf_hash(b"a"), leaf_hash(b"b"))
