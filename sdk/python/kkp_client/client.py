"""KKP's client for asyncio: tokens, envelopes, batches. Its twin for threads is `kkp_client.sync_client`.

What is sent and repeated, and what an answer means, is decided in `kkp_client.protocol`, which tokens are
kept in `kkp_client.token_cache`; here the steps are walked, and no rule stands.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, Unpack, final

import httpx

from kkp_client import transport
from kkp_client.approval import ShowsApproval
from kkp_client.envelope import DetachedEnvelope, Document, JSONObject
from kkp_client.errors import KKPError
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
    AskCredential,
    AskToken,
    Core,
    Options,
    Send,
    Settings,
    Step,
    Steps,
    Wait,
    checked_credential,
    closed,
    timed_out,
)
from kkp_client.token_cache import Flight, HeldToken, landed

ResultT = TypeVar("ResultT")
Credential: TypeAlias = str | Callable[[], str | Awaitable[str]]


@final
class KKPClient(ShowsApproval):
    """One KKP, asked with one credential, in one event loop.

    Args:
        url: Where KKP is.
        credential: A service key; or a function that returns a JWT or another bearer, asked whenever it is to
            be shown. It may be a coroutine function.
        **options: See `kkp_client.protocol.Settings`; the audience above all.

    Raises:
        ConfigurationError: It can't be made of these.
    """

    def __init__(self, url: str, credential: Credential, **options: Unpack[Options]) -> None:
        settings = Settings(url=url, **options)
        self._credential = credential if callable(credential) else checked_credential(credential)
        self._core = Core(settings)
        self._http = httpx.AsyncClient(**transport.options(settings))
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop tokens and connections; whoever waits for a token waits no longer."""
        self._core.close()
        for task in self._tasks:
            task.cancel()
        if not self._core.is_inherited:  # else the connections are another process's, which may be using them
            await self._http.aclose()

    async def token(self, scope: Scope) -> HeldToken:
        """Return a token of this scope: the same one while it will do, or a new one for an approval."""
        return await self._call(self._core.token(scope, anew=self._is_approved))

    async def introspect(self, token: str) -> JSONObject:
        """Return what KKP knows of a token (RFC 7662)."""
        return await self._call(self._core.introspect(token))

    async def revoke(self, token: str) -> None:
        """Have a token refused from now on (RFC 7009)."""
        await self._call(self._core.revoke(token))

    async def encrypt(
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
        return await self._call(self._core.encrypt(EncryptItem(plaintext=plaintext, **sealing), scope))

    async def decrypt(
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
        return await self._call(self._core.decrypt(envelope, scope, policy_context))

    async def rewrap(
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
        return await self._call(self._core.rewrap(envelope, (backend, key_id), scope, policy_context))

    async def encrypt_many(
        self, items: Sequence[EncryptItem], *, scope: Scope = DEFAULT_SCOPE
    ) -> list[JSONObject | KKPError]:
        """Have KKP seal many plaintexts; each has its envelope or its error, in order."""
        return await self._call_many(self._core.encrypt_many(items, scope))

    async def decrypt_many(
        self,
        envelopes: Sequence[Document],
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> list[Opened | KKPError]:
        """Have KKP open many envelopes; each has its plaintext or its error, in order."""
        return await self._call_many(self._core.decrypt_many(envelopes, scope, policy_context))

    async def rewrap_many(
        self,
        envelopes: Sequence[Document],
        *,
        backend: str,
        key_id: str,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> list[JSONObject | KKPError]:
        """Have KKP move many envelopes to another key; each has its new form or its error, in order."""
        return await self._call_many(
            self._core.rewrap_many(envelopes, (backend, key_id), scope, policy_context)
        )

    async def data_key(self, request: KeyRequest, *, scope: Scope = DEFAULT_SCOPE) -> MessageKey:
        """Return an envelope without a payload and the key of its one message: see `kkp_client.local`."""
        return await self._call(self._core.data_key(request, scope))

    async def message_key(
        self,
        envelope: DetachedEnvelope,
        *,
        policy_context: JSONObject = NOTHING,
        scope: Scope = DEFAULT_SCOPE,
    ) -> bytes:
        """Return the key of an envelope's one message: see `kkp_client.local`."""
        return await self._call(self._core.message_key(envelope, scope, policy_context))

    async def _call(self, steps: Steps[ResultT]) -> ResultT:
        """Walk the steps of a call, with the approval that is to be shown by it."""
        return await self._walk(self._with_approval(steps))

    async def _call_many(self, steps: Steps[ResultT]) -> ResultT:
        """Walk the steps of a call for many."""
        return await self._walk(self._without_approval(steps))

    async def _walk(self, steps: Steps[ResultT]) -> ResultT:
        """Do what the steps say, until they come to their end."""
        try:
            step = next(steps)
            while True:
                came, error = await self._outcome(step)
                step = steps.send(came) if error is None else steps.throw(error)
        except StopIteration as end:
            result: ResultT = end.value
            return result
        finally:
            steps.close()

    async def _outcome(self, step: Step) -> tuple[object, Exception | None]:
        try:
            return await self._do(step), None
        except Exception as error:  # noqa: BLE001  the caller's own function may raise any
            return None, error

    async def _do(self, step: Step) -> object:
        match step:
            case Send():
                return await transport.post(self._http, step, self._core.monotonic)
            case Wait(seconds):
                return await asyncio.sleep(seconds, None)
            case AskToken(scope, deadline):
                return await self._token(scope, deadline)
            case AskCredential(deadline):
                return await self._given(deadline)

    async def _given(self, deadline: float) -> str:
        """Return the caller's own credential."""
        given = self._credential() if callable(self._credential) else self._credential
        if not inspect.isawaitable(given):
            return given
        limit = asyncio.timeout(deadline - self._core.monotonic())
        try:
            async with limit:
                return await given
        except TimeoutError:
            if not limit.expired():
                raise  # it is the function's own
        raise timed_out("credential")

    async def _token(self, scope: bytes, deadline: float) -> HeldToken:
        found = self._core.tokens.find(scope, self._core.monotonic())
        if found.begins is not None:
            task = asyncio.create_task(self._fly(scope, found.begins))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return found.best if isinstance(found.best, HeldToken) else await self._landed(found.best, deadline)

    async def _fly(self, scope: bytes, flight: Flight) -> None:
        """Ask for a token, for all who wait for it."""
        try:
            self._core.tokens.land(scope, flight, await self._walk(self._core.fetch_token(scope)))
        except Exception as error:  # noqa: BLE001  it is raised by each who waits
            self._core.tokens.fail(scope, flight, error, self._core.monotonic())
        except asyncio.CancelledError:
            self._core.tokens.fail(scope, flight, closed(), self._core.monotonic())
            raise

    async def _landed(self, flight: Flight, deadline: float) -> HeldToken:
        """Wait for a flight that others wait for as well: none of them ends it."""
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        flight.add_done_callback(lambda _: loop.call_soon_threadsafe(arrived.set))
        try:
            async with asyncio.timeout(deadline - self._core.monotonic()):
                await arrived.wait()
        except TimeoutError:
            raise timed_out("token") from None
        return landed(flight)
