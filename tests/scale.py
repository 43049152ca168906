"""How large the tests are: `KKP_TEST_SCALE`, a whole factor (default 1) on every count that can grow.

At 1 the suite is quick. `make soak` sets it for each promise so that the promise's bar is reached.
"""

from __future__ import annotations

import os

SCALE = int(os.environ.get("KKP_TEST_SCALE", "1"))
