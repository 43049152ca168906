"""`python -m kkp` is the `kkp` command."""

from __future__ import annotations

import gc

from kkp.cli import main


def run() -> int:
    """Run one command, and let the interpreter end without a search for cycles in all that was loaded.

    The search took longer than most of the commands. What they must close is closed by then.
    """
    code = main()
    gc.freeze()
    return code


if __name__ == "__main__":
    raise SystemExit(run())
