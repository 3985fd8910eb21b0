"""`ledger-sizer positions import`: takes over positions that the ledger lacks, from the exchange or from a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.errors import Failure, bad_input
from ledger_sizer.cli.help_text import help_epilog
from ledger_sizer.cli.options import AdoptedTag, AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.cli.output import Column
from ledger_sizer.model.units import decimal_text

if TYPE_CHECKING:
    from ledger_sizer import Ledger
    from ledger_sizer.model.commands import Adopt
    from ledger_sizer.reconcile.day_one import Import, Importer, NewPosition
    from ledger_sizer.reconcile.left_out import LeftOut
    from ledger_sizer.wire.positions_file import FilePosition

IMPORT_HELP = help_epilog(
    "positions import --from-exchange",
    "positions import --from-exchange --venue bybit --tag strategy=carry --apply",
    "positions import --template",
    "positions import positions.csv",
    "positions import positions.csv --apply",
    exits={1: "failure, or an account could not be read whole", 3: ""},
)


def import_positions(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="A CSV file, as --template shows it.")] = None,
    from_exchange: Annotated[
        bool, typer.Option("--from-exchange", help="What the accounts of the settings show and the ledger lacks.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Record it. Else it is only shown.")] = False,
    portfolio: AnyPortfolio = None,
    venue: Annotated[str | None, typer.Option("--venue", metavar="NAME", help="Of this exchange; else all.")] = None,
    account: Annotated[str | None, typer.Option("--account", metavar="NAME", help="Of this account; else all.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", metavar="COIN", help="Of this coin; else all.")] = None,
    tag: AdoptedTag = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept in the audit chain.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Begins the key of each position of a file; else the file's name."),
    ] = None,
    template: Annotated[bool, typer.Option("--template", help="Print an example of a file.")] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Take over positions that are open already. Shows them; --apply records them.

    From the exchange: what the accounts show and the ledger lacks, each hedge (long against short of one coin, at one
    account, else at one venue, else anywhere) as one position. What is ignored, is dust or dollars, or has no price is
    left out, and listed. From a file: one leg a line; the file is taken whole or not at all, and a position that was
    taken from it before is not taken again.
    """
    from ledger_sizer.wire.positions_file import TEMPLATE

    if template:
        output.write(TEMPLATE.rstrip())
        return 0
    if (file is None) != from_exchange:
        bad_input("give a FILE or --from-exchange, one of both; --template prints an example of a file", "file")
    tags = options.tags(tag)
    if file is not None:
        for name, value in (("venue", venue), ("account", account), ("symbol", symbol)):
            if value is not None:
                bad_input(f"--{name} is for --from-exchange; a file names it in its column", name)
        return _from_file(file, portfolio or "main", tags, key, reason, apply=apply, as_json=as_json, url=database_url)
    if key is not None:
        bad_input("--key is for a file; from the exchange each position has the key of its drift", "key")
    chosen = {"portfolio": portfolio, "venue": venue, "account": account, "symbol": symbol, "tags": tags}
    return _from_exchange(chosen, reason, apply=apply, as_json=as_json, url=database_url)


# --- from the exchange -----------------------------------------------------------------------------------------------


def _from_exchange(chosen: dict[str, Any], reason: str | None, *, apply: bool, as_json: bool, url: str | None) -> int:
    from ledger_sizer.reconcile.day_one import choice_of

    choice = choice_of(**chosen)
    with _importer(url) as importer:
        found = importer.apply(choice, reason=reason or "positions import") if apply else importer.plan(choice)
    if as_json:
        output.write_json({"dry_run": not apply, "items": [_form(one) for one in found]})
    else:
        for one in found:
            _show(one, applied=apply)
    return errors.FAILED if any(one.problems for one in found) else errors.DONE


@contextmanager
def _importer(url: str | None) -> "Iterator[Importer]":
    from contextlib import ExitStack

    from ledger_sizer.cli.ledger_session import engine_at, ledger_at
    from ledger_sizer.exchanges.accounts import open_accounts
    from ledger_sizer.reconcile.alerts import Alerts
    from ledger_sizer.reconcile.day_one import Importer

    with ledger_at(url) as ledger, engine_at(url) as engine, ExitStack() as stack:
        settings = ledger.settings
        accounts = open_accounts(settings.exchange)
        for one in accounts:
            stack.callback(one.close)
        alerts = Alerts(engine, settings.reconcile)
        stack.callback(alerts.close)
        yield Importer(ledger, engine, accounts, settings, observe=[alerts.observe])


# --- from a file -----------------------------------------------------------------------------------------------------


def _from_file(
    file: str, portfolio: str, tags: dict[str, list[str]], key: str | None, reason: str | None, *,
    apply: bool, as_json: bool, url: str | None,
) -> int:  # fmt: skip
    from ledger_sizer.cli.ledger_session import ledger_at
    from ledger_sizer.model.decisions import Decision
    from ledger_sizer.model.errors import LedgerError
    from ledger_sizer.wire.positions_file import read_positions_file

    try:
        data = Path(file).read_bytes()
    except OSError as error:
        bad_input(f"file {file!r} cannot be read: {error.strerror}; give the path of a CSV file", "file")
    found = read_positions_file(data)
    with ledger_at(url, create=apply) as ledger:
        planned = [_planned(one, tags, ledger.settings.ledger.required_tags) for one in found]
        commands = [
            _adopt_of(one, position, portfolio, key or Path(file).name, reason)
            for one, position in zip(found, planned, strict=True)
        ]
        before = [ledger.lookup(command.key, portfolio) for command in commands]
        if apply:
            try:
                answers = ledger.submit(commands, atomic=True)
            except LedgerError as error:
                raise Failure.from_error(error, hint=_hint(error, commands, found)) from error
            before = [one if isinstance(one, Decision) else None for one in answers]
        positions = [
            replace(position, position_id=None if decision is None else decision.position_id)
            for position, decision in zip(planned, before, strict=True)
        ]
        is_new = [decision is None or (apply and not decision.replayed) for decision in before]
        result = _import_of(ledger, portfolio, positions, is_new, applied=apply)
    if as_json:
        output.write_json({"dry_run": not apply, "items": [_form(result)]})
    else:
        _show(result, applied=apply)
    return errors.DONE


def _planned(one: "FilePosition", tags: dict[str, list[str]], required: Sequence[str]) -> "NewPosition":
    """Return the position of a file with its tags: those of its lines, those given for all, those of its legs."""
    from ledger_sizer.model.errors import InvalidRequest
    from ledger_sizer.model.tags import tags_of
    from ledger_sizer.reconcile.adopted_tags import adopted_tags
    from ledger_sizer.reconcile.day_one import new_position

    try:
        common = tags_of(tags)
        for name in common:
            if name in one.tags and set(one.tags.values_of(name)) != set(common.values_of(name)):
                raise InvalidRequest(
                    f"gives the tag {name} and --tag another value; give it once", field=f"tags.{name}"
                )
        full = adopted_tags(tags_of({**common, **one.tags}), one.legs)
        for name in required:
            if name not in full:
                raise InvalidRequest(
                    f"lacks the tag {name}, which every position here has (LEDGER_REQUIRED_TAGS); write it in the "
                    f"column tags, or give --tag {name}=...",
                    field=f"tags.{name}",
                )
    except InvalidRequest as error:
        raise InvalidRequest(f"line {one.line}: the position {one.name!r}: {error}", field=error.field) from None
    return new_position(one.legs, full)


def _adopt_of(one: "FilePosition", position: "NewPosition", portfolio: str, prefix: str, reason: str | None) -> "Adopt":
    from ledger_sizer.model.commands import Adopt
    from ledger_sizer.model.derived_keys import derived_key

    note = ", ".join(part for part in (reason or "positions import", one.opened and f"opened {one.opened}") if part)
    return Adopt(
        key=derived_key(f"import/{prefix}/{one.name}", ""), portfolio=portfolio, quantity=position.quantity,
        price=position.price, tags=position.tags, legs=position.legs, note=note, reference=one.reference,
    )  # fmt: skip


def _hint(error: Exception, commands: "Sequence[Adopt]", found: "Sequence[FilePosition]") -> str | None:
    from ledger_sizer.model.errors import KeyReused

    if not isinstance(error, KeyReused):
        return "nothing of the file is recorded"
    text = str(error)
    name = next((one.name for command, one in zip(commands, found, strict=True) if repr(command.key) in text), None)
    which = "a position" if name is None else f"the position {name!r}"
    was = "" if error.position_id is None else f" as {error.position_id}"
    return (
        f"{which} of a file of this name was taken over before{was}, with other figures; nothing is recorded now. "
        "Leave it out, or give --key with a new name if this is another one"
    )


def _import_of(
    ledger: "Ledger", portfolio: str, positions: "Sequence[NewPosition]", is_new: Sequence[bool], *, applied: bool
) -> "Import":
    from ledger_sizer.model.errors import NotFound
    from ledger_sizer.reconcile.day_one import Import

    try:
        whole = ledger.exposure(portfolio).whole
        cap, exposure = whole.cap or Decimal(0), whole.exposure
    except NotFound:
        cap, exposure = ledger.settings.sizing.max_portfolio_exposure, Decimal(0)
    new = sum((one.usd for one, new in zip(positions, is_new, strict=True) if new), Decimal(0))
    before, after = (exposure - new, exposure) if applied else (exposure, exposure + new)
    return Import(portfolio, tuple(positions), (), (), cap, before, after)


# --- what is shown ---------------------------------------------------------------------------------------------------


def _form(found: "Import") -> dict[str, Any]:
    from ledger_sizer.model.legs import leg_to_json

    return {
        "portfolio": found.portfolio,
        "positions": [
            {
                "position_id": one.position_id, "quantity": decimal_text(one.quantity),
                "price": decimal_text(one.price), "usd": decimal_text(one.usd), "tags": one.tags.to_json(),
                "legs": [leg_to_json(leg) for leg in one.legs],
            }
            for one in found.positions
        ],
        "left_out": [_left_form(one) for one in found.left_out],
        "problems": [*found.problems],
        "usd": decimal_text(found.usd), "cap": decimal_text(found.cap),
        "exposure_before": decimal_text(found.exposure_before), "exposure_after": decimal_text(found.exposure_after),
        "headroom": decimal_text(max(found.headroom, Decimal(0))),
        "overage": decimal_text(max(-found.headroom, Decimal(0))),
    }  # fmt: skip


def _left_form(one: "LeftOut") -> dict[str, Any]:
    coins, usd = [None if value is None else decimal_text(value) for value in (one.coins, one.usd)]
    return {
        "venue": one.venue, "account": one.account, "subject": one.subject, "side": one.side, "coins": coins,
        "usd": usd, "why": one.why,
    }  # fmt: skip


def _show(found: "Import", *, applied: bool) -> None:
    count = output.count(len(found.positions), "position")
    done = "imported" if applied else "a dry run, nothing is recorded; --apply records it"
    output.headline(f"{count} of {found.portfolio}: {done}", "ok" if not found.problems else "denied")
    titles = [Column("leg", priority=10), Column("quantity"), Column("price USD"), Column("USD", usd=True)]
    rows = []
    for one in found.positions:
        tags = " ".join(f"{name}={value}" for name, value in one.tags.pairs)
        for number, leg in enumerate(one.legs):
            where = "/".join(part for part in (leg.venue, leg.account or one.tags.only("account")) if part)
            first = number == 0
            rows.append((
                (one.position_id or "new") if first else "", f"{leg.side} {leg.symbol} at {where}", leg.quantity,
                leg.price, one.usd if first else None, tags if first else "",
            ))  # fmt: skip
    output.table([Column("position"), *titles, Column("tags", priority=5)], rows, empty="nothing to import")
    if found.left_out:
        output.write("")
        columns = [
            Column("left out"),
            Column("at"),
            Column("coins"),
            Column("USD", usd=True),
            Column("why", priority=10),
        ]
        left = [
            (f"{one.subject} {one.side if ':' in one.subject else ''}".strip(), f"{one.venue}/{one.account}",
             one.coins, one.usd, one.why)
            for one in found.left_out
        ]  # fmt: skip
        output.table(columns, left, empty="")
    output.write("")
    above = output.figure(-found.headroom, 2) if found.headroom < 0 else None
    output.details([
        ("sum", f"{output.figure(found.usd, 2)} USD"),
        ("exposure", f"{output.figure(found.exposure_before, 2)} -> {output.figure(found.exposure_after, 2)} USD"),
        ("cap", f"{output.figure(found.cap, 2)} USD"),
        ("headroom", None if above else f"{output.figure(found.headroom, 2)} USD"),
        ("overage", above and f"{above} USD: nothing more is granted until the cap is raised or something is closed"),
        *(("problem", text) for text in found.problems),
    ])  # fmt: skip
