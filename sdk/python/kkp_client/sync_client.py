"""KKP's client for threads: the twin of `kkp_client.client`, with the same methods.

What is sent and repeated, and what an answer means, is decided in `kkp_client.protocol`, which tokens are
kept in `kkp_client.token_cache`; here the steps are walked, and no rule stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, wait
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar, Unpack, final

import httpx

from kkp_client import transport
from kkp_client.approval import ShowsApproval
from kkp_client.envelope import DetachedEnvelope, Document, JSONObject
from kkp_client.errors import KKPError
from kkp_client.loop_thread import LoopThread
from kkp_client.messages import (
    DEFAULT_SCOPE,
    NOTHING,
    EncryptItem,
    KeyRequest,
    MessageKey,
    Opened,
    Scope,
    Sealing,
)
from kkp_client.protocol import (
    Answer,
    AskCredential,
    AskToken,
    Core,
    Failed,
    Options,
    Send,
    Settings,
    Step,
    Steps,
    Wait,
    checked_credential,
    timed_out,
)
from kkp_client.token_cache import Flight, HeldToken, landed

ResultT = TypeVar("ResultT")
Credential: TypeAlias = str | Callable[[], str]


@final
class SyncKKPClient(ShowsApproval):
    """One KKP, asked with one credential, by any number of threads.

    Args:
        url: Where KKP is.
        credential: A service key; or a function that returns a JWT or another bearer, asked whenever it is to
            be shown, by several threads at once. It ends by itself: no deadline cuts it short.
        **options: See `kkp_client.protocol.Settings`; the audience above all.

    Raises:
        ConfigurationError: It can't be made of these.
    """

    def __init__(self, url: str, credential: Credential, **options: Unpack[Options]) -> None:
        settings = Settings(url=url, **options)
        self._credential = credential if callable(credential) else checked_credential(credential)
        self._core = Core(settings)
        self._loop = LoopThread()
        self._sending: set[asyncio.Task[Any]] = set()  # known in the loop's thread alone
        self._http = httpx.AsyncClient(**transport.options(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop tokens and connections; whoever waits for a token waits no longer."""
        self._core.close()
        if not self._core.is_inherited:  # else the connections are another process's, which may be using them
            self._loop.run(self._end())
        self._loop.close()

    def token(self, scope: Scope) -> HeldToken:
        """Return a token of this scope: the same one while it will do, or a new one for an approval."""
        return self._call(self._core.token(scope, anew=self._is_approved))

    def introspect(self, token: str) -> JSONObject:
        """Return what KKP knows of a token (RFC 7662)."""
        return self._call(self._core.introspect(token))

    def revoke(self, token: str) -> None:
        """Have a token refused from now on (RFC 7009)."""
        self._call(self._core.revoke(token))

    def encrypt(
        self, plaintext: bytes | str, *, scope: Scope = DEFAULT_SCOPE, **sealing: Unpack[Sealing]
    ) -> JSONObject:
        """Have KKP seal a plaintext, and return the envelope.

        Args:
            plaintext: Text comes back as text.
            scope: What the token says beyond that, where one is shown.
            **sealing: The key, and what is bound to the envelope: see `kkp_client.messages.Sealing`.

        Raises:
            KKPError: It was not sealed.
        """
        return self._call(self._core.encrypt(EncryptItem(plaintext=plaintext, **sealing), scope))

    def decrypt(
        self, envelope: Document, *, policy_context: JSONObject = NOTHING, scope: Scope = DEFAULT_SCOPE
    ) -> Opened:
        """Have KKP open an envelope.

        Args:
            envelope: Its JSON, or that decoded.
            policy_context: What policy is told of the request.
            scope: What the token says, beyond which key it is for.

        Raises:
            KKPError: It was not opened.
        """
        return self._call(self._core.decrypt(envelope, scope, policy_context))

    def rewrap(
        self,
        envelope: Document,
        *,
        backend: str,
        key_id: str,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> JSONObject:
        """Have KKP move an envelope to another key, and return it; also a detached one, or a stream's.

        Raises:
            KKPError: It was not moved; the old envelope is as good as before.
        """
        return self._call(self._core.rewrap(envelope, (backend, key_id), scope, policy_context))

    def encrypt_many(
        self, items: Sequence[EncryptItem], *, scope: Scope = DEFAULT_SCOPE
    ) -> list[JSONObject | KKPError]:
        """Have KKP seal many plaintexts; each has its envelope or its error, in order."""
        return self._call_many(self._core.encrypt_many(items, scope))

    def decrypt_many(
        self,
        envelopes: Sequence[Document],
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> list[Opened | KKPError]:
        """Have KKP open many envelopes; each has its plaintext or its error, in order."""
        return self._call_many(self._core.decrypt_many(envelopes, scope, policy_context))

    def rewrap_many(
        self,
        envelopes: Sequence[Document],
        *,
        backend: str,
        key_id: str,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> list[JSONObject | KKPError]:
        """Have KKP move many envelopes to another key; each has its new form or its error, in order."""
        return self._call_many(self._core.rewrap_many(envelopes, (backend, key_id), scope, policy_context))

    def data_key(self, request: KeyRequest, *, scope: Scope = DEFAULT_SCOPE) -> MessageKey:
        """Return an envelope without a payload and the key of its one message: see `kkp_client.local`."""
        return self._call(self._core.data_key(request, scope))

    def message_key(
        self,
        envelope: DetachedEnvelope,
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> bytes:
        """Return the key of an envelope's one message: see `kkp_client.local`."""
        return self._call(self._core.message_key(envelope, scope, policy_context))

    def _call(self, steps: Steps[ResultT]) -> ResultT:
        """Walk the steps of a call, with the approval that is to be shown by it."""
        return self._walk(self._with_approval(steps))

    def _call_many(self, steps: Steps[ResultT]) -> ResultT:
        """Walk the steps of a call for many."""
        return self._walk(self._without_approval(steps))

    def _walk(self, steps: Steps[ResultT]) -> ResultT:
        """Do what the steps say, until they come to their end."""
        try:
            step = next(steps)
            while True:
                came, error = self._outcome(step)
                step = steps.send(came) if error is None else steps.throw(error)
        except StopIteration as end:
            result: ResultT = end.value
            return result
        finally:
            steps.close()

    def _outcome(self, step: Step) -> tuple[object, Exception | None]:
        try:
            return self._do(step), None
        except Exception as error:  # noqa: BLE001  the caller's own function may raise any
            return None, error

    def _do(self, step: Step) -> object:
        match step:
            case Send():
                return self._sent(step)
            case Wait(seconds):
                time.sleep(seconds)
                return None
            case AskToken(scope, deadline):
                return self._token(scope, deadline)
            case AskCredential():
                return self._credential() if callable(self._credential) else self._credential

    async def _send(self, send: Send) -> Answer | Failed:
        """Send a request, in the loop's thread."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in one
        self._sending.add(task)
        try:
            return await transport.post(self._http, send, self._core.monotonic)
        finally:
            self._sending.discard(task)

    async def _end(self) -> None:
        """End what is being sent, and drop the connections, in the loop's thread."""
        sending = list(self._sending)
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)
        await self._http.aclose()
        await asyncio.sleep(0)  # in which sockets are closed

    def _sent(self, send: Send) -> Answer | Failed:
        try:
            return self._loop.run(self._send(send))
        except CancelledError:
            return Failed("unreachable", "The client was closed.")

    def _token(self, scope: bytes, deadline: float) -> HeldToken:
        found = self._core.tokens.find(scope, self._core.monotonic())
        if found.begins is not None:
            self._begin(scope, found.begins)
        return found.best if isinstance(found.best, HeldToken) else self._landed(found.best, deadline)

    def _begin(self, scope: bytes, flight: Flight) -> None:
        thread = Thread(target=self._fly, args=(scope, flight), name="kkp-token", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has none left: nobody waits for a flight that never began
            self._core.tokens.fail(scope, flight, error, self._core.monotonic())

    def _fly(self, scope: bytes, flight: Flight) -> None:
        """Ask for a token, for all who wait for it."""
        try:
            self._core.tokens.land(scope, flight, self._walk(self._core.fetch_token(scope)))
        except BaseException as error:  # noqa: BLE001  it is raised by each who waits, also a SystemExit
            self._core.tokens.fail(scope, flight, error, self._core.monotonic())

    def _landed(self, flight: Flight, deadline: float) -> HeldToken:
        """Wait for a flight that others wait for as well: none of them ends it."""
        wait([flight], deadline - self._core.monotonic())
        if not flight.done():
            raise timed_out("token")
        return landed(flight)
