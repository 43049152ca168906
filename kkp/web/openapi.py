"""The OpenAPI 3.1 document, made of the rows that serve: what is described is what is done.

A path's parameters come from the path, a body and a query from the schemas that the row's reader decodes,
the answer from the return type of the function that makes it, and the errors from the error tree. A row that
lacks one of these is refused here, and so at start and in the tests, with its method and path.

Pure: the document is made once, at start.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias, get_type_hints

import msgspec

from kkp import __version__
from kkp.errors import (
    ApprovalInvalidError,
    ApprovalRequiredError,
    AudienceMismatchError,
    AuditUnavailableError,
    ContextMismatchError,
    DPoPNonceError,
    DPoPProofError,
    InvalidRequestError,
    IssuerUnavailableError,
    KeyringUnavailableError,
    KKPError,
    OverloadedError,
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
from kkp.web.credentials import APPROVAL, RELEASE_PATTERN
from kkp.web.oauth import Form, Refusal, Refusals
from kkp.web.problems import STATUS, Problem
from kkp.web.public import PublicRoute
from kkp.web.routes import BatchRoute, Route
from kkp.web.schemas import Asks
from kkp.web.shapes import ENVELOPE_FORMS

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
    DPoPProofError,
    DPoPNonceError,
    RateLimitedError,
    IssuerUnavailableError,
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
    ApprovalRequiredError,
    ApprovalInvalidError,
    PolicyUnavailableError,
)
_OF_A_BODY: Final = (OverloadedError, PayloadTooLargeError, UnsupportedMediaTypeError)
_HEADERS: Final[Mapping[str, JSON]] = {
    "X-Request-Id": {
        "description": "Names the request in the audit log and in KKP's own.",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "Send it as `If-None-Match`.", "schema": {"type": "string"}},
    "Retry-After": {"description": "In seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {
        "description": "RFC 6750, RFC 9449; RFC 7617 to who shows a client's secret.",
        "schema": {"type": "string"},
    },
    "DPoP-Nonce": {
        "description": "The `nonce` of the next proof, beside `use_dpop_nonce`. Where KKP demands one, "
        "it stands beside every success of a request with a proof, too.",
        "schema": {"type": "string"},
    },
}
_RELEASE: Final[JSON] = {
    "name": APPROVAL,
    "in": "header",
    "required": False,
    "description": "The release of an approval, with exactly the request that was refused as "
    "`approval_required`. It is used once, and only where policy demands it.",
    "schema": {"type": "string", "pattern": RELEASE_PATTERN},
}
_SECURITY_SCHEMES: Final[Mapping[str, JSON]] = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A service key (`kkp_sk_…`), a session of `/login`, a token of a configured issuer, "
        "or a KKP token that is bound to no key that signs proofs, with the operation in its `ops`. A token "
        "that is bound to a client certificate is good on a connection with that one only (RFC 8705).",
    },
    "dpop": {
        "type": "http",
        "scheme": "dpop",
        "description": "A KKP token whose `token_type` is `DPoP`, with the operation in its `ops`. It is "
        "worth nothing without a proof in the header `DPoP`, which the client signs for this one request "
        "(RFC 9449); this holds for such a token in a body, too. A proof beside another credential at "
        "`/token` binds the new token to its key. OpenAPI has no words for a proof.",
    },
    "mutualTLS": {
        "type": "mutualTLS",
        "description": "A client certificate that a rule makes a caller of, where the deployment takes such: "
        "`tls_client_certificate_bound_access_tokens` in its metadata (RFC 8414) says whether it does.",
    },
}
_CREDENTIAL: Final[JSON] = [{name: []} for name in _SECURITY_SCHEMES]  # any one of them
_DESCRIPTION: Final = (
    "One policy-gated door in front of every key management system. Every refusal is a problem document "
    "(RFC 9457) whose `code` is stable; to a form it is one of OAuth's (RFC 6749), with the same `code`. Any "
    "path may also answer 400 `invalid_request` to what is not "
    "well-formed HTTP, 401 `unauthenticated` to what comes with a client certificate that is not good, or "
    "without one where it is required, 403 `tls_required` to what comes past the proxy that terminates TLS, "
    "404 `not_found`, 405 `method_not_allowed` and, but for `/healthz` and `/readyz`, 429 `rate_limited` to "
    "an address that asks too often. Members may be added to answers."
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
    return _returned(route, route.answer)


def _returned(route: Row, answer: Callable[..., JSON]) -> type[Answer]:
    found = get_type_hints(answer).get("return")
    if not isinstance(found, type) or not issubclass(found, Answer) or found is Answer:
        raise SchemaMissingError(
            f"{route.method} {route.path}: the function that makes its answer must be annotated to return a "
            "subclass of kkp.web.answers.Answer"
        )
    return found


def _types(routes: Sequence[Row], public: Sequence[PublicRoute]) -> Iterable[type]:
    yield Problem
    yield Refusal
    yield from ENVELOPE_FORMS
    for route in routes:
        yield from _answers(route)
        yield from _bodies(route).values()
        if isinstance(route, BatchRoute):
            yield route.read.item
    for served in public:
        yield served.answer


def _answers(route: Row) -> Sequence[type[Answer]]:
    form = _form(route)
    found = [answer_schema(route), *([] if form is None else [_returned(route, form.answer)])]
    return list(dict.fromkeys(found))


def _bodies(route: Row) -> Mapping[str, type[Asks[JSON]]]:
    """Return the schema of a body by what it may be sent as."""
    form = _form(route)
    readers = [route.read, *([] if form is None else [form.read])]
    return {media: read.body for read in readers if read.body is not None for media in read.media_types}


def _form(route: Row) -> Form[JSON, JSON] | None:
    return route.form if isinstance(route, Route) else None


def _schemas(types: Iterable[type]) -> dict[str, JSON]:
    _, components = msgspec.json.schema_components(list(types), ref_template=_REF)
    schemas: dict[str, JSON] = {name: _portable(schema) for name, schema in components.items()}
    for name in (Problem.__name__, Refusal.__name__):
        schemas[name]["properties"]["code"] = {"enum": sorted(STATUS)}
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
    is_batch = isinstance(route, BatchRoute)
    common = _COMMON if is_batch else (*_COMMON, *_OF_ONE)
    errors = (*common, *(() if route.read.query else _OF_A_BODY), *route.errors)
    names = [_batch_name(route)] if is_batch else [answer.__name__ for answer in _answers(route)]
    form = _form(route)
    is_credential_optional = route.credential_in_body or (form is not None and form.credential_in_body)
    operation: dict[str, JSON] = {
        "operationId": _operation_id(route.method, route.path),
        "summary": route.summary,
        "tags": [_tag(route.path)],
        "security": _security(route, is_optional=is_credential_optional),
        "parameters": [
            *_path_parameters(route.path),
            *_query_parameters(route.read.query),
            *([_RELEASE] if isinstance(route, Route) and not route.is_anonymous else []),
        ],
        "responses": {
            str(route.status): _success(*names),
            **_problems(errors),
        },
    }
    if form is not None:
        _add_refusals(operation["responses"], form.refusals, (*errors, *form.errors))
    if bodies := _bodies(route):
        content = {media_type: _media(name, body) for media_type, body in bodies.items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _security(route: Row, *, is_optional: bool) -> JSON:
    if isinstance(route, Route) and route.is_anonymous:
        return []
    return [*_CREDENTIAL, *([{}] if is_optional else [])]


def _media(name: str, body: type[Asks[JSON]]) -> JSON:
    if not body.example:
        raise SchemaMissingError(f"{name}: its schema {body.__name__} needs an example")
    return {"schema": {"$ref": _REF.format(name=body.__name__)}, "example": body.example}


def _add_refusals(responses: dict[str, JSON], refusals: Refusals, errors: Iterable[type[KKPError]]) -> None:
    """Add what a form is answered in the place of problems, each of whose statuses a problem has too."""
    told = [(error.code, *refusals.of(error)) for error in errors if error is not TLSRequiredError]
    for status in {status for _, _, status in told}:
        codes = sorted({code for code, _, of_code in told if of_code is status})
        names = sorted({name for _, name, of_name in told if of_name is status})
        narrowed = {"properties": {"error": {"enum": names}, "code": {"enum": codes}}}
        schema = {"allOf": [{"$ref": _REF.format(name=Refusal.__name__)}, narrowed]}
        response = responses[str(status.value)]
        response["content"]["application/json"] = {"schema": schema}
        if DPoPNonceError.code in codes:
            response["headers"] = {**response["headers"], **_headers("DPoP-Nonce")}


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


def _success(*answers: str, headers: Sequence[str] = ()) -> JSON:
    refs = [{"$ref": _REF.format(name=answer)} for answer in answers]
    return {
        "description": "Success.",
        "headers": _headers(*headers),
        "content": {"application/json": {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}},
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
    if RateLimitedError.code in codes or OverloadedError.code in codes:
        return _headers("Retry-After")
    if UnauthenticatedError.code in codes:
        return _headers("WWW-Authenticate", "DPoP-Nonce")
    return _headers()


def _headers(*names: str) -> JSON:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def _operation_id(method: str, path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", f"{method}{path}".lower()).strip("_")


def _tag(path: str) -> str:
    return path.split("/")[1]
