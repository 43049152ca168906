from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

import httpx
import pytest

from kkp_client import transport
from kkp_client.errors import TransportError
from kkp_client.protocol import Failed, Send, Settings
from tests.conftest import Make
from tests.scripted_kkp import KEY

SECRET = "secret-that-was-sent-or-came-back"
SETTINGS = Settings(url="http://127.0.0.1:1")


def send(deadline: float) -> Send:
    return Send(
        "http://127.0.0.1:1/token", {"Authorization": f"Bearer {SECRET}"}, SECRET.encode(), 1000, deadline
    )


def both(raises: Exception, deadline: float = 1e9) -> list[object]:
    """Return what a request comes to in asyncio and in threads, where the connection raises this."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise raises

    async def in_asyncio() -> object:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            return await transport.post(http, send(deadline), lambda: 0.0)

    with httpx.Client(transport=httpx.MockTransport(handler)) as http:
        return [asyncio.run(in_asyncio()), transport.post_blocking(http, send(deadline), lambda: 0.0)]


@pytest.mark.parametrize(
    ("raises", "code", "was_sent"),
    [
        (httpx.ConnectError("refused"), "unreachable", False),
        (httpx.ConnectTimeout(SECRET), "timeout", False),
        (httpx.PoolTimeout(SECRET), "timeout", False),
        (httpx.ReadTimeout(SECRET), "timeout", True),
        (httpx.WriteTimeout(SECRET), "timeout", True),
        (httpx.ReadError(SECRET), "unreachable", True),
        (httpx.WriteError(SECRET), "unreachable", True),
        (httpx.RemoteProtocolError(SECRET), "unreachable", True),
    ],
)
def test_what_failed_is_told_with_whether_kkp_may_have_seen_it(
    raises: Exception,
    code: str,
    was_sent: bool,  # noqa: FBT001  a case
) -> None:
    for came in both(raises):
        assert isinstance(came, Failed)
        assert (came.code, came.was_sent) == (code, was_sent)
        assert SECRET not in came.what


def test_nothing_is_sent_after_the_deadline() -> None:
    for came in both(AssertionError("it was sent"), deadline=0.0):
        assert isinstance(came, Failed)
        assert came.code == "timeout"


@contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """Answer any request with this, and then with one byte after the other, for as long as somebody reads."""
    ended = Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(head)
            while not ended.is_set():
                try:
                    connection.sendall(b" ")
                except OSError:
                    return
                ended.wait(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join()


async def test_an_answer_that_drips_ends_at_the_deadline(client_of: Make) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
    with dripping(head) as url:
        begun = time.monotonic()
        with pytest.raises(TransportError) as failed:
            await client_of(url, deadline_seconds=0.3).encrypt("hello", **KEY)
        assert failed.value.code == "timeout"
        assert time.monotonic() - begun < 20


@pytest.mark.parametrize("client", [httpx.Client, httpx.AsyncClient])
def test_nothing_of_the_environment_is_taken(
    client: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    options = transport.options(SETTINGS)
    made = client(**options)
    assert (made.trust_env, made.follow_redirects) == (False, False)
