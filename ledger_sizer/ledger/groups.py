"""Builds the groups that the writer answers, and gives their answers the form that callers get."""

from collections.abc import Callable, Sequence

from ledger_sizer.model.caller import Caller
from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.errors import Forbidden, InvalidRequest, LedgerError
from ledger_sizer.rules.batch import Group
from ledger_sizer.storage.leases import fence_var
from ledger_sizer.telemetry import request_id_var
from ledger_sizer.verbs.submission import require_command

Prepare = Callable[[AnyCommand], AnyCommand]


def prepared(
    commands: Sequence[AnyCommand], prepare: Prepare, *, atomic: bool
) -> tuple[list[AnyCommand], dict[int, LedgerError]]:
    """Prepare commands for the queue. Returns those that are fit for it, and errors by index.

    atomic: raise the first error.
    """
    fit: list[AnyCommand] = []
    errors: dict[int, LedgerError] = {}
    for index, command in enumerate(commands):
        try:
            fit.append(prepare(command))
        except (InvalidRequest, Forbidden) as error:
            if atomic:
                raise
            errors[index] = error
    return fit, errors


def group_of(commands: Sequence[AnyCommand], caller: Caller, *, atomic: bool) -> Group:
    """Return the group of these commands, with the caller's request id and lease."""
    return Group(tuple(commands), atomic, request_id=request_id_var.get(), fence=fence_var.get(), caller=caller)


def group_of_one(command: AnyCommand, caller: Caller) -> Group:
    """Return the group of one command. Raises `InvalidRequest` for anything else."""
    require_command(command)
    return Group((command,), request_id=request_id_var.get(), fence=fence_var.get(), caller=caller)


def only_decision(results: list[Result]) -> Decision:
    """Return the decision of a group of one. Raises its error."""
    (result,) = results
    if isinstance(result, LedgerError):
        raise result
    return result


def all_answers(results: list[Result], wrong: dict[int, LedgerError], *, atomic: bool) -> list[Result]:
    """Insert the errors of commands that never reached the queue. Raise an error of an atomic group instead."""
    failed = next((result for result in results if isinstance(result, LedgerError)), None)
    if atomic and failed is not None:
        raise failed
    for place, error in sorted(wrong.items()):
        results.insert(place, error)
    return results
