"""Turns exceptions into one line on standard error and an exit code.

0    done
1    failure: not found, wrong state, forbidden, busy, unavailable, schema outdated, verification failed
     (130 when interrupted)
2    bad input: an option, a value, a setting, or a key that already answered another request
3    denied: the ledger's answer is no; the decision stands on standard output
"""

import io
import json
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ledger_sizer.model.errors import Denied, InvalidRequest, LedgerError, NotFound, Unavailable

DONE, FAILED, BAD_INPUT, DENIED = 0, 1, 2, 3
INTERRUPTED = 130
"""Ctrl-C, by the convention of shells."""

_LISTED_BY = {"no portfolio": "caps", "no position": "positions", "no decision": "history"}
"""The command that lists what was not found, by the beginning of the error's message."""


class Failure(Exception):
    """An error as the user gets it: a stable `code`, the message, and what the command line adds.

    hint: what to do, unless the message says it. key: the idempotency key to send again. field: the argument at fault.
    seq, position_id: what a reused key did before.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        exit_code: int = FAILED,
        hint: str | None = None,
        key: str | None = None,
        field: str | None = None,
        seq: int | None = None,
        position_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code
        self.hint = hint
        self.key = key
        self.field = field
        self.seq = seq
        self.position_id = position_id

    @classmethod
    def from_error(cls, error: LedgerError, *, hint: str | None = None, key: str | None = None) -> "Failure":
        """Return the failure for an error of the ledger."""
        exit_code = BAD_INPUT if isinstance(error, InvalidRequest) else DENIED if isinstance(error, Denied) else FAILED
        details = {name: getattr(error, name, None) for name in ("field", "seq", "position_id")}
        if hint is None and isinstance(error, NotFound):
            listing = next((command for what, command in _LISTED_BY.items() if str(error).startswith(what)), None)
            hint = listing and f"see: ledger-sizer {listing}"
        return cls(error.code, str(error), exit_code=exit_code, hint=hint, key=key, **details)


def bad_input(message: str, field: str) -> NoReturn:
    """Raise `InvalidRequest` for an argument of the command line."""
    raise InvalidRequest(message, field=field)


def run_guarded(command: Callable[[], object], *, as_json: bool) -> int:
    """Run `command`, report what it raises, and return the exit code.

    A defect of this program still ends in its traceback, which is needed to find it.
    """
    _escape_unencodable_output()
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()  # the reader, such as `head`, closed the pipe
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        failure = _failure_of(error)
        if failure is None:
            raise
        _report(failure, as_json)
        return failure.exit_code
    if code == INTERRUPTED:
        _report(Failure("interrupted", "interrupted"), as_json)
    return code if isinstance(code, int) else DONE


def _failure_of(error: BaseException) -> Failure | None:
    """Return the failure for an exception; None for a defect."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, LedgerError):
        return Failure.from_error(error)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", "interrupted", exit_code=INTERRUPTED)
    if type(error).__module__.startswith("sqlalchemy."):
        # Reads and migrations let the driver's errors through. Comparing the module's name saves importing SQLAlchemy.
        return Failure.from_error(Unavailable(f"the database refused: {getattr(error, 'orig', None) or error}"))
    return _usage_failure(error)


def _usage_failure(error: BaseException) -> Failure | None:
    import typer

    if isinstance(error, typer.Abort):
        return Failure("aborted", "aborted, nothing was changed")
    if not isinstance(error, typer.TyperException):
        return None
    context = getattr(error, "ctx", None)
    hint = f"see: {context.command_path} --help" if context is not None else None
    parameter = getattr(error, "param", None)
    field = None if parameter is None else parameter.name
    message = error.format_message().replace("Value error, ", "")
    return Failure("invalid_request", message.rstrip("."), exit_code=BAD_INPUT, hint=hint, field=field)


def _report(failure: Failure, as_json: bool) -> None:
    """Write a failure to standard error: one line of text, or one JSON object."""
    message = " ".join(str(failure).split())
    if as_json:
        problem: dict[str, object] = {"error": failure.code, "message": message, "hint": failure.hint}
        problem |= {"field": failure.field, "key": failure.key}
        problem |= {"seq": failure.seq, "position_id": failure.position_id}
        text = json.dumps({name: value for name, value in problem.items() if value is not None})
    else:
        text = f"error: {message}, {failure.hint}" if failure.hint else f"error: {message}"
    sys.stderr.write(f"{text}\n")


def _escape_unencodable_output() -> None:
    """Print characters that the output's encoding lacks as escapes: a tag may hold any printable text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Send standard output to the null device, so that the interpreter's last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
