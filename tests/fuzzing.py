"""Coverage-guided fuzzing of the parsers, by atheris (libFuzzer), as a program: libFuzzer ends its process.

The first byte of an input chooses the parser, the rest is what it reads. A parser may refuse with a KKPError,
or be done; anything else is a crash, which ends the program with an exit code that is not 0. Options are
libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped]  # the wheel carries no stubs

with atheris.instrument_imports(include=["kkp", "jwt"]):
    from kkp.errors import KKPError
    from tests.parsing import READERS, read_token


def fuzz(data: bytes) -> None:
    """Read one input."""
    if not data:
        return
    read = READERS[data[0] % len(READERS)]
    try:
        read(data[1:])
    except KKPError:
        return
    if read is read_token:
        raise AssertionError("a token by a key that nobody has was accepted")


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
