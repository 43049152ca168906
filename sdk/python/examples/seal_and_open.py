"""Seal a text under a key, open it, and move it to another key, in asyncio.

KKP_URL=http://127.0.0.1:8080 KKP_SERVICE_KEY=$(cat .kkp/root.key) python examples/seal_and_open.py
"""

import asyncio
import os

from kkp_client import KKPClient


async def main() -> None:
    async with KKPClient(os.environ["KKP_URL"], os.environ["KKP_SERVICE_KEY"], audience="orders-db") as kkp:
        envelope = await kkp.encrypt(
            "4111 1111 1111 1111", backend="aws", key_id="alias/orders", context={"table": "orders"}
        )
        print("opened:", (await kkp.decrypt(envelope)).text)
        moved = await kkp.rewrap(envelope, backend="gcp", key_id="orders")
        print("moved to", moved["backend"], "and opened:", (await kkp.decrypt(moved)).text)


asyncio.run(main())
