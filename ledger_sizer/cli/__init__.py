"""The command line: `ledger-sizer`, also `python -m ledger_sizer`.

Thin over `Ledger`: a command parses text into exact values, calls the verb of the same name and shows what came back,
as a table on a terminal, as aligned plain text elsewhere, as one JSON document with `--json`.

Starting fast is a feature (bots and shell scripts call this in loops), so nothing here imports SQLAlchemy, Alembic or
pydantic before a command runs that needs them.

    app              which command stands where
    command_tree     builds a command when it is called
    verb_commands    the commands of the verbs, from their declarations
    admin, queries, audit, reconciliation, instruments, keys, database, serve, top, replay, demo
                     the other commands, by subject
    options          options that commands share, and the parsers of their text
    ledger_session   opens the ledger of a command line and runs one verb on it
    output           tables, plain text, JSON, progress
    json_forms       JSON that only `--json` prints
    help_text        examples and exit codes below the options of `--help`
    errors           exceptions as one line and an exit code
"""

import gc
import sys
from collections.abc import Callable, Sequence


def main() -> None:
    """Run the command line of this process and exit: 0 done, 3 denied, 2 bad input, 1 failure."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. An error is one line on standard error; a defect raises."""
    from ledger_sizer.cli.errors import run_guarded

    def command() -> object:
        tree = _command_tree()
        return tree(args=list(arguments) or ["--help"], prog_name="ledger-sizer", standalone_mode=False)

    return run_guarded(command, as_json="--json" in arguments)


def _command_tree() -> Callable[..., object]:
    """Import the command tree. That makes many objects and no garbage, so it is faster without the collector."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        from ledger_sizer.cli.app import root_command

        return root_command()
    finally:
        if collecting:
            gc.enable()
