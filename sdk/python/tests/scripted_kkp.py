"""A small KKP on a real socket: it seals, opens and mints like one, and answers by script where told to.

It keeps the message keys of what it sealed, and decides nothing: that KKP itself agrees with it is shown
where the repository's tests run both.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any, TypedDict

from kkp_client import envelope as envelopes
from kkp_client.encoding import base64url


class Key(TypedDict):
    """What names a key in a call."""

    backend: str
    key_id: str


CLAIMS = {
    "iss": "https://kkp.test", "sub": "orders", "aud": "orders-db", "iat": 1, "nbf": 1, "exp": 2, "jti": "j",
    "backend": "aws", "key_id": "alias/orders", "ops": ["decrypt"], "policy_claims": {},
}  # fmt: skip
KEY: Key = {"backend": "aws", "key_id": "alias/orders"}
CREDENTIAL = "kkp_sk_0000000000000000000000000000000000000000000"


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Scripted:
    """An answer that a test wants; a body of None hangs up instead."""

    status: int = 200
    body: bytes | dict[str, Any] | None = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    waits_for: Event | None = None


def problem(status: int, code: str, **members: Any) -> Scripted:
    """Return a refusal, as KKP words it."""
    document = {"type": "about:blank", "title": "…", "status": status, "code": code, "detail": "…", **members}
    return Scripted(status, document, {"Content-Type": "application/problem+json"})


def with_header(answer: Scripted, name: str, value: str) -> Scripted:
    return replace(answer, headers={**answer.headers, name: value})


class ScriptedKKP:
    """What it was asked, and what it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[Asked] = []
        self.scripts: dict[str, deque[Scripted]] = defaultdict(deque)
        self.life_seconds = 300
        self.keys: dict[str, bytes] = {}
        self._lock = Lock()

    def script(self, path: str, *answers: Scripted) -> None:
        """Answer the next requests to a path so."""
        self.scripts[path].extend(answers)

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def asked_at(self, path: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.path == path]

    def answer(self, asked: Asked) -> Scripted:
        with self._lock:
            self.asked.append(asked)
            scripted = self.scripts[asked.path]
            if scripted:
                return scripted.popleft()
        answer: Scripted = self._answers()[asked.path](asked)
        return answer

    def _answers(self) -> dict[str, Any]:
        return {
            "/token": self._mint,
            "/token/introspect": lambda _: Scripted(body={"active": True}),
            "/token/revoke": lambda _: Scripted(),
            "/envelope/encrypt": lambda asked: self._one(self._sealed, asked.json),
            "/envelope/decrypt": lambda asked: self._one(self._opened, asked.json),
            "/envelope/rewrap": lambda asked: self._one(self._moved, asked.json),
            "/envelope/data-key": lambda asked: self._one(self._begun, asked.json),
            "/envelope/data-key/unwrap": lambda asked: self._one(self._released, asked.json),
            "/envelope/encrypt/batch": lambda asked: self._many(self._sealed, asked.json),
            "/envelope/decrypt/batch": lambda asked: self._many(self._opened, asked.json),
            "/envelope/rewrap/batch": lambda asked: self._many(self._moved, asked.json),
        }

    def _mint(self, asked: Asked) -> Scripted:
        now = int(time.time())
        claims = {"iat": now, "exp": now + self.life_seconds, "jti": base64url(os.urandom(16))}
        token = ".".join(base64url(part) for part in (b"{}", json.dumps(claims).encode(), bytes(64)))
        kind = "DPoP" if "dpop" in asked.headers else "Bearer"
        return Scripted(
            body={"token": token, "expires_at": claims["exp"], "kid": "k", "token_type": kind, "more": 1}
        )

    def _one(self, make: Any, document: Any) -> Scripted:
        try:
            return Scripted(body=make(document))
        except KeyError:
            return problem(422, "envelope_invalid", request_id="r-1")

    def _many(self, make: Any, document: Any) -> Scripted:
        return Scripted(body={"items": [self._one(make, item).body for item in document["items"]]})

    def _detached(self, asked: Any, encoding: str | None) -> dict[str, Any]:
        size = {"chunk_size": asked["chunk_size"]} if "chunk_size" in asked else {}
        document = {
            "v": 1,
            "alg": "A256GCM-HKDF-SHA512-COMMIT" + ("-STREAM" if size else ""),
            "context": asked.get("context", {}),
            "associated_data": asked.get("associated_data"),
            "encoding": encoding,
            "message_id": base64url(os.urandom(32)),
            "backend": asked["backend"],
            "key_id": asked["key_id"],
            "key_version": "1",
            "encrypted_data_key": base64url(os.urandom(92)),
            "wrap_tag": base64url(os.urandom(32)),
            "commitment": base64url(os.urandom(32)),
            **size,
        }
        self.keys[document["message_id"]] = os.urandom(32)
        return document

    def _sealed(self, asked: Any) -> dict[str, Any]:
        text = asked.get("plaintext")
        plaintext = base64.b64decode(asked["plaintext_b64"]) if text is None else text
        detached = envelopes.parse_detached(self._detached(asked, None if text is None else "utf-8"))
        return {"envelope": envelopes.seal(detached, self.keys[detached.message_id], plaintext).document()}

    def _opened(self, asked: Any) -> dict[str, Any]:
        envelope = envelopes.parse(asked["envelope"])
        plaintext = envelopes.open(envelope, self.keys[envelope.detached.message_id])
        text = {"plaintext": plaintext.decode()} if envelope.detached.encoding else {}
        return {"plaintext_b64": base64.b64encode(plaintext).decode(), "claims": CLAIMS, **text}

    def _moved(self, asked: Any) -> dict[str, Any]:
        wrap = {"encrypted_data_key": base64url(os.urandom(92)), "wrap_tag": base64url(os.urandom(32))}
        target = {"backend": asked["backend"], "key_id": asked["key_id"]}
        return {"envelope": {**asked["envelope"], **target, **wrap}}

    def _begun(self, asked: Any) -> dict[str, Any]:
        detached = self._detached(asked, asked.get("encoding"))
        key = base64.b64encode(self.keys[detached["message_id"]]).decode()
        return {"envelope": detached, "message_key_b64": key}

    def _released(self, asked: Any) -> dict[str, Any]:
        key = self.keys[asked["envelope"]["message_id"]]
        return {"message_key_b64": base64.b64encode(key).decode()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kkp: ScriptedKKP

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.kkp.answer(Asked(self.path, headers, body))
        if answer.waits_for is not None:
            answer.waits_for.wait(30)
        if answer.body is None:
            self.close_connection = True
            return
        raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are no fault of the server's."""


@contextmanager
def running(**tls: Any) -> Iterator[ScriptedKKP]:
    """Run one for the duration of the block; with `context` it speaks TLS."""
    kkp = ScriptedKKP()
    handler = type("Handler", (_Handler,), {"kkp": kkp})
    with _Server(("127.0.0.1", 0), handler) as server:
        scheme = "http"
        if "context" in tls:
            server.socket = tls["context"].wrap_socket(server.socket, server_side=True)
            scheme = "https"
        kkp.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield kkp
        finally:
            server.shutdown()
            thread.join()
