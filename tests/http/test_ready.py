"""`kkp ready`: what it asks, and what it makes of each answer."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kkp.cli import main, ready
from tests.http.certificates import new_pair

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"status":"ok"}'
STOPPING = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 21\r\n\r\n" + b'{"status":"stopping"}'
MOVED = b"HTTP/1.1 302 Found\r\nLocation: /healthz\r\nContent-Length: 0\r\n\r\n"
CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
Wrap = Callable[[socket.socket], socket.socket]


@contextmanager
def answering(
    answer: bytes | None, wrap: Wrap = lambda connection: connection
) -> Iterator[tuple[int, list[bytes]]]:
    """Answer one request on a port, or never; yields the port and what was asked."""
    asked: list[bytes] = []
    done = threading.Event()

    def serve() -> None:
        with listener.accept()[0] as plain, wrap(plain) as connection:
            asked.append(connection.recv(4096))
            if answer is None:
                done.wait(10)
            else:
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], asked
        done.set()
        thread.join(10)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run where no `kkp.toml` is, with a deadline that a test can wait for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ready, "_DEADLINE_SECONDS", 1.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"], ids=["loopback", "everywhere"])  # noqa: S104  that is asked about
def test_a_ready_server_is_asked_on_this_machine_and_its_answer_is_shown(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(OK) as (port, asked):
        monkeypatch.setenv("KKP_LISTEN_ADDR", f"{host}:{port}")
        assert main(["ready"]) == 0
    assert asked[0].startswith(b"GET /readyz HTTP/1.1\r\n")
    assert b"authorization" not in asked[0].lower()
    assert capsys.readouterr().out == '{"status":"ok"}\n'


@pytest.mark.parametrize(
    "answer",
    [STOPPING, MOVED, CREATED, b"", b"SSH-2.0-OpenSSH\r\n", OK[:11], None],
    ids=["stopping", "elsewhere", "another status", "nothing", "no HTTP", "cut short", "silence"],
)
def test_anything_else_is_not_ready(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(answer) as (port, _):
        monkeypatch.setenv("KKP_LISTEN_ADDR", f"127.0.0.1:{port}")
        assert main(["ready"]) == 1


def test_nobody_listening_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("KKP_LISTEN_ADDR", f"127.0.0.1:{port}")
    assert main(["ready"]) == 1
    assert (
        f"127.0.0.1:{port} gives no answer: ConnectionRefusedError(111, 'Connection refused')"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("answer", [OK, STOPPING])
def test_over_tls_whatever_the_certificate_says(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    new_pair().write(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    with answering(answer, lambda plain: context.wrap_socket(plain, server_side=True)) as (port, _):
        monkeypatch.setenv("KKP_LISTEN_ADDR", f"127.0.0.1:{port}")
        monkeypatch.setenv("KKP_TLS_CERT_FILE", str(tmp_path / "tls.crt"))
        assert main(["ready"]) == (0 if answer is OK else 1)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "8443", "localhost"])
def test_an_address_that_nobody_can_be_asked_at_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KKP_LISTEN_ADDR", address)
    assert main(["ready"]) == 2
    assert "KKP_LISTEN_ADDR" in capsys.readouterr().err
