"""Seal and open with tokens that are worth nothing to whoever steals them: bound to a key of this process's.

    KKP_URL=… KKP_SERVICE_KEY=… KKP_ISSUER=… python examples/bound.py

KKP_ISSUER is what KKP calls itself, where that is not KKP_URL: proofs name it.
"""

import asyncio
import os

from kkp_client import DPoPKey, KKPClient, Scope


async def main() -> None:
    client = KKPClient(
        os.environ["KKP_URL"],
        os.environ["KKP_SERVICE_KEY"],
        audience="orders-db",
        issuer=os.environ.get("KKP_ISSUER"),
        dpop_key=DPoPKey.generate(),
    )
    async with client as kkp:
        envelope = await kkp.encrypt("hello", backend="aws", key_id="alias/orders")
        held = await kkp.token(Scope(backend="aws", key_id="alias/orders"))
        print(held.token_type, "token, opened:", (await kkp.decrypt(envelope)).text)


asyncio.run(main())
