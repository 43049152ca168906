"""The OpenAPI 3.1 document, made of the rows that serve: what is described is what is done.

A path's parameters come from the path, a body and a query from the schemas that the row's reader decodes,
the answer from the return type of the function that makes it, and the errors from the error tree. A row that
lacks one of these is refused here, and so at start and in the tests, with its method and path.

Pure: the document is made once, at start.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias, get_type_hints

import msgspec

from kkp import __version__
from kkp.errors import (
    AudienceMismatchError,
    AuditUnavailableError,
    ContextMismatchError,
    InvalidRequestError,
    KeyringUnavailableError,
    KKPError,
    PayloadTooLargeError,
    PolicyDeniedError,
    PolicyUnavailableError,
    RateLimitedError,
    RevokedError,
    ScopeMismatchError,
    TLSRequiredError,
    TokenExpiredError,
    TokenInvalidError,
    UnauthenticatedError,
    UnsupportedMediaTypeError,
)
from kkp.model import JSON
from kkp.web.answers import Answer
from kkp.web.problems import STATUS, Problem
from kkp.web.public import PublicRoute
from kkp.web.routes import BatchRoute, Route
from kkp.web.schemas import Asks

_INTERNAL: Final = "internal"
_REF: Final = "#/components/schemas/{name}"
_PATH_PARAMETER: Final = re.compile(r"{([a-z_]+)}")
_PYTHON_END: Final = re.compile(r"\$\(\?!\\n\)")  # JSON Schema's `$` means the end alone
_ATTRIBUTES: Final = re.compile(r"\n\s*(Attributes|Args):\n.*", re.DOTALL)
# What any operation of the pipeline may answer, to a batch as a whole as well.
_COMMON: Final[tuple[type[KKPError], ...]] = (
    InvalidRequestError,
    TLSRequiredError,
    UnauthenticatedError,
    TokenInvalidError,
    TokenExpiredError,
    RateLimitedError,
    AuditUnavailableError,
    KeyringUnavailableError,
)
# And what it may answer to one request; in a batch, these stand in its items.
_OF_ONE: Final[tuple[type[KKPError], ...]] = (
    PolicyDeniedError,
    RevokedError,
    ScopeMismatchError,
    ContextMismatchError,
    AudienceMismatchError,
    PolicyUnavailableError,
)
_OF_A_BODY: Final = (PayloadTooLargeError, UnsupportedMediaTypeError)
_HEADERS: Final[Mapping[str, JSON]] = {
    "X-Request-Id": {
        "description": "Names the request in the audit log and in KKP's own.",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "Send it as `If-None-Match`.", "schema": {"type": "string"}},
    "Retry-After": {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}},
}
_SECURITY_SCHEMES: Final[Mapping[str, JSON]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A service key (`kkp_sk_…`), a session of `/login`, or a KKP token with the operation "
        "in its `ops`.",
    }
}
_DESCRIPTION: Final = (
    "One policy-gated door in front of every key management system. Every refusal is a problem document "
    "(RFC 9457) whose `code` is stable. Any path may also answer 400 `invalid_request` to what is not "
    "well-formed HTTP, 403 `tls_required` to what comes past the proxy that terminates TLS, 404 `not_found` "
    "and 405 `method_not_allowed`. Members may be added to answers."
)


Row: TypeAlias = Route[JSON, JSON] | BatchRoute[JSON, JSON, JSON]


class SchemaMissingError(Exception):
    """A row of the table says too little to be described; the message names it."""


def document(routes: Sequence[Row], public: Sequence[PublicRoute]) -> bytes:
    """Return the document, in JSON.

    Raises:
        SchemaMissingError: A row lacks its summary, its schema or its example.
    """
    paths: dict[str, dict[str, JSON]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route)
    for served in public:
        paths[served.path]["get"] = _public_operation(served)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "KKP",
                "version": __version__,
                "description": _DESCRIPTION,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": paths,
            "components": {
                "schemas": {**_schemas(_types(routes, public)), **_batch_schemas(routes)},
                "headers": _HEADERS,
                "securitySchemes": _SECURITY_SCHEMES,
            },
        }
    )


def answer_schema(route: Row) -> type[Answer]:
    """Return the schema of a row's answer, or of one of its answers: what the function says that it returns.

    Raises:
        SchemaMissingError: It does not say.
    """
    found = get_type_hints(route.answer).get("return")
    if not isinstance(found, type) or not issubclass(found, Answer) or found is Answer:
        raise SchemaMissingError(
            f"{route.method} {route.path}: the function that makes its answer must be annotated to return a "
            "subclass of kkp.web.answers.Answer"
        )
    return found


def _types(routes: Sequence[Row], public: Sequence[PublicRoute]) -> Iterable[type]:
    yield Problem
    for route in routes:
        yield answer_schema(route)
        if route.read.body is not None:
            yield route.read.body
        if isinstance(route, BatchRoute):
            yield route.read.item
    for served in public:
        yield served.answer


def _schemas(types: Iterable[type]) -> dict[str, JSON]:
    _, components = msgspec.json.schema_components(list(types), ref_template=_REF)
    schemas: dict[str, JSON] = {name: _portable(schema) for name, schema in components.items()}
    schemas["Problem"]["properties"]["code"] = {"enum": sorted(STATUS)}
    return schemas


def _batch_schemas(routes: Sequence[Row]) -> dict[str, JSON]:
    return {
        _batch_name(route): {
            "title": _batch_name(route),
            "description": "Answers a batch, item by item in their order; a problem stands for no answer.",
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"anyOf": _answers_to_item(route)}}},
            "required": ["items"],
        }
        for route in routes
        if isinstance(route, BatchRoute)
    }


def _batch_name(route: Row) -> str:
    return f"{answer_schema(route).__name__}Batch"


def _answers_to_item(route: Row) -> Sequence[JSON]:
    return [{"$ref": _REF.format(name=answer.__name__)} for answer in (answer_schema(route), Problem)]


def _portable(schema: JSON) -> JSON:
    """Return a schema as other languages read it: regular expressions in ECMA-262, no Python sections."""
    if isinstance(schema, list):
        return [_portable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    members = {name: _portable(value) for name, value in schema.items()}
    if isinstance(members.get("pattern"), str):
        members["pattern"] = _PYTHON_END.sub("$", members["pattern"])
    if isinstance(members.get("description"), str):
        members["description"] = _ATTRIBUTES.sub("", members["description"])
    return members


def _operation(route: Row) -> JSON:
    name = f"{route.method} {route.path}"
    if not route.summary:
        raise SchemaMissingError(f"{name}: its row needs a summary")
    body = route.read.body
    is_batch = isinstance(route, BatchRoute)
    common = _COMMON if is_batch else (*_COMMON, *_OF_ONE)
    answer = _batch_name(route) if is_batch else answer_schema(route).__name__
    operation = {
        "operationId": _operation_id(route.method, route.path),
        "summary": route.summary,
        "tags": [_tag(route.path)],
        "security": _security(route),
        "parameters": [*_path_parameters(route.path), *_query_parameters(route.read.query)],
        "responses": {
            str(route.status): _success(answer),
            **_problems((*common, *(() if route.read.query else _OF_A_BODY), *route.errors)),
        },
    }
    if body is not None:
        operation["requestBody"] = _request_body(name, body, route.read.media_types)
    return operation


def _security(route: Row) -> JSON:
    if isinstance(route, Route) and route.is_anonymous:
        return []
    return [{"bearer": []}, *([{}] if route.credential_in_body else [])]


def _request_body(name: str, body: type[Asks[JSON]], media_types: Sequence[str]) -> JSON:
    if not body.example:
        raise SchemaMissingError(f"{name}: its schema {body.__name__} needs an example")
    media = {"schema": {"$ref": _REF.format(name=body.__name__)}, "example": body.example}
    return {"required": True, "content": dict.fromkeys(media_types, media)}


def _public_operation(served: PublicRoute) -> JSON:
    success = _success(served.answer.__name__, headers=("ETag",) if served.is_cached else ())
    if served.media_type is not None:  # no JSON, and so without a schema
        success["description"] = f"A compact JWS over the JSON of `{served.answer.__name__}`."
        success["content"] = {served.media_type: {}}
    responses = {"200": success, **_problems(served.errors)}
    if served.is_cached:
        responses["304"] = {
            "description": "Not changed since the `If-None-Match`.",
            "headers": _headers("ETag"),
        }
    if served.unready_status is not None:
        responses[str(served.unready_status)] = {**success, "description": "Not ready; `checks` says why."}
    return {
        "operationId": _operation_id("GET", served.path),
        "summary": served.summary,
        "tags": ["public"],
        "security": [],
        "responses": responses,
    }


def _path_parameters(path: str) -> Iterable[JSON]:
    for name in _PATH_PARAMETER.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query_parameters(query: type[msgspec.Struct] | None) -> Iterable[JSON]:
    if query is None:
        return
    schema = _portable(msgspec.json.schema(query))["$defs"][query.__name__]
    for name, member in schema["properties"].items():
        required = name in schema["required"]
        yield {"name": name, "in": "query", "required": required, "schema": _without_null(member)}


def _without_null(schema: dict[str, JSON]) -> JSON:
    """Return what a parameter may be if it is there: a query has no null."""
    members = {name: value for name, value in schema.items() if (name, value) != ("default", None)}
    choices = [choice for choice in members.pop("anyOf", []) if choice != {"type": "null"}]
    return {**members, **(choices[0] if choices else {})}


def _success(answer: str, *, headers: Sequence[str] = ()) -> JSON:
    return {
        "description": "Success.",
        "headers": _headers(*headers),
        "content": {"application/json": {"schema": {"$ref": _REF.format(name=answer)}}},
    }


def _problems(errors: Iterable[type[KKPError]]) -> dict[str, JSON]:
    codes = sorted({_INTERNAL, *(error.code for error in errors)})
    statuses = sorted({STATUS[code] for code in codes})
    return {
        str(status.value): {
            "description": status.phrase,
            "headers": _problem_headers([code for code in codes if STATUS[code] is status]),
            "content": {"application/problem+json": {"schema": _problem(status, codes)}},
        }
        for status in statuses
    }


def _problem(status: int, codes: Sequence[str]) -> JSON:
    possible = [code for code in codes if STATUS[code] == status]
    narrowed = {"properties": {"status": {"const": int(status)}, "code": {"enum": possible}}}
    return {"allOf": [{"$ref": _REF.format(name="Problem")}, narrowed]}


def _problem_headers(codes: Sequence[str]) -> JSON:
    if RateLimitedError.code in codes:
        return _headers("Retry-After")
    if UnauthenticatedError.code in codes:
        return _headers("WWW-Authenticate")
    return _headers()


def _headers(*names: str) -> JSON:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _operation_id(method: str, path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", f"{method}{path}".lower()).strip("_")


def _tag(path: str) -> str:
    return path.split("/")[1]
