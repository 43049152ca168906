"""Answers held against the API's own OpenAPI document.

The document lets answers grow, as the compatibility promise says. Here it does not: a member that is not
described fails.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from kkp.web import openapi
from kkp.web.problems import STATUS
from kkp.web.public import PUBLIC_ROUTES
from kkp.web.reading import Reader
from kkp.web.routes import ROUTES, Route

# Whatever the path: what is not well-formed HTTP, a client certificate that is not good, a request past the
# proxy, no such path, no such method, an address that asks too often.
ANYWHERE = {
    400: "invalid_request",
    401: "unauthenticated",
    403: "tls_required",
    404: "not_found",
    405: "method_not_allowed",
    429: "rate_limited",
}


@cache
def document() -> dict[str, Any]:
    """Return the document that KKP serves."""
    described: dict[str, Any] = json.loads(openapi.document(ROUTES, PUBLIC_ROUTES))
    return described


def readers(route: openapi.Row) -> list[Reader[Any]]:
    """Return what reads a row's requests: what has its body in JSON, and its form if it takes one."""
    form = route.form if isinstance(route, Route) else None
    return [route.read, *([] if form is None else [form.read])]


def operation(method: str, path: str) -> dict[str, Any] | None:
    """Return the operation that a request's method and path stand for."""
    for template, operations in document()["paths"].items():
        found: dict[str, Any] | None = operations.get(method.lower())
        if found is not None and re.fullmatch(re.sub(r"{[a-z_]+}", "[^/]+", template), path):
            return found
    return None


def check(method: str, path: str, status: int, content_type: str, raw: bytes) -> None:
    """Fail if the document does not describe this answer: its status, its media type, or its body."""
    described = operation("GET" if method == "HEAD" else method, path.partition("?")[0])
    response = described["responses"].get(str(status)) if described is not None else None
    if response is None:
        _check_anywhere(method, path, status, raw)
    elif "content" not in response:
        assert raw == b"", (method, path, status)
    else:
        media_type = content_type.partition(";")[0]
        assert media_type in response["content"], (method, path, status, content_type)
        described_by = response["content"][media_type].get("schema")
        if described_by is not None and (raw or method != "HEAD"):
            validate(json.dumps(described_by, sort_keys=True), raw)


def _check_anywhere(method: str, path: str, status: int, raw: bytes) -> None:
    assert status in ANYWHERE, f"{method} {path} answered {status}, which the document does not describe"
    problem = {"$ref": "#/components/schemas/Problem"}
    validate(json.dumps(problem), raw)
    assert json.loads(raw)["code"] == ANYWHERE[status]
    assert STATUS[ANYWHERE[status]] == status


def validate(schema: str, raw: bytes) -> None:
    """Fail if a JSON text does not satisfy a schema of the document, or says more than it."""
    error = next(_validator(schema).iter_errors(json.loads(raw)), None)
    assert error is None, f"{error.json_path}: {error.validator} {error.validator_value}" if error else ""


@cache
def _validator(schema: str) -> Draft202012Validator:
    components = json.loads(json.dumps(document()["components"]))
    for component in components["schemas"].values():
        if component.get("type") == "object":
            component.setdefault("additionalProperties", False)
    components["schemas"]["OpenAPIAnswer"]["additionalProperties"] = True
    return Draft202012Validator({**json.loads(schema), "components": components})
