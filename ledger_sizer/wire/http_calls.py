"""Converts commands into the HTTP calls that the client sends."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote

from ledger_sizer.model.command_base import PositionCommand
from ledger_sizer.model.commands import AnyCommand, Reconciled, Reserve, SetCap
from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.units import decimal_text
from ledger_sizer.wire.requests import BODIES
from ledger_sizer.wire.responses import Json, instrument_to_json, leg_to_json, time_text


class HttpCall(NamedTuple):
    """The HTTP call of a command: send `body` as JSON, and `key` as the `Idempotency-Key` header."""

    method: str
    path: str
    key: str
    body: Json


def http_call_of(command: AnyCommand) -> HttpCall:
    """Return the call that sends this one command."""
    body_type = BODIES[command.verb]
    form = _command_to_json(command)
    path = body_type.path
    for name in ("position_id", "portfolio"):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(form.pop(name), safe=""))
    return HttpCall(body_type.method, path, command.key, form)


def batch_form(commands: Sequence[AnyCommand], *, atomic: bool = False) -> Json:
    """Return the body of the batch call for these commands, at most `BATCH_MAX`."""
    items = [{"command": command.verb, "key": command.key, **_command_to_json(command)} for command in commands]
    return {"commands": items, "atomic": atomic}


def _command_to_json(command: AnyCommand) -> Json:
    """Return the command without its key, as JSON. None is left out, except where null means removal."""
    names = [*command.recorded_fields]
    if not isinstance(command, PositionCommand):
        names.append("portfolio")
    form: Json = {name: _json_value(value) for name in names if (value := getattr(command, name)) is not None}
    if isinstance(command, SetCap):
        form.setdefault("cap", None)
    if isinstance(command, Reconciled):
        form.setdefault("fresh_until", None)
    if isinstance(command, Reserve) and command.dry_run:
        form["dry_run"] = True
    return form


def _json_value(value: Any) -> Any:
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, InstrumentInfo):
        return instrument_to_json(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple | list):
        return [leg_to_json(leg) for leg in value]
    return value
