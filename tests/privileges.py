"""Root without the two capabilities that let it pass over a file's mode (capabilities(7)), for a while.

They leave the effective set of this thread, and of those that it starts meanwhile; whoever is not root has
neither, and nothing changes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_PASSES_OVER_MODES = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH
_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@contextmanager
def without_passing_over_modes() -> Iterator[None]:
    """Take the capabilities out of this thread's effective set for the duration of the block."""
    sets = (_Data * 2)()
    _call(_libc.capget, sets)
    before = sets[0].effective
    sets[0].effective = before & ~_PASSES_OVER_MODES
    _call(_libc.capset, sets)
    try:
        yield
    finally:
        sets[0].effective = before
        _call(_libc.capset, sets)


def _call(function: ctypes._FuncPointer, sets: ctypes.Array[_Data]) -> None:
    header = _Header(_VERSION_3, 0)
    if function(ctypes.byref(header), sets) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
