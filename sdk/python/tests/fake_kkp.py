"""KKP's documents over real HTTP, on a port of this machine, from a thread of its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.issuer import Issuer

Reply = tuple[int, dict[str, str], bytes]
KEYS, LIST = "/keys/jwks", "/revocations/list"


class FakeKKP:
    """Answers keys and list as KKP does. `replies` answers a path otherwise; `gate` holds answers up."""

    def __init__(self, issuer: Issuer) -> None:
        self.documents: dict[str, bytes] = {KEYS: issuer.jwks(), LIST: issuer.revocations().encode()}
        self.cache_control: dict[str, str] = {KEYS: "private, max-age=300", LIST: "private, max-age=60"}
        self.replies: dict[str, Callable[[], Reply]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self.gate = threading.Event()
        self.gate.set()
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = _serving(self, 0)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start(self) -> None:
        self._server = _serving(self, self.port)

    def times(self, path: str) -> int:
        return self.asked.count(path)

    def reply(self, path: str, headers: dict[str, str]) -> Reply:
        with self._lock:
            self.asked.append(path)
            self.headers.append(headers)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self.gate.wait(30)
        with self._lock:
            self._at_once -= 1
        return self.replies[path]() if path in self.replies else self._usual(path, headers)

    def _usual(self, path: str, headers: dict[str, str]) -> Reply:
        document = self.documents[path]
        answered = {"ETag": f'"{hashlib.sha256(document).hexdigest()}"'}
        if self.cache_control[path]:
            answered["Cache-Control"] = self.cache_control[path]
        if headers.get("if-none-match") == answered["ETag"]:
            return 304, answered, b""
        return 200, answered, document


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    kkp: FakeKKP

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a client that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answered, body = self.server.kkp.reply(self.path, headers)
        self.send_response(status)
        for name, value in answered.items():
            self.send_header(name, value)
        if status != 304 and "Transfer-Encoding" not in answered:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _serving(kkp: FakeKKP, port: int) -> _Server:
    server = _Server(("127.0.0.1", port), _Handler)
    server.kkp = kkp
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server
