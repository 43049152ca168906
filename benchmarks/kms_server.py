"""Something that speaks AWS KMS's wire for one key, and one that only listens: `kms_server.py well | hung`.

The first answers every wrap with the same bytes, so that it costs next to nothing. The second reads each
request and never answers it.
"""

from __future__ import annotations

import asyncio
import base64
import sys

from aiohttp import web

KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
_ARN = f"arn:aws:kms:eu-west-1:111122223333:key/{KEY_ID}"
_ANSWERS = {
    "Encrypt": {
        "KeyId": _ARN,
        "CiphertextBlob": base64.b64encode(bytes(160)).decode(),
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    },
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


async def _answer(request: web.Request) -> web.StreamResponse:
    await request.read()
    return web.json_response(_ANSWERS[request.headers["X-Amz-Target"].rpartition(".")[2]])


async def _hang(request: web.Request) -> web.StreamResponse:
    await request.read()
    await asyncio.Event().wait()
    return web.Response()


async def main(state: str) -> None:
    """Serve until killed."""
    app = web.Application()
    app.router.add_post("/", {"well": _answer, "hung": _hang}[state])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    print(f"Listening on http://{host}:{port}.", flush=True)  # noqa: T201  who started it waits for this
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
