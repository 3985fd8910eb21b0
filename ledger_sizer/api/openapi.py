"""Builds the OpenAPI document: FastAPI's document of its routes, plus the commands, which are plain routes."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ledger_sizer.api import commands, response_models
from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.wire.batch import BatchBody
from ledger_sizer.wire.problems import MEDIA_TYPE, PROBLEMS
from ledger_sizer.wire.requests import BODIES

_REF = "#/components/schemas/{model}"
_PUBLIC = frozenset({"/healthz", "/readyz"})
_HTTP_METHODS = frozenset({"get", "put", "post", "delete", "patch"})
_SECURITY = "api_key"

Json = dict[str, Any]


def openapi_of(app: FastAPI) -> Json:
    """Return the document; cached in the app."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.router.routes
        )
        components = document.setdefault("components", {})
        schemas: Json = components.setdefault("schemas", {})
        schemas.update(_schemas())
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        components["securitySchemes"] = {
            _SECURITY: {"type": "http", "scheme": "bearer", "description": _KEY_DESCRIPTION}
        }
        components["headers"] = {
            "X-Request-Id": {"schema": {"type": "string"}, "description": "The request's own id, or a new one."},
            "Retry-After": {"schema": {"type": "string"}, "description": "Seconds to wait."},
        }
        for verb, command in COMMANDS.items():
            document["paths"].setdefault(command.path, {})[command.method.lower()] = _verb_operation(verb)
        document["paths"][commands.BATCH_PATH] = {"post": _batch_operation()}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if method in _HTTP_METHODS:
                    _add_common_parts(path, method, operation)
        app.openapi_schema = document
    return app.openapi_schema


_KEY_DESCRIPTION = (
    "An API key made by `ledger-sizer keys create`. Without any key the service serves loopback only, to anybody. "
    "Where a key is bound to tags (`--tag bot=a`), what it reserves and adopts gets them; other values, and positions "
    "without them, are forbidden to it. Reads are not restricted."
)


def _schemas() -> Json:
    bodies: list[type[BaseModel]] = [*BODIES.values(), BatchBody]
    _, request_schemas = models_json_schema([(model, "validation") for model in bodies], ref_template=_REF)
    response_forms: list[type[BaseModel]] = [
        response_models.DecisionForm,
        response_models.ProblemForm,
        response_models.BatchForm,
    ]
    _, response_schemas = models_json_schema([(model, "validation") for model in response_forms], ref_template=_REF)
    found: Json = {**request_schemas["$defs"], **response_schemas["$defs"]}
    return found


def _verb_operation(verb: str) -> Json:
    body = BODIES[verb]
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "required": True,
        "description": "One per intention; the same key and body give the same answer again.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[!-9;-~]([ -9;-~]*[!-9;-~])?$"},
    }
    success = "201" if verb == "reserve" else "200"
    responses = {success: _response("DecisionForm", "Granted." if verb in ("reserve", "extend") else "Applied.")}
    if verb == "reserve":
        responses["200"] = _response("DecisionForm", "What a dry run would have been granted.")
        responses["201"]["links"] = {
            name: _link(name) for name in ("confirm", "fill", "release", "extend", "get_position")
        }
        responses["201"]["headers"] = {"Location": {"schema": {"type": "string"}, "description": "The position."}}
    for response in responses.values():
        response.setdefault("headers", {})["Idempotency-Replayed"] = {
            "schema": {"type": "string", "enum": ["true"]},
            "description": "There when this answer was given before.",
        }
    required = bool(body.model_json_schema().get("required"))
    return {
        "operationId": verb,
        "summary": verb,
        "description": body.__doc__ or "",
        "parameters": [*_path_parameters(COMMANDS[verb]), key, _full_parameter()],
        "requestBody": {
            "required": required,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}},
        },
        "responses": responses,
    }


def _link(operation: str) -> Json:
    return {"operationId": operation, "parameters": {"position_id": "$response.body#/position_id"}}


def _batch_operation() -> Json:
    return {
        "operationId": "batch",
        "summary": "batch",
        "description": "Up to 1,000 commands, each with its own key and its own status. Independent by default; "
        "`atomic`: all take effect, or none and the answer is 409.",
        "parameters": [_full_parameter()],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="BatchBody")}}},
        },
        "responses": {"200": _response("BatchForm", "One answer for each command, in order.")},
    }


def _path_parameters(command: type[AnyCommand]) -> list[Json]:
    return [
        {"name": one.name, "in": "path", "required": True, "schema": {"type": "string", "pattern": one.kind.pattern}}
        for one in command.arguments
        if f"{{{one.name}}}" in command.path
    ]


def _full_parameter() -> Json:
    text = "With request, trace and tags."
    return {"name": "full", "in": "query", "description": text, "schema": {"type": "boolean", "default": False}}


def _response(model: str, description: str) -> Json:
    schema = {"$ref": _REF.format(model=model)}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _add_common_parts(path: str, method: str, operation: Json) -> None:
    """Add what all operations share: security, role, request id and problems."""
    responses = operation["responses"]
    statuses = {500, 503} if path in _PUBLIC else {401, 403, 404, 406, 408, 413, 415, 422, 500, 503}
    if method != "get":
        statuses = (statuses - {406}) | {409}
    for status in sorted(statuses):
        known = responses.get(str(status))
        if known is None or status == 422:
            responses[str(status)] = _problem_response(status)
    for response in responses.values():
        response.setdefault("headers", {}).setdefault("X-Request-Id", {"$ref": "#/components/headers/X-Request-Id"})
    if path not in _PUBLIC:
        operation["security"] = [{_SECURITY: []}]
        operation.setdefault("x-role", _role(path, method, operation))


def _role(path: str, method: str, operation: Json) -> str:
    if method == "get":
        return "read"
    command = COMMANDS.get(operation["operationId"])
    return "trade" if path == commands.BATCH_PATH else "admin" if command is None else command.role


def _problem_response(status: int) -> Json:
    codes = [code for code, row in PROBLEMS.items() if row.status == status]
    response: Json = {
        "description": f"Code: {', '.join(codes)}.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="ProblemForm")}}},
    }
    if status == 503:
        response["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return response
