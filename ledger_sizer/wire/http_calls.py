"""Converts commands into the HTTP calls that the client sends."""

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from ledger_sizer.model.arguments import FLAG, NOT_GIVEN
from ledger_sizer.model.commands import AnyCommand

Json = dict[str, Any]


class HttpCall(NamedTuple):
    """The HTTP call of a command: send `body` as JSON, and `key` as the `Idempotency-Key` header."""

    method: str
    path: str
    key: str
    body: Json


def http_call_of(command: AnyCommand) -> HttpCall:
    """Return the call that sends this one command."""
    form = _command_to_json(command)
    path = command.path
    for name in ("position_id", "portfolio"):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(form.pop(name), safe=""))
    return HttpCall(command.method, path, command.key, form)


def batch_form(commands: Sequence[AnyCommand], *, atomic: bool = False) -> Json:
    """Return the body of the batch call for these commands, at most `BATCH_MAX`."""
    items = [{"command": command.verb, "key": command.key, **_command_to_json(command)} for command in commands]
    return {"commands": items, "atomic": atomic}


def _command_to_json(command: AnyCommand) -> Json:
    """Return the command without its key, as JSON. None is left out, unless that is a value."""
    form: Json = {}
    for argument in command.arguments:
        value = getattr(command, argument.name)
        if value is None:
            if argument.required or argument.default is NOT_GIVEN:
                form[argument.name] = None
        elif (
            value is not NOT_GIVEN
            and argument.declared.sent
            and not (argument.kind is FLAG and value is argument.default)
        ):
            form[argument.name] = argument.kind.to_json(value)
    return form
