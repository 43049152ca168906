"""AWS KMS on a loopback socket: moto, behind a front that does what moto leaves out.

moto speaks the wire and encrypts (AES-GCM under a random key). The front makes it behave like AWS where it
does not (a disabled key, a key that awaits deletion, a ciphertext that is garbage or another key's, the
algorithm in the answers, contexts that differ only in where a name ends), and fails on demand.
"""

from __future__ import annotations

import base64
import functools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Self

import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.kms import models
from moto.kms.models import kms_backends
from moto.kms.utils import _deserialize_ciphertext_blob, generate_private_key
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

REGION = "eu-west-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIAEMULATED", "AWS_SECRET_ACCESS_KEY": "secret-of-the-emulated-role"}

# Nothing of whoever runs the tests, and no look for a role where a cloud would have one.
NO_AMBIENT = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
ALIASES = ("alias/orders", "alias/billing", "alias/disabled-key")

# Beside its random material moto gives each key one of RSA, of use only to sign: one of a kind will do.
models.generate_private_key = functools.cache(generate_private_key)  # type: ignore[attr-defined]
_MOTO = DomainDispatcherApplication(create_backend_app)

Document = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An answer on the wire.

    Attributes:
        missing: How many bytes short of its announced length it ends.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    missing: int = 0


# What happens to a request instead of an answer: by operation and what moto would say.
Fault = Callable[[str, Callable[[], Reply]], Reply]


def error(
    code: str, status: int = 400, message: str = "arn:aws:iam::123456789012:role/kkp is at fault"
) -> Reply:
    """Return an error as AWS writes it."""
    return Reply(status, json.dumps({"__type": code, "message": message}).encode())


def refusing(code: str, status: int = 400) -> Fault:
    """Answer everything with an error."""
    return lambda _operation, _answer: error(code, status)


def saying(reply: Reply) -> Fault:
    """Answer everything with this."""
    return lambda _operation, _answer: reply


def altering(operation: str, change: Callable[[Document], Document | None]) -> Fault:
    """Change the answers to one operation."""

    def fault(asked: str, answer: Callable[[], Reply]) -> Reply:
        reply = answer()
        if asked != operation or reply.status != 200:
            return reply
        document = json.loads(reply.body)
        changed = change(document)
        return Reply(200, json.dumps(document if changed is None else changed).encode())

    return fault


class _Handler(MotoRequestHandler):
    def log_request(self, *_: object) -> None:
        """Say nothing."""


class AWSEmulator:
    """One region of AWS KMS, with keys made for a test. Start and stop it by `with`."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self.operations: list[str] = []
        self._let_go = threading.Event()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        kms_backends[DEFAULT_ACCOUNT_ID][REGION].reset()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def uri(self) -> str:
        """What KKP is given."""
        return f"aws-kms://{REGION}?endpoint={self.endpoint}"

    def add_key(
        self, alias: str, key_usage: str = "ENCRYPT_DECRYPT", key_spec: str = "SYMMETRIC_DEFAULT"
    ) -> str:
        """Make a key with an alias and return its id."""
        backend = kms_backends[DEFAULT_ACCOUNT_ID][REGION]
        key = backend.create_key(None, key_usage, key_spec, None, None)  # type: ignore[arg-type]  # moto fills in
        backend.create_alias(key.id, alias)
        identifier: str = key.id
        return identifier

    def move_alias(self, alias: str, key_id: str) -> None:
        """Point an alias at another key."""
        kms_backends[DEFAULT_ACCOUNT_ID][REGION].update_alias(key_id, alias)

    def set_state(self, alias: str, state: str) -> None:
        """Put a key into a state, as `DescribeKey` spells it."""
        key = self._key(alias)
        assert key is not None
        key.key_state = state
        key.enabled = state == "Enabled"

    def hang(self, _operation: str, _answer: Callable[[], Reply]) -> Reply:
        """Say nothing until the end: a fault."""
        self._let_go.wait()
        return error("KMSInternalException", 500)

    def _answer(self, environ: Document, start_response: Callable[..., object]) -> Iterable[bytes]:
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        self.operations.append(operation)
        raw = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        reply = (self.fault or _faithfully)(operation, lambda: self._faithful(operation, raw, environ))
        headers = {
            "Content-Type": "application/x-amz-json-1.1",
            **reply.headers,
            "Content-Length": str(len(reply.body) + reply.missing),
        }
        start_response(f"{reply.status} Emulated", list(headers.items()))
        return [reply.body]

    def _faithful(self, operation: str, raw: bytes, environ: Document) -> Reply:
        request = json.loads(raw)
        refused = self._refusal(operation, request)
        if refused is not None:
            return refused
        if "EncryptionContext" in request:
            # moto authenticates names and values run together.
            context = json.dumps(request["EncryptionContext"], sort_keys=True)
            request["EncryptionContext"] = {"context": context}
        reply = self._ask_moto(json.dumps(request).encode(), environ)
        if operation in {"Encrypt", "Decrypt"} and reply.status == 200:
            document = {**json.loads(reply.body), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}
            return Reply(200, json.dumps(document).encode())
        return reply

    def _refusal(self, operation: str, request: Document) -> Reply | None:
        if operation not in {"GenerateDataKey", "Encrypt", "Decrypt"}:
            return None
        key = self._key(request["KeyId"])
        refused = _key_refusal(key)
        if refused is None and operation == "Decrypt":
            return self._ciphertext_refusal(base64.b64decode(request["CiphertextBlob"]), key.id)
        return refused

    def _ciphertext_refusal(self, blob: bytes, key_id: str) -> Reply | None:
        try:
            made_by = _deserialize_ciphertext_blob(ciphertext_blob=blob).key_id
        except Exception:  # noqa: BLE001  whatever moto stumbles over is garbage
            made_by = ""
        if made_by not in kms_backends[DEFAULT_ACCOUNT_ID][REGION].keys:
            return error("InvalidCiphertextException")
        return None if made_by == key_id else error("IncorrectKeyException")

    def _key(self, name: str) -> Any:
        backend = kms_backends[DEFAULT_ACCOUNT_ID][REGION]
        alias = backend.get_alias_name(name)
        identifier = backend.get_key_id_from_alias(alias) if alias.startswith("alias/") else name
        return backend.keys.get(backend.get_key_id(identifier or ""))

    def _ask_moto(self, body: bytes, environ: Document) -> Reply:
        told: list[Any] = []
        inner = {**environ, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer = _MOTO(inner, lambda *arguments: told.append(arguments))
        try:
            raw = b"".join(answer)
        finally:
            getattr(answer, "close", lambda: None)()
        return Reply(int(told[0][0].split()[0]), raw)


def _faithfully(_operation: str, answer: Callable[[], Reply]) -> Reply:
    return answer()


@asynccontextmanager
async def emulated() -> AsyncIterator[AWSEmulator]:
    """Run a region with the keys of `ALIASES` and one that signs, and have KKP's credentials set."""
    with AWSEmulator() as emulator, pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_AMBIENT, **CREDENTIALS}.items():
            patch.setenv(name, value)
        for alias in ALIASES:
            emulator.add_key(alias)
        emulator.add_key("alias/signing-key", "SIGN_VERIFY", "ECC_NIST_P256")
        emulator.set_state("alias/disabled-key", "Disabled")
        yield emulator


def _key_refusal(key: Any) -> Reply | None:
    if key is None:
        return error("NotFoundException")
    if key.key_state == "Disabled":
        return error("DisabledException")
    if key.key_state != "Enabled":
        return error("KMSInvalidStateException")
    if "SYMMETRIC_DEFAULT" not in (key.encryption_algorithms or ()):
        return error("InvalidKeyUsageException")
    return None
