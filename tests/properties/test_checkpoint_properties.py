"""Any checkpoint reads back as it was signed, and nothing that differs from it in a bit is read at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kkp.audit.base import ChainHead
from kkp.audit.checkpoints import named_heads, read_checkpoint
from kkp.rows import LogPosition
from tests.fakes.logs import a_checkpoint, a_signer

pytestmark = pytest.mark.promise(30)

COUNTS = st.integers(0, 2**53 - 1)
HEADS = st.lists(
    st.builds(ChainHead, st.text(max_size=40).filter(str.isprintable), st.integers(1, 2**53 - 1),
              st.binary(min_size=32, max_size=32)),
    max_size=5, unique_by=lambda head: head.chain,
)  # fmt: skip


@given(
    position=st.builds(LogPosition, COUNTS, COUNTS, HEADS.map(tuple)),
    now=st.floats(0, 2**33),
    flags=st.tuples(st.booleans(), st.booleans()),
    data=st.data(),
)
def test_a_checkpoint_reads_back_and_any_flipped_bit_is_refused(
    position: LogPosition, now: float, flags: tuple[bool, bool], data: st.DataObject
) -> None:
    rollback, is_first = flags
    previous = None if is_first else a_checkpoint()
    signed = a_signer().sign(position, previous, now, rollback=rollback)
    assert read_checkpoint(signed.line) == signed
    assert (signed.epoch, signed.records, signed.time) == (position.epoch, position.records, int(now))
    assert (signed.rollback, signed.seq) == (rollback, 1 if is_first else 2)
    assert named_heads(signed) == sorted(position.heads)
    flipped = bytearray(signed.line)
    place = data.draw(st.integers(0, len(flipped) * 8 - 1))
    flipped[place // 8] ^= 1 << place % 8
    with pytest.raises(ValueError, match=r"."):
        read_checkpoint(bytes(flipped))
