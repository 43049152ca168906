"""Asking an OPA over HTTP: opa-python-client, with what it leaves open closed.

Left to itself, that client follows redirects, reads answers of any size, asks again after a failure, takes
what is not JSON, and knows neither Unix sockets nor private authorities. So the one
method through which all of its requests go is our own, and so are the connections (`kkp.authz.opa_http`).
These rules hold:

- An answer is 200, `application/json`, without a content coding and at most 64 KiB, or it is none. It is read
  as strict JSON: no NaN, no second member of a name, UTF-8 without a byte order mark.
- An explanation may be MAX_TRACE_BYTES, because OPA writes down each step. One is fetched at a time, and only
  the names of the rules that had a value are kept of it: what else a line says may quote the question.
- What the latest few different answers say is kept, where they are small: the same ones come again and again.
  Only the answer is remembered, byte by byte, never the question, which is put to OPA each time.
- Whatever goes wrong becomes `PolicyUnavailableError`. Its text names the kind of failure and nothing else:
  neither the question nor the answer.

There is no deadline here: `kkp.authz.opa` sets one over everything that a decision takes.

The policy's path is a constant: no part of a request's URL comes from a request to KKP.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Final, final

import msgspec
from opa_client import AsyncOpaClient  # type: ignore[import-untyped]  # the wheel carries no stubs

from kkp.authz.opa_address import OPAAddress, tls_context
from kkp.authz.opa_http import OPAConnectionError, OPAConnections, Response
from kkp.errors import PolicyUnavailableError
from kkp.model import JSON
from kkp.strict_json import refuse_duplicates

PACKAGE = "kkp.authz"

MAX_TRACE_BYTES: Final = 8 * 1024 * 1024
_MAX_REMEMBERED: Final = 64
_MAX_REMEMBERED_BYTES: Final = 2048  # decoded, a body may take thirty times its size
_TRACED: Final = "&explain=full&pretty=true"
# `policy/kkp/authz/authz.rego:20  | | Exit data.kkp.authz.decision`: a rule that had a value.
_FIRED: Final = re.compile(r"[^|]+:[0-9]+ +(?:\| )*Exit data\.([A-Za-z0-9_.]+)(?: early)?")
# Without the first, an error in a built-in would be undefined, which a `not` turns into an allow.
_PARAMETERS = "?strict-builtin-errors=true&provenance=true"


class Bundle(msgspec.Struct, frozen=True):
    """What OPA says of an active bundle."""

    revision: str = ""


class Provenance(msgspec.Struct, frozen=True):
    """Which bundles an answer was given by; none where the policy came from files."""

    bundles: dict[str, Bundle] = {}


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What OPA answers to a question.

    Attributes:
        provenance: By which bundles.
        result: The rule's value; unset where it is undefined.
        decision_id: Under which id OPA logs the decision, where it logs decisions.
    """

    provenance: Provenance
    result: JSON = msgspec.UNSET
    decision_id: str | None = None


class _Traced(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provenance: Provenance
    explanation: list[str]
    result: JSON = msgspec.UNSET
    decision_id: str | None = None


class _Compiled(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    result: dict[str, JSON]


@final
class OPAClient(AsyncOpaClient):  # type: ignore[misc]  # of a class without types
    """One OPA, and the connections to it."""

    def __init__(self, address: OPAAddress, ca_file: Path | None) -> None:
        super().__init__(host=address.host, port=address.port, ssl=address.is_tls, retries=0)
        self._origin = self.root_url.removesuffix(f"/{self.version}")
        tls = tls_context(ca_file) if ca_file is not None else None
        self._connections = OPAConnections(address, tls)
        self._tracing = OPAConnections(address, tls, MAX_TRACE_BYTES, max_connections=1)

    async def ask(self, rule: str, encoded_input: bytes) -> Answer:
        """Ask for `data.kkp.authz.<rule>` on an input in JSON.

        Raises:
            PolicyUnavailableError: There is no answer, or it is not one of OPA's.
        """
        with _Failures():
            document = await self.query_rule(msgspec.Raw(encoded_input), PACKAGE, rule)
            return msgspec.convert(document, Answer)

    async def trace(self, rule: str, encoded_input: bytes) -> tuple[Answer, frozenset[str]]:
        """Ask like `ask`; return the answer, and the rules that had a value on the way to it.

        Raises:
            PolicyUnavailableError: There is no answer, or it is not one of OPA's.
        """
        with _Failures():
            path = f"/{self.version}/data/{PACKAGE.replace('.', '/')}/{rule}{_PARAMETERS}{_TRACED}"
            response = await self._tracing.post(path, b'{"input":%b}' % encoded_input)
            traced = msgspec.json.decode(_read(response), type=_Traced)
        fired = (_FIRED.fullmatch(line) for line in traced.explanation)
        answer = Answer(traced.provenance, traced.result, traced.decision_id)
        return answer, frozenset(found[1] for found in fired if found is not None)

    async def has_rule(self, rule: str) -> bool:
        """Tell whether the rule can have a value at all, on whatever input.

        Raises:
            PolicyUnavailableError: There is no answer, or it is not one of OPA's.
        """
        with _Failures():
            document = await self.compile_query(f"data.{PACKAGE}.{rule}")
            return bool(msgspec.convert(document, _Compiled).result)

    async def close_connection(self) -> None:
        """Close every connection; every later question is refused."""
        self._connections.close()
        self._tracing.close()

    async def _init_session(self) -> None:
        """Do nothing: the connections are our own."""

    @asynccontextmanager
    async def _request(self, method: str, url: str, **options: JSON) -> AsyncIterator[_Document]:
        """Send a request: the one way out that every method of the library takes."""
        if method != "POST" or options.keys() != {"json"}:
            raise PolicyUnavailableError("OPA is asked, and told nothing.")
        path = url.removeprefix(self._origin) + _PARAMETERS
        response = await self._connections.post(path, msgspec.json.encode(options["json"]))
        yield _Document(_read(response))


class _Failures:
    """Turns every failure inside its block into a PolicyUnavailableError.

    Not a generator: this stands on every decision's way.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, failure: BaseException | None, _: object) -> None:
        if isinstance(failure, Exception) and not isinstance(failure, PolicyUnavailableError | TimeoutError):
            # Of whatever kind: what the library does not foresee must not become another error than this.
            name = type(failure).__name__
            cure = ": does it run at KKP_OPA_URL?" if isinstance(failure, OPAConnectionError) else "."
            raise PolicyUnavailableError(f"OPA gave no usable answer ({name}){cure}") from None


class _Document:
    """An answer's body, in the place of the response that the library expects."""

    def __init__(self, body: bytearray) -> None:
        self._body = body

    def raise_for_status(self) -> None:
        """Do nothing: there is a body only where the status was good."""

    async def json(self) -> JSON:
        """Decode the body.

        Raises:
            ValueError: It is not strict JSON.
        """
        body = bytes(self._body)
        return _remembered_json(body) if len(body) <= _MAX_REMEMBERED_BYTES else _strict_json(body)


def _strict_json(body: bytes) -> JSON:
    document = msgspec.json.decode(body)
    refuse_duplicates(body)
    return document


_remembered_json = lru_cache(_MAX_REMEMBERED)(_strict_json)  # nobody changes what it returns


def _read(response: Response) -> bytearray:
    """Return the body, if it is one to be read at all."""
    if response.status != HTTPStatus.OK:
        raise PolicyUnavailableError(f"OPA answered with status {response.status}.")
    if not response.is_plain_json:
        raise PolicyUnavailableError("OPA's answer is not plain JSON.")
    return response.body
