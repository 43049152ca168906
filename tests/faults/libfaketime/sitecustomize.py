"""What a Python under libfaketime needs: `time.sleep`, which since 3.11 fails there with EINVAL.

It sleeps until a time of the monotonic clock, and libfaketime takes the shift of the wall clock off that even
where it is told to leave the clock alone (https://github.com/wolfcw/libfaketime/issues/426).
"""

import select
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex) -> None:
    select.select((), (), (), float(seconds))


time.sleep = _sleep
