"""The part of `--help` below the options: examples that run as written, and the exit codes."""

from collections.abc import Mapping

_EXIT_CODES: Mapping[int, str] = {0: "done", 1: "failure", 2: "bad input", 3: "denied"}
NEVER_DENIED: Mapping[int, str] = {3: ""}
"""The `exits` of a command that never ends with 3."""


def help_epilog(*examples: str, exits: Mapping[int, str] | None = None) -> str:
    """Return the epilog of a command's help.

    examples: command lines without the leading `ledger-sizer`; tests run each of them. exits: meanings of exit codes
    that differ from the usual ones; an empty text leaves a code out.
    """
    meanings = {**_EXIT_CODES, **(exits or {})}
    meanings = {code: meaning for code, meaning in sorted(meanings.items()) if meaning}
    lines = ["\b", "Examples:"]
    lines += [f"  ledger-sizer {example}" for example in examples]
    lines += ["", "\b", "Exit codes:"]
    lines += [f"  {code}  {meaning}" for code, meaning in meanings.items()]
    return "\n".join(lines)
