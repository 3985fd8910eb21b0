"""Parses the batch call: up to 1,000 commands, each by itself, so that a malformed one does not fail the others."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.wire.requests import (
    AdoptBody,
    Body,
    CommandBody,
    ConfirmBody,
    ExtendBody,
    FreezeBody,
    HaltBody,
    KeyText,
    PortfolioText,
    PositionText,
    ReconciledBody,
    ReleaseBody,
    RemarkBody,
    ReserveBody,
    ResumeBody,
    SetCapBody,
    ThawBody,
    field_prefix,
    validated,
)

BATCH_MAX = 1000
"""Most commands of one batch call."""


class _Keyed(Body):
    key: KeyText


class BatchReserve(ReserveBody, _Keyed):
    """`reserve` in a batch."""

    command: Literal["reserve"]


class BatchConfirm(ConfirmBody, _Keyed):
    """`confirm` in a batch."""

    command: Literal["confirm"]
    position_id: PositionText


class BatchRelease(ReleaseBody, _Keyed):
    """`release` in a batch."""

    command: Literal["release"]
    position_id: PositionText


class BatchExtend(ExtendBody, _Keyed):
    """`extend` in a batch."""

    command: Literal["extend"]
    position_id: PositionText


class BatchSetCap(SetCapBody, _Keyed):
    """`set_cap` in a batch."""

    command: Literal["set_cap"]
    portfolio: PortfolioText = "main"


class BatchHalt(HaltBody, _Keyed):
    """`halt` in a batch."""

    command: Literal["halt"]
    portfolio: PortfolioText = "main"


class BatchResume(ResumeBody, _Keyed):
    """`resume` in a batch."""

    command: Literal["resume"]
    portfolio: PortfolioText = "main"


class BatchAdopt(AdoptBody, _Keyed):
    """`adopt` in a batch."""

    command: Literal["adopt"]


class BatchFreeze(FreezeBody, _Keyed):
    """`freeze` in a batch."""

    command: Literal["freeze"]
    portfolio: PortfolioText = "main"


class BatchThaw(ThawBody, _Keyed):
    """`thaw` in a batch."""

    command: Literal["thaw"]
    portfolio: PortfolioText = "main"


class BatchReconciled(ReconciledBody, _Keyed):
    """`reconciled` in a batch."""

    command: Literal["reconciled"]
    portfolio: PortfolioText = "main"


class BatchRemark(RemarkBody, _Keyed):
    """`remark` in a batch."""

    command: Literal["remark"]
    portfolio: PortfolioText = "main"


BatchItem = Annotated[
    BatchReserve | BatchConfirm | BatchRelease | BatchExtend | BatchSetCap | BatchHalt | BatchResume | BatchAdopt
    | BatchFreeze | BatchThaw | BatchReconciled | BatchRemark,
    Field(discriminator="command"),
]  # fmt: skip


class BatchBody(Body):
    """Up to 1,000 commands. Independent: each has its own answer; `atomic`: all of them take effect or none does.

    This is the schema; `read_batch` reads item by item, so that one malformed command spoils no other.
    """

    commands: Annotated[list[BatchItem], Field(min_length=1, max_length=BATCH_MAX)]
    atomic: bool = False


_BATCH_ITEMS: Mapping[str, type[CommandBody]] = {
    "reserve": BatchReserve,
    "confirm": BatchConfirm,
    "release": BatchRelease,
    "extend": BatchExtend,
    "set_cap": BatchSetCap,
    "halt": BatchHalt,
    "resume": BatchResume,
    "adopt": BatchAdopt,
    "freeze": BatchFreeze,
    "thaw": BatchThaw,
    "reconciled": BatchReconciled,
    "remark": BatchRemark,
}


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
            from_path = {name: given[name] for name in _PATH_FIELDS[model]}
            return body.to_command(given["key"], **from_path)
    except InvalidRequest as error:
        return error


assert _BATCH_ITEMS.keys() == COMMANDS.keys(), "every verb can stand in a batch"
_PATH_FIELDS: Mapping[type[CommandBody], list[str]] = {
    model: [name for name in ("position_id", "portfolio") if f"{{{name}}}" in model.path]
    for model in _BATCH_ITEMS.values()
}
