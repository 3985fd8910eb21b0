"""Parses the batch call: up to 1,000 commands, each by itself, so that a malformed one does not fail the others."""

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, create_model

from ledger_sizer.model.arguments import field_prefix
from ledger_sizer.model.command_base import GROUP_MAX, KEY
from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.wire.requests import BODIES, Body, CommandBody, json_type, validated

BATCH_MAX = GROUP_MAX
"""Most commands of one batch call."""


class _Keyed(Body):
    key: json_type(KEY)  # type: ignore[valid-type]


def _item_of(verb: str, body: type[CommandBody]) -> type[CommandBody]:
    """Return the model of a verb's batch item: its body, the key, and what stands in the path of a single call."""
    command = COMMANDS[verb]
    from_path = [one for one in command.arguments if one.declared.sent and one.name not in body.model_fields]
    fields: dict[str, Any] = {"command": (Literal[verb], ...)}
    fields |= {one.name: (json_type(one.kind), ... if one.required else one.default) for one in from_path}
    item = create_model(f"Batch{command.__name__}", __base__=(body, _Keyed), __doc__=f"`{verb}` in a batch.", **fields)
    item.from_path = tuple(one.name for one in from_path)  # type: ignore[attr-defined]
    return item  # type: ignore[return-value]


_BATCH_ITEMS: Mapping[str, type[CommandBody]] = {verb: _item_of(verb, body) for verb, body in BODIES.items()}

_Commands: Any = Annotated[
    list[Annotated[reduce(or_, _BATCH_ITEMS.values()), Field(discriminator="command")]],  # type: ignore[misc]
    Field(min_length=1, max_length=BATCH_MAX),
]

BatchBody = create_model(
    "BatchBody",
    __base__=Body,
    __doc__="Up to 1,000 commands. Independent: each has its own answer; `atomic`: all take effect or none does.",
    commands=(_Commands, ...),
    atomic=(bool, False),
)
"""The schema of the batch call. `read_batch` reads item by item, so that one malformed command spoils no other."""


class Batch(NamedTuple):
    """A parsed batch: for each item its command, or the `InvalidRequest` that says what is wrong with it."""

    items: list[AnyCommand | InvalidRequest]
    atomic: bool


def read_batch(form: Mapping[str, Any]) -> Batch:
    """Parse the body of the batch call.

    Raises `InvalidRequest` where the batch itself is wrong: no list, no command, more than `BATCH_MAX`, unknown names.
    The error of a single command is returned in its place.
    """
    if unknown := form.keys() - {"commands", "atomic"}:
        name = min(unknown)
        raise InvalidRequest(f"{name!r} is not a field here; a batch has commands and atomic", field=name)
    atomic, items = form.get("atomic", False), form.get("commands")
    if type(atomic) is not bool:
        raise InvalidRequest(f"atomic must be true or false, got {atomic!r}", field="atomic")
    if type(items) is not list or not 1 <= len(items) <= BATCH_MAX:
        got = f"{len(items)} commands" if type(items) is list else f"{items!r:.80}"
        raise InvalidRequest(f"commands must be a list of 1 to {BATCH_MAX} commands, got {got}", field="commands")
    return Batch([_read_item(item, number) for number, item in enumerate(items)], atomic)


def _read_item(item: Any, number: int) -> AnyCommand | InvalidRequest:
    name = item.get("command") if type(item) is dict else None
    model = _BATCH_ITEMS.get(name) if type(name) is str else None
    path = f"commands.{number}"
    if model is None:
        verbs = ", ".join(_BATCH_ITEMS)
        return InvalidRequest(f"{path}.command must be one of {verbs}; got {name!r:.80}", field=f"{path}.command")
    try:
        with field_prefix(path):
            body = validated(model, item)
            given = body.__dict__
            if given.get("dry_run"):
                raise InvalidRequest("a batch records what it answers; ask a dry run by itself", field="dry_run")
            from_path = {name: given[name] for name in model.from_path}
            return body.to_command(given["key"], **from_path)
    except InvalidRequest as error:
        return error
