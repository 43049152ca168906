"""Bounded bytes to a checked request: how the routes read, each shape once.

A reader names the schema of what it reads (`body`, `query`), so that the OpenAPI document is made of the same
rows that serve. Size is checked before form, form before meaning, and duplicate members last, when the form
is known to be harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, final

import msgspec
from aiohttp import hdrs, web

from kkp.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaTypeError
from kkp.model import Credentials
from kkp.pacing import Pacer
from kkp.web import batches, schemas
from kkp.web.bodies import BODY

ItemT = TypeVar("ItemT", bound=schemas.Asks[Any])
PartT = TypeVar("PartT")
RequestT = TypeVar("RequestT")
RequestT_co = TypeVar("RequestT_co", covariant=True)

SMALL_BODY_BYTES = 64 * 1024
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
_READ_SECONDS = 10.0


class Sizes(Protocol):
    """The limits that the configuration sets, in bytes."""

    @property
    def max_plaintext_bytes(self) -> int:
        """The largest plaintext."""

    @property
    def max_plaintext_body_bytes(self) -> int:
        """The largest body with a plaintext in it."""

    @property
    def max_envelope_body_bytes(self) -> int:
        """The largest body with an envelope in it."""


class Reader(Protocol[RequestT_co]):
    """Reads one route's requests.

    Attributes:
        body: The schema of the body; None where there is none.
        query: The schema of the query's parameters; None where they have no meaning.
        media_types: What a body may be sent as.
    """

    @property
    def body(self) -> type[schemas.Asks[Any]] | None:
        """See above."""

    @property
    def query(self) -> type[schemas.Asks[Any]] | None:
        """See above."""

    @property
    def media_types(self) -> Sequence[str]:
        """See above."""

    async def __call__(
        self, sizes: Sizes, request: web.Request, credentials: Credentials
    ) -> tuple[RequestT_co, Credentials]:
        """Return the checked request, and the credentials with what the body adds to them.

        Raises:
            InvalidRequestError: It is malformed.
            OverloadedError: Other bodies leave it no room.
            PayloadTooLargeError: It is over its limit.
            UnsupportedMediaTypeError: It is not JSON, or encoded.
        """


@final
class JSONBody(Generic[RequestT]):
    """Reads a JSON object.

    Args:
        body: Its schema.
        limit: The most bytes it may have.
        check: Refuses what the configuration does not admit.
        setting: What the limit follows from; empty where it is the same everywhere.
    """

    query: ClassVar[None] = None
    media_types: ClassVar[Sequence[str]] = (JSON,)

    def __init__(
        self,
        body: type[schemas.Asks[RequestT]],
        limit: Callable[[Sizes], int] = lambda _: SMALL_BODY_BYTES,
        check: Callable[[RequestT, Sizes], None] = lambda _request, _sizes: None,
        setting: str = "",
    ) -> None:
        self.body = body
        self._decoder = msgspec.json.Decoder(body)
        self._limit = limit
        self._check = check
        self._setting = setting

    async def __call__(
        self, sizes: Sizes, request: web.Request, credentials: Credentials
    ) -> tuple[RequestT, Credentials]:
        """See `Reader`."""
        raw = await _read(request, self._limit(sizes), setting=self._setting)
        body = schemas.decode(self._decoder, raw)
        checked = body.request()
        self._check(checked, sizes)
        schemas.check_unique(raw)
        return checked, body.credentials(credentials)


@final
class JSONBatch(Generic[ItemT, RequestT]):
    """Reads a JSON object with a list of items, each as if it stood alone.

    Args:
        body: Its schema; asks for what an item asks for together with what stands beside the items.
        item: The schema of an item.
        check: Refuses what the configuration does not admit.
    """

    query: ClassVar[None] = None
    media_types: ClassVar[Sequence[str]] = (JSON,)

    def __init__(
        self,
        body: type[schemas.Asks[Callable[[ItemT], RequestT]]],
        item: type[ItemT],
        check: Callable[[RequestT, Sizes], None] = lambda _request, _sizes: None,
    ) -> None:
        self.body = body
        self.item = item
        self._decoder = msgspec.json.Decoder(body)
        self._item_decoder = msgspec.json.Decoder(item)
        self._check = check

    async def __call__(
        self, sizes: Sizes, request: web.Request, credentials: Credentials
    ) -> tuple[Sequence[RequestT | Exception], Credentials]:
        """See `Reader`; an item that can't be read is its error."""
        raw = await _read(request, batches.MAX_BODY_BYTES)
        beside, places = batches.take_apart(raw)
        body = schemas.decode(self._decoder, beside)
        schemas.check_unique(beside)
        pacer, combine = Pacer(), body.request()
        items: list[RequestT | Exception] = []
        for place in places:
            items.append(self._read_item(raw[place], combine, sizes))
            await pacer.pause()
        return items, body.credentials(credentials)

    def _read_item(
        self, raw: bytes, combine: Callable[[ItemT], RequestT], sizes: Sizes
    ) -> RequestT | Exception:
        try:
            checked = combine(schemas.decode(self._item_decoder, raw))
            self._check(checked, sizes)
            schemas.check_unique(raw)
        except Exception as error:  # noqa: BLE001  whatever is wrong with one item, the others go on
            return error
        return checked


@final
class FormBody(Generic[RequestT]):
    """Reads a form, as the clients of an OAuth endpoint send it.

    Args:
        body: Its schema.
        read: Makes one of the form's pairs.
    """

    query: ClassVar[None] = None
    media_types: ClassVar[Sequence[str]] = (FORM,)

    def __init__(
        self,
        body: type[schemas.Asks[RequestT]],
        read: Callable[[Sequence[tuple[str, str]]], schemas.Asks[RequestT]],
    ) -> None:
        self.body = body
        self._read = read

    async def __call__(
        self,
        sizes: Sizes,  # noqa: ARG002  every reader has the same parameters
        request: web.Request,
        credentials: Credentials,
    ) -> tuple[RequestT, Credentials]:
        """See `Reader`."""
        body = self._read(schemas.form_pairs(await _read(request, SMALL_BODY_BYTES, media_type=FORM)))
        return body.request(), body.credentials(credentials)


@final
class PathAndJSON(Generic[PartT, RequestT]):
    """Reads what the path says, and a JSON object which may be left out.

    Args:
        body: Its schema; every member has a default.
        combine: What both ask for together.
    """

    query: ClassVar[None] = None
    media_types: ClassVar[Sequence[str]] = (JSON,)

    def __init__(
        self, body: type[schemas.Asks[PartT]], combine: Callable[[web.Request, PartT], RequestT]
    ) -> None:
        self.body = body
        self._decoder = msgspec.json.Decoder(body)
        self._combine = combine

    async def __call__(
        self,
        sizes: Sizes,  # noqa: ARG002  every reader has the same parameters
        request: web.Request,
        credentials: Credentials,
    ) -> tuple[RequestT, Credentials]:
        """See `Reader`."""
        raw = await _read(request, SMALL_BODY_BYTES) if request.can_read_body else b"{}"
        part = schemas.decode(self._decoder, raw).request()
        schemas.check_unique(raw)
        return self._combine(request, part), credentials


@final
class NoBody(Generic[RequestT]):
    """Reads what the path says.

    Args:
        check: What that asks for.
    """

    body: ClassVar[None] = None
    query: ClassVar[None] = None
    media_types: ClassVar[Sequence[str]] = ()

    def __init__(self, check: Callable[[web.Request], RequestT]) -> None:
        self._check = check

    async def __call__(
        self,
        sizes: Sizes,  # noqa: ARG002  every reader has the same parameters
        request: web.Request,
        credentials: Credentials,
    ) -> tuple[RequestT, Credentials]:
        """See `Reader`. An empty JSON object is no body: many clients send one."""
        if request.can_read_body and await _read(request, SMALL_BODY_BYTES) not in {b"", b"{}"}:
            raise InvalidRequestError("This endpoint takes no body.")
        return self._check(request), credentials


@final
class Query(Generic[RequestT]):
    """Reads the query's parameters.

    Args:
        query: Their schema.
    """

    body: ClassVar[None] = None
    media_types: ClassVar[Sequence[str]] = ()

    def __init__(self, query: type[schemas.Asks[RequestT]]) -> None:
        self.query = query

    async def __call__(
        self,
        sizes: Sizes,  # noqa: ARG002  every reader has the same parameters
        request: web.Request,
        credentials: Credentials,
    ) -> tuple[RequestT, Credentials]:
        """See `Reader`."""
        return schemas.parameters(request.query, self.query).request(), credentials


def is_form(request: web.Request) -> bool:
    """Tell whether the body says that it is a form."""
    # Most send JSON to the letter, which is told more quickly than the header is parsed.
    return request.headers.get(hdrs.CONTENT_TYPE) != JSON and request.content_type == FORM


async def _read(request: web.Request, limit: int, *, media_type: str = JSON, setting: str = "") -> bytes:
    """Return the body, bounded in size and time, if it says that it is of this media type."""
    # Most send it to the letter, which is told more quickly than the header is parsed.
    if request.headers.get(hdrs.CONTENT_TYPE) != media_type:
        _check_media_type(request, media_type)
    if hdrs.CONTENT_ENCODING in request.headers:
        raise UnsupportedMediaTypeError("The body must not have a content coding.")
    too_large = f"The body is over {limit} bytes{setting and f', which follow from {setting}'}."
    if request.content_length is not None and request.content_length > limit:
        raise PayloadTooLargeError(too_large)
    body = await _read_in_time(request, limit)
    if len(body) > limit:
        raise PayloadTooLargeError(too_large)
    return body


def _check_media_type(request: web.Request, media_type: str) -> None:
    if request.content_type != media_type:
        raise UnsupportedMediaTypeError(f"The body must be sent as Content-Type: {media_type}.")
    if request.charset is not None and request.charset.lower() not in {"utf-8", "utf8"}:
        raise UnsupportedMediaTypeError("The body must be UTF-8.")


async def _read_in_time(request: web.Request, limit: int) -> bytes:
    """Return the body, or the beginning of one that is over its limit."""
    share = request[BODY]
    if request.content.is_eof():  # it has arrived whole, as most do: waiting would cost more than the reading
        whole = request.content.read_nowait()
        share.take(len(whole))
        return whole
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_SECONDS):
            while len(body) <= limit and (piece := await request.content.readany()):
                share.take(len(piece))
                body += piece
        return bytes(body)
    except TimeoutError:
        raise InvalidRequestError("The body did not arrive in time.") from None
    except ConnectionResetError:  # the client's doing, and so nothing for the log
        raise InvalidRequestError("The connection ended before the body did.") from None
