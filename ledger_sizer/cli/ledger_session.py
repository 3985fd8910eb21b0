"""Opens the ledger or the database of a command line, and runs one verb on the ledger."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from ledger_sizer.cli import errors, output
from ledger_sizer.cli.errors import Failure
from ledger_sizer.model.errors import InvalidRequest, KeyReused, LedgerError
from ledger_sizer.model.units import decimal_text

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ledger_sizer import Decision, Ledger
    from ledger_sizer.config import AppSettings
    from ledger_sizer.model.caller import Caller
    from ledger_sizer.model.commands import AnyCommand
    from ledger_sizer.model.legs import OrderLeg


@contextmanager
def ledger_at(url: str | None, *, create: bool = False) -> Iterator["Ledger"]:
    """Open the ledger at `url`, or at the settings' URL, for the length of a `with` block.

    create: whether to create a missing SQLite file, as LEDGER_CREATE says. Only commands that may begin a ledger do.
    Any other command was given a wrong path, and an empty ledger that answers "nothing open" would be the worst reply.
    """
    from ledger_sizer.ledger.ledger import Ledger

    settings = load_settings()
    target = resolve_database_url(url, settings, create=create)
    if not create:
        settings = with_ledger_settings(settings, create="never")
    with Ledger.open(target, settings=settings) as ledger:
        ledger.opened_by = command_line_caller(settings.ledger.client)
        note_created(target, created=ledger.created)
        yield ledger


def command_line_caller(client: str) -> "Caller":
    """Return the caller of this process's commands. client: the settings' name of it, which may be empty."""
    import getpass
    import os

    from ledger_sizer.model.arguments import label_text
    from ledger_sizer.model.caller import Caller

    try:
        user = label_text(getpass.getuser(), "user")
    except (
        KeyError,
        OSError,
        ImportError,
        InvalidRequest,
    ):  # no entry for this user, or a name that no record can hold
        user = f"uid-{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return Caller(f"cli:{user}", client or "cli", sees_all=True)


@contextmanager
def engine_at(url: str | None, *, create: bool = False, read_only: bool = False) -> Iterator["Engine"]:
    """Open an engine on the database at `url`, or at the settings' URL, whatever its schema."""
    from ledger_sizer.storage.database import make_engine

    settings = load_settings()
    engine = make_engine(resolve_database_url(url, settings, create=create), settings.ledger, read_only=read_only)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def ledger_engine_at(url: str | None, *, create: bool = False) -> Iterator["Engine"]:
    """Open an engine on a ledger's database, for the tables beside the ledger. Requires this version's schema."""
    from ledger_sizer.storage.database import is_sqlite, require_head, upgrade

    with engine_at(url, create=create) as engine:
        if create and is_sqlite(engine.url):
            # As `Ledger.open` does.
            note_created(str(engine.url), created=upgrade(engine.url, create=load_settings().ledger.create))
        require_head(engine)
        yield engine


def note_created(url: str, *, created: bool) -> None:
    """Say that a command created a SQLite ledger: whoever expected an old one there has the wrong path."""
    from ledger_sizer.storage.database import database_url, sqlite_path

    if created:
        output.note(f"created a new ledger at {Path(sqlite_path(database_url(url))).absolute()}")


def with_ledger_settings(settings: "AppSettings", **changes: object) -> "AppSettings":
    """Return the settings with other values of the section `ledger`."""
    from ledger_sizer.config import LedgerSettings

    ledger = LedgerSettings(**{**settings.ledger.model_dump(), **changes})
    return settings.model_copy(update={"ledger": ledger})


def load_settings() -> "AppSettings":
    """Load the settings, and log to standard error: warnings and errors, or from LOG_LEVEL on."""
    from ledger_sizer.config import AppSettings
    from ledger_sizer.telemetry import configure_logging

    settings = AppSettings.of_program()
    configure_logging(settings.log_level if "log_level" in settings.model_fields_set else "WARNING")
    return settings


def resolve_database_url(url: str | None, settings: "AppSettings", *, create: bool) -> str:
    """Return the URL of a command's database: `url`, or the settings'.

    Raises `InvalidRequest` for a URL that cannot be used. Without `create`, raises `Failure` for a missing SQLite
    file, and `LedgerMissing` where it was a ledger.
    """
    from ledger_sizer.storage.database import database_url, is_sqlite, sqlite_path
    from ledger_sizer.storage.sqlite_start import Traces

    target = settings.ledger.database_url if url is None else url
    parsed = database_url(target)
    if not create and is_sqlite(parsed) and not Path(path := sqlite_path(parsed)).exists():
        Traces.of(path).require_none()
        hint = f"check --database-url, or create it: ledger-sizer db upgrade --database-url {shlex.quote(target)}"
        raise Failure("not_found", f"there is no ledger at {path!r}", hint=hint)
    return target


def new_key() -> str:
    """Return a new idempotency key."""
    from uuid import uuid4

    return f"cli-{uuid4()}"


def run_verb(command: "AnyCommand", *, url: str | None, as_json: bool, create: bool = False) -> int:
    """Run one command, show its decision, and return the exit code."""
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
    """Run the command. An error after which its outcome may be unknown names the key to send again."""
    again = f"run the same command with --key {shlex.quote(command.key)} to learn what became of it"
    try:
        return ledger.run(command)
    except KeyReused as error:
        used_for = None
        if error.seq is not None:
            position = f" ({error.position_id})" if error.position_id is not None else ""
            used_for = f"see{position}: ledger-sizer explain {error.seq} -p {shlex.quote(command.portfolio)}"
        raise Failure.from_error(error, hint=used_for, key=command.key) from error
    except LedgerError as error:
        raise Failure.from_error(error, hint=again if error.retryable else None, key=command.key) from error
    except KeyboardInterrupt:
        message = "interrupted before the answer came"
        raise Failure("interrupted", message, exit_code=errors.INTERRUPTED, hint=again, key=command.key) from None


def show_decision(decision: "Decision") -> None:
    """Show a decision to a person: its outcome, then the details."""
    before, after = output.figure(decision.exposure_before, 2), output.figure(decision.exposure_after, 2)
    recorded = decision.seq is not None
    output.headline(_headline(decision), decision.outcome)
    output.details(
        [
            ("position", decision.position_id),
            ("quantity", decision.quantity),
            *(("order", _order_words(leg)) for leg in decision.legs),
            (_binding_label(decision), decision.binding),
            ("in words", _reason_words(decision)),
            (
                "expires at",
                "never by time: until its order's fate is known" if decision.until_known else decision.expires_at,
            ),
            ("exposure", f"{before} -> {after} USD"),
            ("decision", f"{decision.portfolio} #{decision.seq}" if recorded else None),
            ("key", decision.key if recorded else None),
        ]
    )


def _reason_words(decision: "Decision") -> str | None:
    """Say what a denial was for, with what was left; None for what was not denied."""
    from ledger_sizer.rules.explain import reason_in_words

    return reason_in_words(decision) if decision.outcome == "denied" else None


def _order_words(leg: "OrderLeg") -> str:
    """Say what to order, in the unit of that exchange's orders."""
    where = f" at {leg.venue}" if leg.venue else ""
    where += f", account {leg.account}" if leg.account else ""
    what = f"{leg.side} {decimal_text(leg.order_amount)} {leg.symbol}{where}"
    if leg.order_amount != leg.quantity:
        what += f" ({decimal_text(leg.quantity)} coins)"
    return what if leg.order_cost is None else f"{what}; a market order takes its cost, {decimal_text(leg.order_cost)}"


def note_unused(ledger: "Ledger", portfolio: str | None) -> None:
    """Say that nobody used a portfolio yet, because its name may be mistyped. None: of all portfolios."""
    from ledger_sizer.model.errors import NotFound

    if portfolio is None:
        return
    try:
        ledger.heads(portfolio)
    except NotFound:
        output.note(f"nobody has used a portfolio {portfolio!r} yet; for those in use: ledger-sizer caps")


def _binding_label(decision: "Decision") -> str:
    from ledger_sizer.model.denials import GROUP_DENIED
    from ledger_sizer.rules.trace import SCOPE_COMMANDS

    if decision.reason == GROUP_DENIED:
        return "denied by"
    return "scope" if decision.command in SCOPE_COMMANDS else "bound by"


_MAY_EXCEED_A_CAP = ("confirm", "fill", "adopt", "reprice", "rename", "set_cap")


def _warn_of_overage(ledger: "Ledger", portfolio: str) -> None:
    """Name the caps that are exceeded now. Facts may exceed a cap; nothing more is granted there."""
    for row in ledger.exposure(portfolio).scopes:
        if row.overage:
            default = "" if row.cap_from is None else f" (the default of {row.cap_from})"
            cap = output.figure(row.cap or Decimal(0), 2)
            excess = f"{output.figure(row.overage, 2)} USD above its cap of {cap} USD{default}"
            output.note(f"overage: {row.scope} is {excess}; nothing more is granted there until it is gone")


_SET_WORDS = {
    "cap": "", "guarantee": "guarantee ", "max_position_usd": "largest position ", "share_of_equity": "share of equity "
}  # fmt: skip
"""What stands before an amount that `set_cap` set, by argument; a cap needs no word."""


def _set_words(request: dict[str, str | None]) -> str:
    """Say what `set_cap` changed. A cap that is removed alone is not in its request."""
    given = request if request.keys() & _SET_WORDS.keys() else {"cap": None}
    words = []
    for name, word in _SET_WORDS.items():
        if name in given:
            amount = given[name]
            none = f"no {word.strip() or 'cap'}"
            unit = "" if name == "share_of_equity" else " USD"
            words.append(none if amount is None else f"{word}{output.figure(Decimal(amount), 2)}{unit}")
    return ", ".join(words)


def _headline(decision: "Decision") -> str:
    text = f"{decision.command} {decision.outcome}"
    request = json.loads(decision.request)
    if decision.outcome == "denied":
        text += f": {decision.reason}"
    elif decision.budget is not None:
        text += f": {output.figure(decision.budget, 2)} USD"
    elif decision.command == "set_cap":
        text += f": {_set_words(request)}"
    elif decision.command == "halt":
        text += f": {request['mode']}"
    if decision.replayed:
        text += " (answered before; nothing new happened)"
    if decision.seq is None:
        text += " (dry run: nothing is held or recorded)"
    return text
