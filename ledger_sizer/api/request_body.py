"""Reads the idempotency key and the body of a request. The body's size is bounded.

`server` bounds the time a body may take: there it costs nothing when the body arrives with the head.
"""

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.wire.problems import PayloadTooLarge, UnsupportedMediaType
from ledger_sizer.wire.requests import Body, BodyT, validated
from ledger_sizer.wire.strict_json import read_object

KEY_HEADER = "Idempotency-Key"


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return a request header by its lower-case name. Raises `InvalidRequest` where it is given twice."""
    found = [value for given, value in scope["headers"] if given == name]
    if len(found) > 1:
        raise InvalidRequest(f"the header {name.decode()} is given {len(found)} times", field=name.decode())
    return found[0] if found else None


def idempotency_key(scope: Scope) -> str:
    """Return the idempotency key. Raises `InvalidRequest` where the header is missing or not UTF-8."""
    sent = header(scope, b"idempotency-key")
    if not sent:
        raise InvalidRequest(
            f"the header {KEY_HEADER} is missing: make one key per intention and send it again with every retry",
            field=KEY_HEADER,
        )
    try:
        return sent.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"the header {KEY_HEADER} is not UTF-8 text", field=KEY_HEADER) from None


async def read_body(scope: Scope, receive: Receive, size_max: int) -> bytes:
    """Return the whole body. Raises where it is not declared as JSON, or has more than `size_max` bytes."""
    body = await _receive_body(receive, size_max)
    if body:
        _require_json(header(scope, b"content-type"))
    return body


async def parse_body(request: Request, model: type[BodyT]) -> BodyT:
    """Parse the body as strictly as the commands' bodies. An empty one is the empty object."""
    size_max = request.app.state.service.settings.body_bytes_max
    return validated(model, read_object(await read_body(request.scope, request.receive, size_max)))


def body_schema(model: type[Body], *, required: bool = True) -> dict[str, Any]:
    """Return a body's part of the OpenAPI document, for a route that parses it by itself."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


async def read_form(scope: Scope, receive: Receive, size_max: int) -> dict[str, str]:
    """Return the fields of an HTML form, the first of each name. Raises for no form, or more than `size_max` bytes."""
    body = await _receive_body(receive, size_max)
    kind = (header(scope, b"content-type") or b"").decode("latin-1").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType(f"send a form as application/x-www-form-urlencoded, not {kind[:100]!r}")
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=32)
    except ValueError:
        raise InvalidRequest("the form is not UTF-8, or has more than 32 fields") from None
    return {name: values[0] for name, values in fields.items()}


async def _receive_body(receive: Receive, size_max: int) -> bytes:
    size = 0
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > size_max:
            raise PayloadTooLarge(f"the body has more than {size_max} bytes; send a batch in parts")
        chunks.append(chunk)
        if not message.get("more_body", False):
            break
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _require_json(media_type: bytes | None) -> None:
    if media_type == b"application/json":
        return
    kind, _, parameters = (media_type or b"").decode("latin-1").lower().partition(";")
    if kind.strip() != "application/json":
        raise UnsupportedMediaType(f"send the body as Content-Type: application/json, not {kind.strip()[:100]!r}")
    charset = parameters.replace('"', "").replace(" ", "")
    if charset.startswith("charset=") and charset not in ("charset=utf-8", "charset=utf8", "charset=us-ascii"):
        raise UnsupportedMediaType(f"JSON is UTF-8, not {charset.removeprefix('charset=')[:40]!r}")
