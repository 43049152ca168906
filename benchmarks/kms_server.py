"""Something that speaks AWS KMS's wire for one key, and hangs while it is told to.

It answers every wrap, and every wish for a data key, with the same bytes, so that it costs next to nothing.
From `POST /hang` until `POST /heal` it reads requests and never answers them.
"""

from __future__ import annotations

import asyncio
import base64

from aiohttp import web

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
_ARN = f"arn:aws:kms:eu-west-1:111122223333:key/{KEY_ID}"
_WRAPPED = {"KeyId": _ARN, "CiphertextBlob": base64.b64encode(b"w" * 160).decode()}
_ANSWERS = {
    "Encrypt": {**_WRAPPED, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"},
    "GenerateDataKey": {**_WRAPPED, "Plaintext": base64.b64encode(bytes(32)).decode()},
    "DescribeKey": {
        "KeyMetadata": {
            "KeyId": KEY_ID,
            "Arn": _ARN,
            "KeyState": "Enabled",
            "KeyUsage": "ENCRYPT_DECRYPT",
            "KeySpec": "SYMMETRIC_DEFAULT",
        }
    },
}


_hanging = asyncio.Event()


async def _answer(request: web.Request) -> web.StreamResponse:
    await request.read()
    if _hanging.is_set():
        await asyncio.Event().wait()
    return web.json_response(_ANSWERS[request.headers["X-Amz-Target"].rpartition(".")[2]])


async def _hang(_request: web.Request) -> web.StreamResponse:
    _hanging.set()
    return web.Response()


async def _heal(_request: web.Request) -> web.StreamResponse:
    _hanging.clear()
    return web.Response()


async def main() -> None:
    """Serve until killed."""
    app = web.Application()
    app.add_routes([web.post("/", _answer), web.post("/hang", _hang), web.post("/heal", _heal)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"Listening on http://{host}:{port}.", flush=True)  # noqa: T201  who started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
