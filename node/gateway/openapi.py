"""`/openapi.json`: OpenAPI 3.1, made from the route table and the very types that requests are parsed into.

Pure. What stands in `routes` or `schema` is not described here again. Does not know: handlers.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Annotated, Any, get_args

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from node import schema
from node.gateway.routes import CALLERS, COMMON_ERRORS, EXAMPLE_TASK, ROUTES, Route

REF = "#/components/schemas/{name}"
HINT = "What to do about it."
HEADER_SCHEMAS: dict[str, dict[str, Any]] = {
    # HTTP strips blanks at the ends, so a key of nothing but blanks would arrive empty.
    "Idempotency-Key": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}
LINKS = {  # operations that take the id of a task that was just submitted
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in ("get_task", "cancel", "retry")
}
ANY_ITEM = {"description": "For anything else the answer has an error in the place of that item."}
ERRORS: dict[int, tuple[str, str]] = {  # status -> (code, an example of its message)
    400: ("bad_request", "the body is not JSON: trailing comma in array near line 1, column 34: '[1, 2,]}'."),
    401: ("unauthorized", "this call needs the API token."),
    403: ("forbidden", "a web page of another origin (https://example.com) may not change anything here."),
    404: ("not_found", "there is no task '01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f', or it is past its retention."),
    408: ("too_slow", "only 0 bytes of the body came within 20 s."),
    409: ("conflict", "task 01JDZ6M0X2R5T8V1W4Y7Z0B3C6-1f is succeeded: it has ended."),
    413: ("too_large", "the body is over 1,048,576 bytes (1 MiB)."),
    422: ("invalid", "$.priority is \"urgent\": invalid enum value 'urgent'."),
    429: ("queue_full", "queue 'default' holds 1000000 tasks in one shard, its limit."),
    503: ("store_unavailable", "Redis gave no answer within 0.8 s. No peer that reaches Redis took it over."),
}
TYPES = (
    schema.BackoffJson,
    schema.Submission,
    schema.TaskJson,
    schema.BatchJson,
    schema.TaskList,
    schema.ErrorBody,
    schema.ErrorJson,
    schema.Replay,
    schema.Replayed,
    schema.Removed,
)


def document() -> dict[str, Any]:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Rumor",
            "version": "1",
            "description": "A distributed task queue with no central coordinator. Every node answers every call.",
        },
        "paths": _paths(),
        "components": {"schemas": _schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for route in ROUTES:
        if route.is_public:
            paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: Route) -> dict[str, Any]:
    errors = (*COMMON_ERRORS, *route.errors) if route.for_whom == CALLERS else route.errors
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "responses": {
            **{str(status): _answer(status, kind) for status, kind in route.answers.items()},
            **{str(status): _error(status) for status in sorted(errors)},
        },
        # {} beside the token: a node without api_token asks for none.
        "security": [{"token": []}, {}] if route.for_whom == CALLERS else [{}],
    }
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.operation != "replay",
            "content": {"application/json": {"schema": _schema(route.body), "example": route.body_example}},
        }
    return operation


def _answer(status: int, kind: Any) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(kind, str):
        return {**answer, "content": {kind: {"schema": {"type": "string"}}}}
    if kind is None:
        return {**answer, "content": {"application/json": {"schema": {"type": "object"}}}}
    content: dict[str, Any] = {"schema": _schema(kind)}
    if kind is schema.TaskJson:
        content["example"] = EXAMPLE_TASK
        if status == 202:
            answer["headers"] = {"Location": {"schema": {"type": "string"}, "description": "Where to read it."}}
            answer["links"] = LINKS
        if status == 200:
            answer["description"] = "The task"
    return {**answer, "content": {"application/json": content}}


def _error(status: int) -> dict[str, Any]:
    code, message = ERRORS[status]
    example = {"error": {"code": code, "message": message, "hint": HINT}}
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": _schema(schema.ErrorJson), "example": example}},
    }
    if status in (429, 503):
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return answer


def _parameters(route: Route) -> list[dict[str, Any]]:
    path: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{([a-z_]+)\}", route.path)
    ]
    headers = [
        {"name": name, "in": "header", "required": False, "description": text, "schema": _header(name)}
        for name, text in route.headers.items()
    ]
    if route.query is None:
        return [*path, *headers]
    (_,), components = msgspec.json.schema_components([route.query], ref_template=REF)
    fields = components[route.query.__name__]["properties"]
    queries = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.get("description", ""),
            "schema": _inlined({key: value for key, value in schema.items() if key != "description"}, components),
        }
        for name, schema in fields.items()
    ]
    return [*path, *queries, *headers]


def _header(name: str) -> dict[str, Any]:
    return HEADER_SCHEMAS.get(name, {"type": "string"})


def _inlined(schema: Any, components: dict[str, Any]) -> Any:
    """The schema with its references written out: only parameters have these types (enums)."""
    if isinstance(schema, list):
        return [_inlined(item, components) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return components[schema["$ref"].rpartition("/")[2]]
    return {key: _inlined(value, components) for key, value in schema.items()}


def _schema(kind: Any) -> dict[str, Any]:
    if kind == list[schema.Submission]:
        return {"type": "array", "items": {"anyOf": [_schema(schema.Submission), ANY_ITEM]}}
    return {"$ref": REF.format(name=kind.__name__)}


def _schemas() -> dict[str, Any]:
    _, components = msgspec.json.schema_components([_described(kind) for kind in TYPES], ref_template=REF)
    components["BatchJson"]["properties"]["results"] = {
        "type": "array",
        "description": "In the order of the request: a task (it has an id) or an error (it has none).",
        "items": {"anyOf": [_schema(schema.TaskJson), _schema(schema.ErrorJson)]},
    }
    components["TaskList"]["properties"]["tasks"]["items"] = _schema(schema.TaskJson)
    return _in_ecma(components)  # type: ignore[no-any-return]


def _in_ecma(node: Any) -> Any:
    """The same with patterns as JSON Schema has them. There `$` is the end; in Python a line break may follow it."""
    if isinstance(node, list):
        return [_in_ecma(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: value.replace(r"\Z", "$") if key == "pattern" and isinstance(value, str) else _in_ecma(value)
        for key, value in node.items()
    }


def _described(kind: type[Struct]) -> type[Struct]:
    """The struct with `Any` in place of Raw and of lists of TaskJson: msgspec has no schema for a Raw default."""
    fields = msgspec.structs.fields(kind)
    if not any(_is_raw(field.type) or field.type == list[schema.TaskJson] for field in fields):
        return kind
    config = kind.__struct_config__
    described = msgspec.defstruct(
        kind.__name__,
        [_plain(field) for field in fields],
        kw_only=True,
        forbid_unknown_fields=config.forbid_unknown_fields,
    )
    described.__doc__ = kind.__doc__
    return described


def _plain(field: msgspec.structs.FieldInfo) -> tuple[str, Any] | tuple[str, Any, Any]:
    kind, default = field.type, field.default
    if kind == list[schema.TaskJson]:
        kind = list[Any]  # `_schemas` puts the reference there.
    if _is_raw(kind):
        kind = Annotated[Any, *get_args(kind)[1:]] if get_args(kind) else Any
        default = None if isinstance(default, Raw) else default
        kind = kind | UnsetType if default is UNSET else kind
    return (field.name, kind) if default is msgspec.NODEFAULT else (field.name, kind, default)


def _is_raw(kind: Any) -> bool:
    """Whether a field holds raw JSON: Raw, Annotated[Raw, …], or either of them or UNSET."""
    return kind is Raw or any(_is_raw(part) for part in get_args(kind))
