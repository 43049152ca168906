# ruff: noqa: T201  it says what it did
"""Adds new cases of verdicts to sdk/vectors: `python -m tests.vectors`, from the repository's root.

It never changes one that was committed: where one would come out otherwise, it writes nothing.
"""

from __future__ import annotations

import json
import sys

from tests.vectors.files import DIRECTORY, made, merged, read


def main() -> int:
    """Add new cases to the files."""
    try:
        files = {name: merged(read(name), file) for name, file in made().items()}
    except ValueError as error:
        print(f"nothing is written: {error}", file=sys.stderr)
        return 1
    for name, file in files.items():
        print(f"{name}: {len(file['cases']) - len(read(name).get('cases', []))} cases added")
        (DIRECTORY / name).write_text(json.dumps(file, indent=1) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
