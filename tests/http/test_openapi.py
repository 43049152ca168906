"""The OpenAPI document and the routes say the same, both ways."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from kkp.web import answers, openapi, schemas
from kkp.web.problems import STATUS
from kkp.web.public import PUBLIC_ROUTES
from kkp.web.reading import JSONBody, NoBody
from kkp.web.routes import ROUTES, Route, make_application
from tests import described
from tests.harness import KKP

DOCUMENT = described.document()


def test_the_document_is_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


async def test_every_route_is_documented_and_every_documented_path_is_served(kkp: KKP) -> None:
    routes = make_application(kkp.services).router.routes()
    served = {(route.method, getattr(route.resource, "canonical", "")) for route in routes}
    documented = {
        (method.upper(), path) for path, operations in DOCUMENT["paths"].items() for method in operations
    }
    assert {(method, path) for method, path in served if method != "HEAD"} == documented


def test_every_code_is_documented_where_it_can_occur() -> None:
    components = DOCUMENT["components"]["schemas"]
    assert set(components["Problem"]["properties"]["code"]["enum"]) == set(STATUS)
    occurring = {
        code
        for operations in DOCUMENT["paths"].values()
        for operation in operations.values()
        for status, response in operation["responses"].items()
        for media in response.get("content", {}).values()
        for part in media.get("schema", {}).get("allOf", [])
        for code in part.get("properties", {}).get("code", {}).get("enum", [])
        if STATUS[code] == int(status)
    }
    assert occurring == set(STATUS) - {"method_not_allowed"}  # it has no operation by its nature


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_row_asks_for_the_credential_that_it_takes(route: openapi.Row) -> None:
    security = DOCUMENT["paths"][route.path][route.method.lower()]["security"]
    in_form = isinstance(route, Route) and route.form is not None and route.form.credential_in_body
    beside: list[Any] = [{}] if route.credential_in_body or in_form else []
    taken = [{"bearer": []}, {"dpop": []}, {"mutualTLS": []}, *beside]
    assert security == ([] if isinstance(route, Route) and route.is_anonymous else taken)


def test_each_way_to_show_a_credential_is_one_that_openapi_knows() -> None:
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {name: (scheme["type"], scheme.get("scheme")) for name, scheme in schemes.items()} == {
        "bearer": ("http", "bearer"),
        "dpop": ("http", "dpop"),
        "mutualTLS": ("mutualTLS", None),
    }


BODIES: dict[str, Any] = {
    reader.body.__name__: reader.body
    for route in ROUTES
    for reader in described.readers(route)
    if reader.body is not None
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_every_example_is_what_its_schema_asks_for(body: type[schemas.Asks[Any]]) -> None:
    described.validate(
        json.dumps({"$ref": f"#/components/schemas/{body.__name__}"}), json.dumps(body.example).encode()
    )
    msgspec.json.decode(msgspec.json.encode(body.example), type=body)


def test_no_pattern_is_in_pythons_dialect() -> None:
    assert "(?!" not in json.dumps(DOCUMENT)
    assert "Attributes:" not in json.dumps(DOCUMENT)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_it_is_served_with_an_etag(kkp: KKP) -> None:
    answer = await kkp.get("/openapi.json")
    assert (answer.status, answer.json) == (200, DOCUMENT)
    assert answer.headers["Cache-Control"] == "no-cache"
    again = await kkp.request("GET", "/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status, again.raw) == (304, b"")


# A row that says too little is refused, by name.


def _row(**changes: Any) -> Route[Any, Any]:
    row = {
        "method": "POST",
        "path": "/new",
        "operation": lambda services: services.issue_token,
        "read": JSONBody(schemas.TokenBody),
        "answer": answers.issued_token,
        "summary": "New",
        **changes,
    }
    return Route(**row)


class _Bare(schemas.Asks[None], frozen=True):
    """A body without an example."""


def test_a_new_row_with_a_schema_is_documented_without_further_ado() -> None:
    document = json.loads(openapi.document((*ROUTES, _row()), PUBLIC_ROUTES))
    assert document["paths"]["/new"]["post"]["summary"] == "New"
    OpenAPIV31SpecValidator(document).validate()


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (_row(summary=""), "POST /new: its row needs a summary"),
        (_row(answer=lambda answer, _: answer), "POST /new: the function that makes its answer must be"),
        (_row(read=JSONBody(_Bare)), "POST /new: its schema _Bare needs an example"),
    ],
    ids=["no summary", "no answer schema", "no example"],
)
def test_a_row_that_lacks_its_schema_is_refused_by_name(row: Route[Any, Any], complaint: str) -> None:
    with pytest.raises(openapi.SchemaMissingError, match=complaint):
        openapi.document((row,), ())


def test_a_path_parameter_is_documented() -> None:
    row = _row(path="/new/{name}/thing", read=NoBody(lambda _: None))
    parameter, _release = json.loads(openapi.document((row,), ()))["paths"]["/new/{name}/thing"]["post"][
        "parameters"
    ]
    assert (parameter["name"], parameter["in"], parameter["required"]) == ("name", "path", True)


# Answers are held against the document by the harness, in every HTTP test; here it is shown that this bites.


@pytest.mark.parametrize(
    ("method", "path", "status", "content_type", "document"),
    [
        ("GET", "/healthz", 200, "application/json", {"status": "fine"}),
        ("GET", "/healthz", 200, "application/json", {"status": "ok", "more": 1}),
        ("GET", "/healthz", 200, "text/plain", {"status": "ok"}),
        ("GET", "/healthz", 201, "application/json", {"status": "ok"}),
        ("POST", "/identities/orders/disable", 200, "application/json", {}),
        ("POST", "/token", 418, "application/problem+json", {}),
        ("GET", "/nothing", 200, "application/json", {}),
    ],
)
def test_an_answer_that_is_not_described_is_noticed(
    method: str, path: str, status: int, content_type: str, document: object
) -> None:
    with pytest.raises(AssertionError):
        described.check(method, path, status, content_type, json.dumps(document).encode())
