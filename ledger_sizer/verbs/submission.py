"""What `run` and `submit` take, the same in every face."""

from collections.abc import Iterable
from typing import Any

from ledger_sizer.model.command_base import GROUP_MAX
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.errors import InvalidRequest


def require_command(given: object) -> None:
    """Raise `InvalidRequest` for what is not one command object."""
    if not isinstance(given, AnyCommand):
        raise InvalidRequest(f"run takes a command object such as Reserve(...), got {given!r:.100}", field="command")


def commands_of(given: Iterable[AnyCommand], *, atomic: bool) -> list[AnyCommand]:
    """Return the commands of a `submit` in order, from any iterable, which is read once and to its end.

    Raises `InvalidRequest` for anything but an iterable of commands that are recorded, and for an atomic group of more
    than `GROUP_MAX`. An exception of the iterable passes through. Nothing was sent or recorded then.
    """
    commands = list(_iterable(given))
    for command in commands:
        if not isinstance(command, AnyCommand):
            raise InvalidRequest(
                f"submit takes command objects such as Reserve(...), got {command!r:.100}", field="commands"
            )
        if isinstance(command, Reserve) and command.dry_run:
            raise InvalidRequest(
                "submit records what it answers; ask a dry run with reserve(..., dry_run=True)", field="commands"
            )
    if atomic and len(commands) > GROUP_MAX:
        raise InvalidRequest(
            f"an atomic group has at most {GROUP_MAX} commands, got {len(commands)}; divide it", field="commands"
        )
    return commands


def _iterable(given: Any) -> Iterable[AnyCommand]:
    """Return what was given, where one can iterate over it and gets more than its letters."""
    if isinstance(given, AnyCommand):
        raise InvalidRequest(f"submit takes a list of commands, got one: [{given.verb}(...)]", field="commands")
    if isinstance(given, str | bytes | bytearray) or not isinstance(given, Iterable):
        raise InvalidRequest(
            f"submit takes an iterable of command objects such as [Reserve(...)], got {given!r:.100}", field="commands"
        )
    return given
