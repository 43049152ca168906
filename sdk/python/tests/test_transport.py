from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import httpx
import pytest

from kkp_client import transport
from kkp_client.errors import TransportError
from kkp_client.protocol import Answer, Failed, Send, Settings
from tests.conftest import Make
from tests.scripted_kkp import KEY

SECRET = "secret-that-was-sent-or-came-back"


def send(deadline: float) -> Send:
    return Send(
        "http://127.0.0.1:1/token", {"Authorization": f"Bearer {SECRET}"}, SECRET.encode(), 1000, deadline
    )


async def came_of(raises: Exception, deadline: float = 1e9) -> Answer | Failed:
    """Return what a request comes to where the connection raises this."""

    def handler(_: httpx.Request) -> httpx.Response:
        raise raises

    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
        return await transport.post(http, send(deadline), lambda: 0.0)


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
async def test_what_failed_is_told_with_whether_kkp_may_have_seen_it(
    raises: Exception,
    code: str,
    was_sent: bool,  # noqa: FBT001  a case
) -> None:
    came = await came_of(raises)
    assert isinstance(came, Failed)
    assert (came.code, came.was_sent) == (code, was_sent)
    assert SECRET not in came.what


async def test_nothing_is_sent_after_the_deadline() -> None:
    came = await came_of(AssertionError("it was sent"), deadline=0.0)
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


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: ",
    ],
    ids=["in its body", "in its header"],
)
async def test_an_answer_that_drips_ends_at_the_deadline(client_of: Make, head: bytes) -> None:
    with dripping(head) as url:
        begun = time.monotonic()
        with pytest.raises(TransportError) as failed:
            await client_of(url, deadline_seconds=0.3).encrypt("hello", **KEY)
        assert failed.value.code == "timeout"
        assert time.monotonic() - begun < 20


async def test_a_handshake_that_hangs_ends_at_the_deadline(client_of: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(TransportError) as failed:
            await client_of(url, deadline_seconds=2, repeats=0).encrypt("hello", **KEY)
    assert failed.value.code == "timeout"


def test_nothing_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    for url in ("http://127.0.0.1:1", "https://kkp.example"):
        made = httpx.AsyncClient(**transport.options(Settings(url=url)))
        assert (made.trust_env, made.follow_redirects) == (False, False)
