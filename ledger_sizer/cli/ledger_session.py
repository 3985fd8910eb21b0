"""Opening the ledger a command is about, and running one verb on it."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from ledger_sizer.cli import errors, output
from ledger_sizer.cli.errors import Failure
from ledger_sizer.model.errors import LedgerError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ledger_sizer import Decision, Ledger
    from ledger_sizer.config import AppSettings
    from ledger_sizer.model.commands import AnyCommand


@contextmanager
def ledger_at(url: str | None, *, create: bool = False) -> Iterator["Ledger"]:
    """The ledger at `url`, or at the settings' own, open for the length of a `with` block.

    create: whether a missing SQLite file may be made. Only a command that may be a ledger's first does that; any other
    one was given the wrong path, and an empty ledger that answers "nothing open" would be the worst reply.
    """
    from ledger_sizer.ledger.ledger import Ledger

    settings = loaded_settings()
    target = target_of(url, settings, create=create)
    with Ledger.open(target, settings=settings) as ledger:
        yield ledger


@contextmanager
def engine_at(url: str | None, *, create: bool = False, read_only: bool = False) -> Iterator["Engine"]:
    """An engine on the database at `url`, or on the settings' own, whatever it holds."""
    from ledger_sizer.storage.database import make_engine

    settings = loaded_settings()
    engine = make_engine(target_of(url, settings, create=create), settings.ledger, read_only=read_only)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def ledger_engine_at(url: str | None, *, create: bool = False) -> Iterator["Engine"]:
    """An engine on a ledger's database, for the rows beside the ledger; it must be at this version's migration."""
    from ledger_sizer.storage.database import is_sqlite, require_head, upgrade

    with engine_at(url, create=create) as engine:
        if create and is_sqlite(engine.url):
            upgrade(engine.url)  # as opening the embedded ledger would
        require_head(engine)
        yield engine


def loaded_settings() -> "AppSettings":
    """The settings, with the log going to standard error: warnings and errors, or what LOG_LEVEL says."""
    from ledger_sizer.config import AppSettings
    from ledger_sizer.telemetry import configure_logging

    settings = AppSettings()
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else "WARNING")
    return settings


def target_of(url: str | None, settings: "AppSettings", *, create: bool) -> str:
    """The database a command is about. Refuses a URL that names none, and to create what only exists by a typo."""
    from ledger_sizer.storage.database import database_url, is_sqlite

    target = settings.ledger.database_url if url is None else url
    parsed = database_url(target)
    path = parsed.database or ""
    if not create and is_sqlite(parsed) and not path.startswith("file:") and not Path(path).exists():
        hint = f"check --database-url, or create it: ledger-sizer db upgrade --database-url {shlex.quote(target)}"
        raise Failure("not_found", f"there is no ledger at {path!r}", hint=hint)
    return target


def new_key() -> str:
    """An idempotency key nobody used before."""
    from uuid import uuid4

    return f"cli-{uuid4()}"


def run_verb(command: "AnyCommand", *, url: str | None, as_json: bool, create: bool = False) -> int:
    """Run one command, show its decision, return the exit code."""
    with ledger_at(url, create=create) as ledger:
        decision = _run(ledger, command)
        if as_json:
            from ledger_sizer.cli.json_forms import decision_form

            output.write_json(decision_form(decision))
        else:
            show_decision(decision)
            if decision.command in _MAY_EXCEED_A_CAP:
                _warn_of_overage(ledger, decision.portfolio)
    return errors.DENIED if decision.outcome == "denied" else errors.DONE


def _run(ledger: "Ledger", command: "AnyCommand") -> "Decision":
    """Run the command; where its outcome may be unknown, name the key that settles it."""
    again = f"run the same command with --key {shlex.quote(command.key)} to learn what became of it"
    try:
        return ledger.run(command)
    except LedgerError as error:
        raise Failure.of(error, hint=again if error.retryable else None, key=command.key) from error
    except KeyboardInterrupt:
        message = "interrupted before the answer came"
        raise Failure("interrupted", message, exit_code=errors.INTERRUPTED, hint=again, key=command.key) from None


def show_decision(decision: "Decision") -> None:
    """A decision for a person: what came of it, then what it rests on."""
    before, after = output.figure(decision.exposure_before, 2), output.figure(decision.exposure_after, 2)
    recorded = decision.seq is not None
    output.headline(_headline(decision), decision.outcome)
    output.details(
        [
            ("position", decision.position_id),
            ("quantity", decision.quantity),
            ("scope" if decision.command in _ABOUT_A_SCOPE else "bound by", decision.binding),
            ("expires at", decision.expires_at),
            ("exposure", f"{before} -> {after} USD"),
            ("decision", f"{decision.portfolio} #{decision.seq}" if recorded else None),
            ("key", decision.key if recorded else None),
        ]
    )


_ABOUT_A_SCOPE = ("set_cap", "halt", "resume", "freeze", "thaw", "reconciled")
_MAY_EXCEED_A_CAP = ("confirm", "adopt", "set_cap")


def _warn_of_overage(ledger: "Ledger", portfolio: str) -> None:
    """Say which caps are exceeded now: facts may do that, and then nothing more is granted there."""
    for row in ledger.exposure(portfolio).scopes:
        if row.overage:
            excess = (
                f"{output.figure(row.overage, 2)} USD above its cap of {output.figure(row.cap or Decimal(0), 2)} USD"
            )
            output.note(f"overage: {row.scope} is {excess}; nothing more is granted there until it is gone")


def _headline(decision: "Decision") -> str:
    text = f"{decision.command} {decision.outcome}"
    request = json.loads(decision.request)
    if decision.outcome == "denied":
        text += f": {decision.reason}"
    elif decision.budget is not None:
        text += f": {output.figure(decision.budget, 2)} USD"
    elif decision.command == "set_cap":
        text += f": {output.figure(Decimal(request['cap']), 2)} USD" if "cap" in request else ": no cap"
    elif decision.command == "halt":
        text += f": {request['mode']}"
    if decision.replayed:
        text += " (answered before; nothing new happened)"
    if decision.seq is None:
        text += " (dry run: nothing is held or recorded)"
    return text
