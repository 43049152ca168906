"""What tests of the client share: a fake KKP, and one client for both worlds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest

from kkp_client.client import KKPClient
from kkp_client.local import LocalEnvelope, SyncLocalEnvelope
from kkp_client.sync_client import SyncKKPClient
from tests import scripted_kkp
from tests.scripted_kkp import CREDENTIAL, ScriptedKKP


class InThread:
    """A client for threads, each of whose calls runs in one, so that one test is for both."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.blocking, name)
        return lambda *args, **kwargs: asyncio.to_thread(method, *args, **kwargs)


Make: TypeAlias = Callable[..., Any]


@pytest.fixture
def kkp() -> Iterator[ScriptedKKP]:
    with scripted_kkp.running() as kkp:
        yield kkp


@pytest.fixture(params=["asyncio", "threads"])
async def client_of(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    """Make clients of a KKP, in asyncio or in threads, that are closed at the end."""
    async with AsyncExitStack() as stack:

        def make(kkp: ScriptedKKP | str, credential: Any = CREDENTIAL, **options: Any) -> Any:
            url = kkp if isinstance(kkp, str) else kkp.url
            options = {"audience": "orders-db", **options}
            if request.param == "asyncio":
                client = KKPClient(url, credential, **options)
                stack.push_async_callback(client.close)
                return client
            blocking = SyncKKPClient(url, credential, **options)
            stack.callback(blocking.close)
            return InThread(blocking)

        yield make


def local(client: Any) -> Any:
    """Return what seals and opens here, of either world; streams are given whole."""
    return (
        LocalEnvelope(client)
        if isinstance(client, KKPClient)
        else InThread(SyncLocalEnvelope(client.blocking))
    )


async def whole(pieces: Any) -> bytes:
    """Return all that a stream gives."""
    if hasattr(pieces, "__aiter__"):
        return b"".join([piece async for piece in pieces])
    return await asyncio.to_thread(b"".join, await pieces)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what other tasks or threads bring about."""
    async with asyncio.timeout(30):
        while True:
            if is_so():
                return
            await asyncio.sleep(0.005)
