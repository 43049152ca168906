"""AWS KMS in a process of its own, so that its work is nobody else's: the emulator that the tests use."""

from __future__ import annotations

import asyncio
import sys

from tests.emulators.aws import emulated


async def main() -> None:
    async with emulated() as emulator:
        sys.stdout.write(f"Listening on {emulator.endpoint}.\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
